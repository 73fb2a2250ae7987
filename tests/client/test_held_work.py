"""`async with client.hold(...)`: credits are set aside before the work and taken after it."""

import asyncio
from uuid import uuid4

import pytest
from kit.held_jobs import WorkFailedError, account

from credit_service.errors import (
    AccountFrozen,
    InsufficientCredits,
    InvalidRequest,
    PriceChanged,
    UserNotFound,
)
from credit_service.v1 import credit_service_pb2 as pb

pytestmark = pytest.mark.shared


async def test_credits_are_held_before_the_work_and_captured_after_it(database, client):
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


async def test_part_of_the_hold_may_be_captured(database, client):
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


async def test_a_capture_of_nothing_releases_the_hold(database, client):
    user_id = await database.user(25)
    async with client.hold(user_id, amount=20, job="song-1") as work:
        await work.capture(0)
    assert await account(client, user_id) == (25, 0)
    assert work.captured.hold.state == pb.HOLD_STATE_RELEASED


async def test_failed_work_releases_the_credits(database, client):
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


async def test_cancelled_work_releases_the_credits(database, client):
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


async def test_a_job_whose_keys_would_be_too_long_is_refused_before_any_work(database, client):
    user_id = await database.user(100)
    async with client.hold(user_id, amount=20, job="j" * 118):
        pass
    with pytest.raises(InvalidRequest) as refusal:
        async with client.hold(user_id, amount=20, job="j" * 119):
            raise WorkFailedError
    assert refusal.value.field == "job"
    assert await account(client, user_id) == (80, 0)
