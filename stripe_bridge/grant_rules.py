"""What the grants of sessions, payment intents and invoices share: priced lines, user, limits.

Credits come from metadata that a checkout fixed or from the catalogue, never from an amount of
money.
"""

from __future__ import annotations

from fractions import Fraction
from typing import TYPE_CHECKING, NamedTuple

from stripe_bridge.catalog import CREDITS_MAX
from stripe_bridge.fields import Object, child, currency, id_of, optional_id
from stripe_bridge.metadata import user_of
from stripe_bridge.model import Grant, Needed, Needs, Nothing, Unresolved

if TYPE_CHECKING:
    from collections.abc import Iterable
    from uuid import UUID

    from stripe_bridge.catalog import Policy
    from stripe_bridge.model import Notice


FREE = Nothing("free_order")


class Line(NamedTuple):
    """A line of a session or an invoice, with price and quantity as Stripe shows them.

    Attributes:
        price: its id, or the price object.
        quantity: the number of units.
        is_free: it cost nothing, because of a trial or a full discount.
        share: which part of a plan's period it is for; 1 for everything else.
    """

    price: object
    quantity: object
    is_free: bool
    share: Fraction = Fraction(1)


def make_grant(
    source: Object,
    *,
    paid_by: str,
    user_id: UUID,
    granted: int,
    amount: int,
    policy: Policy,
    notice: Notice | None = None,
) -> Grant:
    """Makes a grant that the policy allows.

    Args:
        source: the object that decides; the grant has its currency.
        paid_by: the id of the payment, as in `Grant`.
        user_id: who gets the credits.
        granted: the number of credits.
        amount: what was paid, in minor units.
        policy: which payments give credits.
        notice: why a person should look at it.

    Raises:
        Unresolved: credits_above_limit, currency_malformed, currency_not_allowed.
    """
    source_id = id_of(source)
    if granted > min(policy.max_credits_per_purchase, CREDITS_MAX):
        raise Unresolved(
            "credits_above_limit",
            f"{source_id} gives {granted} credits, more than the maximum of one purchase.",
        )
    paid_in = currency(source)
    if policy.allowed_currencies and paid_in not in policy.allowed_currencies:
        raise Unresolved(
            "currency_not_allowed", f"{source_id} was paid in {paid_in}, which is not allowed."
        )
    return Grant(paid_by, user_id, granted, amount, paid_in, source_id, notice)


def listed_credits(
    lines: Iterable[Line], source_id: str, policy: Policy, *, marked: bool
) -> int | Nothing:
    """Adds up the credits of the lines whose prices are listed.

    Args:
        lines: those that may give credits.
        source_id: the id of their object.
        policy: the listed prices, and whether free lines give credits.
        marked: the object names a user of ours.

    Returns:
        Credits; or Nothing: `not_ours`, `free_order`, `no_credits`.

    Raises:
        Unresolved: price_unknown, quantity_malformed.
    """
    given = [credits_of(line, source_id, policy) for line in lines]
    listed = [each for each in given if each is not None]
    if not listed:
        return unlisted(source_id, marked=marked)
    paid = [each for each in listed if not isinstance(each, Nothing)]
    if not paid:
        return FREE
    return sum(paid) or Nothing("no_credits")


def credits_of(line: Line, source_id: str, policy: Policy) -> int | Nothing | None:
    """Says which credits a line gives.

    Returns:
        Credits, rounded down; Nothing: it cost nothing; None: its price is not listed.

    Raises:
        Unresolved: quantity_malformed.
    """
    each, quantity = policy.catalog.credits_of(line.price), line.quantity
    if each is None:
        return None
    if line.is_free and not policy.allow_free_orders:
        return FREE
    if type(quantity) is not int or not 0 <= quantity <= CREDITS_MAX:
        raise Unresolved(
            "quantity_malformed", f"A line of {source_id} has no whole quantity, 0 to 10^12."
        )
    return int(each * quantity * line.share)


def unlisted(source_id: str, *, marked: bool) -> Nothing:
    """Decides about an object without a listed price.

    Raises:
        Unresolved: price_unknown, if it names a user of ours.
    """
    if marked:
        raise Unresolved(
            "price_unknown", f"{source_id} names a user of ours and no price of the catalogue."
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
        raise Unresolved("user_missing", f"{source_id} is ours and names no user.")
    return user_id
