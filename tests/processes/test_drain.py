"""A stop in the middle of the work: the service answers the accepted calls, and ends."""

import asyncio
import contextlib
import os
import re
import signal
from collections import Counter
from contextlib import asynccontextmanager
from pathlib import Path
from uuid import uuid4

import grpc
import pytest
from kit.clusters import through
from kit.fault_proxy import COMMIT, Kind
from kit.programs import free_port, process
from kit.refusals import refused
from kit.storm import Storm, call, connected
from kit.waiting import eventually, patience

from credit_service.client import CreditClient
from credit_service.v1 import credit_service_pb2 as pb

STOPPING = "stopping: calls in flight are answered"


@asynccontextmanager
async def serving(url, count, **settings):
    """One process, or several on one port."""
    target = f"127.0.0.1:{free_port()}"
    arguments = ("serve",) if count == 1 else ("serve", "--processes", str(count))
    environment = {"CREDIT_DATABASE_URL": url, "CREDIT_LISTEN": target} | settings
    with process(*arguments, **environment) as server:
        await asyncio.to_thread(server.wait_until_listening)  # a proxy runs in this loop
        yield server, target


def spend(user_id, amount=1):
    return pb.SpendCreditsRequest(user_id=str(user_id), amount=amount, idempotency_key=uuid4().hex)


def children(pid):
    """The server processes that a process started (not the helper of multiprocessing)."""
    found = []
    for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it has just ended
            if b"spawn_main" in Path(f"/proc/{child}/cmdline").read_bytes():
                found.append(int(child))
    return found


async def stopping_lines(server, count):
    await eventually(lambda: server.output.count(STOPPING) == count)


@pytest.mark.parametrize("count", [1, 2])
async def test_a_stop_under_load_loses_no_answer_it_gave(database, count):
    users = [await database.user(500) for _ in range(4)]
    async with serving(database.service_url, count) as (server, target):
        async with Storm([target], users, seed=count) as storm:
            await storm.more(150)
            server.signal(signal.SIGTERM)
            assert await asyncio.to_thread(server.wait) == 0
        assert set(storm.codes) <= {"OK", "FAILED_PRECONDITION", "UNAVAILABLE"}
        assert not re.search('"outcome": ?"CANCELLED"', server.output)
        assert len(re.findall('"outcome": ?"OK"', server.output)) == storm.codes["OK"]
        assert "exception" not in server.output.lower()
    async with serving(database.service_url, 1) as (_, target):
        await storm.settle(target)
    await storm.check(database)


@pytest.mark.parametrize("count", [1, 2])
async def test_a_stop_waits_for_the_calls_in_flight(database, proxy, count):
    user_id = await database.user(100)
    async with serving(proxy.url, count, CREDIT_LANES="1") as (server, target):
        held = proxy.on(COMMIT, Kind.HOLD)
        async with connected(target) as stub:
            written = asyncio.create_task(call(stub, spend(user_id), 30))
            await held.met.wait()
            queued = [asyncio.create_task(call(stub, spend(user_id), 30)) for _ in range(5)]
            # Reads bypass the lane, so an answered read shows that the earlier writes have arrived.
            await stub.GetUserCredit(
                pb.GetUserCreditRequest(user_id=str(user_id)), timeout=patience(10)
            )
            server.signal(signal.SIGTERM)
            await stopping_lines(server, count)
            held.release()
            answers = await asyncio.gather(written, *queued)
        assert [answer.replayed for answer in answers] == [False] * 6
        assert await asyncio.to_thread(server.wait) == 0
    assert not await database.faults()


async def test_a_server_that_stops_refuses_new_calls_as_unavailable(database, proxy):
    user_id = await database.user(100)
    async with serving(proxy.url, 1) as (server, target):
        held = proxy.on(COMMIT, Kind.HOLD)
        async with connected(target) as stub, connected(target) as other:
            written = asyncio.create_task(call(stub, spend(user_id), 30))
            await held.met.wait()
            server.signal(signal.SIGTERM)
            await stopping_lines(server, 1)
            late = await call(other, spend(user_id))
            assert late.code() is grpc.StatusCode.UNAVAILABLE
            held.release()
            assert (await written).credit.balance == 99
        assert await asyncio.to_thread(server.wait) == 0


@pytest.mark.parametrize("count", [1, 2])
async def test_a_server_that_stops_answers_unavailable_and_never_cancelled(database, count):
    user_id = await database.user(1_000_000)
    stopped = asyncio.Event()
    codes = Counter()

    async def caller(target):
        # No pause: some calls are on their way at every moment of the stop.
        async with connected(target) as stub:
            while not stopped.is_set():
                answer = await call(stub, spend(user_id))
                failed = isinstance(answer, grpc.aio.AioRpcError)
                codes[answer.code().name if failed else "OK"] += 1

    async def watcher(target):
        async with connected(target) as stub:
            stream = stub.WatchUserCredit(pb.WatchUserCreditRequest(user_id=str(user_id)))
            with pytest.raises(grpc.aio.AioRpcError) as end:
                async for _ in stream:
                    pass
        assert refused(end.value).code is grpc.StatusCode.UNAVAILABLE
        assert refused(end.value).reason == "LEDGER_UNAVAILABLE"
        assert refused(end.value).retry_seconds

    for _ in range(2):
        stopped.clear()
        async with serving(database.service_url, count) as (server, target):
            callers = [asyncio.create_task(caller(target)) for _ in range(10)]
            watchers = [asyncio.create_task(watcher(target)) for _ in range(3)]
            goal = codes["OK"] + 100
            await eventually(lambda goal=goal: codes["OK"] >= goal)
            server.signal(signal.SIGTERM)
            assert await asyncio.to_thread(server.wait) == 0
            stopped.set()
            await asyncio.gather(*callers, *watchers)
    assert set(codes) == {"OK", "UNAVAILABLE"}
    assert not await database.faults()


async def test_a_stop_ends_in_time_although_the_database_never_answers(database, proxy):
    user_id = await database.user(100)
    request = spend(user_id, 3)
    async with serving(proxy.url, 1, CREDIT_DRAIN_SECONDS="0.5") as (server, target):
        held = proxy.on(COMMIT, Kind.HOLD)
        async with connected(target) as stub:
            asking = asyncio.create_task(call(stub, request, 60))
            await held.met.wait()
            proxy.black_hole()
            server.signal(signal.SIGTERM)
            assert await asyncio.to_thread(server.wait) == 0
            assert refused(await asking).reason == "LEDGER_UNAVAILABLE"
    proxy.heal()
    async with serving(database.service_url, 1) as (_, target), connected(target) as stub:
        again = await call(stub, request)
    assert again.credit.balance == 97
    assert not await database.faults()


@pytest.mark.parametrize("count", [1, 2])
async def test_a_second_signal_ends_it_at_once(database, proxy, count):
    user_id = await database.user(100)
    async with serving(proxy.url, count, CREDIT_DRAIN_SECONDS="600") as (server, target):
        held = proxy.on(COMMIT, Kind.HOLD)
        async with connected(target) as stub:
            asking = asyncio.create_task(call(stub, spend(user_id), 60))
            await held.met.wait()
            server.signal(signal.SIGTERM)
            await stopping_lines(server, count)
            assert server.popen.poll() is None
            server.signal(signal.SIGTERM)
            code = await asyncio.to_thread(server.wait)
            assert (await asking).code() is grpc.StatusCode.UNAVAILABLE
    assert code == 1
    assert "second stop signal" in server.output
    assert not await database.faults()


@pytest.mark.parametrize("count", [1, 2])
async def test_ctrl_c_reaches_all_processes_and_counts_once(database, proxy, count):
    user_id = await database.user(100)
    async with serving(proxy.url, count) as (server, target):
        held = proxy.on(COMMIT, Kind.HOLD)
        async with connected(target) as stub:
            asking = asyncio.create_task(call(stub, spend(user_id), 60))
            await held.met.wait()
            os.killpg(server.popen.pid, signal.SIGINT)
            await stopping_lines(server, count)
            if count == 2:
                # The idle process ends at once; by then the signal has reached the other as well.
                await eventually(lambda: len(children(server.popen.pid)) == 1)
            held.release()
            assert (await asking).credit.balance == 99
        assert await asyncio.to_thread(server.wait) == 0
    assert "second stop signal" not in server.output


async def test_a_process_that_is_killed_is_replaced_and_loses_nothing(database):
    users = [await database.user(500) for _ in range(4)]
    async with serving(database.service_url, 2) as (server, target):
        async with Storm([target], users, seed=3) as storm:
            await storm.more(100)
            before = children(server.popen.pid)
            assert len(before) == 2
            os.kill(before[0], signal.SIGKILL)
            await asyncio.to_thread(server.wait_for, "process died, starting another")
            await eventually(lambda: len(children(server.popen.pid)) == 2)
            assert before[0] not in children(server.popen.pid)
            await storm.more(100)
        await storm.settle()
        await storm.check(database)
        server.signal(signal.SIGTERM)
        assert await asyncio.to_thread(server.wait) == 0


async def test_a_stop_while_a_process_is_being_replaced_still_ends(database):
    async with serving(database.service_url, 2) as (server, _):
        os.kill(children(server.popen.pid)[1], signal.SIGKILL)
        await asyncio.to_thread(server.wait_for, "process died, starting another")
        server.signal(signal.SIGTERM)
        assert await asyncio.to_thread(server.wait) == 0


async def test_processes_stop_when_their_parent_is_gone(database):
    async with serving(database.service_url, 2) as (server, _):
        orphans = children(server.popen.pid)
        server.signal(signal.SIGKILL)
        await asyncio.to_thread(server.popen.wait)
        await eventually(lambda: not any(_alive(pid) for pid in orphans))
        assert server.output.count(STOPPING) == 2


def _alive(pid):
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    return False


async def test_a_stop_while_it_waits_for_its_database_ends_it(database):
    url = through(database.service_url, "/nowhere")
    with process("serve", CREDIT_DATABASE_URL=url) as server:
        await asyncio.to_thread(server.wait_for, "not reachable, trying again")
        server.signal(signal.SIGTERM)
        assert await asyncio.to_thread(server.wait) == 0


async def test_users_of_the_client_do_not_notice_a_restart(database):
    users = [await database.user(10_000) for _ in range(4)]
    target = f"127.0.0.1:{free_port()}"
    environment = {"CREDIT_DATABASE_URL": database.service_url, "CREDIT_LISTEN": target}
    answers = []

    async def caller(user_id):
        async with CreditClient(target, deadline_seconds=patience(30)) as client:
            while not done.is_set():
                answers.append(await client.spend_credits(user_id, amount=1))

    done = asyncio.Event()
    callers = [asyncio.create_task(caller(users[n % 4])) for n in range(24)]
    for _ in range(3):
        with process("serve", **environment) as server:
            goal = len(answers) + 50
            await eventually(lambda goal=goal: len(answers) >= goal, seconds=60)
            server.signal(signal.SIGTERM)
            assert await asyncio.to_thread(server.wait) == 0
    with process("serve", **environment):
        done.set()
        await asyncio.gather(*callers)
    assert len({answer.transaction.id for answer in answers}) == len(answers)
    assert not await database.faults()
