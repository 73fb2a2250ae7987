"""Which credits a subscription's invoice paid for, and whose. Pure: an invoice in, a grant out."""

from __future__ import annotations

from typing import TYPE_CHECKING

from stripe_bridge.fields import Object, child, id_of, minor, objects, whole_list
from stripe_bridge.grants import Line, customers_user, listed_credits, make_grant
from stripe_bridge.metadata import USER_KEY, VERSION, VERSION_KEY, other_version, user_of
from stripe_bridge.model import Grant, Needed, Needs, Nothing, Unresolved

if TYPE_CHECKING:
    from uuid import UUID

    from stripe_bridge.catalog import Catalog, Policy


def of_invoice(invoice: Object, *, lines: list[Object] | None, policy: Policy) -> Grant | Nothing:
    """Says which credits a subscription's invoice paid for (Stripe: "The Invoice object").

    Args:
        invoice: in any API version; its customer may be expanded.
        lines: all of them, with their prices expanded; None when they have not been read.
        policy: what is granted.

    Returns:
        The grant: its listed subscription lines without prorations; or Nothing: `unpaid`,
        `billing_reason`, `out_of_band`, `free_order`, `no_subscription_lines`, `not_ours` or
        `no_credits`.

    Raises:
        Needs: invoice_lines; customer.
        Unresolved: a person must act: user_ambiguous, or as `sessions.of_session`.
    """
    unpaid = _unpaid(invoice, policy)
    if unpaid:
        return unpaid
    listed = whole_list(invoice.get("lines")) if lines is None else objects(lines)
    if listed is None:
        raise Needs(Needed.INVOICE_LINES, id_of(invoice))
    counted = [line for line in listed if _of_subscription(line)]
    if lines is None and policy.catalog.by_lookup_key and any(map(_hides_lookup_key, counted)):
        raise Needs(Needed.INVOICE_LINES, id_of(invoice))
    marks = [
        child(invoice, "parent", "subscription_details", "metadata"),
        child(invoice, "subscription_details", "metadata"),
        *(child(line, "metadata") for line in counted),
    ]
    granted = _credits(invoice, counted, marks, policy.catalog)
    if isinstance(granted, Nothing):
        return granted
    invoice_id = id_of(invoice)
    of_subscription = user_of(marks[0], invoice_id) or user_of(marks[1], invoice_id)
    of_lines = of_subscription or _lines_user(marks[2:], invoice_id)
    return make_grant(
        invoice,
        paid_by=invoice_id,
        user_id=of_lines or customers_user(invoice, invoice_id),
        granted=granted,
        amount=minor(invoice, "amount_paid"),
        policy=policy,
    )


def _unpaid(invoice: Object, policy: Policy) -> Nothing | None:
    """Says why an invoice gives nothing, whatever it is about; None when it may give credits."""
    if invoice.get("status") != "paid":
        return Nothing("unpaid")
    reason = invoice.get("billing_reason")
    if not isinstance(reason, str) or reason not in policy.invoice_billing_reasons:
        return Nothing("billing_reason")
    if _out_of_band(invoice):
        return Nothing("out_of_band")
    if invoice.get("amount_paid") == 0 and not policy.allow_free_orders:
        return Nothing("free_order")
    return None


def _credits(
    invoice: Object, counted: list[Object], marks: list[Object], catalog: Catalog
) -> int | Nothing:
    invoice_id = id_of(invoice)
    if not counted:
        return Nothing("no_subscription_lines")
    if any(metadata.get(VERSION_KEY, VERSION) != VERSION for metadata in marks):
        raise other_version(invoice_id)
    lines = [Line(_price_of(line), line.get("quantity")) for line in counted]
    marked = any(USER_KEY in metadata for metadata in marks)
    return listed_credits(lines, invoice_id, catalog, marked=marked)


def _lines_user(marks: list[Object], source_id: str) -> UUID | None:
    users = {user for metadata in marks if (user := user_of(metadata, source_id))}
    if len(users) > 1:
        raise Unresolved("user_ambiguous", f"The lines of {source_id} name several users.")
    return users.pop() if users else None


def shows_off_stripe(invoice: Object) -> bool:
    """Tells whether an invoice shows what was paid outside of Stripe.

    Versions since 2025-03-31 show it in no event, and where it is read only if it is asked for.
    """
    return "paid_out_of_band" in invoice or "amount_paid_off_stripe" in invoice


def _out_of_band(invoice: Object) -> bool:
    """Tells whether all was paid outside of Stripe; `amount_paid` counts it since 2025-03-31."""
    paid, off_stripe = invoice.get("amount_paid"), invoice.get("amount_paid_off_stripe")
    all_off_stripe = type(paid) is type(off_stripe) is int and 0 < paid <= off_stripe
    return invoice.get("paid_out_of_band") is True or all_off_stripe


def _of_subscription(line: Object) -> bool:
    """Tells whether an invoice line is a subscription's regular one, since or before 2025-03-31."""
    if isinstance(line.get("parent"), dict):
        details = child(line, "parent", "subscription_item_details")
        return bool(details) and details.get("proration") is not True
    return line.get("type") == "subscription" and line.get("proration") is not True


def _price_of(line: Object) -> object:
    """Finds an invoice line's price: since 2025-03-31, since 2020, before."""
    since_basil = child(line, "pricing", "price_details").get("price")
    return since_basil or line.get("price") or line.get("plan")


def _hides_lookup_key(line: Object) -> bool:
    return isinstance(_price_of(line), str)
