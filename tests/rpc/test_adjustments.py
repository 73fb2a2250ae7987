"""Adjustments by operators: their entries, how reports count them, and their refusals."""

from datetime import UTC, timedelta
from uuid import uuid4

import pytest
from kit.callers import EVERY_ROLE
from kit.services import running, server_settings

from credit_service.errors import IdempotencyKeyReused, InsufficientCredits, UserNotFound
from credit_service.rpc.access import Authenticator
from credit_service.v1 import credit_service_pb2 as pb

pytestmark = pytest.mark.shared

HOUR = timedelta(hours=1)


async def test_an_adjustment_corrects_a_grant_and_the_usage_report_shows_only_the_work(
    database, client
):
    user_id = await database.user()
    await client.grant_credits(user_id, 500_000, reason="welcome")
    await client.spend_credits(user_id, amount=70_000)
    with pytest.raises(InsufficientCredits) as refusal:
        await client.adjust_credits(user_id, -450_000, reason="a zero too many")
    assert refusal.value.shortfall == 20_000
    corrected = await client.adjust_credits(
        user_id,
        -450_000,
        reason="a zero too many",
        allow_debt=True,
        idempotency_key="correction:1",
        reference="ticket 12",
        metadata={"approved": "anna"},
    )
    entry = corrected.transaction
    assert (entry.type, entry.amount) == (pb.TRANSACTION_TYPE_ADJUSTMENT, 450_000)
    assert (entry.balance_change, entry.held_change, entry.balance_after) == (-450_000, 0, -20_000)
    assert (entry.description, entry.reference) == ("a zero too many", "ticket 12")
    assert entry.metadata == {"approved": "anna"}
    assert (corrected.credit.balance, corrected.replayed) == (-20_000, False)
    up = await client.adjust_credits(user_id, 30_000, reason="half of it was promised")
    assert (up.transaction.amount, up.transaction.balance_change) == (30_000, 30_000)

    now = entry.timestamp.ToDatetime(UTC)
    (line,) = await client.get_usage_report(now - HOUR, now + HOUR)
    assert (line.spent, line.spend_count) == (70_000, 1)
    assert (line.refunded, line.refund_count, line.held, line.hold_count) == (0, 0, 0, 0)
    history = [shown async for shown in client.get_transaction_history(user_id)]
    assert history[:2] == [up.transaction, entry]
    only = client.get_transaction_history(user_id, types=[pb.TRANSACTION_TYPE_ADJUSTMENT])
    assert [shown async for shown in only] == history[:2]
    assert await client.get_transaction(user_id, idempotency_key="correction:1") == entry
    assert not await database.faults()


async def test_an_adjustment_with_the_same_key_happens_once(database, client):
    user_id = await database.user(10)
    first = await client.adjust_credits(user_id, -4, reason="a slip", idempotency_key="k")
    again = await client.adjust_credits(
        user_id, -4, reason="other words", allow_debt=True, idempotency_key="k"
    )
    assert (again.replayed, again.transaction) == (True, first.transaction)
    assert again.credit.balance == 6
    for amount in (4, -5):
        with pytest.raises(IdempotencyKeyReused) as refusal:
            await client.adjust_credits(user_id, amount, reason="a slip", idempotency_key="k")
        assert refusal.value.field == "amount"
    with pytest.raises(IdempotencyKeyReused) as refusal:
        await client.grant_credits(user_id, 4, reason="a slip", idempotency_key="k")
    assert refusal.value.field == "call"
    assert not await database.faults()


async def test_an_adjustment_spares_held_credits_and_works_on_a_frozen_account(database, client):
    user_id = await database.user(100)
    held = await client.hold_credits(user_id, amount=60)
    await client.set_account_policy(user_id, frozen=True, spend_limits=pb.SpendLimits(per_minute=1))
    with pytest.raises(InsufficientCredits) as refusal:
        await client.adjust_credits(user_id, -41, reason="too much")
    assert (refusal.value.available, refusal.value.held) == (40, 60)
    down = await client.adjust_credits(user_id, -40, reason="all that is free")
    assert (down.credit.balance, down.credit.held, down.credit.available) == (60, 60, 0)
    captured = await client.capture_hold(user_id, held.hold.id)
    assert captured.credit.balance == 0
    assert not await database.faults()


async def test_a_validated_adjustment_writes_nothing(database, client):
    user_id = await database.user(10)
    before = await database.book()
    tried = await client.adjust_credits(user_id, -4, reason="a try", validate_only=True)
    assert (tried.transaction.id, tried.transaction.balance_after) == ("", 6)
    with pytest.raises(InsufficientCredits):
        await client.adjust_credits(user_id, -11, reason="a try", validate_only=True)
    assert await database.book() == before


async def test_an_adjustment_opens_the_account_of_a_known_user_and_never_adds_a_user(database):
    known = await database.user()
    async with running(server_settings(database.service_url, adds_users=True)) as service:
        client = await service.client()
        down = await client.adjust_credits(known, -5, reason="owed", allow_debt=True)
        assert (down.transaction.seq, down.credit.balance) == (1, -5)
        with pytest.raises(UserNotFound):
            await client.adjust_credits(uuid4(), 5, reason="a mistyped user")
    assert not await database.faults()


async def test_the_entry_names_the_operator(database, tmp_path):
    (tmp_path / "identities.toml").write_text(EVERY_ROLE)
    authenticator = Authenticator(tmp_path / "identities.toml")
    user_id = await database.user(10)
    settings = server_settings(database.service_url, authenticator=authenticator)
    async with running(settings) as service:
        client = await service.client(token="token of operator")
        down = await client.adjust_credits(user_id, -1, reason="a slip")
    assert down.transaction.caller == "the-operator"
