"""Several processes on one port: they share the work, and start together or not at all.

test_drain.py shows how they stop, and how one that dies is replaced.
"""

import json
import socket
from contextlib import contextmanager
from uuid import uuid4

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from kit.programs import free_port, process
from kit.waiting import eventually, patience

from credit_service.client import CreditClient


def two(database, **variables):
    """Starts two processes, on a port of their own if none is given."""
    return process(
        "serve",
        "--processes",
        "2",
        **{
            "CREDIT_DATABASE_URL": database.service_url,
            "CREDIT_LISTEN": f"127.0.0.1:{free_port()}",
            "CREDIT_LOG_FORMAT": "json",
            **variables,
        },
    )


def refusal(running):
    """Waits for the end, which must be a refusal; returns the last line."""
    assert running.wait(60) == 2, running.output
    assert "Traceback" not in running.output
    return running.lines[-1]


@contextmanager
def taken():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        yield listener.getsockname()[1]


def answered_by(running, method):
    calls = [json.loads(line) for line in running.lines if line.startswith("{")]
    return {call["process"] for call in calls if call.get("method") == method}


async def test_both_processes_answer_on_the_one_port_and_write_the_one_book(database):
    user_id = await database.user(1000)
    with two(database) as running:
        target = f"127.0.0.1:{running.wait_until_listening()}"
        spent = 0

        async def both_have_answered():
            nonlocal spent
            # The kernel gives each connection to one of them.
            async with CreditClient(target) as client:
                answer = await client.spend_credits(user_id, amount=1)
                spent += 1
                assert answer.credit.balance == 1000 - spent
            return answered_by(running, "SpendCredits") == {0, 1}

        await eventually(both_have_answered, every=0)
        assert running.output.count(" listens on ") == 1
    assert not await database.faults()


async def test_a_key_used_in_one_process_replays_in_the_other(database):
    user_id = await database.user(10)
    with two(database) as running:
        target = f"127.0.0.1:{running.wait_until_listening()}"
        key = str(uuid4())
        async with CreditClient(target) as client:
            first = await client.spend_credits(user_id, amount=1, idempotency_key=key)

        async def the_other_has_answered():
            async with CreditClient(target) as client:
                again = await client.spend_credits(user_id, amount=1, idempotency_key=key)
                assert (again.replayed, again.transaction) == (True, first.transaction)
            return answered_by(running, "SpendCredits") == {0, 1}

        await eventually(the_other_has_answered, every=0)
    assert not await database.faults()


async def test_they_share_the_health_listener_too(database):
    health_listen = f"127.0.0.1:{free_port()}"
    with two(database, CREDIT_HEALTH_LISTEN=health_listen) as running:
        running.wait_until_listening()
        for _ in range(5):
            async with grpc.aio.insecure_channel(health_listen) as channel:
                health = health_pb2_grpc.HealthStub(channel)
                answer = await health.Check(health_pb2.HealthCheckRequest(), timeout=patience(10))
                assert answer.status == health_pb2.HealthCheckResponse.SERVING


async def test_a_database_that_both_processes_refuse_is_one_refusal(make_database):
    with two(await make_database(empty=True)) as running:
        line = refusal(running)
    assert line == "credit-service: a process refused to start, so all were stopped; see above"
    assert "lacks the migrations" in running.output
    assert "listens on" not in running.output


async def test_one_process_that_refuses_stops_the_other_too(database):
    with taken() as port:
        variables = {"CREDIT_METRICS_PORT": str(port - 1)}
        with two(database, **variables) as running:
            line = refusal(running)
    assert line == "credit-service: a process refused to start, so all were stopped; see above"
    assert f"cannot serve metrics on 127.0.0.1:{port}" in running.output
    assert "process died, starting another" not in running.output
    assert "listens on" not in running.output


async def test_a_port_in_use_is_refused_before_any_process_starts(database):
    with taken() as port:
        address = f"127.0.0.1:{port}"
        for setting in ("CREDIT_LISTEN", "CREDIT_HEALTH_LISTEN"):
            with two(database, **{setting: address}) as running:
                line = refusal(running)
            assert line.startswith(f"credit-service: cannot listen on {address}: Address already")
            assert f"choose another with {setting} or end the program that has it" in line


async def test_two_services_never_share_a_port_by_mistake(database):
    with two(database) as running:
        listen = f"127.0.0.1:{running.wait_until_listening()}"
        with two(database, CREDIT_LISTEN=listen) as second:
            assert f"cannot listen on {listen}: Address already in use" in refusal(second)
        with process(CREDIT_DATABASE_URL=database.service_url, CREDIT_LISTEN=listen) as third:
            assert f"cannot listen on {listen}" in refusal(third)


async def test_ports_that_processes_cannot_share_are_refused(database):
    with two(database, CREDIT_LISTEN="127.0.0.1:0") as running:
        assert "several processes need a port to share; CREDIT_LISTEN has port 0" in refusal(
            running
        )
    with two(database, CREDIT_METRICS_PORT="65535") as running:
        assert "CREDIT_METRICS_PORT: process 1 would take 65536" in refusal(running)
