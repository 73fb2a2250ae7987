"""The grant of a subscription's invoice. Pure: an invoice in, a grant out."""

from __future__ import annotations

from typing import TYPE_CHECKING

from stripe_bridge.fields import Object, child, id_of, minor, objects, whole_list
from stripe_bridge.grant_rules import Line, customers_user, listed_credits, make_grant
from stripe_bridge.metadata import USER_KEY, VERSION, VERSION_KEY, other_version, user_of
from stripe_bridge.model import Grant, Needed, Needs, Nothing, Notice, Unresolved

if TYPE_CHECKING:
    from uuid import UUID

    from stripe_bridge.catalog import Catalog, Policy


_FREE = Nothing("free_order")


def of_invoice(invoice: Object, *, lines: list[Object] | None, policy: Policy) -> Grant | Nothing:
    """Says which credits an invoice gives, and to whom (Stripe: "The Invoice object").

    Args:
        invoice: in any API version; its customer may be expanded.
        lines: all of them, with their prices expanded; None: not read yet.
        policy: which payments give credits.

    Returns:
        The grant: the credits of its listed prices, recurring and one-time ones, without
        prorations; or Nothing: `unpaid`, `billing_reason`, `out_of_band`, `paid_from_balance`,
        `free_order`, `plan_change`, `no_subscription_lines`, `not_ours` or `no_credits`. Nothing
        alerts where a listed price was paid.

    Raises:
        Needs: invoice_lines; customer.
        Unresolved: a person must act: user_ambiguous, or as `sessions.of_session`.
    """
    if invoice.get("status") != "paid":
        return Nothing("unpaid")
    withheld = _withheld(invoice, policy)
    if withheld == _FREE or (withheld and policy.catalog.is_empty):
        return withheld
    listed = whole_list(invoice.get("lines")) if lines is None else objects(lines)
    if listed is None:
        raise Needs(Needed.INVOICE_LINES, id_of(invoice))
    if lines is None and policy.catalog.by_lookup_key and any(map(_hides_lookup_key, listed)):
        raise Needs(Needed.INVOICE_LINES, id_of(invoice))
    change = _paid_change(listed, policy.catalog)
    regular = [line for line in listed if not _is_proration(line)]
    if withheld:
        alerts = change or _pays_for_listed(regular, policy.catalog)
        return Nothing(withheld.reason, alerts=alerts)
    counted = [line for line in regular if _counts(line, policy.catalog)]
    if not counted:
        return Nothing("plan_change", alerts=True) if change else Nothing("no_subscription_lines")
    marks = [
        child(invoice, "parent", "subscription_details", "metadata"),
        child(invoice, "subscription_details", "metadata"),
        *(child(line, "metadata") for line in counted),
    ]
    granted = _credits(invoice, counted, marks, policy)
    if isinstance(granted, Nothing):
        return Nothing("plan_change", alerts=True) if change else granted
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
        notice=Notice.PLAN_CHANGE if change else None,
    )


def _withheld(invoice: Object, policy: Policy) -> Nothing | None:
    """Says why a paid invoice gives nothing, whatever its lines are; None: it may give credits."""
    reason = invoice.get("billing_reason")
    if not isinstance(reason, str) or reason not in policy.invoice_billing_reasons:
        return Nothing("billing_reason")
    if _out_of_band(invoice):
        return Nothing("out_of_band")
    if invoice.get("amount_paid") == 0 and not policy.allow_free_orders:
        total = invoice.get("total")
        from_balance = type(total) is int and total > 0
        return Nothing("paid_from_balance") if from_balance else _FREE
    return None


def _credits(
    invoice: Object, counted: list[Object], marks: list[Object], policy: Policy
) -> int | Nothing:
    invoice_id = id_of(invoice)
    if any(metadata.get(VERSION_KEY, VERSION) != VERSION for metadata in marks):
        raise other_version(invoice_id)
    lines = [Line(_price_of(line), line.get("quantity"), _is_free(line)) for line in counted]
    marked = any(USER_KEY in metadata for metadata in marks)
    return listed_credits(lines, invoice_id, policy, marked=marked)


def _lines_user(marks: list[Object], source_id: str) -> UUID | None:
    users = {user for metadata in marks if (user := user_of(metadata, source_id))}
    if len(users) > 1:
        raise Unresolved("user_ambiguous", f"The lines of {source_id} name several users.")
    return users.pop() if users else None


def shows_off_stripe(invoice: Object) -> bool:
    """Returns whether an invoice shows what was paid outside Stripe.

    Since version 2025-03-31 events do not show it, and a read shows it only on request.
    """
    return "paid_out_of_band" in invoice or "amount_paid_off_stripe" in invoice


def _out_of_band(invoice: Object) -> bool:
    """Returns whether all was paid outside Stripe; since 2025-03-31 `amount_paid` includes it."""
    paid, off_stripe = invoice.get("amount_paid"), invoice.get("amount_paid_off_stripe")
    all_off_stripe = type(paid) is type(off_stripe) is int and 0 < paid <= off_stripe
    return invoice.get("paid_out_of_band") is True or all_off_stripe


def _counts(line: Object, catalog: Catalog) -> bool:
    """Returns whether a line may give credits.

    These are a subscription's regular lines, and one-time lines whose price is listed.
    """
    if isinstance(line.get("parent"), dict):
        regular = bool(child(line, "parent", "subscription_item_details"))
        once = bool(child(line, "parent", "invoice_item_details"))
    else:
        regular, once = line.get("type") == "subscription", line.get("type") == "invoiceitem"
    return regular or (once and _is_listed(line, catalog))


def _is_proration(line: Object) -> bool:
    """Returns whether a line is a proration, in versions since and before 2025-03-31."""
    parent = child(line, "parent")
    details = child(parent, "subscription_item_details") or child(parent, "invoice_item_details")
    return (details or line).get("proration") is True


def _is_listed(line: Object, catalog: Catalog) -> bool:
    return catalog.credits_of(_price_of(line)) is not None


def _cost(line: Object) -> int | None:
    """Reads what a line costs after its discounts, in minor units; None: unknown."""
    amount = line.get("amount")
    if type(amount) is not int:
        return None
    discounts = [each.get("amount") for each in objects(line.get("discount_amounts"))]
    return amount - sum(each for each in discounts if type(each) is int)


def _is_free(line: Object) -> bool:
    cost = _cost(line)
    return cost is not None and cost <= 0


def _pays_for_listed(lines: list[Object], catalog: Catalog) -> bool:
    return any(_is_listed(line, catalog) and not _is_free(line) for line in lines)


def _paid_change(lines: list[Object], catalog: Catalog) -> bool:
    """Returns whether a change to a listed price was paid: its prorations sum up to more than 0."""
    prorations = [line for line in lines if _is_proration(line)]
    return sum(_cost(line) or 0 for line in prorations) > 0 and _pays_for_listed(
        prorations, catalog
    )


def _price_of(line: Object) -> object:
    """Finds the price of an invoice line: versions since 2025-03-31, since 2020, before."""
    since_basil = child(line, "pricing", "price_details").get("price")
    return since_basil or line.get("price") or line.get("plan")


def _hides_lookup_key(line: Object) -> bool:
    return isinstance(_price_of(line), str)
