"""The embedded PostgreSQL that dies under a running service, and is started again."""

import asyncio
import contextlib
import json
import os
import signal
from contextlib import asynccontextmanager
from pathlib import Path
from urllib.parse import quote

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from kit.databases import Database
from kit.embedded_parents import Parent, ask, until
from kit.programs import free_port, process
from kit.storm import Storm, connected
from kit.waiting import eventually, patience

from credit_service.database.postmaster import Announced, alive, announced
from credit_service.v1 import credit_service_pb2 as pb

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


RUNS_AGAIN = "embedded PostgreSQL runs again"
DIED = "embedded PostgreSQL died, starting it again"
DOES_NOT_START = "embedded PostgreSQL does not start, trying again"


def postmaster(data: Path) -> Announced:
    """The announcement of the current server."""
    found = announced(data / "postgresql-18")
    assert found is not None
    return found


@asynccontextmanager
async def serving(data: Path):
    """A service with an embedded server of its own; yields it, its address and its database."""
    target = f"127.0.0.1:{free_port()}"
    with process("serve", "--migrate", CREDIT_DATA_DIR=str(data), CREDIT_LISTEN=target) as service:
        await asyncio.to_thread(service.wait_until_listening)
        url = "postgresql://{}@/credit?host=" + quote(str(postmaster(data).sockets))
        database = Database("credit", url.format("postgres"), url.format("credit_service"))
        yield service, target, database


async def health(target):
    async with grpc.aio.insecure_channel(target) as channel:
        answer = await health_pb2_grpc.HealthStub(channel).Check(
            health_pb2.HealthCheckRequest(), timeout=patience(5)
        )
        return answer.status


def events(service, event):
    """The log lines of an event."""
    lines = [json.loads(line) for line in service.lines if line.startswith("{")]
    return [line for line in lines if line["event"] == event]


async def test_a_server_that_is_killed_under_calls_is_started_again_and_nothing_is_lost(data):
    async with serving(data) as (service, target, database):
        users = [await database.user(500) for _ in range(4)]
        async with Storm([target], users, seed=18) as storm:
            for deaths in (1, 2):
                await storm.more(50)
                killed = postmaster(data).pid
                os.kill(killed, signal.SIGKILL)
                await eventually(lambda n=deaths: len(events(service, RUNS_AGAIN)) == n)
                assert postmaster(data).pid != killed
            await storm.more(50)
        assert set(storm.codes) <= {"OK", "FAILED_PRECONDITION", "UNAVAILABLE"}
        assert storm.codes["UNAVAILABLE"]
        await storm.settle()
        await storm.check(database)
        await eventually(lambda: _is(target, SERVING))
        died = events(service, DIED)
        assert [line["signal"] for line in died] == ["SIGKILL"] * 2
        service.signal(signal.SIGTERM)
        assert await asyncio.to_thread(service.wait) == 0


async def _is(target, status):
    return await health(target) == status


async def test_a_server_that_was_shut_down_is_started_again(data):
    async with serving(data) as (service, target, database):
        user_id = await database.user(100)
        os.kill(postmaster(data).pid, signal.SIGINT)
        await asyncio.to_thread(service.wait_for, RUNS_AGAIN)
        (died,) = events(service, DIED)
        assert died["exit"] == 0
        assert "database system is shut down" in died["last_lines"][-1]
        assert died["log"] == str(data / "postgresql-18.log")
        async with connected(target) as stub:
            request = pb.GetUserCreditRequest(user_id=str(user_id))

            async def answers():
                with contextlib.suppress(grpc.aio.AioRpcError):
                    return await stub.GetUserCredit(request, timeout=patience(5))

            assert (await eventually(answers)).credit.balance == 100


async def test_a_server_whose_log_was_removed_is_started_again(data):
    async with serving(data) as (service, target, _):
        log = data / "postgresql-18.log"
        log.unlink()
        os.kill(postmaster(data).pid, signal.SIGKILL)
        await asyncio.to_thread(service.wait_for, RUNS_AGAIN)
        assert log.stat().st_mode & 0o777 == 0o600
        assert "database system is ready" in log.read_text()
        await eventually(lambda: _is(target, SERVING))


async def test_a_damaged_cluster_is_tried_again_and_says_why_it_does_not_start(data):
    async with serving(data) as (service, target, _):
        assert await health(target) == SERVING
        control = data / "postgresql-18" / "global" / "pg_control"
        away = control.with_name("away")
        control.rename(away)
        os.kill(postmaster(data).pid, signal.SIGKILL)
        await asyncio.to_thread(service.wait_for, f"pg_control.*{DOES_NOT_START}")
        await eventually(lambda: _is(target, NOT_SERVING))
        await eventually(lambda: len(events(service, DOES_NOT_START)) >= 3)
        pauses = [line["seconds"] for line in events(service, DOES_NOT_START)]
        assert pauses == sorted(set(pauses))
        away.rename(control)
        await asyncio.to_thread(service.wait_for, RUNS_AGAIN)
        await eventually(lambda: _is(target, SERVING))


async def test_a_stop_while_the_server_does_not_start_ends_the_service(data):
    async with serving(data) as (service, _, _):
        control = data / "postgresql-18" / "global" / "pg_control"
        control.rename(control.with_name("away"))
        os.kill(postmaster(data).pid, signal.SIGKILL)
        await asyncio.to_thread(service.wait_for, DOES_NOT_START)
        service.signal(signal.SIGTERM)
        assert await asyncio.to_thread(service.wait) == 0


def test_a_server_that_was_started_again_ends_with_a_killed_parent(data):
    parent = Parent(data, {})
    killed = parent.read()
    ask(killed["owner_url"], "CREATE TABLE kept AS SELECT 42 AS answer")
    os.kill(int(killed["pid"]), signal.SIGKILL)

    def is_replaced():
        found = announced(data / "postgresql-18")
        return found and found.pid != int(killed["pid"]) and found.ready

    until(is_replaced)
    assert ask(killed["owner_url"], "SELECT answer FROM kept") == "42"
    second = postmaster(data).pid
    parent.end(signal.SIGKILL)
    until(lambda: not alive(second))
