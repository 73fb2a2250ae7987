"""A key that was answered OK is kept for ever, whichever call made the entry."""

import asyncio
from contextlib import closing
from datetime import timedelta

import pytest
from kit.commands import answers, ask, lanes, purchase, spend, submit
from kit.due_holds import add_due
from kit.fault_proxy import COMMIT, Kind
from kit.requests import payment
from kit.services import running, server_settings, writer_settings
from kit.waiting import eventually

from credit_service.errors import (
    IdempotencyKeyReused,
    InsufficientCredits,
    TransactionNotFound,
    UserNotFound,
)
from credit_service.ledger.store import SQL
from credit_service.ledger.transactions import Transactions, Way
from credit_service.rules.commands import Release
from credit_service.v1 import credit_service_pb2 as pb


async def kept(database):
    rows = await database.fetch("SELECT key, seq, call FROM credit_kept_keys ORDER BY key")
    return [tuple(row) for row in rows]


async def expired_hold(database, client):
    """A user with 20 credits whose hold of 10 has expired."""
    user_id = await database.user(20)
    hold = (await client.hold_credits(user_id, amount=10, ttl=timedelta(seconds=1))).hold

    async def expired():
        return (await client.get_hold(user_id, hold.id)).state == pb.HOLD_STATE_EXPIRED

    await eventually(expired)
    return user_id, hold.id


async def test_a_capture_of_zero_keeps_its_key_from_a_late_capture(client, database):
    user_id, hold_id = await expired_hold(database, client)
    first = await client.capture_hold(user_id, hold_id, amount=0, idempotency_key="c0")
    assert (first.replayed, first.transaction.type) == (True, pb.TRANSACTION_TYPE_EXPIRE)
    book = await database.book()
    with pytest.raises(IdempotencyKeyReused) as refusal:
        await client.capture_hold(user_id, hold_id, idempotency_key="c0")
    assert (refusal.value.field, refusal.value.transaction_id) == ("amount", first.transaction.id)
    again = await client.capture_hold(user_id, hold_id, amount=0, idempotency_key="c0")
    assert again == first
    assert await database.book() == book
    late = await client.capture_hold(user_id, hold_id, idempotency_key="c1")
    assert late.late
    assert await kept(database) == [("c0", 3, "CaptureHold")]
    assert not await database.faults()


async def test_a_release_keeps_its_key_from_a_spend(client, database):
    user_id, hold_id = await expired_hold(database, client)
    first = await client.release_hold(user_id, hold_id, idempotency_key="k")
    for call in (
        client.spend_credits(user_id, amount=1, idempotency_key="k"),
        client.grant_credits(user_id, 1, reason="a gift", idempotency_key="k"),
        client.capture_hold(user_id, hold_id, amount=0, idempotency_key="k"),
    ):
        with pytest.raises(IdempotencyKeyReused) as refusal:
            await call
        assert refusal.value.field == "call"
    assert await client.release_hold(user_id, hold_id, idempotency_key="k") == first
    assert await client.get_transaction(user_id, idempotency_key="k") == first.transaction
    assert await kept(database) == [("k", 3, "ReleaseHold")]
    assert not await database.faults()


async def test_a_purchase_by_its_payment_is_found_under_its_key(database):
    user_id = await database.user()
    async with running(server_settings(database.service_url)) as service:
        client = await service.client()
        first = await client.purchase_credits(user_id, 100, payment=payment(), idempotency_key="a")
        again = await client.purchase_credits(user_id, 100, payment=payment(), idempotency_key="b")
        assert (again.replayed, again.transaction) == (True, first.transaction)
    async with running(server_settings(database.service_url)) as service:
        client = await service.client()
        for key in "ab":
            found = await client.get_transaction(user_id, idempotency_key=key)
            assert found == first.transaction
            repeat = await client.purchase_credits(
                user_id, 100, payment=payment(), idempotency_key=key
            )
            assert (repeat.replayed, repeat.transaction) == (True, first.transaction)
        with pytest.raises(IdempotencyKeyReused) as refusal:
            await client.purchase_credits(
                user_id, 100, payment=payment("pi_2"), idempotency_key="b"
            )
        assert refusal.value.field == "payment"
    assert await kept(database) == [("b", 1, "PurchaseCredits")]
    assert not await database.faults()


async def test_a_refused_or_only_validated_call_keeps_no_key(client, database):
    user_id, hold_id = await expired_hold(database, client)
    checked = await client.release_hold(user_id, hold_id, idempotency_key="k", validate_only=True)
    assert checked.replayed
    with pytest.raises(InsufficientCredits):
        await client.spend_credits(user_id, amount=1000, idempotency_key="k")
    with pytest.raises(TransactionNotFound):
        await client.get_transaction(user_id, idempotency_key="k")
    assert await kept(database) == []


async def test_deleting_a_user_deletes_the_kept_keys(client, database):
    user_id, hold_id = await expired_hold(database, client)
    await client.release_hold(user_id, hold_id, idempotency_key="k")
    await database.execute("DELETE FROM auth.users WHERE id = $1", user_id)
    assert await kept(database) == []
    with pytest.raises(UserNotFound):
        await client.get_transaction(user_id, idempotency_key="k")
    await database.execute("INSERT INTO auth.users (id) VALUES ($1)", user_id)
    made = await client.grant_credits(user_id, 1, reason="a new start", idempotency_key="k")
    assert not made.replayed


def release(user_id, key):
    return Release(
        user_id=user_id,
        caller="test",
        idempotency_key=key,
        description="",
        reference="",
        metadata={},
        validate_only=False,
        hold_seq=2,
    )


async def test_one_key_for_a_release_and_a_spend_in_two_lanes_belongs_to_one(database):
    for turn in range(20):
        (user_id,) = await add_due(database)
        commands = [release(user_id, "k"), spend(user_id, key="k")]
        async with (
            lanes(database.service_url) as one,
            lanes(database.service_url) as two,
        ):
            given = await asyncio.gather(
                *(ask(clerk, *commands[:: 1 - 2 * (turn % 2)]) for clerk in (one, two))
            )
        calls = {
            type(answer) if isinstance(answer, Exception) else answer.entry.call
            for answer in (*given[0], *given[1])
        }
        assert calls in (
            {"expiry", IdempotencyKeyReused},
            {"SpendCredits", IdempotencyKeyReused},
        )
    assert not await database.faults()


async def test_a_key_kept_in_a_lane_is_seen_by_the_one_that_waits_for_the_row(database, proxy):
    (user_id,) = await add_due(database)
    held = proxy.on(COMMIT, Kind.HOLD)
    async with lanes(proxy.url) as one, lanes(database.service_url) as two:
        first = submit(one, release(user_id, "k"))
        await held.met.wait()
        second = submit(two, spend(user_id, key="k"))
        await eventually(database.waits_for_a_lock, every=0.005)
        held.release()
        given = await answers(first + second)
    assert given[0].replayed
    assert isinstance(given[1], IdempotencyKeyReused)
    assert not await database.faults()


@pytest.mark.parametrize("kind", [Kind.CUT_BEFORE, Kind.CUT_AFTER, Kind.SWALLOW])
async def test_a_lost_commit_keeps_the_key_once(database, proxy, kind):
    user_id = await database.user()
    async with lanes(proxy.url) as clerk:
        proxy.on(COMMIT, kind)
        bought, again = await ask(
            clerk,
            purchase(user_id, 5, key="a", ref="pi_1"),
            purchase(user_id, 5, key="b", ref="pi_1"),
        )
    assert (bought.replayed, again.replayed) == (False, True)
    assert bought.entry == again.entry
    assert await kept(database) == [("b", 1, "PurchaseCredits")]
    assert not await database.faults()


async def test_only_a_kept_key_costs_a_statement(database):
    user_id = await database.user(100)
    writer, seen = Transactions(writer_settings(database.service_url)), []

    async def statements(*commands):
        seen.clear()
        await writer.run(list(commands), Way(expiries=500))
        await asyncio.sleep(0)  # the driver reports a statement in the loop's next turn
        return list(seen)

    with closing(writer):
        # The driver asks for the types of arguments once.
        await statements(spend(user_id))
        (await writer._connected()).add_query_logger(lambda query: seen.append(query.query))
        spends = await statements(*(spend(user_id) for _ in range(5)))
        bought = await statements(purchase(user_id, 5, key="a", ref="pi_1"))
        kept_now = await statements(purchase(user_id, 5, key="b", ref="pi_1"))
        repeated = await statements(purchase(user_id, 5, key="b", ref="pi_1"))
    # BEGIN, the lock, the keys, the account, the entries, COMMIT.
    assert len(spends) == 6
    for batch in (spends, bought, repeated):
        assert SQL["load_entries_by_key"] in batch
        assert SQL["insert_kept_keys"] not in batch
    others = {*bought, SQL["load_entries"]}
    assert [query for query in kept_now if query not in others] == [SQL["insert_kept_keys"]]
    # BEGIN, the lock, the keys, COMMIT.
    assert len(repeated) == 4
