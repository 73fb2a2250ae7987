"""Which credits a Stripe object paid for, and whose. Pure: objects in, a grant out.

A session and its payment intent give the same grant, whichever is seen first or alone. Credits come
from metadata that our checkout froze or from the catalogue, never from an amount of money.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, NamedTuple

from stripe_bridge.catalog import CREDITS_MAX
from stripe_bridge.fields import (
    Object,
    child,
    currency,
    id_of,
    minor,
    objects,
    optional_id,
    uuid_or_none,
    whole_list,
)
from stripe_bridge.model import Grant, Needs, Nothing, Unresolved

if TYPE_CHECKING:
    from collections.abc import Iterable
    from uuid import UUID

    from stripe_bridge.catalog import Catalog, Policy

# The metadata that our checkout writes on a session and on its payment intent.
USER_KEY = "credit_user_id"
CREDITS_KEY = "credits"
VERSION_KEY = "credits_v"
VERSION = "1"

# An intent that is ours and leaves user or credits to its session.
SESSION_DECIDES = Nothing("session_decides")

_CREDITS = re.compile("[1-9][0-9]{0,12}")


class _Line(NamedTuple):
    price: object
    quantity: object


def frozen_metadata(user_id: UUID, amount: int) -> dict[str, str]:
    """Makes the metadata that fixes a purchase when it begins, for session and payment intent."""
    return {USER_KEY: str(user_id), CREDITS_KEY: str(amount), VERSION_KEY: VERSION}


def of_session(
    session: Object, *, line_items: list[Object] | None, policy: Policy
) -> Grant | Nothing:
    """Says what a checkout session paid for (Stripe: "Fulfill orders").

    Args:
        session: in any API version; its customer may be expanded.
        line_items: all of them; None when they have not been read.
        policy: what is granted.

    Returns:
        The grant; or Nothing: `setup`, `subscription`, `unknown_mode`, `unpaid`, `free_order`,
        `not_ours` or `no_credits`.

    Raises:
        Needs: session, when it is of a version that does not tell whether it was paid; line_items;
            customer.
        Unresolved: a person must act: payment_missing, or as `of_payment_intent`, or price_unknown,
            quantity_malformed.
    """
    session_id = id_of(session)
    payment = optional_id(session.get("payment_intent"))
    unpaid = _unpaid_session(session, payment, policy)
    if unpaid:
        return unpaid
    granted = _session_credits(session, line_items, policy.catalog)
    if isinstance(granted, Nothing):
        return granted
    amount = minor(session, "amount_total")
    if payment is None and amount:
        raise Unresolved("payment_missing", f"{session_id} is paid and names no payment.")
    metadata = child(session, "metadata")
    user_id = _user_of(metadata, session_id)
    if user_id is None and policy.allow_client_reference_id:
        user_id = _user(session.get("client_reference_id"), session_id)
    return _grant(
        session,
        payment=payment or session_id,
        user_id=user_id or _customers_user(session, session_id),
        granted=granted,
        amount=amount,
        policy=policy,
    )


def of_payment_intent(intent: Object, *, policy: Policy) -> Grant | Nothing:
    """Says what a payment intent paid for, when it carries the credits our checkout froze.

    Args:
        intent: in any API version; its customer may be expanded.
        policy: what is granted.

    Returns:
        The grant, the same as its session's but for the source; or Nothing: `unpaid`, `not_ours`,
        or `session_decides` when only the session tells credits or user.

    Raises:
        Needs: customer.
        Unresolved: a person must act: credits_version, credits_malformed, credits_above_limit,
            user_missing, user_malformed, id_malformed, amount_malformed, currency_malformed,
            currency_not_allowed.
    """
    intent_id = id_of(intent)
    if intent.get("status") != "succeeded":
        return Nothing("unpaid")
    metadata = child(intent, "metadata")
    granted = _frozen_credits(metadata, intent_id)
    if granted is None:
        return SESSION_DECIDES if USER_KEY in metadata else Nothing("not_ours")
    user_id = _user_of(metadata, intent_id)
    if user_id is None and policy.allow_client_reference_id:
        return SESSION_DECIDES
    return _grant(
        intent,
        payment=intent_id,
        user_id=user_id or _customers_user(intent, intent_id),
        granted=granted,
        # Not amount_received, which a partial capture lowers while the session's total stays.
        amount=minor(intent, "amount"),
        policy=policy,
    )


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
        Unresolved: a person must act: user_ambiguous, or as `of_session`.
    """
    unpaid = _unpaid_invoice(invoice, policy)
    if unpaid:
        return unpaid
    listed = whole_list(invoice.get("lines")) if lines is None else objects(lines)
    if listed is None:
        raise Needs("invoice_lines", id_of(invoice))
    counted = [line for line in listed if _of_subscription(line)]
    if lines is None and policy.catalog.by_lookup_key and any(map(_hides_lookup_key, counted)):
        raise Needs("invoice_lines", id_of(invoice))
    told = [
        child(invoice, "parent", "subscription_details", "metadata"),
        child(invoice, "subscription_details", "metadata"),
        *(child(line, "metadata") for line in counted),
    ]
    granted = _invoice_credits(invoice, counted, told, policy.catalog)
    if isinstance(granted, Nothing):
        return granted
    invoice_id = id_of(invoice)
    of_subscription = _user_of(told[0], invoice_id) or _user_of(told[1], invoice_id)
    of_lines = of_subscription or _lines_user(told[2:], invoice_id)
    return _grant(
        invoice,
        payment=invoice_id,
        user_id=of_lines or _customers_user(invoice, invoice_id),
        granted=granted,
        amount=minor(invoice, "amount_paid"),
        policy=policy,
    )


def _grant(
    source: Object, *, payment: str, user_id: UUID, granted: int, amount: int, policy: Policy
) -> Grant:
    source_id = id_of(source)
    if granted > min(policy.max_credits_per_purchase, CREDITS_MAX):
        raise Unresolved(
            "credits_above_limit",
            f"{source_id} is of {granted} credits, more than one purchase may give.",
        )
    paid_in = currency(source)
    if policy.allowed_currencies and paid_in not in policy.allowed_currencies:
        raise Unresolved(
            "currency_not_allowed", f"{source_id} was paid in {paid_in}, which is not allowed."
        )
    return Grant(f"stripe:{payment}", user_id, granted, amount, paid_in, source_id)


def _unpaid_session(session: Object, payment: str | None, policy: Policy) -> Nothing | None:
    """Says why a session gives nothing, before what it is about; None when it may."""
    mode, status = session.get("mode"), session.get("payment_status")
    if mode in ("setup", "subscription"):
        return Nothing(str(mode))
    if mode is None or status is None:
        raise Needs("session", id_of(session))
    if mode != "payment":
        return Nothing("unknown_mode")
    if status != "paid" and (status != "no_payment_required" or payment):
        return Nothing("unpaid")
    free = status != "paid" or (payment is None and not session.get("amount_total"))
    if free and not policy.allow_free_orders:
        return Nothing("free_order")
    return None


def _session_credits(
    session: Object, line_items: list[Object] | None, catalog: Catalog
) -> int | Nothing:
    session_id, metadata = id_of(session), child(session, "metadata")
    frozen = _frozen_credits(metadata, session_id)
    if frozen is not None:
        return frozen
    marked = USER_KEY in metadata
    if catalog.is_empty:
        return _unlisted(session_id, marked=marked)
    items = whole_list(session.get("line_items")) if line_items is None else objects(line_items)
    if items is None:
        raise Needs("line_items", session_id)
    lines = [_Line(item.get("price"), item.get("quantity")) for item in items]
    return _listed_credits(lines, session_id, catalog, marked=marked)


def _unpaid_invoice(invoice: Object, policy: Policy) -> Nothing | None:
    """Says why an invoice gives nothing, before what it is about; None when it may."""
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


def _invoice_credits(
    invoice: Object, counted: list[Object], told: list[Object], catalog: Catalog
) -> int | Nothing:
    invoice_id = id_of(invoice)
    if not counted:
        return Nothing("no_subscription_lines")
    if any(metadata.get(VERSION_KEY, VERSION) != VERSION for metadata in told):
        raise _other_version(invoice_id)
    lines = [_Line(_price_of(line), line.get("quantity")) for line in counted]
    marked = any(USER_KEY in metadata for metadata in told)
    return _listed_credits(lines, invoice_id, catalog, marked=marked)


def _frozen_credits(metadata: Object, source_id: str) -> int | None:
    """Reads the credits that our checkout froze; None where it froze none.

    `credits` alone may be another program's word; with our user or version it is meant for us.
    """
    if VERSION_KEY not in metadata and not {USER_KEY, CREDITS_KEY} <= metadata.keys():
        return None
    if metadata.get(VERSION_KEY) != VERSION:
        raise _other_version(source_id)
    written = metadata.get(CREDITS_KEY)
    if (
        not isinstance(written, str)
        or not _CREDITS.fullmatch(written)
        or int(written) > CREDITS_MAX
    ):
        raise Unresolved(
            "credits_malformed", f"The credits of {source_id} are no whole number, 1 to 10^12."
        )
    return int(written)


def _other_version(source_id: str) -> Unresolved:
    return Unresolved(
        "credits_version", f"The metadata of {source_id} is not of version {VERSION}."
    )


def _listed_credits(
    lines: Iterable[_Line], source_id: str, catalog: Catalog, *, marked: bool
) -> int | Nothing:
    """Adds up the lines whose prices are listed."""
    quantities = [
        (each, line.quantity)
        for line in lines
        if (each := catalog.credits_of(line.price)) is not None
    ]
    if not quantities:
        return _unlisted(source_id, marked=marked)
    total = 0
    for each, quantity in quantities:
        if type(quantity) is not int or not 0 <= quantity <= CREDITS_MAX:
            raise Unresolved(
                "quantity_malformed", f"A line of {source_id} has no whole quantity, 0 to 10^12."
            )
        total += each * quantity
    return total or Nothing("no_credits")


def _unlisted(source_id: str, *, marked: bool) -> Nothing:
    if marked:
        raise Unresolved(
            "price_unknown", f"{source_id} names a user of ours and no price of the catalogue."
        )
    return Nothing("not_ours")


def _user(written: object, source_id: str) -> UUID | None:
    if written is None:
        return None
    user_id = uuid_or_none(written)
    if user_id is None:
        raise Unresolved("user_malformed", f"The user of {source_id} is no UUID.")
    return user_id


def _user_of(metadata: Object, source_id: str) -> UUID | None:
    return _user(metadata.get(USER_KEY), source_id)


def _lines_user(told: list[Object], source_id: str) -> UUID | None:
    users = {user for metadata in told if (user := _user_of(metadata, source_id))}
    if len(users) > 1:
        raise Unresolved("user_ambiguous", f"The lines of {source_id} name several users.")
    return users.pop() if users else None


def _customers_user(source: Object, source_id: str) -> UUID:
    customer = source.get("customer")
    if isinstance(customer, str):
        raise Needs("customer", optional_id(customer) or "")
    user_id = _user_of(child(source, "customer", "metadata"), source_id)
    if user_id is None:
        raise Unresolved("user_missing", f"{source_id} is ours and names no user.")
    return user_id


def _out_of_band(invoice: Object) -> bool:
    """Tells whether the money came past Stripe; `amount_paid` counts it since 2025-03-31."""
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
