"""The grant of a Checkout Session or a payment intent. Pure: an object in, a grant out.

A session and its payment intent give the same grant, whichever of them is seen first.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from stripe_bridge.fields import Object, child, id_of, minor, objects, optional_id, whole_list
from stripe_bridge.grant_rules import Sold, customers_user, listed_credits, make_grant, unlisted
from stripe_bridge.metadata import USER_KEY, frozen_credits, frozen_life, read_user, user_of
from stripe_bridge.model import Grant, Needed, Needs, Nothing, Unresolved
from stripe_bridge.sold_lines import Line

if TYPE_CHECKING:
    from stripe_bridge.catalog import Policy

# The intent is ours, but only its session names the user or the credits.
SESSION_DECIDES = Nothing("session_decides")


def of_session(
    session: Object, *, line_items: list[Object] | None, policy: Policy
) -> Grant | Nothing:
    """Says how many credits a Checkout Session gives, and to whom (Stripe: "Fulfill orders").

    Args:
        session: in any API version; its customer may be expanded.
        line_items: all of them; None: not read yet.
        policy: which payments give credits.

    Returns:
        The grant; or Nothing: `setup`, `subscription`, `unknown_mode`, `unpaid`, `free_order`,
        `not_ours` or `no_credits`.

    Raises:
        Needs: session, if its version does not say whether it was paid; line_items; customer.
        Unresolved: a person must act: payment_missing, or as `of_payment_intent`, or price_unknown,
            quantity_malformed.
    """
    session_id = id_of(session)
    payment = optional_id(session.get("payment_intent"))
    unpaid = _unpaid(session, payment, policy)
    if unpaid:
        return unpaid
    sold = _sold(session, line_items, policy)
    if isinstance(sold, Nothing):
        return sold
    amount = minor(session, "amount_total")
    if payment is None and amount:
        raise Unresolved("payment_missing", f"{session_id} is paid, but names no payment.")
    user_id = user_of(child(session, "metadata"), session_id)
    if user_id is None and policy.allow_client_reference_id:
        user_id = read_user(session.get("client_reference_id"), session_id)
    return make_grant(
        session,
        paid_by=payment or session_id,
        user_id=user_id or customers_user(session, session_id),
        sold=sold,
        amount=amount,
        policy=policy,
    )


def of_payment_intent(intent: Object, *, policy: Policy) -> Grant | Nothing:
    """Says how many credits a payment intent gives, if a checkout fixed them in its metadata.

    Args:
        intent: in any API version; its customer may be expanded.
        policy: which payments give credits.

    Returns:
        The grant, the same as its session's except for the source; or Nothing: `unpaid`,
        `free_order`, `not_ours`, or `session_decides` if only the session names the credits or the
        user.

    Raises:
        Needs: customer.
        Unresolved: a person must act: credits_version, credits_malformed, valid_for_malformed,
            credits_above_limit, user_missing, user_malformed, id_malformed, amount_malformed,
            currency_malformed, currency_not_allowed.
    """
    intent_id = id_of(intent)
    if intent.get("status") != "succeeded":
        return Nothing("unpaid")
    if intent.get("amount") == 0 and not policy.allow_free_orders:
        return Nothing("free_order")
    metadata = child(intent, "metadata")
    granted = frozen_credits(metadata, intent_id)
    if granted is None:
        return SESSION_DECIDES if USER_KEY in metadata else Nothing("not_ours")
    user_id = user_of(metadata, intent_id)
    if user_id is None and policy.allow_client_reference_id:
        return SESSION_DECIDES
    return make_grant(
        intent,
        paid_by=intent_id,
        user_id=user_id or customers_user(intent, intent_id),
        sold=Sold(granted, frozen_life(metadata, intent_id)),
        # Not amount_received, because a partial capture lowers it and not the session's total.
        amount=minor(intent, "amount"),
        policy=policy,
    )


def _unpaid(session: Object, payment: str | None, policy: Policy) -> Nothing | None:
    """Says why a session gives nothing, regardless of its lines; None: it may give credits."""
    mode, status = session.get("mode"), session.get("payment_status")
    if mode in ("setup", "subscription"):
        return Nothing(str(mode))
    if mode is None or status is None:
        raise Needs(Needed.SESSION, id_of(session))
    if mode != "payment":
        return Nothing("unknown_mode")
    if status != "paid" and (status != "no_payment_required" or payment):
        return Nothing("unpaid")
    # A free order gives nothing even if it has a payment intent.
    free = status != "paid" or session.get("amount_total") == 0
    free = free or (payment is None and session.get("amount_total") is None)
    if free and not policy.allow_free_orders:
        return Nothing("free_order")
    return None


def _sold(session: Object, line_items: list[Object] | None, policy: Policy) -> Sold | Nothing:
    session_id, metadata = id_of(session), child(session, "metadata")
    frozen = frozen_credits(metadata, session_id)
    if frozen is not None:
        return Sold(frozen, frozen_life(metadata, session_id))
    marked = USER_KEY in metadata
    if policy.catalog.is_empty:
        return unlisted(session_id, marked=marked)
    items = whole_list(session.get("line_items")) if line_items is None else objects(line_items)
    if items is None:
        raise Needs(Needed.LINE_ITEMS, session_id)
    lines = [
        Line(item.get("price"), item.get("quantity"), item.get("amount_total") == 0)
        for item in items
    ]
    return listed_credits(lines, session, policy, marked=marked)
