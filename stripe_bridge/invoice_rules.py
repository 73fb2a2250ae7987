"""The grant of a subscription's invoice. Pure: an invoice in, a grant out."""

from __future__ import annotations

from typing import TYPE_CHECKING

from stripe_bridge.fields import Object, child, id_of, minor, objects, optional_id, whole_list
from stripe_bridge.grant_rules import FREE, customers_user, listed_credits, make_grant
from stripe_bridge.invoice_lines import (
    as_sold,
    billed,
    hides_price,
    is_free,
    is_listed,
    may_give,
    needs_interval,
)
from stripe_bridge.metadata import USER_KEY, VERSION, VERSION_KEY, other_version, user_of
from stripe_bridge.model import Grant, Needed, Needs, Nothing, Unresolved, ref

if TYPE_CHECKING:
    from uuid import UUID

    from stripe_bridge.catalog import Catalog, Policy
    from stripe_bridge.grant_rules import Sold


def of_invoice(invoice: Object, *, lines: list[Object] | None, policy: Policy) -> Grant | Nothing:
    """Says how many credits an invoice gives, and to whom (Stripe: "The Invoice object").

    Args:
        invoice: in any API version; its customer may be expanded.
        lines: all of them, with their prices expanded; None: not read yet.
        policy: which payments give credits.

    Returns:
        The grant: the credits of its listed prices, recurring and one-time ones; a proration gives
        the share of the time that it bills. The credits live as long as the catalogue says. Or
        Nothing: `unpaid`, `billing_reason`, `out_of_band`, `free_order`, `no_subscription_lines`,
        `not_ours` or `no_credits`. Nothing alerts where a listed price was paid.

    Raises:
        Needs: invoice_lines; customer.
        Unresolved: a person must act: user_ambiguous, period_unknown, or as `sessions.of_session`.
    """
    if invoice.get("status") != "paid":
        return Nothing("unpaid")
    withheld = _withheld(invoice, policy)
    if withheld and policy.catalog.is_empty:
        return withheld
    listed = whole_list(invoice.get("lines")) if lines is None else objects(lines)
    if listed is None or (lines is None and any(_hides(line, policy.catalog) for line in listed)):
        raise Needs(Needed.INVOICE_LINES, id_of(invoice))
    counted = [line for line in listed if may_give(line, policy.catalog)]
    if withheld:
        paid = [line for line in counted if is_listed(line, policy.catalog) and not is_free(line)]
        return Nothing(withheld.reason, alerts=bool(paid))
    # The part that the customer's balance pays counts too, because it is money of an earlier
    # payment.
    if not billed(invoice, listed) and not policy.allow_free_orders:
        return FREE
    marks = [
        child(invoice, "parent", "subscription_details", "metadata"),
        child(invoice, "subscription_details", "metadata"),
        *(child(line, "metadata") for line in counted),
    ]
    sold = _sold(invoice, counted, marks, policy)
    if isinstance(sold, Nothing):
        return sold
    invoice_id = id_of(invoice)
    of_subscription = user_of(marks[0], invoice_id) or user_of(marks[1], invoice_id)
    of_lines = of_subscription or _lines_user(marks[2:], invoice_id)
    return make_grant(
        invoice,
        paid_by=invoice_id,
        user_id=of_lines or customers_user(invoice, invoice_id),
        sold=sold,
        amount=minor(invoice, "amount_paid"),
        policy=policy,
    )


def _withheld(invoice: Object, policy: Policy) -> Nothing | None:
    """Says why a paid invoice gives nothing, regardless of its lines; None: it may give credits."""
    reason = invoice.get("billing_reason")
    if not isinstance(reason, str) or reason not in policy.invoice_billing_reasons:
        return Nothing("billing_reason")
    return Nothing("out_of_band") if _out_of_band(invoice) else None


def _hides(line: Object, catalog: Catalog) -> bool:
    """Returns whether a line must be read with its whole price."""
    if not hides_price(line):
        return False
    return bool(catalog.by_lookup_key) or (
        may_give(line, catalog) and needs_interval(line, catalog)
    )


def _sold(
    invoice: Object, counted: list[Object], marks: list[Object], policy: Policy
) -> Sold | Nothing:
    if not counted:
        return Nothing("no_subscription_lines")
    invoice_id = id_of(invoice)
    if any(metadata.get(VERSION_KEY, VERSION) != VERSION for metadata in marks):
        raise other_version(invoice_id)
    lines = [as_sold(line, invoice_id) for line in counted]
    marked = any(USER_KEY in metadata for metadata in marks)
    return listed_credits(lines, invoice, policy, marked=marked, series=_series(invoice))


def _series(invoice: Object) -> str | None:
    """Names the purchases of a subscription, in versions since and before 2025-03-31."""
    since_basil = child(invoice, "parent", "subscription_details").get("subscription")
    subscription = optional_id(since_basil or invoice.get("subscription"))
    # No id of Stripe's is longer than the maximum of a series, 64.
    return None if subscription is None else ref(subscription)[:64]


def _lines_user(marks: list[Object], source_id: str) -> UUID | None:
    users = {user for metadata in marks if (user := user_of(metadata, source_id))}
    if len(users) > 1:
        raise Unresolved("user_ambiguous", f"The lines of {source_id} name several users.")
    return users.pop() if users else None


def shows_off_stripe(invoice: Object) -> bool:
    """Returns whether an invoice shows the amount paid outside Stripe.

    Since version 2025-03-31 events do not show it, and a read shows it only on request.
    """
    return "paid_out_of_band" in invoice or "amount_paid_off_stripe" in invoice


def _out_of_band(invoice: Object) -> bool:
    """Returns whether all was paid outside Stripe; since 2025-03-31 `amount_paid` includes it."""
    paid, off_stripe = invoice.get("amount_paid"), invoice.get("amount_paid_off_stripe")
    all_off_stripe = type(paid) is type(off_stripe) is int and 0 < paid <= off_stripe
    return invoice.get("paid_out_of_band") is True or all_off_stripe
