"""A job runs again: after a capture of nothing, and after a refund; each run pays once."""

import asyncio

import pytest
from kit.held_jobs import SHORT, WorkFailedError, account, lose

from credit_service.client import BlockingCreditClient
from credit_service.errors import AlreadyPaid, IdempotencyKeyReused
from credit_service.v1 import credit_service_pb2 as pb

pytestmark = pytest.mark.shared


async def runs(client, user_id, **options):
    """Runs the job under a hold of 5 credits; returns the attempt that its hold was made by."""
    async with client.hold(user_id, amount=5, job="song-1", **options) as held:
        pass
    assert held.captured.transaction.amount == 5
    return held.attempt


async def is_paid(client, user_id, **options):
    with pytest.raises(AlreadyPaid):
        async with client.hold(user_id, amount=5, job="song-1", **options):
            raise AssertionError("the job runs twice")
    return True


async def fails(client, user_id, **options):
    with pytest.raises(WorkFailedError):
        async with client.hold(user_id, amount=5, job="song-1", **options):
            raise WorkFailedError


async def refund(client, user_id):
    newest = await anext(client.get_transaction_history(user_id))
    await client.refund_credits(user_id, newest.id)


# A capture of nothing.


async def test_a_delivery_that_took_nothing_is_followed_by_one_that_pays(database, client):
    user_id = await database.user(25)
    for _ in range(2):
        async with client.hold(user_id, amount=5, job="song-1") as held:
            taken = await held.capture(0)
            assert taken.hold.state == pb.HOLD_STATE_RELEASED
            # Repeated, it is the same call.
            assert (await held.capture(0)).replayed
    assert await account(client, user_id) == (25, 0)
    assert await runs(client, user_id) == 3
    assert await is_paid(client, user_id)
    assert await account(client, user_id) == (20, 0)
    assert not await database.faults()


async def test_a_capture_of_no_units_takes_nothing_too(database, client):
    user_id = await database.user(25)
    async with client.hold(user_id, "render", job="song-1") as held:
        await held.capture(quantity=0)
    async with client.hold(user_id, "render", job="song-1") as held:
        await held.capture(quantity=1)
    assert await account(client, user_id) == (20, 0)
    assert not await database.faults()


async def took_nothing_with_the_key_of_the_capture(client, user_id):
    """As this client did before 0.2.0."""
    made = await client.hold_credits(user_id, amount=5, idempotency_key="hold:song-1:1")
    await client.capture_hold(
        user_id, made.hold.id, amount=0, idempotency_key="capture:song-1:1", reference="song-1"
    )


async def test_a_key_that_an_older_client_used_for_nothing_does_not_count_as_paid(database, client):
    user_id = await database.user(25)
    await took_nothing_with_the_key_of_the_capture(client, user_id)
    assert await runs(client, user_id) == 2
    assert await is_paid(client, user_id)
    assert await account(client, user_id) == (20, 0)
    assert not await database.faults()


async def test_two_deliveries_after_an_older_client_still_pay_once(database, client):
    user_id = await database.user(25)
    await took_nothing_with_the_key_of_the_capture(client, user_id)
    stalled = client.hold(user_id, amount=5, job="song-1", ttl=SHORT)
    await stalled.__aenter__()
    await lose(database, client, user_id, stalled)
    assert await runs(client, user_id) == 3
    with pytest.raises(AlreadyPaid):
        await stalled.__aexit__(None, None, None)
    assert await account(client, user_id) == (20, 0)
    assert not await database.faults()


async def test_a_key_that_belongs_to_something_else_is_a_mistake_of_the_caller(database, client):
    user_id = await database.user(25)
    await client.spend_credits(user_id, amount=1, idempotency_key="capture:song-1:1")
    with pytest.raises(IdempotencyKeyReused):
        async with client.hold(user_id, amount=5, job="song-1"):
            pass
    assert await account(client, user_id) == (24, 0)
    assert not await database.faults()


# A run after a refund.


async def test_a_refunded_job_runs_again_with_the_next_attempt(database, client):
    user_id = await database.user(25)
    for attempt in (1, 2, 3):
        assert await runs(client, user_id, attempt=attempt) == attempt
        assert await is_paid(client, user_id, attempt=attempt)
        await refund(client, user_id)
        assert await is_paid(client, user_id, attempt=attempt)
    assert await account(client, user_id) == (25, 0)
    assert not await database.faults()


async def test_it_runs_again_where_attempts_of_the_earlier_run_had_failed(database, client):
    """The failed attempts have the numbers that the next run begins with."""
    user_id = await database.user(25)
    for _ in range(3):
        await fails(client, user_id)
    assert await runs(client, user_id) == 4
    await refund(client, user_id)
    await fails(client, user_id, attempt=2)
    assert await runs(client, user_id, attempt=2) == 6
    assert await is_paid(client, user_id, attempt=2)
    await refund(client, user_id)
    assert await runs(client, user_id, attempt=3) == 7
    for attempt in (1, 2, 3):
        assert await is_paid(client, user_id, attempt=attempt)
    assert await account(client, user_id) == (20, 0)
    assert not await database.faults()


async def test_the_number_after_the_attempt_of_the_hold_works_as_well(database, client):
    user_id = await database.user(25)
    await fails(client, user_id)
    paid_by = await runs(client, user_id)
    await refund(client, user_id)
    assert await runs(client, user_id, attempt=paid_by + 1) == 3
    assert await is_paid(client, user_id, attempt=paid_by + 1)
    assert await account(client, user_id) == (20, 0)


async def test_a_run_that_paid_late_is_an_earlier_run_as_well(database, client):
    """A late capture leaves its hold expired."""
    user_id = await database.user(25)
    await fails(client, user_id)
    stalled = client.hold(user_id, amount=5, job="song-1", ttl=SHORT)
    await stalled.__aenter__()
    await lose(database, client, user_id, stalled)
    await stalled.__aexit__(None, None, None)
    assert stalled.captured.late
    await refund(client, user_id)
    assert await runs(client, user_id, attempt=2) == 3
    assert await account(client, user_id) == (20, 0)
    assert not await database.faults()


async def test_a_hold_captured_by_hand_counts_as_paid_in_every_run(database, client):
    user_id = await database.user(25)
    made = await client.hold_credits(user_id, amount=5, idempotency_key="hold:song-1:2")
    await client.capture_hold(user_id, made.hold.id, idempotency_key="by hand")
    assert await is_paid(client, user_id, attempt=2)


async def test_a_blocking_worker_runs_a_refunded_job_again(database, client, service):
    user_id = await database.user(25)
    await fails(client, user_id)
    await runs(client, user_id)
    await refund(client, user_id)

    def again():
        with BlockingCreditClient(service.target) as blocking:
            with blocking.hold(user_id, amount=5, job="song-1", attempt=2) as held:
                pass
            return held.captured.transaction.idempotency_key

    assert await asyncio.to_thread(again) == "capture:song-1:2"
    assert await account(client, user_id) == (20, 0)
