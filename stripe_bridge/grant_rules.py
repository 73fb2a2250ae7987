"""The rules that all grants share, of sessions, payment intents and invoices: lines, user, limits.

The number of credits comes from metadata that a checkout fixed or from the catalogue, never from an
amount of money.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from stripe_bridge.catalog import CREDITS_MAX
from stripe_bridge.fields import Object, child, currency, id_of, optional_id
from stripe_bridge.metadata import user_of
from stripe_bridge.model import Grant, Needed, Needs, Nothing, Unresolved
from stripe_bridge.sold_lines import life_of

if TYPE_CHECKING:
    from collections.abc import Iterable
    from uuid import UUID

    from stripe_bridge.catalog import Policy, Validity
    from stripe_bridge.model import Life
    from stripe_bridge.sold_lines import Line


FREE = Nothing("free_order")


class Sold(NamedTuple):
    """The credits that the lines of an object give together, and how long they live."""

    credits: int
    life: Life


def make_grant(
    source: Object,
    *,
    paid_by: str,
    user_id: UUID,
    sold: Sold,
    amount: int,
    policy: Policy,
) -> Grant:
    """Makes a grant that the policy allows.

    Args:
        source: the object that decides; the grant has its currency.
        paid_by: the id of the payment, as in `Grant`.
        user_id: who gets the credits.
        sold: the credits.
        amount: the money paid, in minor units.
        policy: which payments give credits.

    Raises:
        Unresolved: credits_above_limit, currency_malformed, currency_not_allowed.
    """
    source_id = id_of(source)
    if sold.credits > min(policy.max_credits_per_purchase, CREDITS_MAX):
        raise Unresolved(
            "credits_above_limit",
            f"{source_id} gives {sold.credits} credits, more than the maximum of one purchase.",
        )
    paid_in = currency(source)
    if policy.allowed_currencies and paid_in not in policy.allowed_currencies:
        raise Unresolved(
            "currency_not_allowed", f"{source_id} was paid in {paid_in}, which is not allowed."
        )
    return Grant(paid_by, user_id, sold.credits, amount, paid_in, source_id, sold.life)


def listed_credits(
    lines: Iterable[Line],
    source: Object,
    policy: Policy,
    *,
    marked: bool,
    series: str | None = None,
) -> Sold | Nothing:
    """Adds up the credits of the lines whose prices are listed.

    Args:
        lines: those that may give credits.
        source: their object.
        policy: the listed prices, and whether free lines give credits.
        marked: the object names a user of ours.
        series: names the purchases of the plan; None: the object is not of a plan.

    Returns:
        The credits, which live as long as those of the line whose credits live longest; or Nothing:
        `not_ours`, `free_order`, `no_credits`.

    Raises:
        Unresolved: price_unknown, quantity_malformed, period_unknown.
    """
    source_id = id_of(source)
    paid: list[tuple[Line, Validity]] = []
    total, known = 0, False
    for line in lines:
        gives = credits_of(line, source_id, policy)
        listed = policy.catalog.find(line.price)
        if gives is None or listed is None:
            continue
        known = True
        if isinstance(gives, int):
            paid.append((line, listed.validity))
            total += gives
    if not known:
        return unlisted(source_id, marked=marked)
    if not paid:
        return FREE
    if not total:
        return Nothing("no_credits")
    return Sold(total, life_of(paid, source, series))


def credits_of(line: Line, source_id: str, policy: Policy) -> int | Nothing | None:
    """Says how many credits a line gives.

    Returns:
        Credits, rounded down; Nothing: it cost nothing; None: its price is not listed.

    Raises:
        Unresolved: quantity_malformed.
    """
    listed, quantity = policy.catalog.find(line.price), line.quantity
    if listed is None:
        return None
    if line.is_free and not policy.allow_free_orders:
        return FREE
    if type(quantity) is not int or not 0 <= quantity <= CREDITS_MAX:
        raise Unresolved(
            "quantity_malformed", f"A line of {source_id} has no whole quantity from 0 to 10^12."
        )
    return int(listed.credits * quantity * line.share)


def unlisted(source_id: str, *, marked: bool) -> Nothing:
    """Says that an object without a listed price gives nothing.

    Raises:
        Unresolved: price_unknown, if it names a user of ours.
    """
    if marked:
        raise Unresolved(
            "price_unknown", f"{source_id} names a user of ours, but no price of the catalogue."
        )
    return Nothing("not_ours")


def customers_user(source: Object, source_id: str) -> UUID:
    """Reads the user that the customer of an object names.

    Raises:
        Needs: customer, if it is not expanded.
        Unresolved: user_missing, user_malformed, id_malformed.
    """
    customer = source.get("customer")
    if isinstance(customer, str):
        raise Needs(Needed.CUSTOMER, optional_id(customer) or "")
    user_id = user_of(child(source, "customer", "metadata"), source_id)
    if user_id is None:
        raise Unresolved("user_missing", f"{source_id} is ours, but names no user.")
    return user_id
