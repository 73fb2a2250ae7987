"""Applies a rule to an object, and reads from Stripe what the rule needs."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

from stripe_bridge.model import Needed, Needs, Unresolved

if TYPE_CHECKING:
    from collections.abc import Callable

    from stripe_bridge.fields import Object
    from stripe_bridge.stripe_api import StripeReads

_Decision = TypeVar("_Decision")


async def apply_rule(
    stripe: StripeReads, rule: Callable[[Object, list[Object] | None], _Decision], obj: Object
) -> _Decision:
    """Applies a rule to an object, and again after each read that the rule asks for.

    Args:
        stripe: reads from Stripe.
        rule: takes the object and its lines (None: not read) and decides, or raises Needs.
        obj: as the event or list showed it.

    Raises:
        Unresolved: the rule raises it; or object_incomplete: Stripe's answer lacks a part that the
            rule needs.
        StripeAway, StripeRefuses: something could not be read.
    """
    lines: list[Object] | None = None
    read: set[tuple[Needed, str]] = set()
    while True:
        try:
            return rule(obj, lines)
        except Needs as needs:
            what, needed_id = needs.what, needs.id
        if (what, needed_id) in read:
            raise Unresolved("object_incomplete", f"Stripe does not show {what} of {needed_id}.")
        read.add((what, needed_id))
        match what:
            case Needed.LINE_ITEMS:
                lines = await stripe.line_items(needed_id)
            case Needed.INVOICE_LINES:
                lines = await stripe.invoice_lines(needed_id)
            case Needed.CUSTOMER:
                obj = {**obj, "customer": await stripe.read(needed_id)}
            case Needed.SESSION | Needed.DISPUTE:
                obj = await stripe.read(needed_id)
