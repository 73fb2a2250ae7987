"""What a worker writes, for mypy: a line with a mistake says which after `# error:`.

test_types.py has mypy read this file, and nothing runs it.
"""

from collections.abc import AsyncGenerator, Generator
from datetime import timedelta
from typing import assert_type
from uuid import UUID

from credit_service.blocking import BlockingCreditClient as Alias
from credit_service.client import BlockingCreditClient, CreditClient, Payment, item_error
from credit_service.errors import CreditError, UnknownRefusal
from credit_service.v1 import credit_service_pb2 as pb


def blocking_worker(user_id: UUID, job: str) -> None:
    with BlockingCreditClient("localhost:50051", token="t", deadline_seconds=2.5) as client:
        assert_type(client, BlockingCreditClient)
        spent = client.spend_credits(user_id, operation="render", idempotency_key=job)
        assert_type(spent, pb.SpendCreditsResponse)
        assert_type(client.get_user_credit(str(user_id)), pb.UserCredit)
        assert_type(client.watch_user_credit(user_id), Generator[pb.UserCredit])
        assert_type(client.stream_transactions(), Generator[pb.StreamTransactionsResponse])
        assert_type(client.extend_hold(user_id, "h", ttl=timedelta(seconds=3)), pb.Hold)
        assert_type(
            client.batch_spend_credits([], mode=pb.BATCH_MODE_ATOMIC), list[pb.BatchSpendResult]
        )
        with client.hold(user_id, "stem_separation", job=job) as held:
            assert_type(held.hold, pb.Hold)
            assert_type(held.capture(quantity=1), pb.CaptureHoldResponse)
            held.capture("all")  # error: arg-type
            print(held.hold_id)  # error: attr-defined
        client.hold(user_id, "stem_separation")  # error: call-arg
        client.spend_credtis(user_id, amount=1)  # error: attr-defined
        client.spend_credits(user_id, cost=1)  # error: call-arg
        client.spend_credits(user_id, amount="1")  # error: arg-type
        client.spend_credits(7, amount=1)  # error: arg-type
        client.grant_credits(user_id, 5)  # error: call-arg
        client.purchase_credits(
            user_id, 5, payment=Payment(ref="pi_1", amount_minor=1, currency="eur")
        )
        print(client.get_user_credit(user_id).ballance)  # error: attr-defined
    BlockingCreditClient()  # error: call-arg
    BlockingCreditClient("localhost:50051", tokn="t")  # error: call-arg
    BlockingCreditClient(["10.0.0.1:50051", "10.0.0.2:50051"], server_name="credits")
    assert_type(Alias("localhost:50051").list_prices(), pb.ListPricesResponse)


async def worker(user_id: UUID, job: str) -> None:
    async with CreditClient("localhost:50051") as client:
        assert_type(await client.spend_credits(user_id, amount=1), pb.SpendCreditsResponse)
        assert_type(client.list_holds(user_id), AsyncGenerator[pb.Hold])
        async with client.hold(user_id, "stem_separation", job=job) as held:
            assert_type(await held.capture(), pb.CaptureHoldResponse)
        with client.hold(user_id, "stem_separation", job=job):  # error: attr-defined
            pass
        await client.spend_credtis(user_id, amount=1)  # error: attr-defined


def refused(error: CreditError, result: pb.BatchSpendResult) -> str:
    assert_type(item_error(result), CreditError | None)
    if isinstance(error, UnknownRefusal):
        assert_type(error.facts, dict[str, str])
    return error.reason
