"""`async with client.hold(...)`: credits are set aside before the work and taken after it."""

import asyncio
import contextlib
import signal
from datetime import UTC, datetime, timedelta
from uuid import uuid4

import pytest
from harness import eventually, free_port, process, running, server_settings
from prometheus_client import REGISTRY

from credit_service import held_work
from credit_service.client import CreditClient
from credit_service.errors import (
    AccountFrozen,
    AlreadyPaid,
    HoldExpired,
    InsufficientCredits,
    InvalidRequest,
    OutcomeUnknown,
    PriceChanged,
    UserNotFound,
)
from credit_service.v1 import credit_service_pb2 as pb

SHORT = timedelta(seconds=2)


class WorkFailedError(Exception):
    """What goes wrong in the body."""


async def account(client, user_id):
    credit = await client.get_user_credit(user_id)
    return credit.balance, credit.held


async def test_credits_are_held_before_the_work_and_taken_after_it(database, client):
    user_id = await database.user(25)
    async with client.hold(user_id, "stem_separation", job="song-1", quantity=2) as work:
        assert await account(client, user_id) == (25, 20)
        assert work.hold.state == pb.HOLD_STATE_HELD
        assert work.captured is None
    assert await account(client, user_id) == (5, 0)
    paid = work.captured.transaction
    assert (paid.amount, paid.operation, paid.reference) == (20, "stem_separation", "song-1")
    assert paid.idempotency_key == "capture:song-1:1"
    made = await client.get_transaction(user_id, idempotency_key="hold:song-1:1")
    assert (made.hold_id, made.reference) == (work.hold.id, "song-1")
    assert not await database.faults()


async def test_part_of_the_hold_may_be_taken(database, client):
    user_id = await database.user(25)
    async with client.hold(user_id, amount=20, job="song-1") as work:
        answer = await work.capture(3)
        assert answer is work.captured
        assert await account(client, user_id) == (22, 0)
    assert await account(client, user_id) == (22, 0)
    async with client.hold(user_id, "render", quantity=4, job="song-2") as work:
        await work.capture(quantity=3)
    assert await account(client, user_id) == (7, 0)
    async with client.hold(user_id, amount=5, job="song-3") as work:
        await work.capture(7, allow_overage=True)
    assert await account(client, user_id) == (0, 0)
    assert not await database.faults()


async def test_nothing_may_be_taken(database, client):
    user_id = await database.user(25)
    async with client.hold(user_id, amount=20, job="song-1") as work:
        await work.capture(0)
    assert await account(client, user_id) == (25, 0)
    assert work.captured.hold.state == pb.HOLD_STATE_RELEASED


async def test_work_that_fails_gives_the_credits_back(database, client):
    user_id = await database.user(25)
    with pytest.raises(WorkFailedError):
        async with client.hold(user_id, amount=20, job="song-1") as work:
            raise WorkFailedError
    assert await account(client, user_id) == (25, 0)
    ended = await client.get_hold(user_id, work.hold.id)
    assert ended.state == pb.HOLD_STATE_RELEASED
    entry = await client.get_transaction(user_id, idempotency_key="release:song-1:1")
    assert (entry.id, entry.reference) == (ended.settled_transaction_id, "song-1")
    assert not await database.faults()


async def test_work_that_fails_after_its_capture_stays_paid(database, client):
    user_id = await database.user(25)

    async def work():
        async with client.hold(user_id, amount=20, job="song-1") as held:
            await held.capture()
            raise WorkFailedError

    with pytest.raises(WorkFailedError):
        await work()
    assert await account(client, user_id) == (5, 0)


async def test_a_release_that_is_refused_does_not_hide_what_failed(database, client):
    user_id = await database.user(25)

    async def work():
        async with client.hold(user_id, amount=20, job="song-1") as held:
            await client.capture_hold(user_id, held.hold.id)
            raise WorkFailedError

    with pytest.raises(WorkFailedError):
        await work()
    assert await account(client, user_id) == (5, 0)


async def test_cancelled_work_gives_the_credits_back(database, client):
    user_id = await database.user(25)
    begun = asyncio.Event()

    async def work():
        async with client.hold(user_id, amount=20, job="song-1"):
            begun.set()
            await asyncio.Event().wait()

    task = asyncio.create_task(work())
    await begun.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await account(client, user_id) == (25, 0)
    assert not await database.faults()


async def test_missing_credits_are_refused_before_any_work(database, client):
    user_id = await database.user(9)
    began = False
    with pytest.raises(InsufficientCredits) as refusal:
        async with client.hold(user_id, "stem_separation", job="song-1"):
            began = True
    assert not began
    assert refusal.value.shortfall == 1
    await client.grant_credits(user_id, 1, reason="a credit was missing")
    async with client.hold(user_id, "stem_separation", job="song-1") as work:
        assert work.attempt == 1
    assert await account(client, user_id) == (0, 0)


async def test_every_refusal_comes_typed_before_any_work(database, client):
    user_id = await database.user(100)
    for refusal, arguments in (
        (UserNotFound, {"user_id": uuid4(), "amount": 1}),
        (PriceChanged, {"user_id": user_id, "operation": "render", "expected_cost": 4}),
        (InvalidRequest, {"user_id": user_id, "operation": "juggling"}),
    ):
        with pytest.raises(refusal):
            async with client.hold(job="song-1", **arguments):
                raise WorkFailedError
    await client.set_account_policy(user_id, frozen=True)
    with pytest.raises(AccountFrozen):
        async with client.hold(user_id, amount=1, job="song-1"):
            raise WorkFailedError
    assert await account(client, user_id) == (100, 0)


async def test_a_job_delivered_again_does_not_pay_again(database, client):
    user_id = await database.user(25)
    async with client.hold(user_id, amount=20, job="song-1") as work:
        pass
    with pytest.raises(AlreadyPaid) as done:
        async with client.hold(user_id, amount=20, job="song-1"):
            raise WorkFailedError
    assert (done.value.job, done.value.hold_id) == ("song-1", work.hold.id)
    assert await account(client, user_id) == (5, 0)
    assert not await database.faults()


async def test_a_job_delivered_again_while_it_is_held_goes_on_with_its_hold(database, client):
    """The first worker died in the middle; its hold has little time left."""
    user_id = await database.user(25)
    lost = await client.hold_credits(
        user_id, amount=20, idempotency_key="hold:song-1:1", ttl=timedelta(seconds=60)
    )
    async with client.hold(user_id, amount=20, job="song-1", ttl=timedelta(minutes=9)) as work:
        assert (work.hold.id, work.attempt) == (lost.hold.id, 1)
        assert work.hold.expire_time.ToDatetime(UTC) - datetime.now(UTC) > timedelta(minutes=5)
        assert await account(client, user_id) == (25, 20)
    assert await account(client, user_id) == (5, 0)
    assert not await database.faults()


class Overtaken(CreditClient):
    """Meets a hold again, and before it can renew it, the hold ends."""

    def __init__(self, target, end):
        super().__init__(target)
        self.end = end

    async def extend_hold(self, user_id, hold_id, **options):
        await self.end(self, user_id, hold_id)
        return await super().extend_hold(user_id, hold_id, **options)


async def released(client, user_id, hold_id):
    await client.release_hold(user_id, hold_id)


async def expired(client, user_id, hold_id):
    async def over():
        return (await client.get_hold(user_id, hold_id)).state == pb.HOLD_STATE_EXPIRED

    await eventually(over)


@pytest.mark.parametrize("end", [released, expired])
async def test_a_hold_that_ends_as_it_is_met_again_is_followed_by_the_next(database, service, end):
    user_id = await database.user(25)
    async with Overtaken(service.target, end) as client:
        await client.hold_credits(
            user_id, amount=20, idempotency_key="hold:song-1:1", ttl=timedelta(seconds=1)
        )
        async with client.hold(user_id, amount=20, job="song-1") as work:
            assert work.attempt == 2
            assert (await client.get_hold(user_id, work.hold.id)).state == pb.HOLD_STATE_HELD
        assert await account(client, user_id) == (5, 0)
    assert not await database.faults()


async def test_a_released_or_expired_attempt_is_followed_by_the_next(database, client):
    user_id = await database.user(25)
    with pytest.raises(WorkFailedError):
        async with client.hold(user_id, amount=20, job="song-1"):
            raise WorkFailedError
    await client.hold_credits(
        user_id, amount=20, idempotency_key="hold:song-1:2", ttl=timedelta(seconds=1)
    )

    async def expired():
        return await account(client, user_id) == (25, 0)

    await eventually(expired)
    async with client.hold(user_id, amount=20, job="song-1") as work:
        assert work.attempt == 3
    assert work.captured.transaction.idempotency_key == "capture:song-1:1"
    with pytest.raises(AlreadyPaid):
        async with client.hold(user_id, amount=20, job="song-1"):
            raise WorkFailedError
    assert await account(client, user_id) == (5, 0)
    assert not await database.faults()


async def test_a_job_captured_late_counts_as_paid(database, client):
    user_id = await database.user(25)
    made = await client.hold_credits(
        user_id, amount=20, idempotency_key="hold:song-1:1", ttl=timedelta(seconds=1)
    )

    async def expired():
        hold = await client.get_hold(user_id, made.hold.id)
        return hold.state == pb.HOLD_STATE_EXPIRED

    await eventually(expired)
    late = await client.capture_hold(user_id, made.hold.id, idempotency_key="capture:song-1:1")
    assert late.late
    with pytest.raises(AlreadyPaid):
        async with client.hold(user_id, amount=20, job="song-1"):
            raise WorkFailedError


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
        client = await service.client(deadline_seconds=1)
        ttl = timedelta(seconds=8)
        async with client.hold(user_id, amount=20, job="song-1", ttl=ttl) as work:
            async with stuck(database, "ExtendHold"):
                pass
            # Behind the extension that nobody waits for any more.
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
        client = await service.client(deadline_seconds=1)
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


async def test_a_lost_hold_whose_credits_are_gone_is_told(database, client):
    user_id = await database.user(25)

    async def work():
        async with client.hold(user_id, amount=20, job="song-1", ttl=SHORT) as held:
            await lose(database, client, user_id, held)
            await client.spend_credits(user_id, amount=10)

    with pytest.raises(HoldExpired):
        await work()
    assert await account(client, user_id) == (15, 0)
    assert not await database.faults()


async def lose(database, client, user_id, work):
    """Stops the heartbeat, as a machine does that sleeps, until the hold has expired."""
    work._heartbeat.cancel()

    async def expired():
        hold = await client.get_hold(user_id, work.hold.id)
        return hold.state == pb.HOLD_STATE_EXPIRED

    await eventually(expired)


async def test_an_operator_who_releases_the_hold_stops_the_heartbeat_quietly(database, client):
    user_id = await database.user(25)
    problems = []
    asyncio.get_running_loop().set_exception_handler(lambda _, told: problems.append(told))
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
        client = CreditClient(service.target, deadline_seconds=1)
        work = client.hold(user_id, amount=20, job="song-1")
        await work.__aenter__()
    with pytest.raises(OutcomeUnknown) as unknown:
        await work.__aexit__(None, None, None)
    await client.close()
    assert unknown.value.key == "capture:song-1:1"
    await asks_again_and_pays(database, user_id, work, unknown.value.key)


async def test_a_capture_of_unknown_outcome_in_the_body_does_not_release(database, monkeypatch):
    """The work was done: whoever asks again with the key must be able to pay."""
    monkeypatch.setattr(held_work, "CAPTURE_SECONDS", 1.0)
    user_id = await database.user(25)
    lock = await database.connect()
    async with running(server_settings(database.service_url)) as service:
        other = await service.client()
        client = await service.client(deadline_seconds=1)
        work = client.hold(user_id, amount=20, job="song-1")

        async def captures_in_vain():
            async with work:
                await lock.execute("BEGIN")
                await lock.execute("SELECT FROM user_credits FOR UPDATE")
                try:
                    await work.capture()
                finally:
                    await lock.close()

        with pytest.raises(OutcomeUnknown) as unknown:
            await captures_in_vain()
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


async def test_a_delivery_that_comes_back_late_does_not_pay_beside_its_successor(database, client):
    user_id = await database.user(100)
    stalled = client.hold(user_id, amount=20, job="song-1", ttl=SHORT)
    await stalled.__aenter__()
    await lose(database, client, user_id, stalled)
    async with client.hold(user_id, amount=20, job="song-1") as successor:
        assert successor.attempt == 2
    with pytest.raises(AlreadyPaid) as paid:
        await stalled.__aexit__(None, None, None)
    assert paid.value.hold_id == successor.hold.id
    assert await account(client, user_id) == (80, 0)
    assert not await database.faults()


async def test_a_successor_of_a_delivery_that_paid_late_gives_its_hold_back(database, client):
    user_id = await database.user(100)
    stalled = client.hold(user_id, amount=20, job="song-1", ttl=SHORT)
    await stalled.__aenter__()
    await lose(database, client, user_id, stalled)
    with pytest.raises(AlreadyPaid) as paid:
        async with client.hold(user_id, amount=20, job="song-1"):
            await stalled.__aexit__(None, None, None)
    assert stalled.captured.late
    assert paid.value.hold_id == stalled.hold.id
    assert await account(client, user_id) == (80, 0)
    assert not await database.faults()


async def test_a_job_whose_keys_would_be_too_long_is_refused_before_any_work(database, client):
    user_id = await database.user(100)
    async with client.hold(user_id, amount=20, job="j" * 118):
        pass
    with pytest.raises(InvalidRequest) as refusal:
        async with client.hold(user_id, amount=20, job="j" * 119):
            raise WorkFailedError
    assert refusal.value.field == "job"
    assert await account(client, user_id) == (80, 0)


async def test_two_deliveries_at_once_pay_once(database):
    user_id = await database.user(100)
    with (
        process("serve", CREDIT_DATABASE_URL=database.service_url) as one,
        process("serve", CREDIT_DATABASE_URL=database.service_url) as two,
    ):
        targets = [f"127.0.0.1:{server.wait_until_listening()}" for server in (one, two)]

        async def deliver(client, job):
            try:
                async with client.hold(user_id, amount=1, job=job):
                    await asyncio.sleep(0)
            except AlreadyPaid:
                return 0
            return 1

        async with CreditClient(targets[0]) as left, CreditClient(targets[1]) as right:
            jobs = [f"song-{n}" for n in range(10)]
            done = await asyncio.gather(
                *(deliver(client, job) for job in jobs for client in (left, right, left))
            )
            assert sum(done) >= 10
            assert await account(left, user_id) == (90, 0)
    assert not await database.faults()
