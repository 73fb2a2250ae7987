"""Each call through the client over a socket: what it answers, and each refusal with its facts."""

import pytest

from credit_service.errors import InsufficientCredits
from credit_service.v1 import credit_service_pb2 as pb


def payment(ref="pi_1", amount_minor=999, currency="eur"):
    return pb.Payment(ref=ref, amount_minor=amount_minor, currency=currency)


async def test_a_purchase_opens_the_account_and_a_spend_takes_from_it(client, database):
    user_id = await database.user()
    bought = await client.purchase_credits(user_id, 100, payment=payment())
    assert bought.credit.balance == 100
    spent = await client.spend_credits(user_id, operation="stem_separation", quantity=2)
    assert (spent.transaction.amount, spent.credit.balance) == (20, 80)
    with pytest.raises(InsufficientCredits) as refusal:
        await client.spend_credits(user_id, amount=81)
    assert refusal.value.shortfall == 1
    refunded = await client.refund_credits(user_id, spent.transaction.id)
    assert refunded.credit.balance == 100
    assert [t.seq async for t in client.get_transaction_history(user_id, page_size=2)] == [3, 2, 1]
    assert not await database.faults()
