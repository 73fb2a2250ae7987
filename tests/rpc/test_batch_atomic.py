"""A batch that is applied whole or not at all, and the spends around it."""

import asyncio
from uuid import uuid4

import pytest
from kit.batches import ATOMIC, errors, item, refusal
from kit.commands import ask, lanes, refund, spend

from credit_service.client import item_error
from credit_service.errors import (
    BatchAborted,
    InsufficientCredits,
    InvalidRequest,
    TransactionNotFound,
    UserNotFound,
)
from credit_service.rules.commands import SpendTogether

pytestmark = pytest.mark.shared


async def test_an_atomic_batch_is_refused_whole(database, client):
    user_id = await database.user(10)
    before = await database.book()
    results = await client.batch_spend_credits(
        [item(user_id, 4, "a"), item(user_id, 4, "b"), item(user_id, 4, "c"), item(user_id, 1)],
        mode=ATOMIC,
    )
    assert errors(results) == [BatchAborted, BatchAborted, InsufficientCredits, BatchAborted]
    assert item_error(results[2]).available == 2
    assert not any(result.HasField("transaction") for result in results)
    assert await database.book() == before
    again = await client.batch_spend_credits(
        [item(user_id, 4, "a"), item(user_id, 4, "b")], mode=ATOMIC
    )
    assert errors(again) == [None, None]
    assert [result.replayed for result in again] == [False, False]
    assert not await database.faults()


async def test_a_malformed_item_refuses_an_atomic_batch(database, client):
    user_id = await database.user(10)
    before = await database.book()
    results = await client.batch_spend_credits(
        [item(user_id), item(user_id, -1), item(user_id)], mode=ATOMIC
    )
    assert errors(results) == [BatchAborted, InvalidRequest, BatchAborted]
    assert await database.book() == before


async def test_an_unknown_user_is_in_the_results_of_an_atomic_batch(database, client):
    stranger = uuid4()
    results = await client.batch_spend_credits([item(stranger), item(stranger)], mode=ATOMIC)
    assert errors(results) == [UserNotFound, BatchAborted]


async def test_a_refused_atomic_batch_leaves_its_neighbours_in_the_lane_alone(database, client):
    """One user, so one lane: singles and atomic batches are decided in the same transactions."""
    user_id = await database.user(1000)

    async def good(n):
        keys = [f"good:{n}:{part}" for part in range(3)]
        return await client.batch_spend_credits(
            [item(user_id, 2, key) for key in keys], mode=ATOMIC
        )

    async def bad(n):
        items = [item(user_id, 2, f"bad:{n}:1"), item(user_id, 10**6, f"bad:{n}:2")]
        return await client.batch_spend_credits(items, mode=ATOMIC)

    async def single(n):
        key = f"single:{n}"
        return await client.spend_credits(user_id, amount=1, idempotency_key=key)

    answers = await asyncio.gather(*(call(n) for n in range(20) for call in (good, bad, single)))
    assert [errors(batch) for batch in answers[0::3]] == [[None] * 3] * 20
    assert [errors(batch) for batch in answers[1::3]] == [[BatchAborted, InsufficientCredits]] * 20
    assert (await client.get_user_credit(user_id)).balance == 1000 - 20 * (3 * 2 + 1)
    assert not await database.faults()


async def test_later_commands_do_not_see_a_refused_atomic_batch(database):
    """In one transaction: its undone spends can be neither replayed nor refunded."""
    user_id = await database.user(10)
    spends = spend(user_id, 4, "a"), spend(user_id, 40, "b")
    together = SpendTogether(user_id=user_id, caller="test", spends=spends)
    async with lanes(database.service_url) as clerk:
        batch, nothing, alone = await ask(
            clerk, together, refund(user_id, 2), spend(user_id, 4, "a")
        )
    assert [type(part) for part in batch.parts] == [BatchAborted, InsufficientCredits]
    assert isinstance(nothing, TransactionNotFound)
    assert (alone.replayed, alone.entry.seq, alone.account.balance) == (False, 2, 6)
    assert not await database.faults()


async def test_several_users_in_an_atomic_batch_are_refused(database, client):
    one, two = await database.user(10), await database.user(10)
    before = await database.book()
    assert (await refusal(client, [item(one), item(two)], ATOMIC)).field == "items"
    # A malformed item beside them does not make it a batch of one.
    assert (await refusal(client, [item(one), item(two), item(one, 0)], ATOMIC)).field == "items"
    assert await database.book() == before
