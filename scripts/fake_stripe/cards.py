"""Saved cards, and payment intents that are made, confirmed and cancelled through the API.

The cards behave as in https://docs.stripe.com/testing, and intents change as in
https://docs.stripe.com/payments/paymentintents/lifecycle.
"""

from .payments import Refused, charge_of, found, make_intent, succeed
from .state import Object
from .stripe import Stripe

# The bank's answer to a charge: None, it is paid; or the error code and the decline code.
_PAID = None
_CARDS: dict[str, tuple[str, tuple[str, str] | None]] = {
    "pm_card_visa": ("4242", _PAID),
    "pm_card_chargeCustomerFail": ("0341", ("card_declined", "generic_decline")),
    "pm_card_authenticationRequired": (
        "3184",
        ("authentication_required", "authentication_required"),
    ),
    "pm_card_authenticationRequiredChargeDeclinedInsufficientFunds": (
        "3178",
        ("card_declined", "insufficient_funds"),
    ),
    # Not one of Stripe's cards: its bank asks for the customer of an off-session charge.
    "pm_fake_asksOffSession": ("0000", ("asks_off_session", "")),
}
_CANCELLABLE = {
    "requires_payment_method", "requires_confirmation", "requires_action", "requires_capture",
}  # fmt: skip
_CONFIRMABLE = {"requires_payment_method", "requires_confirmation", "requires_action"}


def save_card(stripe: Stripe, customer: str, test_card: str = "pm_card_visa") -> Object:
    """Attaches one of Stripe's test cards to a customer."""
    if test_card not in _CARDS:
        message = f"No such PaymentMethod: '{test_card}'"
        raise Refused(message, status=404, code="resource_missing", param="payment_method")
    found(stripe, "customer", customer, param="customer")
    last4, says = _CARDS[test_card]
    blank = {"address": None, "email": "ada@example.com", "name": "Ada Example", "phone": None}
    return stripe.state.add(
        "payment_method",
        {
            "allow_redisplay": "unspecified", "billing_details": blank,
            "card": {
                "brand": "visa", "country": "US", "display_brand": "visa", "exp_month": 12,
                "exp_year": 2040, "fingerprint": last4, "funding": "credit", "last4": last4,
                "wallet": None,
            },
            "customer": customer, "metadata": {}, "type": "card", "_says": says,
        },
    )  # fmt: skip


def detach_card(stripe: Stripe, card: Object) -> Object:
    """Takes a card from its customer; it can no longer be charged."""
    card["customer"] = None
    stripe.state.save(card)
    return card


def change_card(stripe: Stripe, card: Object, *, like: str) -> Object:
    """Makes the bank answer as it does for one of Stripe's test cards."""
    card["_says"] = _CARDS[like][1]
    return card


def create_intent(stripe: Stripe, form: Object, *, live: bool) -> Object:
    """Makes an intent from the API's parameters; it is not confirmed."""
    if customer := form.get("customer"):
        found(stripe, "customer", customer, param="customer")
    has_card = form.get("payment_method") is not None
    given = {
        "amount": int(form["amount"]),
        "currency": form["currency"],
        "customer": customer,
        "description": form.get("description"),
        "livemode": live,
        "metadata": form.get("metadata") or {},
        "payment_method": form.get("payment_method"),
        "status": "requires_confirmation" if has_card else "requires_payment_method",
    }
    return make_intent(stripe, given)


def confirm_intent(stripe: Stripe, intent: Object, form: Object) -> Object:
    """Charges the card of an intent.

    Raises:
        Refused: the intent cannot be confirmed in its state, it has no card of its customer, or
            the bank declines (402).
    """
    if intent["status"] not in _CONFIRMABLE:
        raise _unexpected(intent, f"cannot be confirmed because it is {intent['status']}")
    card_id = form.get("payment_method") or intent["payment_method"]
    if card_id is None:
        raise _unexpected(intent, "cannot be confirmed because it has no payment method")
    card = found(stripe, "payment_method", card_id, param="payment_method")
    if card["customer"] is None or card["customer"] != intent["customer"]:
        raise Refused(
            "The payment method does not belong to the Customer of this PaymentIntent.",
            param="payment_method",
        )
    if card["_says"] is _PAID:
        charge = succeed(stripe, intent, card=card)
        intent |= {"last_payment_error": None, "next_action": None}
        stripe.tell(("charge.succeeded", charge), ("payment_intent.succeeded", intent))
        return intent
    code, decline_code = card["_says"]
    asks = code == "authentication_required" and form.get("off_session") != "true"
    if asks or code == "asks_off_session":
        intent |= {
            "status": "requires_action", "payment_method": card["id"],
            "next_action": {"type": "use_stripe_sdk", "use_stripe_sdk": {}},
        }  # fmt: skip
        stripe.tell(("payment_intent.requires_action", intent))
        return intent
    raise _declined(stripe, intent, card, code, decline_code)


def cancel_intent(stripe: Stripe, intent: Object, form: Object) -> Object:
    """Cancels an intent, so that it can never be paid.

    Raises:
        Refused: it is paid or cancelled already.
    """
    if intent["status"] not in _CANCELLABLE:
        raise _unexpected(intent, f"cannot be canceled because it is {intent['status']}")
    intent |= {
        "status": "canceled", "canceled_at": stripe.state.now(),
        "cancellation_reason": form.get("cancellation_reason"),
    }  # fmt: skip
    stripe.tell(("payment_intent.canceled", intent))
    return intent


def update_intent(intent: Object, form: Object) -> Object:
    """Adds to the metadata of an intent."""
    if unknown := form.keys() - {"metadata"}:
        raise Refused(f"Received unknown parameter: {min(unknown)}", code="parameter_unknown")
    # A new dict: an answer that is being written still shows the old one.
    intent["metadata"] = {**intent["metadata"], **form["metadata"]}
    return intent


def _unexpected(intent: Object, why: str) -> Refused:
    return Refused(
        f"This PaymentIntent {why}.",
        code="payment_intent_unexpected_state",
        kept=True,
        payment_intent=_public(intent),
    )


def _declined(
    stripe: Stripe, intent: Object, card: Object, code: str, decline_code: str
) -> Refused:
    charge = charge_of(stripe, intent, captured=False, card=card)
    charge |= {"status": "failed", "paid": False, "failure_code": code}
    error = {
        "charge": charge["id"], "code": code, "decline_code": decline_code,
        "message": "Your card was declined.", "payment_method": _public(card), "type": "card_error",
    }  # fmt: skip
    intent |= {
        "status": "requires_payment_method", "payment_method": None, "next_action": None,
        "last_payment_error": error,
    }  # fmt: skip
    stripe.tell(("charge.failed", charge), ("payment_intent.payment_failed", intent))
    return Refused(
        "Your card was declined.",
        status=402,
        kind="card_error",
        code=code,
        kept=True,
        charge=charge["id"],
        decline_code=decline_code,
        payment_intent=_public(intent),
        payment_method=_public(card),
    )


def _public(made: Object) -> Object:
    return {name: value for name, value in made.items() if not name.startswith("_")}
