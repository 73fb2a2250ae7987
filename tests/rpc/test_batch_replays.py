"""A batch, or an item of one, that is sent again: paid once, answered each time."""

import pytest
from kit.batches import ATOMIC, INDEPENDENT, MODES, errors, item

from credit_service.client import item_error
from credit_service.errors import (
    BatchAborted,
    IdempotencyKeyReused,
    InsufficientCredits,
    InvalidRequest,
)
from credit_service.v1 import credit_service_pb2 as pb

pytestmark = pytest.mark.shared


@MODES
async def test_a_repeated_batch_replays(database, client, mode):
    user_id = await database.user(12)
    items = [item(user_id, 4, f"spend:{n}:1") for n in range(3)]
    first = await client.batch_spend_credits(items, mode=mode)
    before = await database.book()
    again = await client.batch_spend_credits(items, mode=mode)
    assert [result.transaction for result in again] == [result.transaction for result in first]
    assert [result.replayed for result in again] == [True] * 3
    other = pb.BATCH_MODE_ATOMIC + pb.BATCH_MODE_INDEPENDENT - mode
    across = await client.batch_spend_credits(items, mode=other)
    assert [result.replayed for result in across] == [True] * 3
    single = await client.spend_credits(user_id, amount=4, idempotency_key="spend:1:1")
    assert single.replayed
    assert single.transaction == first[1].transaction
    assert await database.book() == before


async def test_a_replayed_item_comes_without_its_metadata(database, client):
    """The metadata of a thousand items would be four times what a message holds."""
    user_id = await database.user(10)
    paid = await client.spend_credits(
        user_id, amount=1, idempotency_key="spend:1:1", metadata={"song": "x" * 4000}
    )
    (again,) = await client.batch_spend_credits([item(user_id, 1, "spend:1:1")], mode=INDEPENDENT)
    assert again.replayed
    assert (again.transaction.id, again.transaction.metadata) == (paid.transaction.id, {})


async def test_items_that_replay_count_as_done_in_an_atomic_batch(database, client):
    user_id = await database.user(10)
    paid = await client.spend_credits(user_id, amount=8, idempotency_key="spend:1:1")
    before = await database.book()
    results = await client.batch_spend_credits(
        [item(user_id, 8, "spend:1:1"), item(user_id, 3, "spend:2:1")], mode=ATOMIC
    )
    assert errors(results) == [None, InsufficientCredits]
    assert results[0].replayed
    assert results[0].transaction == paid.transaction
    assert await database.book() == before
    results = await client.batch_spend_credits(
        [item(user_id, 8, "spend:1:1"), item(user_id, 2, "spend:2:1")], mode=ATOMIC
    )
    assert errors(results) == [None, None]
    assert [result.replayed for result in results] == [True, False]
    assert results[0].transaction == paid.transaction
    assert results[1].transaction.balance_after == 0


async def test_a_refused_atomic_batch_distinguishes_paid_items_from_the_others(database, client):
    user_id = await database.user(20)
    for key in ("first", "last"):
        await client.spend_credits(user_id, amount=4, idempotency_key=key)
    await client.spend_credits(user_id, amount=5, idempotency_key="other")
    before = await database.book()
    results = await client.batch_spend_credits(
        [
            item(user_id, 4, "first"),
            item(user_id, 1, "new"),
            item(user_id, 50, "culprit"),
            item(user_id, 1, "newer"),
            item(user_id, 6, "other"),
            item(user_id, 4, "last"),
        ],
        mode=ATOMIC,
    )
    aborted = BatchAborted
    assert errors(results) == [None, aborted, InsufficientCredits, aborted, aborted, None]
    assert [result.replayed for result in results] == [True, False, False, False, False, True]
    assert [results[n].transaction.idempotency_key for n in (0, 5)] == ["first", "last"]
    assert await database.book() == before


async def test_a_malformed_item_does_not_hide_that_another_was_paid(database, client):
    user_id = await database.user(20)
    await client.spend_credits(user_id, amount=4, idempotency_key="paid")
    before = await database.book()
    for items, expected in (
        ([item(user_id, 4, "paid"), item(user_id, 0, "bad")], [None, InvalidRequest]),
        (
            [item(user_id, 0, "bad"), item(user_id, 1, "new"), item(user_id, 4, "paid")],
            [InvalidRequest, BatchAborted, None],
        ),
        ([item(user_id, 0, "bad"), item(user_id, 0, "worse")], [InvalidRequest] * 2),
    ):
        results = await client.batch_spend_credits(items, mode=ATOMIC)
        assert errors(results) == expected
    assert await database.book() == before


async def test_a_key_of_another_request_is_the_cause_of_the_refusal(database, client):
    user_id = await database.user(10)
    await client.spend_credits(user_id, amount=1, idempotency_key="spend:1:1")
    items = [item(user_id, 1), item(user_id, 2, "spend:1:1")]
    results = await client.batch_spend_credits(items, mode=ATOMIC)
    assert errors(results) == [BatchAborted, IdempotencyKeyReused]
    assert item_error(results[1]).field == "amount"


async def test_a_thousand_of_the_longest_entries_are_replayed(database, client):
    user_id = await database.user(1000)
    clef = "\N{MUSICAL SYMBOL G CLEF}"
    keys = [f"{n:0128}" for n in range(1000)]
    for start in range(0, 1000, 250):
        items = [
            item(user_id, 1, key, description=clef * 500, reference=clef * 255)
            for key in keys[start : start + 250]
        ]
        await client.batch_spend_credits(items, mode=INDEPENDENT)
    again = await client.batch_spend_credits(
        [item(user_id, 1, key) for key in keys], mode=INDEPENDENT
    )
    assert all(result.replayed for result in again)
