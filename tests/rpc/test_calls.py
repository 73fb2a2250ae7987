"""Each call through the client over a socket, and every field of its answer."""

import asyncio
from datetime import UTC
from uuid import uuid4

import grpc
import pytest
from kit.requests import payment
from kit.services import TERMS, running, server_settings

from credit_service.errors import (
    InsufficientCredits,
    RefundExceedsSpend,
    TransactionNotFound,
    UserNotFound,
)
from credit_service.rules.terms import Terms
from credit_service.v1 import credit_service_pb2 as pb

pytestmark = pytest.mark.shared


def time_of(transaction):
    return transaction.timestamp.ToDatetime(UTC)


async def clock(database):
    return (await database.fetch("SELECT clock_timestamp()"))[0][0]


def credit(user_id, balance, newest, *, min_balance=0):
    """The account as an answer must show it right after its newest entry."""
    return pb.UserCredit(
        user_id=str(user_id),
        balance=balance,
        held=0,
        available=balance,
        min_balance=min_balance,
        last_updated=newest.timestamp,
        seq=newest.seq,
    )


async def test_a_purchase_opens_the_account_and_answers_with_entry_and_account(client, database):
    user_id = await database.user()
    before = await clock(database)
    bought = await client.purchase_credits(
        user_id,
        100,
        payment=payment(),
        idempotency_key="buy:1",
        description="Hundert Credits für Ärger 🎛",
        reference="order 7",
        metadata={"shop": "web", "größe": "L"},
    )
    after = await clock(database)
    entry = bought.transaction
    assert before <= time_of(entry) <= after
    assert bought == pb.PurchaseCreditsResponse(
        transaction=pb.CreditTransaction(
            id=f"{user_id}-1",
            user_id=str(user_id),
            seq=1,
            type=pb.TRANSACTION_TYPE_PURCHASE,
            amount=100,
            balance_change=100,
            balance_after=100,
            description="Hundert Credits für Ärger 🎛",
            timestamp=entry.timestamp,
            reference="order 7",
            metadata={"shop": "web", "größe": "L"},
            idempotency_key="buy:1",
            caller="local",
            payment=payment(),
        ),
        credit=credit(user_id, 100, entry),
        replayed=False,
    )
    assert not await database.faults()


async def test_a_priced_spend_keeps_operation_quantity_cost_and_price_version(client, database):
    user_id = await database.user(100)
    spent = await client.spend_credits(
        user_id,
        operation="stem_separation",
        quantity=3,
        expected_cost=30,
        idempotency_key="spend:job:1",
        description="Four stems",
        reference="job",
        metadata={"track": "a.wav"},
    )
    entry = spent.transaction
    assert spent == pb.SpendCreditsResponse(
        transaction=pb.CreditTransaction(
            id=f"{user_id}-2",
            user_id=str(user_id),
            seq=2,
            type=pb.TRANSACTION_TYPE_SPEND,
            amount=30,
            balance_change=-30,
            balance_after=70,
            description="Four stems",
            timestamp=entry.timestamp,
            operation="stem_separation",
            quantity=3,
            unit_cost=10,
            price_version=TERMS.prices.version,
            reference="job",
            metadata={"track": "a.wav"},
            idempotency_key="spend:job:1",
            caller="local",
        ),
        credit=credit(user_id, 70, entry),
    )


async def test_a_charge_without_a_quantity_is_one_unit(service, database):
    user_id = await database.user(100)
    async with grpc.aio.insecure_channel(service.target) as channel:
        spend = channel.unary_unary(
            "/credit_service.v1.CreditService/SpendCredits",
            request_serializer=pb.SpendCreditsRequest.SerializeToString,
            response_deserializer=pb.SpendCreditsResponse.FromString,
        )
        spent = await spend(
            pb.SpendCreditsRequest(
                user_id=str(user_id), charge=pb.Charge(operation="render"), idempotency_key="k"
            )
        )
    assert (spent.transaction.quantity, spent.transaction.amount) == (1, 5)


async def test_a_spend_of_an_amount_has_no_operation_and_no_price(client, database):
    user_id = await database.user(100)
    spent = await client.spend_credits(user_id, amount=100, idempotency_key="k")
    entry = spent.transaction
    assert spent == pb.SpendCreditsResponse(
        transaction=pb.CreditTransaction(
            id=f"{user_id}-2",
            user_id=str(user_id),
            seq=2,
            type=pb.TRANSACTION_TYPE_SPEND,
            amount=100,
            balance_change=-100,
            timestamp=entry.timestamp,
            idempotency_key="k",
            caller="local",
        ),
        credit=credit(user_id, 0, entry),
    )


async def test_refunds_name_their_spend_and_operation_and_all_means_the_rest(client, database):
    user_id = await database.user(100)
    spend = (await client.spend_credits(user_id, operation="render", quantity=4)).transaction
    part = await client.refund_credits(
        user_id,
        spend.id,
        amount=7,
        idempotency_key="refund:1",
        description="Bad take",
        reference="job",
        metadata={"by": "support"},
    )
    assert part == pb.RefundCreditsResponse(
        transaction=pb.CreditTransaction(
            id=f"{user_id}-3",
            user_id=str(user_id),
            seq=3,
            type=pb.TRANSACTION_TYPE_REFUND,
            amount=7,
            balance_change=7,
            balance_after=87,
            description="Bad take",
            timestamp=part.transaction.timestamp,
            operation="render",
            reference="job",
            metadata={"by": "support"},
            related_transaction_id=spend.id,
            idempotency_key="refund:1",
            caller="local",
        ),
        credit=credit(user_id, 87, part.transaction),
    )
    rest = await client.refund_credits(user_id, spend.id)
    assert (rest.transaction.amount, rest.credit.balance) == (13, 100)
    assert not await database.faults()


async def test_an_operator_refunds_without_a_spend_and_the_entry_names_none(client, database):
    user_id = await database.user()
    refund = (await client.refund_credits(user_id, None, amount=9)).transaction
    assert (refund.type, refund.amount) == (pb.TRANSACTION_TYPE_REFUND, 9)
    assert (refund.related_transaction_id, refund.operation) == ("", "")
    assert refund.balance_after == 9


async def test_an_operator_purchases_without_a_payment_and_the_entry_has_none(client, database):
    user_id = await database.user()
    bought = await client.purchase_credits(user_id, 5, payment=None)
    assert not bought.transaction.HasField("payment")
    assert bought.credit.balance == 5


async def test_a_payment_of_zero_is_recorded_as_given(client, database):
    user_id = await database.user()
    longest = payment(ref="p" * 255, amount_minor=0, currency="jpy")
    bought = await client.purchase_credits(user_id, 5, payment=longest)
    assert bought.transaction.payment == longest
    read = await client.get_transaction(user_id, transaction_id=bought.transaction.id)
    assert read.payment == longest


@pytest.mark.shared(False)
async def test_every_entry_carries_the_widest_values_the_contract_allows(client, database):
    user_id = await database.user()
    metadata = {f"{n:04}": "v" * 200 for n in range(20)}
    metadata["0000"] += "v" * (4096 - sum(len(k) + len(v) for k, v in metadata.items()))
    bought = await client.purchase_credits(
        user_id,
        10**12,
        payment=payment(),
        idempotency_key="~" * 128,
        description="😀" * 500,
        reference="ß" * 255,
        metadata=metadata,
    )
    read = await client.get_transaction(user_id, idempotency_key="~" * 128)
    assert read == bought.transaction
    assert (read.description, read.reference) == ("😀" * 500, "ß" * 255)
    assert dict(read.metadata) == metadata
    assert read.amount == 10**12


@pytest.mark.shared(False)
async def test_get_user_credit_shows_the_account_and_its_newest_entries(client, database):
    user_id = await database.user()
    entries = [
        (await client.purchase_credits(user_id, 30, payment=payment())).transaction,
        (await client.spend_credits(user_id, operation="render")).transaction,
        (await client.spend_credits(user_id, amount=1)).transaction,
    ]
    now = credit(user_id, 24, entries[-1])
    assert await client.get_user_credit(user_id) == now
    now.transaction_history.extend([entries[2], entries[1]])
    assert await client.get_user_credit(user_id, history_size=2) == now


async def test_a_known_user_without_an_account_reads_as_zero(client, database):
    user_id = await database.user()
    zero = pb.UserCredit(user_id=str(user_id))
    assert await client.get_user_credit(user_id, history_size=10) == zero
    assert [entry async for entry in client.get_transaction_history(user_id)] == []
    quote = await client.quote_cost({"render": 1}, user_id=user_id)
    assert (quote.available, quote.affordable, quote.shortfall) == (0, False, 5)


async def test_user_ids_are_read_in_either_case_and_written_in_lower(client, database):
    user_id = await database.user(10)
    read = await client.get_user_credit(str(user_id).upper())
    assert (read.user_id, read.balance) == (str(user_id), 10)
    spent = await client.spend_credits(str(user_id).upper(), amount=1, idempotency_key="k")
    assert spent.transaction.user_id == str(user_id)
    assert (await client.spend_credits(user_id, amount=1, idempotency_key="k")).replayed


async def test_get_transaction_finds_an_entry_by_its_id_and_by_its_key(client, database):
    user_id = await database.user(100)
    spend = (await client.spend_credits(user_id, amount=1, idempotency_key="k")).transaction
    assert await client.get_transaction(user_id, transaction_id=spend.id) == spend
    assert await client.get_transaction(user_id, idempotency_key="k") == spend


async def test_list_prices_shows_the_list_in_the_order_of_names(client):
    assert await client.list_prices() == pb.ListPricesResponse(
        prices=[
            pb.Price(operation="render", unit_cost=5, unit="render"),
            pb.Price(operation="stem_separation", unit_cost=10, unit="separation"),
        ],
        price_version=TERMS.prices.version,
    )


async def test_a_quote_without_a_user_prices_each_line_and_checks_no_credits(client):
    quote = await client.quote_cost({"stem_separation": 2, "render": 3})
    assert quote == pb.QuoteCostResponse(
        lines=[
            pb.QuoteLine(operation="stem_separation", quantity=2, unit_cost=10, cost=20),
            pb.QuoteLine(operation="render", quantity=3, unit_cost=5, cost=15),
        ],
        total=35,
        price_version=TERMS.prices.version,
    )
    assert not any(quote.HasField(name) for name in ("available", "affordable", "shortfall"))


@pytest.mark.parametrize(
    ("credits_", "affordable", "shortfall"), [(34, False, 1), (35, True, 0), (36, True, 0)]
)
async def test_a_quote_for_a_user_says_whether_the_credits_suffice(
    client, database, credits_, affordable, shortfall
):
    user_id = await database.user(credits_)
    quote = await client.quote_cost({"stem_separation": 2, "render": 3}, user_id=user_id)
    assert quote.HasField("affordable")
    assert quote.HasField("shortfall")
    assert (quote.total, quote.available) == (35, credits_)
    assert (quote.affordable, quote.shortfall) == (affordable, shortfall)


@pytest.mark.shared(False)
async def test_the_configured_floor_is_shown_and_applies_to_spend_and_quote(database):
    user_id = await database.user(10)
    terms = Terms(TERMS.prices, -20)
    async with running(server_settings(database.service_url, terms=terms)) as service:
        client = await service.client()
        assert (await client.get_user_credit(user_id)).min_balance == -20
        quote = await client.quote_cost({"stem_separation": 4}, user_id=user_id)
        assert (quote.affordable, quote.shortfall, quote.available) == (False, 10, 10)
        spent = await client.spend_credits(user_id, amount=30)
        assert spent.credit == credit(user_id, -20, spent.transaction, min_balance=-20)
        with pytest.raises(InsufficientCredits) as refusal:
            await client.spend_credits(user_id, amount=1)
    assert (refusal.value.available, refusal.value.shortfall) == (-20, 1)
    # The floor limits spends only: under a higher floor debt remains, and can be paid off.
    async with running(server_settings(database.service_url)) as service:
        client = await service.client()
        with pytest.raises(InsufficientCredits) as refusal:
            await client.spend_credits(user_id, amount=1)
        bought = await client.purchase_credits(user_id, 15, payment=payment())
    assert refusal.value.shortfall == 21
    assert bought.credit.balance == -5


async def test_the_writes_of_one_user_do_not_affect_another(client, database):
    one, other = await database.user(10), await database.user(20)
    await client.spend_credits(one, amount=10, idempotency_key="k")
    spent = await client.spend_credits(other, amount=5, idempotency_key="k")
    assert not spent.replayed
    assert (await client.get_user_credit(other)).balance == 15


@pytest.mark.shared(False)
async def test_validate_only_runs_every_rule_and_writes_nothing(client, database):
    user_id = await database.user(100)
    newcomer = await database.user()
    spend = (await client.spend_credits(user_id, operation="render")).transaction
    book = await database.book()
    would = [
        await client.purchase_credits(newcomer, 7, payment=payment(), validate_only=True),
        await client.spend_credits(user_id, operation="render", quantity=2, validate_only=True),
        await client.refund_credits(user_id, spend.id, amount=2, validate_only=True),
    ]
    for answer in would:
        assert (answer.transaction.id, answer.transaction.seq, answer.replayed) == ("", 0, False)
    # The entry as it would be, beside the account as it is.
    assert [(a.transaction.balance_after, a.credit.balance) for a in would] == [
        (7, 0),
        (85, 95),
        (97, 95),
    ]
    with pytest.raises(InsufficientCredits):
        await client.spend_credits(user_id, amount=96, validate_only=True)
    with pytest.raises(RefundExceedsSpend):
        await client.refund_credits(user_id, spend.id, amount=6, validate_only=True)
    with pytest.raises(UserNotFound):
        await client.purchase_credits(uuid4(), 1, payment=payment(), validate_only=True)
    assert await database.book() == book


async def test_validate_only_uses_up_no_key_and_replays_a_known_one(client, database):
    user_id = await database.user(100)
    await client.spend_credits(user_id, amount=1, idempotency_key="k", validate_only=True)
    with pytest.raises(TransactionNotFound):
        await client.get_transaction(user_id, idempotency_key="k")
    spent = await client.spend_credits(user_id, amount=2, idempotency_key="k")
    assert not spent.replayed
    again = await client.spend_credits(user_id, amount=2, idempotency_key="k", validate_only=True)
    assert again.replayed
    assert again.transaction == spent.transaction


async def test_validate_only_changes_nothing_for_later_commands(client, database):
    user_id = await database.user(10)
    answers = await asyncio.gather(
        *(client.spend_credits(user_id, amount=10, validate_only=turn != 5) for turn in range(10)),
        return_exceptions=True,
    )
    written = [a for a in answers if not isinstance(a, Exception) and a.transaction.id]
    assert len(written) == 1
    assert (await client.get_user_credit(user_id)).balance == 0
