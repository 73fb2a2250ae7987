"""Plays a whole story against a running service, through the client, and shows it."""

import argparse
import asyncio
import sys
import uuid
from pathlib import Path

import demo_stripe
import demo_web
import grpc
from demo_programs import Service, StoryFailed

from credit_service.client import CreditClient
from credit_service.errors import (
    AccessError,
    AlreadyPaid,
    CreditError,
    InsufficientCredits,
    OutcomeUnknown,
    Unavailable,
    UserNotFound,
)
from credit_service.v1 import credit_service_pb2 as pb

_EVERY_TYPE = [kind for kind in pb.TransactionType.values() if kind]


async def story(client: CreditClient, user_id: uuid.UUID) -> None:
    """Buys, quotes, works under a hold, repeats the job, is refused, refunds, shows the history."""
    job = f"job-{uuid.uuid4().hex[:8]}"
    prices = await client.list_prices()
    cost = {price.operation: price.unit_cost for price in prices.prices}

    # Enough for the separation and three renders, but not for a fourth.
    amount = cost["stem_separation"] + 3 * cost["render"]
    print(f"The user {user_id} buys {amount} credits.")
    payment = pb.Payment(ref=f"pi_{uuid.uuid4().hex}", amount_minor=499, currency="eur")
    bought = await client.purchase_credits(
        user_id, amount, payment=payment, idempotency_key=f"purchase:{payment.ref}"
    )
    _show_balance(bought.credit)

    quote = await client.quote_cost({"stem_separation": 1, "render": 1}, user_id=user_id)
    lines = ", ".join(f"{line.quantity} {line.operation}: {line.cost}" for line in quote.lines)
    print(f"\nWhat would the work cost? {lines}; together {quote.total}.")
    print(f"   affordable: {_yes_or_no(quote.affordable)}")

    print("\nA worker holds the credits, separates the stems, and is paid.")
    cost_shown = quote.lines[0].cost
    async with client.hold(user_id, "stem_separation", job=job, expected_cost=cost_shown) as held:
        _show_balance(await client.get_user_credit(user_id))
        paid = await held.capture()
    _show_balance(paid.credit)

    print("\nThe job is delivered twice, so a worker begins with it again.")
    try:
        async with client.hold(user_id, "stem_separation", job=job, expected_cost=cost_shown):
            print("   it works again")
    except AlreadyPaid as refusal:
        print(f"   refused: {refusal}")

    credit = await client.get_user_credit(user_id)
    spendable = credit.available - credit.min_balance
    renders = spendable // cost["render"] + 1
    print(f"\nThe user asks for {renders} renders.")
    try:
        await client.spend_credits(
            user_id,
            operation="render",
            quantity=renders,
            idempotency_key=f"spend:{job}-render:1",
        )
    except InsufficientCredits as refusal:
        print(f"   refused: {refusal}")

    print("\nThe stems are no good, so the credits are refunded.")
    refunded = await client.refund_credits(
        user_id,
        paid.transaction.id,
        idempotency_key=f"refund:{job}:1",
        description="the stems were no good",
    )
    _show_balance(refunded.credit)

    print("\nThe history, newest first:")
    async for entry in client.get_transaction_history(user_id, types=_EVERY_TYPE):
        kind = pb.TransactionType.Name(entry.type).removeprefix("TRANSACTION_TYPE_").lower()
        what = f"{entry.operation or entry.payment.ref}  {entry.description}".rstrip()
        print(
            f"   {entry.seq}  {kind:<9} {entry.balance_change:+4}  -> {entry.balance_after:4}"
            f"  held {entry.held_after:2}  {what}"
        )
        if entry.payment.ref == payment.ref:
            break


def _show_balance(credit: pb.UserCredit) -> None:
    held = f", {credit.held} of them held" if credit.held else ""
    print(f"   balance: {credit.balance} credits{held}")


def _yes_or_no(answer: bool) -> str:
    return "yes" if answer else "no"


def _remedy(error: CreditError, target: str) -> str:
    if isinstance(error, (OutcomeUnknown, Unavailable)):
        return f"\nIs the service running on {target}? scripts/serve starts it."
    if isinstance(error, UserNotFound):
        return "\nThis service does not add users: pass the id of an existing one with --user."
    if isinstance(error, AccessError):
        return "\nThis service requires credentials: pass an operator's token with --token."
    return ""


async def _main() -> int:
    parser = argparse.ArgumentParser(
        prog="scripts/demo", description="Plays a story against a running service and shows it."
    )
    parser.add_argument(
        "--target", default="127.0.0.1:50051", help="host:port of the service (%(default)s)"
    )
    parser.add_argument("--token", help="bearer token of an operator, if the service requires one")
    parser.add_argument(
        "--ca",
        type=Path,
        metavar="FILE",
        help="the authority that signed the service's certificate, if it has TLS (PEM)",
    )
    parser.add_argument(
        "--user",
        type=uuid.UUID,
        default=uuid.uuid4(),
        help="the user who buys and spends (default: a new one)",
    )
    parser.add_argument(
        "--stripe",
        action="store_true",
        help="buy through the Stripe bridge and a fake Stripe, with a refund, a dispute"
        " and a top-up",
    )
    parser.add_argument(
        "--web",
        action="store_true",
        help="show it in a browser: starts a service of its own, the bridge, a fake Stripe and an"
        " app with the gateway, and prints one address",
    )
    parser.add_argument("--port", type=int, default=8000, help="of the app of --web (%(default)s)")
    arguments = parser.parse_args()
    if arguments.web:
        try:
            await demo_web.run(arguments.user, arguments.port)
        except StoryFailed as failure:
            print(f"scripts/demo: {failure}", file=sys.stderr)
            return 1
        return 0
    credentials = None
    if arguments.ca is not None:
        credentials = grpc.ssl_channel_credentials(arguments.ca.read_bytes())
    async with CreditClient(
        arguments.target, token=arguments.token, credentials=credentials
    ) as client:
        try:
            if arguments.stripe:
                service = Service(arguments.target, arguments.token, arguments.ca)
                await demo_stripe.story(client, arguments.user, service)
            else:
                await story(client, arguments.user)
        except CreditError as error:
            print(f"scripts/demo: {error}{_remedy(error, arguments.target)}", file=sys.stderr)
            return 1
        except StoryFailed as failure:
            print(f"scripts/demo: {failure}", file=sys.stderr)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(asyncio.run(_main()))
