"""The reversals of the credit lines of a change of plan. Pure: lines in, reversals out.

When a plan changes within its period, Stripe credits the rest of the billed price with a negative
line that names the lines it gives back ("Prorations", "credited_items"). Their credits are reversed
in the same share, as a part of the purchase of their own invoice.
"""

from __future__ import annotations

from fractions import Fraction
from math import ceil
from typing import TYPE_CHECKING

from stripe_bridge.fields import currency, id_of, whole_list
from stripe_bridge.grant_rules import credits_of
from stripe_bridge.invoice_lines import (
    CreditedItems,
    as_sold,
    billed,
    cost,
    credited_items,
    is_credit,
    is_free,
    is_listed,
    may_give,
    price_of,
)
from stripe_bridge.model import Nothing, Reversal, Unresolved

if TYPE_CHECKING:
    from stripe_bridge.catalog import Policy
    from stripe_bridge.fields import Object


def may_credit(invoice: Object) -> bool:
    """Returns whether a paid invoice may have credit lines, so that its lines must be read.

    They are read and not taken from an event, because in old versions lines had other ids.
    """
    if invoice.get("status") != "paid":
        return False
    shown = whole_list(invoice.get("lines"))
    return shown is None or any(map(is_credit, shown))


def credited_by(line: Object, lines: list[Object]) -> CreditedItems:
    """Says which lines a credit line gives back.

    Args:
        line: the credit line.
        lines: all of its invoice. If the plan changed twice before anything was billed, the first
            change is billed and given back on the same invoice.

    Raises:
        Unresolved: credit_unattributed: neither the line nor its invoice says so.
    """
    named = credited_items(line)
    if named is not None:
        return named
    same = frozenset(
        id_of(each)
        for each in lines
        if _id_of_price(each) == _id_of_price(line) and not is_credit(each) and not is_free(each)
    )
    if not same:
        raise Unresolved(
            "credit_unattributed", f"{id_of(line)} does not say which lines it gives back."
        )
    return CreditedItems(str(line.get("invoice")), same)


def of_credit_line(
    line: Object, items: CreditedItems, *, credited: Object, lines: list[Object], policy: Policy
) -> Reversal | Nothing:
    """Says what a credit line reverses.

    The reversal is stated as a share of the total of the credited invoice. It is the share of that
    invoice's credits that the credited lines gave, as far as they are given back. So other lines of
    the invoice do not change it.

    Args:
        line: the credit line.
        items: the lines that it gives back.
        credited: their invoice.
        lines: all lines of `credited`, with their whole prices.
        policy: which payments give credits.

    Returns:
        The reversal; Nothing: the credited lines gave nothing.

    Raises:
        Unresolved: credit_unattributed: the credited lines are not on that invoice; or as
            `invoice_rules.of_invoice`.
    """
    line_id, invoice_id = id_of(line), id_of(credited)
    found = [each for each in lines if each.get("id") in items.line_ids]
    if len(found) < len(items.line_ids):
        raise Unresolved("credit_unattributed", f"{invoice_id} lacks a line that {line_id} names.")
    gave = sum(_credits(each, invoice_id, policy) for each in found)
    if not gave:
        return Nothing("not_ours")
    in_all = sum(_credits(each, invoice_id, policy) for each in lines)
    paid = sum(cost(each) or 0 for each in found)
    given_back = Fraction(min(-(cost(line) or 0), paid), paid) if paid > 0 else Fraction(1)
    total = billed(credited, lines)
    if total <= 0:
        raise Unresolved("amount_malformed", f"The total of {invoice_id} is 0.")
    return Reversal(
        invoice_id,
        line_id,
        1,
        # Rounded up, because changing a plan up and down must not gain credits.
        ceil(total * given_back * gave / in_all),
        total,
        currency(credited),
        "plan changed",
    )


def listed_credit_lines(lines: list[Object], policy: Policy) -> list[Object]:
    """Chooses the credit lines of plans that give credits."""
    return [line for line in lines if is_credit(line) and is_listed(line, policy.catalog)]


def _credits(line: Object, source_id: str, policy: Policy) -> int:
    if not may_give(line, policy.catalog):
        return 0
    gives = credits_of(as_sold(line, source_id), source_id, policy)
    return gives if isinstance(gives, int) else 0


def _id_of_price(line: Object) -> object:
    price = price_of(line)
    return price.get("id") if isinstance(price, dict) else price
