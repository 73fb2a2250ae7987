"""Checks the bridge's settings against Stripe, the clock and the credit service."""

from __future__ import annotations

import time
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any
from uuid import UUID

from credit_service.client import Payment
from credit_service.errors import AccessError, CreditError, Refusal
from stripe_bridge import top_up_rules
from stripe_bridge.catalog import VALID_FOR_MAX
from stripe_bridge.checkout import find_price
from stripe_bridge.model import Unresolved
from stripe_bridge.plan_periods import interval_of
from stripe_bridge.stripe_api import StripeAway, StripeMissing, StripeRefuses, stripe_errors

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    import stripe

    from credit_service.client import CreditClient
    from stripe_bridge.catalog import Catalog, Pack, Policy, Validity
    from stripe_bridge.fields import Object

# Signatures are valid for 300 s, and the error of a wrong clock grows.
_CLOCK_SECONDS_MAX = 30

_MONTH_DAYS = 30.4375

_NOBODY = UUID(int=0)
_NO_PAYMENT = "stripe:check-config"
_NO_OBJECT = "check_config"


async def problems(
    client: stripe.StripeClient,
    credit_service: CreditClient,
    policy: Policy,
    *,
    top_ups: bool = False,
) -> AsyncIterator[str]:
    """Yields a line for each problem; writes nothing anywhere.

    Args:
        client: reads from Stripe.
        credit_service: the credit service, as the bridge calls it.
        policy: with the catalogue.
        top_ups: whether the bridge charges top-ups.
    """
    async for line in _of_key_and_clock(client):
        yield line
    for pack in policy.catalog.packs:
        async for line in _of_pack(client, pack, policy):
            yield line
    async for line in _of_other_prices(client, policy.catalog):
        yield line
    async for line in _of_credit_service(credit_service):
        yield line
    if top_ups:
        async for line in _of_top_up_rights(client):
            yield line
        async for line in _of_top_up_packs(credit_service, policy):
            yield line


async def _of_key_and_clock(client: stripe.StripeClient) -> AsyncIterator[str]:
    v1 = client.v1
    reads: dict[str, Callable[[Any], Awaitable[Any]]] = {
        "Checkout Sessions": v1.checkout.sessions.list_async,
        "PaymentIntents": v1.payment_intents.list_async,
        "Charges": v1.charges.list_async,
        "Refunds": v1.refunds.list_async,
        "Disputes": v1.disputes.list_async,
        "Invoices": v1.invoices.list_async,
        "Invoice Payments": v1.invoice_payments.list_async,
        "Customers": v1.customers.list_async,
        "Events": v1.events.list_async,
    }
    answered = None
    for name, listed in reads.items():
        try:
            with stripe_errors(name):
                answered = (await listed({"limit": 1})).last_response
        except StripeAway as away:
            yield str(away)
            return
        except StripeRefuses as refuses:
            yield f"Stripe's key may not read {name}: {refuses}"
    date = (answered.headers if answered else {}).get("date")
    if date is not None:
        offset = time.time() - parsedate_to_datetime(date).timestamp()
        if abs(offset) > _CLOCK_SECONDS_MAX:
            way = "ahead of" if offset > 0 else "behind"
            yield (
                f"this machine's clock is {abs(offset):.0f} s {way} Stripe's; set it by NTP,"
                " because signatures are valid for 300 s"
            )


async def _of_pack(client: stripe.StripeClient, pack: Pack, policy: Policy) -> AsyncIterator[str]:
    where = f"pack {pack.id}"
    if pack.credits > policy.max_credits_per_purchase:
        yield f"{where} gives more credits than STRIPE_BRIDGE_MAX_CREDITS_PER_PURCHASE allows"
    if policy.allowed_currencies and pack.currency not in policy.allowed_currencies:
        yield f"{where} is sold in {pack.currency}, which STRIPE_BRIDGE_ALLOWED_CURRENCIES lacks"
    try:
        price = await find_price(client, pack)
    except (StripeAway, StripeRefuses, Unresolved) as error:
        yield f"{where}: {error}"
        return
    if price is None:
        yield f"{where}: no active price has the lookup key {pack.lookup_key}"
        return
    for line in _differences(price, pack):
        yield f"{where}: {line}"


def _differences(price: Object, pack: Pack) -> list[str]:
    which = f"price {price['id']}"
    lines = []
    if not price.get("active"):
        lines.append(f"{which} is not active")
    if price.get("type") != "one_time":
        lines.append(f"{which} is recurring, and a pack is sold once")
    asked = (price.get("unit_amount"), price.get("currency"))
    if asked != (pack.amount_minor, pack.currency):
        lines.append(
            f"{which} is {asked[0]} {asked[1]}, and the catalogue shows"
            f" {pack.amount_minor} {pack.currency}"
        )
    return lines


async def _of_other_prices(client: stripe.StripeClient, catalog: Catalog) -> AsyncIterator[str]:
    sold = {pack.price or pack.lookup_key for pack in catalog.packs}
    for price_id in sorted(catalog.by_price.keys() - sold):
        try:
            with stripe_errors(price_id):
                price = (await client.v1.prices.retrieve_async(price_id)).to_dict()
            if not price.get("active"):
                yield f"price {price_id} is not active"
            if problem := _life_problem(price, catalog.by_price[price_id].validity):
                yield f"price {price_id} {problem}"
        except (StripeAway, StripeRefuses, Unresolved) as error:
            yield str(error)
    for lookup_key in sorted(catalog.by_lookup_key.keys() - sold):
        try:
            with stripe_errors(lookup_key):
                found = await client.v1.prices.list_async(
                    {"lookup_keys": [lookup_key], "active": True}
                )
            if not found.data:
                yield f"no active price has the lookup key {lookup_key}"
            validity = catalog.by_lookup_key[lookup_key].validity
            for each in found.data:
                if problem := _life_problem(each.to_dict(), validity):
                    yield f"price {each.id} {problem}"
        except (StripeAway, StripeRefuses) as error:
            yield str(error)


def _life_problem(price: Object, validity: Validity) -> str | None:
    """Says why credits cannot live for a period of a price; None: they can, or do not have to."""
    if not validity.by_period:
        return None
    interval = interval_of(price)
    if interval is None:
        return 'is sold once, so its credits cannot have expires = "period"'
    days = interval.days + interval.months * _MONTH_DAYS
    if days * (validity.carry_over + 1) <= VALID_FOR_MAX.days:
        return None
    return (
        f"has a carry_over of {validity.carry_over}, so its credits would live longer than"
        f" {VALID_FOR_MAX.days} days, the maximum"
    )


async def _of_credit_service(credit_service: CreditClient) -> AsyncIterator[str]:
    payment = Payment(ref=_NO_PAYMENT, amount_minor=0, currency="eur")
    try:
        await credit_service.purchase_credits(
            _NOBODY, 1, payment=payment, idempotency_key=_NO_PAYMENT, validate_only=True
        )
    except AccessError as error:
        yield f"the credit service does not accept the bridge: {error}"
    except Refusal:
        # The user is unknown, but the bridge was accepted.
        pass
    except CreditError as error:
        yield f"the credit service gives no answer: {error}"


async def _of_top_up_rights(client: stripe.StripeClient) -> AsyncIterator[str]:
    v1 = client.v1
    # Stripe checks the right before it looks for the object, which does not exist.
    asked: dict[str, Callable[[], Awaitable[Any]]] = {
        "read PaymentMethods": lambda: v1.payment_methods.retrieve_async(_NO_OBJECT),
        "write Customers": lambda: v1.customers.update_async(_NO_OBJECT, {}),
        "write PaymentIntents": lambda: v1.payment_intents.cancel_async(_NO_OBJECT),
        "write Checkout Sessions": lambda: v1.checkout.sessions.expire_async(_NO_OBJECT),
    }
    for right, ask in asked.items():
        try:
            with stripe_errors(right):
                await ask()
        except StripeAway as away:
            yield str(away)
            return
        except StripeMissing:
            pass
        except StripeRefuses as refuses:
            yield f"top-ups: Stripe's key may not {right}: {refuses}"


async def _of_top_up_packs(credit_service: CreditClient, policy: Policy) -> AsyncIterator[str]:
    if not policy.catalog.packs:
        yield "top-ups: the catalogue has no pack, so that nothing can be charged"
    unsellable: dict[str, tuple[str, int]] = {}
    try:
        async for top_up in credit_service.list_top_ups():
            reason = top_up_rules.unsellable(policy.catalog.pack(top_up.pack), policy)
            if reason:
                _, count = unsellable.get(top_up.pack, (reason, 0))
                unsellable[top_up.pack] = reason, count + 1
    except CreditError as error:
        yield f"top-ups: the credit service does not list them: {error}"
    for pack, (reason, count) in unsellable.items():
        yield f"top-ups: pack {pack} cannot be charged ({reason}), and {count} ask for it"
