"""A job that is delivered more than once is paid for once."""

import asyncio
from datetime import UTC, datetime, timedelta

import pytest
from kit.held_jobs import SHORT, WorkFailedError, account, lose
from kit.programs import process
from kit.waiting import eventually

from credit_service.client import CreditClient
from credit_service.errors import (
    AlreadyPaid,
)
from credit_service.v1 import credit_service_pb2 as pb

pytestmark = pytest.mark.shared


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
    """A client whose hold, met again, ends before the client can extend it."""

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


async def test_a_successor_of_a_delivery_that_paid_late_releases_its_hold(database, client):
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
