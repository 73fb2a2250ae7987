"""The next step for a request for a top-up. Pure: a situation in, the next step out.

A request has one payment intent for its whole life, which can be paid only once at Stripe. A failed
request also has a link to pay by, a Checkout Session of its own. The intent is confirmed only while
no such session can be paid, and a request is closed as failed only once its intent is cancelled. So
no order of steps, and no kill between two of them, can charge twice for one request.
"""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING, NamedTuple

from stripe_bridge.fields import child

if TYPE_CHECKING:
    from stripe_bridge.catalog import Pack, Policy
    from stripe_bridge.fields import Object

TRIES_MAX = 3

_REASON_LENGTH_MAX = 100

# Stripe ("Decline codes") asks not to show these to the customer, who may be a thief.
_NOT_SHOWN = {
    "fraudulent",
    "lost_card",
    "merchant_blacklist",
    "pickup_card",
    "restricted_card",
    "security_violation",
    "stolen_card",
    "transaction_not_allowed",
}


class Payment(Enum):
    """Whether the payment intent of a request can be paid."""

    UNPAID = "it is not paid, and a confirmation may pay it"
    PROCESSING = "it was confirmed, and its bank has not answered yet"
    PAID = "it is paid"
    CANCELED = "it can never be paid"


class Link(Enum):
    """Whether a customer can pay by a link of the request."""

    CLOSED = "no link can be paid, because there is none or all have expired"
    OPEN = "a link can be paid"
    PROCESSING = "the customer has paid by a link, and the bank has not answered yet"
    PAID = "the customer has paid by a link"


class Step(Enum):
    """What to do next."""

    WAIT = "nothing until the next round"
    CREDIT = "credit the purchase"
    CONFIRM = "confirm the payment intent off session"
    CLOSE_LINK = "expire every open link"
    CANCEL = "cancel the payment intent"
    NOT_NEEDED = "close the request as not needed"
    PAID_BY_LINK = "close the request as not needed, because the customer has paid by the link"
    GIVE_UP = "close the request as failed"


class Situation(NamedTuple):
    """All facts that decide the next step.

    Attributes:
        is_open: the request is open.
        is_needed: the credit service says that a charge is needed now.
        is_due: the pause after the last failure is over.
        payment: of the request's payment intent.
        was_declined: the last confirmation of the intent was declined.
        link: of the request's links together.
    """

    is_open: bool
    is_needed: bool
    is_due: bool
    payment: Payment
    was_declined: bool
    link: Link


def next_step(now: Situation) -> Step:
    """Says what to do next about a request that has a payment intent.

    After every step except `WAIT` and the closing ones, everything is read and decided again.
    """
    match now.payment:
        case Payment.PAID:
            return Step.CREDIT
        case Payment.PROCESSING:
            return Step.WAIT
        case Payment.CANCELED:
            return _after_cancel(now)
        case Payment.UNPAID:
            return _unpaid(now)


def _after_cancel(now: Situation) -> Step:
    if not now.is_open:
        return Step.WAIT
    if now.link is Link.PAID:
        return Step.PAID_BY_LINK
    # Without a decline nothing has failed: the bridge or a person cancelled the intent before.
    return Step.GIVE_UP if now.was_declined and now.is_needed else Step.NOT_NEEDED


def _unpaid(now: Situation) -> Step:
    if not now.is_open:
        return Step.CANCEL
    if now.link is Link.PROCESSING:
        return Step.WAIT
    if now.link is Link.PAID or not now.is_needed:
        return Step.CANCEL
    if not now.is_due:
        return Step.WAIT
    return Step.CLOSE_LINK if now.link is Link.OPEN else Step.CONFIRM


def payment_of(intent: Object) -> Payment:
    """Reads the state of a payment intent (Stripe: "How PaymentIntents work").

    An unknown status counts as processing, so that nothing is charged or closed because of it.
    """
    match intent.get("status"):
        case "succeeded":
            return Payment.PAID
        case "canceled":
            return Payment.CANCELED
        case "requires_payment_method" | "requires_confirmation" | "requires_action":
            return Payment.UNPAID
        case _:
            return Payment.PROCESSING


def link_of(session: Object) -> Link:
    """Reads the state of a Checkout Session whose payment intent is expanded."""
    if session.get("status") == "open":
        return Link.OPEN
    if session.get("status") == "expired":
        return Link.CLOSED
    if session.get("payment_status") in ("paid", "no_payment_required"):
        return Link.PAID
    # In these states a delayed payment has failed for good.
    failed = child(session, "payment_intent").get("status") in (
        "requires_payment_method",
        "canceled",
    )
    return Link.CLOSED if failed else Link.PROCESSING


def gravest(links: list[Link]) -> Link:
    """Combines the states of several links into one."""
    for state in (Link.PAID, Link.PROCESSING, Link.OPEN):
        if state in links:
            return state
    return Link.CLOSED


def is_last(tries: int) -> bool:
    """Returns whether the next failure of a request with this many failed tries ends it."""
    return tries + 1 >= TRIES_MAX


def unsellable(pack: Pack | None, policy: Policy) -> str | None:
    """Says why a pack cannot be charged for: a word for programs; None: it can."""
    if pack is None:
        return "unknown_pack"
    if pack.credits > policy.max_credits_per_purchase:
        return "too_many_credits"
    if policy.allowed_currencies and pack.currency not in policy.allowed_currencies:
        return "currency_not_allowed"
    return None


def decline_reason(error: Object) -> str:
    """Makes the reason of a failure from Stripe's error, or from that of an intent.

    Args:
        error: with `code` and, from the bank, `decline_code`.

    Returns:
        A snake_case word that may be shown to the customer.
    """
    words = error.get("decline_code"), error.get("code")
    reason = next((each for each in words if isinstance(each, str) and each), "card_declined")
    return "generic_decline" if reason in _NOT_SHOWN else reason[:_REASON_LENGTH_MAX]
