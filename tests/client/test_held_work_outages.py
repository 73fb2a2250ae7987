"""A hold outlasts its time, the service and lost answers, or the worker gets an error."""

import asyncio
import contextlib
import signal
from datetime import UTC, timedelta

import pytest
from kit.held_jobs import SHORT, WorkFailedError, account, lose
from kit.programs import free_port, process
from kit.services import running, server_settings
from kit.waiting import eventually, patience
from prometheus_client import REGISTRY

from credit_service.client import CreditClient, held_work
from credit_service.errors import (
    AlreadyPaid,
    HoldExpired,
    OutcomeUnknown,
)
from credit_service.v1 import credit_service_pb2 as pb


async def test_a_hold_is_extended_while_the_work_runs(database, client):
    user_id = await database.user(25)
    async with client.hold(user_id, amount=20, job="song-1", ttl=SHORT) as work:
        end = work.hold.expire_time.ToDatetime(UTC)

        async def outlived():
            now = (await database.fetch("SELECT clock_timestamp()"))[0][0]
            return now > end + timedelta(seconds=0.5)

        await eventually(outlived)
        assert await account(client, user_id) == (25, 20)
    assert not work.captured.late
    types = await database.fetch("SELECT type FROM credit_transactions ORDER BY seq")
    assert [row[0] for row in types] == ["purchase", "hold", "capture"]
    assert not await database.faults()


def given_up(method):
    """How many calls of a method went without an answer, in this process."""
    labels = {"method": method, "code": "CANCELLED", "reason": ""}
    return REGISTRY.get_sample_value("credit_calls_total", labels) or 0


@contextlib.asynccontextmanager
async def stuck(database, method):
    """Keeps the account locked until a call has gone without an answer."""
    before = given_up(method)
    lock = await database.connect()
    try:
        await lock.execute("BEGIN")
        await lock.execute("SELECT FROM user_credits FOR UPDATE")
        yield
        await eventually(lambda: given_up(method) > before)
    finally:
        await lock.close()


async def test_an_extension_that_fails_is_followed_by_the_next(database, monkeypatch):
    monkeypatch.setattr(held_work, "_EXTENSIONS_PER_TTL", 40)
    user_id = await database.user(25)
    await database.wait_longer_for_locks()
    async with running(server_settings(database.service_url)) as service:
        client = await service.client(deadline_seconds=patience(1))
        # Eight deadlines, so that one extension without an answer does not lose the hold.
        ttl = timedelta(seconds=patience(8))
        async with client.hold(user_id, amount=20, job="song-1", ttl=ttl) as work:
            async with stuck(database, "ExtendHold"):
                pass
            # This spend comes after the extension that the client has given up.
            await client.spend_credits(user_id, amount=1)
            before = await client.get_hold(user_id, work.hold.id)

            async def extended():
                hold = await client.get_hold(user_id, work.hold.id)
                return hold.expire_time.ToMicroseconds() > before.expire_time.ToMicroseconds()

            await eventually(extended)
            now = (await database.fetch("SELECT clock_timestamp()"))[0][0]
            assert before.expire_time.ToDatetime(UTC) <= now + ttl
    assert not await database.faults()


async def test_a_capture_is_repeated_while_no_answer_comes(database):
    user_id = await database.user(25)
    await database.wait_longer_for_locks()
    async with running(server_settings(database.service_url)) as service:
        client = await service.client(deadline_seconds=patience(1))
        work = client.hold(user_id, amount=20, job="song-1")
        await work.__aenter__()
        async with stuck(database, "CaptureHold"):
            leaving = asyncio.create_task(work.__aexit__(None, None, None))
        await leaving
        assert await account(client, user_id) == (5, 0)
    assert not await database.faults()


async def test_nothing_is_extended_after_the_work(database, client):
    """The heartbeat ends with the block, whichever way it ends."""
    user_id = await database.user(25)
    async with client.hold(user_id, amount=5, job="song-1") as done:
        assert not done._heartbeat.done()
    with pytest.raises(WorkFailedError):
        async with client.hold(user_id, amount=5, job="song-2") as failed:
            raise WorkFailedError
    await eventually(done._heartbeat.done)
    await eventually(failed._heartbeat.done)


async def test_a_lost_hold_is_paid_late_while_the_credits_are_there(database, client):
    user_id = await database.user(25)
    async with client.hold(user_id, amount=20, job="song-1", ttl=SHORT) as work:
        await lose(database, client, user_id, work)
    assert work.captured.late
    assert await account(client, user_id) == (5, 0)
    assert not await database.faults()


async def test_a_lost_hold_whose_credits_are_gone_raises_an_error(database, client):
    user_id = await database.user(25)

    async def work():
        async with client.hold(user_id, amount=20, job="song-1", ttl=SHORT) as held:
            await lose(database, client, user_id, held)
            await client.spend_credits(user_id, amount=10)

    with pytest.raises(HoldExpired):
        await work()
    assert await account(client, user_id) == (15, 0)
    assert not await database.faults()


async def test_an_operator_who_releases_the_hold_stops_the_heartbeat_quietly(database, client):
    user_id = await database.user(25)
    problems = []
    asyncio.get_running_loop().set_exception_handler(lambda _, problem: problems.append(problem))
    try:
        async with client.hold(user_id, amount=20, job="song-1", ttl=timedelta(seconds=1)) as work:
            await client.release_hold(user_id, work.hold.id)
            await eventually(work._heartbeat.done)
            assert work._heartbeat.exception() is None
            await work.capture(0)
    finally:
        asyncio.get_running_loop().set_exception_handler(None)
    assert not problems
    assert await account(client, user_id) == (25, 0)


@contextlib.asynccontextmanager
async def server_on(port, url):
    with process("serve", CREDIT_DATABASE_URL=url, CREDIT_LISTEN=f"127.0.0.1:{port}") as server:
        await asyncio.to_thread(server.wait_until_listening)
        yield server


async def test_work_survives_a_killed_and_restarted_service(database):
    user_id = await database.user(25)
    port = free_port()
    async with CreditClient(f"127.0.0.1:{port}") as client:
        async with server_on(port, database.service_url) as server:
            work = client.hold(user_id, amount=20, job="song-1", ttl=timedelta(seconds=60))
            await work.__aenter__()
            server.signal(signal.SIGKILL)
            await asyncio.to_thread(server.wait)
        leaving = asyncio.create_task(work.__aexit__(None, None, None))
        async with server_on(port, database.service_url):
            await leaving
            assert not work.captured.late
            assert await account(client, user_id) == (5, 0)
            with pytest.raises(AlreadyPaid):
                await client.hold(user_id, amount=20, job="song-1").__aenter__()
    assert not await database.faults()


async def test_a_capture_whose_answer_was_lost_is_repeated_with_its_key(database):
    """The service is killed between the capture and its answer."""
    user_id = await database.user(25)
    port = free_port()
    async with CreditClient(f"127.0.0.1:{port}") as client:
        async with server_on(port, database.service_url) as server:
            work = client.hold(user_id, amount=20, job="song-1", ttl=timedelta(seconds=60))
            await work.__aenter__()
            await client.capture_hold(
                user_id, work.hold.id, idempotency_key="capture:song-1:1", reference="song-1"
            )
            server.signal(signal.SIGKILL)
            await asyncio.to_thread(server.wait)
        leaving = asyncio.create_task(work.__aexit__(None, None, None))
        async with server_on(port, database.service_url):
            await leaving
            assert work.captured.replayed
            assert await account(client, user_id) == (5, 0)
    assert not await database.faults()


async def test_a_service_that_stays_away_leaves_the_outcome_unknown(database, monkeypatch):
    monkeypatch.setattr(held_work, "CAPTURE_SECONDS", 1.0)
    user_id = await database.user(25)
    async with running(server_settings(database.service_url)) as service:
        client = CreditClient(service.target, deadline_seconds=patience(1))
        work = client.hold(user_id, amount=20, job="song-1")
        await work.__aenter__()
    with pytest.raises(OutcomeUnknown) as unknown:
        await work.__aexit__(None, None, None)
    await client.close()
    assert unknown.value.key == "capture:song-1:1"
    await asks_again_and_pays(database, user_id, work, unknown.value.key)


async def test_a_capture_of_unknown_outcome_in_the_body_does_not_release(database, monkeypatch):
    """The work was done, so a repeat with the key must be able to pay."""
    monkeypatch.setattr(held_work, "CAPTURE_SECONDS", 1.0)
    user_id = await database.user(25)
    lock = await database.connect()
    async with running(server_settings(database.service_url)) as service:
        other = await service.client()
        client = await service.client(deadline_seconds=patience(1))
        work = client.hold(user_id, amount=20, job="song-1")

        async def captures_without_an_answer():
            async with work:
                await lock.execute("BEGIN")
                await lock.execute("SELECT FROM user_credits FOR UPDATE")
                try:
                    await work.capture()
                finally:
                    await lock.close()

        with pytest.raises(OutcomeUnknown) as unknown:
            await captures_without_an_answer()
        held = await other.get_hold(user_id, work.hold.id)
        assert held.state in (pb.HOLD_STATE_HELD, pb.HOLD_STATE_CAPTURED)
    await asks_again_and_pays(database, user_id, work, unknown.value.key)


@pytest.mark.parametrize(
    ("key", "state"),
    [("capture:song-1:1", pb.HOLD_STATE_HELD), ("spend:song-1:1", pb.HOLD_STATE_RELEASED)],
)
async def test_only_its_own_capture_without_an_answer_keeps_the_hold(database, client, key, state):
    user_id = await database.user(25)
    with pytest.raises(OutcomeUnknown):
        async with client.hold(user_id, amount=20, job="song-1") as work:
            raise OutcomeUnknown(key)
    assert (await client.get_hold(user_id, work.hold.id)).state == state


async def asks_again_and_pays(database, user_id, work, key):
    async with running(server_settings(database.service_url)) as service:
        client = await service.client()
        paid = await client.capture_hold(user_id, work.hold.id, idempotency_key=key)
        assert paid.transaction.amount == 20
        assert await account(client, user_id) == (5, 0)
    assert not await database.faults()
