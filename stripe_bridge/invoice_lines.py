"""Reads the lines of an invoice, whose shape differs between API versions. Pure."""

from __future__ import annotations

from fractions import Fraction
from typing import TYPE_CHECKING, NamedTuple

from stripe_bridge.fields import child, objects, optional_id
from stripe_bridge.model import Unresolved
from stripe_bridge.plan_periods import interval_of, period_of, share_of
from stripe_bridge.sold_lines import Line

if TYPE_CHECKING:
    from stripe_bridge.catalog import Catalog
    from stripe_bridge.fields import Object


class CreditedItems(NamedTuple):
    """The lines of an invoice that a credit line gives back, by their ids."""

    invoice_id: str
    line_ids: frozenset[str]


def price_of(line: Object) -> object:
    """Finds the price of a line: in versions since 2025-03-31, since 2020, and before."""
    since_basil = child(line, "pricing", "price_details").get("price")
    return since_basil or line.get("price") or line.get("plan")


def hides_price(line: Object) -> bool:
    """Returns whether a line shows only the id of its price."""
    return isinstance(price_of(line), str)


def is_listed(line: Object, catalog: Catalog) -> bool:
    """Returns whether the catalogue has the price of a line."""
    return catalog.find(price_of(line)) is not None


def is_proration(line: Object) -> bool:
    """Returns whether a line bills or credits a part of a period, because a plan changed."""
    return _details(line).get("proration") is True


def is_credit(line: Object) -> bool:
    """Returns whether a line gives back the price that was billed for the rest of a period."""
    paid = cost(line)
    return is_proration(line) and paid is not None and paid < 0


def may_give(line: Object, catalog: Catalog) -> bool:
    """Returns whether a line may give credits.

    Such lines are a subscription's regular lines, the prorations that bill for a listed price, and
    one-time lines whose price is listed.
    """
    if is_credit(line):
        return False
    if isinstance(line.get("parent"), dict):
        regular = bool(child(line, "parent", "subscription_item_details"))
        once = bool(child(line, "parent", "invoice_item_details"))
    else:
        regular, once = line.get("type") == "subscription", line.get("type") == "invoiceitem"
    if is_proration(line) or (once and not regular):
        return is_listed(line, catalog)
    return regular


def cost(line: Object) -> int | None:
    """Reads the cost of a line after its discounts and without exclusive taxes; None: unknown."""
    amount = line.get("amount")
    if type(amount) is not int:
        return None
    return amount - _sum(objects(line.get("discount_amounts")))


def cost_with_tax(line: Object) -> int:
    """Reads a line's part of the total of its invoice, as versions since 2025-03-31 show it."""
    taxes = [tax for tax in objects(line.get("taxes")) if tax.get("tax_behavior") == "exclusive"]
    return (cost(line) or 0) + _sum(taxes)


def billed(invoice: Object, lines: list[Object]) -> int:
    """Reads the amount that an invoice billed, in minor units: its total without its credit lines.

    The customer's balance and the credit lines pay it just as money does. A credit note that was
    issued before the payment lowers it.

    Args:
        invoice: of any version; only those since 2025-03-31 show the taxes of credit lines.
        lines: all of them.
    """
    total, lowered = invoice.get("total"), invoice.get("pre_payment_credit_notes_amount")
    asked = total if type(total) is int else 0
    asked -= lowered if type(lowered) is int else 0
    return asked - sum(cost_with_tax(line) for line in lines if is_credit(line))


def is_free(line: Object) -> bool:
    """Returns whether a line cost nothing, because of a trial or a full discount."""
    paid = cost(line)
    return paid is not None and paid <= 0


def needs_interval(line: Object, catalog: Catalog) -> bool:
    """Returns whether the credits of a line or their life depend on how often its price renews."""
    listed = catalog.find(price_of(line))
    return listed is not None and (is_proration(line) or listed.validity.carry_over > 0)


def as_sold(line: Object, source_id: str) -> Line:
    """Reads the price, quantity and period of a line.

    Args:
        line: one that may give credits, with its whole price if `needs_interval`.
        source_id: the id of its invoice.

    Raises:
        Unresolved: period_unknown: it is a proration, and its share of a period is unknown.
    """
    price, part = price_of(line), is_proration(line)
    return Line(
        price,
        line.get("quantity"),
        is_free(line),
        _share(line, price, source_id) if part else Fraction(1),
        period_of(line),
        begins_period=not part,
    )


def credited_items(line: Object) -> CreditedItems | None:
    """Reads which lines a credit line gives back; None: it does not say."""
    shown = child(_details(line), "proration_details", "credited_items")
    invoice_id = optional_id(shown.get("invoice"))
    listed = shown.get("invoice_line_items")
    if invoice_id is None or not isinstance(listed, list):
        return None
    line_ids = frozenset(each for each in listed if isinstance(each, str))
    return CreditedItems(invoice_id, line_ids) if line_ids else None


def _details(line: Object) -> Object:
    """Finds the fields about a proration, in versions since and before 2025-03-31."""
    parent = child(line, "parent")
    details = child(parent, "subscription_item_details") or child(parent, "invoice_item_details")
    return details or line


def _share(line: Object, price: object, source_id: str) -> Fraction:
    rest, interval = period_of(line), interval_of(price)
    if rest is None or interval is None:
        raise Unresolved(
            "period_unknown",
            f"A proration of {source_id} does not show which share of a period it is for.",
        )
    return share_of(rest, interval, _billed_share(line, price))


def _billed_share(line: Object, price: object) -> Fraction | None:
    """Reads which share of its price a line bills; None: unknown, as with prices in tiers."""
    amount, quantity = line.get("amount"), line.get("quantity")
    unit = price.get("unit_amount") if isinstance(price, dict) else None
    if type(amount) is not int or type(quantity) is not int or type(unit) is not int:
        return None
    whole = unit * quantity
    return Fraction(amount, whole) if whole > 0 else None


def _sum(parts: list[Object]) -> int:
    amounts = [each.get("amount") for each in parts]
    return sum(each for each in amounts if type(each) is int)
