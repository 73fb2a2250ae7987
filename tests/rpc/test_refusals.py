"""Each refusal of the rules over a socket: code, reason, facts, and the typed error they become."""

from uuid import uuid4

import grpc
import pytest
from kit.refusals import Refused, refused
from kit.requests import payment
from kit.services import TERMS

from credit_service.errors import (
    BalanceLimitExceeded,
    InsufficientCredits,
    InvalidRequest,
    PaymentReused,
    PriceChanged,
    RefundExceedsSpend,
    TransactionNotFound,
    UserDeleted,
    UserNotFound,
)

pytestmark = pytest.mark.shared

BALANCE_MAX = 10**15


async def test_insufficient_credits_names_the_shortfall(client, database):
    user_id = await database.user(80)
    book = await database.book()
    with pytest.raises(InsufficientCredits) as refusal:
        await client.spend_credits(user_id, amount=81)
    error = refusal.value
    assert (error.required, error.available, error.held, error.shortfall) == (81, 80, 0, 1)
    assert refused(error) == Refused(
        grpc.StatusCode.FAILED_PRECONDITION,
        "81 credits are needed and 80 are available (0 more are held); "
        "1 more must be bought first.",
        "INSUFFICIENT_CREDITS",
        "credit_service",
        {"required": "81", "available": "80", "held": "0", "shortfall": "1"},
    )
    assert await database.book() == book


async def test_a_refusal_uses_up_nothing_and_the_same_key_works_after_a_top_up(client, database):
    user_id = await database.user(5)
    spend = {"operation": "stem_separation", "idempotency_key": "spend:job:1"}
    with pytest.raises(InsufficientCredits):
        await client.spend_credits(user_id, **spend)
    await client.purchase_credits(user_id, 5, payment=payment())
    spent = await client.spend_credits(user_id, **spend)
    assert not spent.replayed
    assert spent.credit.balance == 0


async def test_price_changed_names_the_new_cost(client, database):
    user_id = await database.user(100)
    book = await database.book()
    with pytest.raises(PriceChanged) as refusal:
        await client.spend_credits(user_id, operation="render", quantity=2, expected_cost=8)
    error = refusal.value
    assert (error.cost, error.price_version) == (10, TERMS.prices.version)
    told = refused(error)
    assert (told.code, told.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "PRICE_CHANGED")
    assert told.facts == {"cost": "10", "price_version": TERMS.prices.version}
    assert "10 credits" in told.message
    with pytest.raises(PriceChanged):
        await client.spend_credits(user_id, amount=9, expected_cost=8)
    assert await database.book() == book


async def test_refund_exceeds_spend_names_what_is_left(client, database):
    user_id = await database.user(100)
    spend = (await client.spend_credits(user_id, amount=10)).transaction
    await client.refund_credits(user_id, spend.id, amount=4)
    book = await database.book()
    with pytest.raises(RefundExceedsSpend) as refusal:
        await client.refund_credits(user_id, spend.id, amount=7)
    assert refusal.value.refundable == 6
    told = refused(refusal.value)
    assert told.code is grpc.StatusCode.FAILED_PRECONDITION
    assert (told.reason, told.facts) == ("REFUND_EXCEEDS_SPEND", {"refundable": "6"})
    assert "6 credits" in told.message
    assert await database.book() == book
    await client.refund_credits(user_id, spend.id)
    for amount in (None, 1):
        with pytest.raises(RefundExceedsSpend) as refusal:
            await client.refund_credits(user_id, spend.id, amount=amount)
        assert refusal.value.refundable == 0


async def test_only_a_spend_of_this_user_can_be_refunded(client, database):
    user_id, other = await database.user(100), await database.user(100)
    spend = (await client.spend_credits(user_id, amount=10)).transaction
    refund = (await client.refund_credits(user_id, spend.id, amount=1)).transaction
    book = await database.book()
    for wrong in (f"{user_id}-1", refund.id):
        with pytest.raises(InvalidRequest) as refusal:
            await client.refund_credits(user_id, wrong)
        assert refusal.value.field == "transaction_id"
    for wrong in (f"{user_id}-9", f"{user_id}-0"):
        with pytest.raises(TransactionNotFound) as missing:
            await client.refund_credits(user_id, wrong)
        assert missing.value.lookup == wrong
    with pytest.raises(TransactionNotFound) as missing:
        await client.refund_credits(other, spend.id)
    assert refused(missing.value) == Refused(
        grpc.StatusCode.NOT_FOUND,
        f"This user has no transaction {spend.id}.",
        "TRANSACTION_NOT_FOUND",
        "credit_service",
        {"lookup": spend.id},
    )
    assert await database.book() == book


@pytest.mark.shared(False)
async def test_balance_limit_exceeded_names_balance_and_limit(client, database):
    user_id = await database.user()
    await database.execute(
        "INSERT INTO user_credits (user_id, balance, seq, last_updated) VALUES ($1, $2, 1, now())",
        user_id,
        BALANCE_MAX - 5,
    )
    await database.execute(
        "INSERT INTO credit_transactions (user_id, seq, type, call, amount, balance_change,"
        " held_change, balance_after, held_after, description, timestamp, reference, caller)"
        " VALUES ($1, 1, 'grant', 'adopted', $2, $2, 0, $2, 0, '', now(), '', 'test')",
        user_id,
        BALANCE_MAX - 5,
    )
    spend = (await client.spend_credits(user_id, amount=1)).transaction
    book = await database.book()
    with pytest.raises(BalanceLimitExceeded) as refusal:
        await client.purchase_credits(user_id, 7, payment=payment())
    assert (refusal.value.balance, refusal.value.limit) == (BALANCE_MAX - 6, BALANCE_MAX)
    told = refused(refusal.value)
    assert told.code is grpc.StatusCode.FAILED_PRECONDITION
    assert told.reason == "BALANCE_LIMIT_EXCEEDED"
    assert told.facts == {"balance": str(BALANCE_MAX - 6), "limit": str(BALANCE_MAX)}
    with pytest.raises(BalanceLimitExceeded):
        await client.refund_credits(user_id, None, amount=7)
    assert await database.book() == book
    full = await client.purchase_credits(user_id, 6, payment=payment())
    assert full.credit.balance == BALANCE_MAX
    with pytest.raises(BalanceLimitExceeded):
        await client.refund_credits(user_id, spend.id)


@pytest.mark.shared(False)
async def test_an_unknown_user_is_refused_by_every_call(client, database):
    nobody = uuid4()
    book = await database.book()
    calls = {
        "get_user_credit": client.get_user_credit(nobody),
        "purchase": client.purchase_credits(nobody, 1, payment=payment()),
        "spend": client.spend_credits(nobody, amount=1),
        "spend in debt": client.spend_credits(nobody, operation="render"),
        "refund": client.refund_credits(nobody, f"{nobody}-1"),
        "refund of nothing": client.refund_credits(nobody, None, amount=1),
        "history": anext(client.get_transaction_history(nobody)),
        "get by id": client.get_transaction(nobody, transaction_id=f"{nobody}-1"),
        "get by key": client.get_transaction(nobody, idempotency_key="k"),
        "quote": client.quote_cost({"render": 1}, user_id=nobody),
    }
    for name, call in calls.items():
        with pytest.raises(UserNotFound) as refusal:
            await call
        assert refusal.value.user_id == str(nobody), name
        assert refused(refusal.value) == Refused(
            grpc.StatusCode.NOT_FOUND,
            f"There is no user {nobody}; check the id.",
            "USER_NOT_FOUND",
            "credit_service",
            {"user_id": str(nobody)},
        ), name
    assert await database.book() == book


async def test_a_transaction_of_another_user_is_not_found(client, database):
    user_id, other = await database.user(10), await database.user(10)
    for lookup in (
        {"transaction_id": f"{other}-1"},
        {"transaction_id": f"{user_id}-2"},
        {"transaction_id": f"{user_id}-9999999999999999"},
        {"idempotency_key": "never used"},
    ):
        with pytest.raises(TransactionNotFound) as refusal:
            await client.get_transaction(user_id, **lookup)
        assert refusal.value.lookup == next(iter(lookup.values()))
        assert refused(refusal.value).code is grpc.StatusCode.NOT_FOUND


async def test_an_operation_without_a_price_is_refused_with_the_list(client, database):
    user_id = await database.user(100)
    for call, field in (
        (client.spend_credits(user_id, operation="mastering"), "charge.operation"),
        (client.quote_cost({"render": 1, "mastering": 1}), "items[1].operation"),
    ):
        with pytest.raises(InvalidRequest) as refusal:
            await call
        assert refusal.value.field == field
        told = refused(refusal.value)
        assert (told.code, told.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_REQUEST")
        assert told.violations == {field: refusal.value.problem}
        assert told.facts == {"field": field, "problem": refusal.value.problem}
        assert "'mastering' is not on the price list (render, stem_separation)" in told.message


@pytest.mark.shared(False)
async def test_a_payment_of_a_deleted_user_is_refused_for_ever(client, database):
    user_id, other = await database.user(), await database.user()
    await client.purchase_credits(user_id, 100, payment=payment())
    await database.execute("DELETE FROM auth.users WHERE id = $1", user_id)
    with pytest.raises(UserNotFound):
        await client.get_user_credit(user_id)

    async def refused_as_deleted(whose, amount):
        with pytest.raises(UserDeleted) as refusal:
            await client.purchase_credits(whose, amount, payment=payment())
        assert refused(refusal.value) == Refused(
            grpc.StatusCode.NOT_FOUND,
            "Payment pi_1 was credited to a user who was deleted; nothing is left to do.",
            "USER_DELETED",
            "credit_service",
            {"payment_ref": "pi_1"},
        )
        assert refusal.value.payment_ref == "pi_1"

    await refused_as_deleted(user_id, 100)
    await refused_as_deleted(other, 100)
    # The same id, signed up again, is another user to the ledger.
    await database.execute("INSERT INTO auth.users (id) VALUES ($1)", user_id)
    await refused_as_deleted(user_id, 100)
    await client.purchase_credits(user_id, 100, payment=payment("pi_2"))
    await refused_as_deleted(user_id, 100)
    assert (await client.get_user_credit(user_id)).balance == 100


@pytest.mark.shared(False)
async def test_a_payment_is_credited_once_whatever_the_key(client, database):
    user_id, other = await database.user(), await database.user()
    first = await client.purchase_credits(user_id, 100, payment=payment(), idempotency_key="a")
    again = await client.purchase_credits(user_id, 100, payment=payment(), idempotency_key="b")
    assert again.replayed
    assert again.transaction == first.transaction
    book = await database.book()
    for whose, amount, field in ((other, 100, "user_id"), (user_id, 99, "amount")):
        with pytest.raises(PaymentReused) as refusal:
            await client.purchase_credits(whose, amount, payment=payment())
        assert (refusal.value.payment_ref, refusal.value.field) == ("pi_1", field)
        assert refused(refusal.value) == Refused(
            grpc.StatusCode.ALREADY_EXISTS,
            f"Payment pi_1 was already recorded with another {field}.",
            "PAYMENT_REUSED",
            "credit_service",
            {"payment_ref": "pi_1", "field": field},
        )
    assert await database.book() == book
