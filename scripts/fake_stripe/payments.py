"""Payments: checkout sessions, payment intents and charges, and how they succeed or fail."""

from typing import Any

from .state import Object
from .stripe import Stripe
from .versions import BASIL


class Refused(Exception):
    """A request that Stripe answers with an error of its usual shape.

    Attributes:
        status: HTTP status.
        error: the value of `error` in the answer.
        kept: the answer belongs to the idempotency key, because the request has begun to run.
    """

    def __init__(
        self,
        message: str,
        *,
        status: int = 400,
        kind: str = "invalid_request_error",
        code: str | None = None,
        param: str | None = None,
        kept: bool = False,
        **more: object,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.kept = kept
        self.error: dict[str, object] = {"type": kind, "message": message, **more}
        if code:
            self.error |= {"code": code, "doc_url": f"https://docs.stripe.com/error-codes/{code}"}
        if param:
            self.error["param"] = param


def found(stripe: Stripe, kind: str, id_: str, *, param: str = "id") -> Object:
    """The object of a kind and id.

    Raises:
        Refused: there is none, with the status and the code that Stripe has for it.
    """
    object_ = stripe.state.get(kind, id_)
    if object_ is None:
        name = {"checkout.session": "checkout.session", "price": "price"}.get(kind, kind)
        raise Refused(f"No such {name}: '{id_}'", status=404, code="resource_missing", param=param)
    return object_


def make_session(stripe: Stripe, given: Object) -> Object:
    """Makes an open session from the API's parameters (decoded) and returns it.

    Besides the API's parameters it takes `livemode`, `amount_discount`, `amount_tax`,
    `presentment`, `payment_link` and `id`, which are otherwise decided by a customer or the
    account.
    """
    state, mode = stripe.state, given["mode"]
    lines = [_line(stripe, each) for each in given.get("line_items") or []]
    currency = lines[0]["currency"] if lines else given.get("currency", "eur")
    subtotal = sum(line["amount_subtotal"] for line in lines)
    discount, tax = int(given.get("amount_discount", 0)), int(given.get("amount_tax", 0))
    id_ = given.get("id") or state.new_id("checkout.session", live=given.get("livemode"))
    customer = given.get("customer")
    session = {
        "id": id_,
        "adaptive_pricing": {"enabled": True},
        "allow_promotion_codes": given.get("allow_promotion_codes"),
        "amount_subtotal": subtotal if lines else None,
        "amount_total": max(0, subtotal - discount + tax) if lines else None,
        "automatic_tax": {"enabled": bool(tax), "liability": None, "status": None},
        "cancel_url": given.get("cancel_url"),
        "client_reference_id": given.get("client_reference_id"),
        "currency": currency if lines else None,
        "currency_conversion": None,
        "customer": customer,
        "customer_creation": "if_required",
        "customer_details": None,
        "customer_email": given.get("customer_email"),
        "expires_at": int(given.get("expires_at") or state.now() + 86400),
        "invoice": None,
        "invoice_creation": {"enabled": _enabled(given.get("invoice_creation"))},
        "livemode": given.get("livemode"),
        "metadata": given.get("metadata") or {},
        "mode": mode,
        "payment_intent": None,
        "payment_link": given.get("payment_link"),
        "payment_method_types": ["card"],
        "payment_status": "unpaid",
        "presentment_details": None,
        "setup_intent": None,
        "status": "open",
        "subscription": None,
        "success_url": given.get("success_url"),
        "total_details": {
            "amount_discount": discount, "amount_shipping": 0, "amount_tax": tax,
        },
        "ui_mode": given.get("ui_mode") or "hosted_page",
        "url": f"{stripe.base_url}/_fake/pay/{id_}",
        "_lines": lines,
        "_intent_metadata": (given.get("payment_intent_data") or {}).get("metadata") or {},
        "_capture": (given.get("payment_intent_data") or {}).get("capture_method", "automatic"),
        "_saves_card": bool((given.get("payment_intent_data") or {}).get("setup_future_usage")),
        "_presentment": given.get("presentment"),
    }  # fmt: skip
    return state.add("checkout.session", session)


def _enabled(feature: Object | None) -> bool:
    """Reads a switch as JSON or a form writes it."""
    return (feature or {}).get("enabled") in {True, "true"}


def _line(stripe: Stripe, item: Object) -> Object:
    quantity = int(item.get("quantity", 1))
    if "price" in item:
        price = found(stripe, "price", item["price"], param="line_items[0][price]")
        if not price["active"]:
            raise Refused("The price specified is inactive.", param="line_items[0][price]")
    else:
        data = item["price_data"]
        price = make_price(stripe, {**data, "unit_amount": int(data["unit_amount"])})
    amount = price["unit_amount"] * quantity
    return {
        "id": stripe.state.new_id("item"), "object": "item", "amount_discount": 0,
        "amount_subtotal": amount, "amount_tax": 0, "amount_total": amount,
        "currency": price["currency"], "description": price["nickname"] or "Credits",
        "metadata": item.get("metadata") or {}, "price": price, "quantity": quantity,
    }  # fmt: skip


def make_price(stripe: Stripe, given: Object) -> Object:
    """Makes a price, of a product of its own unless one is named."""
    state = stripe.state
    product = given.get("product")
    if product is None:
        name = (given.get("product_data") or {}).get("name", "Credits")
        made = {"name": name, "active": True, "metadata": {}, "livemode": given.get("livemode")}
        product = state.add("product", made)["id"]
    recurring = given.get("recurring")
    price = {
        "active": True, "billing_scheme": "per_unit", "currency": "eur", "custom_unit_amount": None,
        "lookup_key": None, "metadata": {}, "nickname": None, "recurring": recurring,
        "tax_behavior": "unspecified", "tiers_mode": None, "transform_quantity": None,
        "type": "recurring" if recurring else "one_time",
        **{key: value for key, value in given.items() if key != "product_data"},
        "product": product,
    }  # fmt: skip
    price["unit_amount_decimal"] = str(price["unit_amount"])
    return state.add("price", price)


def make_customer(stripe: Stripe, given: Object) -> Object:
    """Makes a customer."""
    blank: Object = {
        "email": None, "name": None, "metadata": {}, "balance": 0, "currency": None,
        "delinquent": False, "invoice_settings": {"default_payment_method": None},
    }  # fmt: skip
    return stripe.state.add("customer", {**blank, **given})


def make_intent(stripe: Stripe, given: Object) -> Object:
    """Makes a payment intent that waits for its payment. Fields as Stripe has them."""
    id_ = given.pop("id", None) or stripe.state.new_id("payment_intent")
    blank: dict[str, Any] = {
        "id": id_, "amount_capturable": 0, "amount_received": 0, "application": None,
        "canceled_at": None, "cancellation_reason": None, "capture_method": "automatic_async",
        "client_secret": f"{id_}_secret_fake", "confirmation_method": "automatic",
        "currency": "eur", "customer": None, "description": None, "last_payment_error": None,
        "latest_charge": None, "metadata": {}, "next_action": None, "payment_method": None,
        "payment_method_types": ["card"], "processing": None, "receipt_email": None,
        "status": "requires_payment_method", "_invoice": None,
    }  # fmt: skip
    return stripe.state.add("payment_intent", {**blank, **given})


def pay_session(stripe: Stripe, session: Object, *, when: str = "now") -> Object:
    """The customer completes the session.

    Args:
        stripe: the fake.
        session: an open one.
        when: `now`; `later` for a delayed method, which `settle_session` ends; `authorized` for
            manual capture, which `capture` ends.

    Returns:
        The session.
    """
    if session["status"] != "open":
        raise Refused(f"This session is {session['status']}, not open.")
    session["status"] = "complete"
    session["url"] = None
    session["customer_details"] = {
        "address": None, "email": session["customer_email"] or "ada@example.com",
        "name": "Ada Example", "phone": None, "tax_exempt": "none", "tax_ids": [],
    }  # fmt: skip
    if session["mode"] != "payment" or session["amount_total"] == 0:
        session["payment_status"] = "no_payment_required"
        if session["mode"] == "subscription":
            session["payment_status"] = "paid"
            session["subscription"] = stripe.state.new_id("subscription")
        stripe.tell(("checkout.session.completed", session))
        return session
    intent = _intent_of(stripe, session)
    if when == "now":
        session["payment_status"] = "paid"
        charge = succeed(stripe, intent)
        stripe.tell(
            ("charge.succeeded", charge),
            ("payment_intent.succeeded", intent),
            ("checkout.session.completed", session),
        )
    elif when == "later":
        intent["status"] = "processing"
        stripe.tell(("payment_intent.processing", intent), ("checkout.session.completed", session))
    elif when == "authorized":
        charge = charge_of(stripe, intent, captured=False)
        intent["status"] = "requires_capture"
        intent["amount_capturable"] = intent["amount"]
        stripe.tell(
            ("charge.succeeded", charge),
            ("payment_intent.amount_capturable_updated", intent),
            ("checkout.session.completed", session),
        )
    else:
        raise Refused(f"when is now, later or authorized, not {when!r}.")
    return session


def _intent_of(stripe: Stripe, session: Object) -> Object:
    intent = make_intent(
        stripe,
        {
            "amount": session["amount_total"], "currency": session["currency"],
            "customer": session["customer"], "livemode": session["livemode"],
            "metadata": dict(session["_intent_metadata"]),
            "capture_method": session["_capture"],
        },
    )  # fmt: skip
    session["payment_intent"] = intent["id"]
    stripe.state.save(session)
    return intent


def settle_session(stripe: Stripe, session: Object, *, succeeds: bool) -> Object:
    """A delayed payment succeeds or fails, days after the session was completed."""
    if session["status"] != "complete" or session["payment_status"] != "unpaid":
        raise Refused("Only a completed session that is unpaid waits for its payment.")
    intent = found(stripe, "payment_intent", session["payment_intent"])
    if succeeds:
        session["payment_status"] = "paid"
        charge = succeed(stripe, intent)
        stripe.tell(
            ("charge.succeeded", charge),
            ("payment_intent.succeeded", intent),
            ("checkout.session.async_payment_succeeded", session),
        )
    else:
        charge = charge_of(stripe, intent, captured=False)
        charge |= {"status": "failed", "paid": False, "failure_code": "insufficient_funds"}
        intent["status"] = "requires_payment_method"
        stripe.tell(
            ("charge.failed", charge),
            ("payment_intent.payment_failed", intent),
            ("checkout.session.async_payment_failed", session),
        )
    return session


def expire_session(stripe: Stripe, session: Object) -> Object:
    """An open session runs out of time."""
    if session["status"] != "open":
        raise Refused("Only Checkout Sessions with a status of open can be expired.")
    session |= {"status": "expired", "url": None}
    stripe.tell(("checkout.session.expired", session))
    return session


def pay_intent(stripe: Stripe, intent: Object) -> Object:
    """Pays an intent without a session, as another app may have made it."""
    charge = succeed(stripe, intent)
    stripe.tell(("charge.succeeded", charge), ("payment_intent.succeeded", intent))
    return intent


def capture(stripe: Stripe, intent: Object, *, amount: int | None = None) -> Object:
    """Captures what was authorized, or less; the rest is released.

    Until 2025-03-31 Stripe made a refund of the rest
    (https://docs.stripe.com/changelog/basil/2025-03-31).
    """
    charge = found(stripe, "charge", intent["latest_charge"])
    captured = intent["amount"] if amount is None else amount
    rest = intent["amount"] - captured
    charge |= {"captured": True, "amount_captured": captured}
    intent |= {"status": "succeeded", "amount_received": captured, "amount_capturable": 0}
    for session in stripe.state.referring("checkout.session", "payment_intent", intent["id"]) or []:
        session["payment_status"] = "paid"
    changes = [("charge.captured", charge), ("payment_intent.succeeded", intent)]
    if rest and stripe.api_version[:10] < BASIL:
        charge |= {"_released": rest, "amount_refunded": rest}
        refund = make_refund(stripe, charge, rest, category="partial_capture_reversal")
        changes += [("refund.created", refund), ("charge.refunded", charge)]
    stripe.tell(*changes)
    return intent


def make_refund(
    stripe: Stripe, charge: Object, amount: int, *, category: str = "refund", **fields: Any
) -> Object:
    """Makes a refund of a charge, and its balance transaction of this category."""
    transaction = stripe.state.add(
        "balance_transaction",
        {
            "amount": -amount, "currency": charge["currency"], "livemode": charge["livemode"],
            "reporting_category": category, "type": "refund",
        },
    )  # fmt: skip
    return stripe.state.add(
        "refund",
        {
            "amount": amount, "balance_transaction": transaction["id"],
            "charge": charge["id"], "currency": charge["currency"],
            "destination_details": {"card": {"type": "refund"}, "type": "card"},
            "livemode": charge["livemode"], "metadata": {},
            "payment_intent": charge["payment_intent"], "reason": None, "receipt_number": None,
            "source_transfer_reversal": None, "status": "succeeded", "transfer_reversal": None,
            **fields,
        },
    )  # fmt: skip


def succeed(stripe: Stripe, intent: Object, *, card: Object | None = None) -> Object:
    """Marks the intent as paid in full, by a saved card or (None) another; returns its charge."""
    charge = charge_of(stripe, intent, captured=True, card=card)
    intent |= {"status": "succeeded", "amount_received": intent["amount"]}
    return charge


def charge_of(
    stripe: Stripe, intent: Object, *, captured: bool, card: Object | None = None
) -> Object:
    """Makes the charge of an intent, by a saved card or (None) another."""
    last4, card_id = ("4242", None) if card is None else (card["card"]["last4"], card["id"])
    amount, metadata = intent["amount"], intent["metadata"]
    charge = stripe.state.add(
        "charge",
        {
            "amount": amount, "amount_captured": amount if captured else 0, "amount_refunded": 0,
            "application": None, "balance_transaction": stripe.state.new_id("balance_transaction"),
            "billing_details": {"address": None, "email": "ada@example.com", "name": "Ada Example"},
            "captured": captured, "currency": intent["currency"], "customer": intent["customer"],
            "description": None, "disputed": False, "failure_code": None, "failure_message": None,
            "fraud_details": {}, "livemode": intent["livemode"],
            # The charge gets a copy, because a later change of the intent does not change it.
            "metadata": metadata.copy() if isinstance(metadata, dict) else metadata,
            "outcome": {"network_status": "approved_by_network", "type": "authorized"},
            "paid": True, "payment_intent": intent["id"], "payment_method": card_id,
            "payment_method_details": {"card": {"brand": "visa", "last4": last4}, "type": "card"},
            "receipt_email": None, "receipt_url": None, "refunded": False, "review": None,
            "status": "succeeded", "transfer_data": None, "_invoice": intent["_invoice"],
            "_released": 0,
        },
    )  # fmt: skip
    intent |= {"latest_charge": charge["id"], "payment_method": card_id}
    return charge
