"""The same key and the same request again: the first entry at its price, the account of today."""

import asyncio

import grpc
import pytest
from kit.refusals import refused
from kit.requests import payment
from kit.services import TERMS, running, server_settings

from credit_service.errors import IdempotencyKeyReused, InsufficientCredits
from credit_service.rules.pricing import Price, PriceList
from credit_service.rules.terms import Terms
from credit_service.v1 import credit_service_pb2 as pb

pytestmark = pytest.mark.shared


async def test_a_repeat_shows_the_original_entry_and_the_account_as_it_is_now(client, database):
    user_id = await database.user(100)
    first = await client.spend_credits(
        user_id,
        operation="render",
        expected_cost=5,
        idempotency_key="k",
        description="first",
        reference="job",
        metadata={"try": "1"},
    )
    last = await client.spend_credits(user_id, amount=95)
    again = await client.spend_credits(
        user_id,
        operation="render",
        expected_cost=6,
        idempotency_key="k",
        description="second",
        reference="another",
        metadata={"try": "2"},
    )
    assert again == pb.SpendCreditsResponse(
        transaction=first.transaction,
        credit=last.credit,
        replayed=True,
    )
    assert await client.get_transaction(user_id, idempotency_key="k") == first.transaction


async def test_a_repeated_refund_succeeds_when_nothing_is_left_to_refund(client, database):
    user_id = await database.user(100)
    spend = (await client.spend_credits(user_id, amount=10)).transaction
    part = await client.refund_credits(user_id, spend.id, amount=4, idempotency_key="part")
    rest = await client.refund_credits(user_id, spend.id, idempotency_key="rest")
    for first, amount, key in ((part, 4, "part"), (rest, None, "rest")):
        again = await client.refund_credits(user_id, spend.id, amount=amount, idempotency_key=key)
        assert again.replayed
        assert again.transaction == first.transaction
    assert (await client.get_user_credit(user_id)).balance == 100


async def test_calls_with_one_key_at_the_same_instant_write_one_entry(client, database):
    user_id = await database.user(100)
    answers = await asyncio.gather(
        *(client.spend_credits(user_id, amount=10, idempotency_key="k") for _ in range(20))
    )
    assert sorted(answer.replayed for answer in answers) == [False] + [True] * 19
    assert {answer.transaction.id for answer in answers} == {f"{user_id}-2"}
    assert (await client.get_user_credit(user_id)).balance == 90
    assert not await database.faults()


async def test_a_repeat_keeps_its_price_after_a_restart_with_other_prices(database):
    user_id = await database.user(12)
    charge = {"operation": "stem_separation", "idempotency_key": "k"}
    async with running(server_settings(database.service_url)) as service:
        first = await (await service.client()).spend_credits(user_id, **charge)
    dearer = Terms(PriceList({"stem_separation": Price(1000, "separation")}), 0)
    async with running(server_settings(database.service_url, terms=dearer)) as service:
        client = await service.client()
        again = await client.spend_credits(user_id, **charge, expected_cost=1000)
        with pytest.raises(InsufficientCredits) as refusal:
            await client.spend_credits(user_id, operation="stem_separation")
    assert refusal.value.required == 1000
    assert again.replayed
    assert again.transaction == first.transaction
    assert again.transaction.unit_cost == 10
    assert again.transaction.price_version == TERMS.prices.version != dearer.prices.version
    without = Terms(PriceList({"render": Price(5, "render")}), 0)
    async with running(server_settings(database.service_url, terms=without)) as service:
        client = await service.client()
        delisted = await client.spend_credits(user_id, **charge)
        refund = await client.refund_credits(user_id, first.transaction.id)
    assert delisted.replayed
    assert delisted.transaction == first.transaction
    assert (refund.transaction.amount, refund.transaction.operation) == (10, "stem_separation")
    assert not await database.faults()


async def test_a_key_used_for_something_else_names_the_first_field_that_differs(client, database):
    user_id = await database.user(1000)
    spend = (await client.spend_credits(user_id, amount=50, idempotency_key="spend")).transaction
    await client.spend_credits(user_id, amount=50, idempotency_key="other spend")
    await client.spend_credits(user_id, operation="render", quantity=2, idempotency_key="charge")
    await client.purchase_credits(user_id, 9, payment=payment(), idempotency_key="buy")
    await client.refund_credits(user_id, spend.id, amount=3, idempotency_key="refund")
    await client.refund_credits(user_id, spend.id, idempotency_key="refund all")
    await client.refund_credits(user_id, None, amount=3, idempotency_key="refund of nothing")
    book = await database.book()

    def spending(key, **request):
        return client.spend_credits(user_id, idempotency_key=key, **request)

    def buying(key, amount, paid):
        return client.purchase_credits(user_id, amount, payment=paid, idempotency_key=key)

    def refunding(key, seq, amount=None):
        place = seq and f"{user_id}-{seq}"
        return client.refund_credits(user_id, place, amount=amount, idempotency_key=key)

    cases = [
        (spending("spend", amount=51), "amount", 2),
        (spending("spend", operation="render"), "amount", 2),
        (spending("charge", amount=10), "amount", 4),
        (spending("charge", operation="stem_separation", quantity=2), "operation", 4),
        (spending("charge", operation="no_longer_listed", quantity=2), "operation", 4),
        (spending("charge", operation="render", quantity=1), "quantity", 4),
        (spending("charge", operation="render", quantity=10**12), "quantity", 4),
        (spending("buy", amount=9), "call", 5),
        (spending("refund", amount=3), "call", 6),
        (buying("spend", 50, payment("pi_9")), "call", 2),
        (buying("buy", 10, payment()), "amount", 5),
        (buying("buy", 9, payment("pi_2")), "payment", 5),
        (buying("buy", 9, None), "payment", 5),
        (refunding("refund", 2, 4), "amount", 6),
        (refunding("refund", 2), "amount", 6),
        (refunding("refund", 3, 3), "transaction_id", 6),
        (refunding("refund", None, 3), "transaction_id", 6),
        # 47 was all that was left; "all" is a value of its own.
        (refunding("refund all", 2, 47), "amount", 7),
        (refunding("refund of nothing", 2, 3), "transaction_id", 8),
    ]
    for number, (call, field, seq) in enumerate(cases):
        with pytest.raises(IdempotencyKeyReused) as refusal:
            await call
        error = refusal.value
        assert (error.field, error.transaction_id) == (field, f"{user_id}-{seq}"), number
        seen = refused(error)
        assert (seen.code, seen.reason) == (
            grpc.StatusCode.ALREADY_EXISTS,
            "IDEMPOTENCY_KEY_REUSED",
        )
        assert seen.facts == {"field": field, "transaction_id": f"{user_id}-{seq}"}
        assert f"differs in {field}" in seen.message
    assert await database.book() == book
