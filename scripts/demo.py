"""Plays a whole story against a running service, through the client, and shows it."""

import argparse
import asyncio
import sys
import uuid

from credit_service.client import CreditClient
from credit_service.errors import CreditError, InsufficientCredits
from credit_service.v1 import credit_service_pb2 as pb


async def story(client: CreditClient) -> None:
    """Buys, quotes, spends, spends again, is refused, refunds, and reads the history."""
    user_id = uuid.uuid4()
    job = f"job-{uuid.uuid4().hex[:8]}"
    print(f"The user {user_id} buys 25 credits.")
    payment = pb.Payment(ref=f"pi_{uuid.uuid4().hex}", amount_minor=499, currency="eur")
    bought = await client.purchase_credits(
        user_id, 25, payment=payment, idempotency_key=f"purchase:{payment.ref}"
    )
    _balance(bought.credit)

    quote = await client.quote_cost({"stem_separation": 1, "render": 1}, user_id=user_id)
    lines = ", ".join(f"{line.quantity} {line.operation}: {line.cost}" for line in quote.lines)
    print(f"\nWhat would the work cost? {lines}; together {quote.total}.")
    print(f"   affordable: {'yes' if quote.affordable else 'no'}")

    print("\nA worker spends before it separates the stems.")
    key = f"spend:{job}:1"
    spent = await client.spend_credits(
        user_id,
        operation="stem_separation",
        expected_cost=quote.lines[0].cost,
        idempotency_key=key,
        reference=job,
    )
    _balance(spent.credit)

    print("\nThe job is delivered twice, so the worker sends the same spend again.")
    again = await client.spend_credits(
        user_id,
        operation="stem_separation",
        expected_cost=quote.lines[0].cost,
        idempotency_key=key,
        reference=job,
    )
    same = again.transaction.id == spent.transaction.id
    print(
        f"   replayed: {'yes' if again.replayed else 'no'}, same entry: {'yes' if same else 'no'}"
    )
    _balance(again.credit)

    print("\nThe user asks for four renders.")
    try:
        await client.spend_credits(
            user_id, operation="render", quantity=4, idempotency_key=f"spend:{job}-render:1"
        )
    except InsufficientCredits as refusal:
        print(f"   refused: {refusal}")

    print("\nThe separation fails, so the worker gives the credits back.")
    refunded = await client.refund_credits(
        user_id,
        spent.transaction.id,
        idempotency_key=f"refund:{job}:1",
        description="the separation failed",
    )
    _balance(refunded.credit)

    print("\nThe history, newest first:")
    async for entry in client.get_transaction_history(user_id):
        kind = pb.TransactionType.Name(entry.type).removeprefix("TRANSACTION_TYPE_").lower()
        print(
            f"   {entry.seq}  {kind:<9} {entry.balance_change:+4}  -> {entry.balance_after:4}"
            f"  {entry.operation or entry.payment.ref}  {entry.description}".rstrip()
        )


def _balance(credit: pb.UserCredit) -> None:
    print(f"   balance: {credit.balance} credits")


async def _main() -> int:
    parser = argparse.ArgumentParser(
        prog="scripts/demo", description="Plays a story against a running service and shows it."
    )
    parser.add_argument("--target", default="127.0.0.1:50051", help="host:port of the service")
    parser.add_argument("--token", help="bearer token of an operator, if the service wants one")
    arguments = parser.parse_args()
    async with CreditClient(arguments.target, token=arguments.token) as client:
        try:
            await story(client)
        except CreditError as error:
            print(f"scripts/demo: {error}", file=sys.stderr)
            print(f"Is the service running on {arguments.target}? scripts/serve starts it.")
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(asyncio.run(_main()))
