"""Invoices of subscriptions: their lines and payments."""

from .payments import Refused, found, make_customer, make_intent, succeed
from .state import Object
from .stripe import Stripe

_MONTH_SECONDS = 30 * 86400


def invoice(stripe: Stripe, given: Object) -> Object:
    """Makes the invoice of a subscription's month, and pays it.

    Args:
        stripe: the fake.
        given: `lines` (each price, quantity, and where wanted id, amount, discount, tax, proration,
            period, metadata, item: it is billed once, and `credits`: the line that it gives back,
            with id and invoice); `metadata` and `customer_metadata` (of the
            subscription and of the customer); `customer` and `subscription` to use those of an
            earlier invoice; `balance`, the part that the customer's credit balance pays;
            `payments`, which pay the rest (each amount, and off_stripe for money from outside
            Stripe; by default one payment of all, and none if the invoice is not paid);
            `out_of_band`, all was paid outside Stripe; `billing_reason`, `status`, `currency`,
            `livemode`.

    Returns:
        The invoice.
    """
    made = _make(stripe, given)
    if made["status"] != "paid":
        parts = given.get("payments") or []
        paid = [
            change
            for each in parts
            for change in _pay(stripe, made, each["amount"], off_stripe=False)
        ]
        stripe.tell(*(paid or [("invoice.payment_failed", made)]))
        return made
    whole = {"amount": made["amount_due"], "off_stripe": bool(given.get("out_of_band"))}
    payments = given.get("payments") or [whole]
    if sum(each["amount"] for each in payments) != made["amount_due"]:
        raise Refused(f"The payments must add up to the amount due, {made['amount_due']}.")
    changes: list[tuple[str, Object]] = []
    for each in payments:
        if each["amount"]:
            off_stripe = bool(each.get("off_stripe"))
            changes += _pay(stripe, made, each["amount"], off_stripe=off_stripe)
    stripe.tell(*changes, ("invoice.paid", made), ("invoice.payment_succeeded", made))
    return made


def pay_rest(stripe: Stripe, made: Object) -> Object:
    """Pays what is left of an open invoice."""
    if made["status"] != "open":
        raise Refused(f"This invoice is {made['status']}, not open.")
    changes = _pay(stripe, made, made["amount_remaining"], off_stripe=False)
    made["status"] = "paid"
    stripe.tell(*changes, ("invoice.paid", made), ("invoice.payment_succeeded", made))
    return made


def invoice_of_session(stripe: Stripe, session: Object) -> None:
    """Makes the invoice of a paid session that asked for one; the session's payment pays it."""
    if not session["invoice_creation"]["enabled"] or session["payment_status"] != "paid":
        return
    lines = [
        {"price": line["price"]["id"], "quantity": line["quantity"]} for line in session["_lines"]
    ]
    given = {
        "lines": lines, "billing_reason": "manual", "customer": session["customer"],
        "currency": session["currency"], "livemode": session["livemode"],
        "invoice_metadata": dict(session["metadata"]),
    }  # fmt: skip
    made = _make(stripe, given)
    session["invoice"] = made["id"]
    intent = found(stripe, "payment_intent", session["payment_intent"])
    payment = _paid_by(stripe, made, made["amount_due"], intent)
    stripe.tell(("invoice_payment.paid", payment), ("invoice.paid", made))


def _make(stripe: Stripe, given: Object) -> Object:
    state = stripe.state
    live = given.get("livemode")
    customer = given.get("customer")
    if customer is None:
        of_customer = {"metadata": given.get("customer_metadata") or {}, "livemode": live}
        customer = make_customer(stripe, of_customer)["id"]
    manual = given.get("billing_reason") == "manual"
    subscription = None if manual else given.get("subscription") or state.new_id("subscription")
    id_ = given.get("id") or state.new_id("invoice")
    lines = [_line(stripe, each, id_, subscription) for each in given["lines"]]
    subtotal = sum(line["amount"] for line in lines)
    total = subtotal - sum(line["discount_amounts"][0]["amount"] for line in lines)
    total += sum(tax["amount"] for line in lines for tax in line["taxes"])
    balance = int(given.get("balance", 0))
    due = max(0, total - balance)
    currency = given.get("currency") or (lines[0]["currency"] if lines else "eur")
    return state.add(
        "invoice",
        {
            "id": id_, "amount_due": due, "amount_overpaid": 0, "amount_paid": 0,
            "amount_remaining": due, "attempt_count": 1, "attempted": True, "auto_advance": False,
            "billing_reason": given.get("billing_reason", "subscription_cycle"),
            "collection_method": "charge_automatically", "currency": currency,
            "customer": customer, "customer_email": "ada@example.com", "description": None,
            "discounts": [], "ending_balance": total - balance - due, "livemode": live,
            "metadata": given.get("invoice_metadata") or {},
            "number": f"FAKE-{state.counts().get('invoice', 0) + 1:04d}",
            "parent": None if manual else {
                "quote_details": None, "type": "subscription_details",
                "subscription_details": {
                    "metadata": given.get("metadata") or {}, "subscription": subscription,
                },
            },
            "period_end": state.now(), "period_start": state.now() - _MONTH_SECONDS,
            "post_payment_credit_notes_amount": 0,
            "pre_payment_credit_notes_amount": 0,
            "starting_balance": -balance, "status": given.get("status", "paid"),
            "subtotal": subtotal, "total": total,
            "status_transitions": {"finalized_at": state.now(), "paid_at": state.now()},
            "_lines": lines, "_off_stripe": 0, "_payment_intent": None, "_charge": None,
        },
    )  # fmt: skip


def _pay(
    stripe: Stripe, made: Object, amount: int, *, off_stripe: bool
) -> list[tuple[str, Object]]:
    if off_stripe:
        made["_off_stripe"] += amount
        return [("invoice_payment.paid", _paid_by(stripe, made, amount, None))]
    intent = make_intent(
        stripe,
        {
            "amount": amount, "currency": made["currency"], "customer": made["customer"],
            "livemode": made["livemode"], "_invoice": made["id"],
        },
    )  # fmt: skip
    charge = succeed(stripe, intent)
    return [
        ("charge.succeeded", charge),
        ("payment_intent.succeeded", intent),
        ("invoice_payment.paid", _paid_by(stripe, made, amount, intent)),
    ]


def _paid_by(stripe: Stripe, made: Object, amount: int, intent: Object | None) -> Object:
    """Records a payment of an invoice: by a payment intent, or (None) from outside Stripe."""
    first = made["amount_paid"] == 0
    made["amount_paid"] += amount
    made["amount_remaining"] -= amount
    if intent is None:
        payment = {
            "payment_record": stripe.state.new_id("payment_record"),
            "type": "payment_record",
        }
    else:
        payment = {"payment_intent": intent["id"], "type": "payment_intent"}
        # Versions that know of one payment only show the first.
        made["_payment_intent"] = made["_payment_intent"] or intent["id"]
        made["_charge"] = made["_charge"] or intent["latest_charge"]
    return stripe.state.add(
        "invoice_payment",
        {
            "amount_paid": amount, "amount_requested": amount, "currency": made["currency"],
            "invoice": made["id"], "is_default": first, "livemode": made["livemode"],
            "payment": payment, "status": "paid",
            "status_transitions": {"canceled_at": None, "paid_at": stripe.state.now()},
        },
    )  # fmt: skip


def _line(stripe: Stripe, given: Object, invoice_id: str, subscription: str | None) -> Object:
    price = found(stripe, "price", given["price"], param="lines[price]")
    quantity = int(given.get("quantity", 1))
    amount = given.get("amount", price["unit_amount"] * quantity)
    tax = {"amount": int(given.get("tax", 0)), "tax_behavior": "exclusive"}
    period = {"end": stripe.state.now() + _MONTH_SECONDS, "start": stripe.state.now()}
    discount = {"amount": int(given.get("discount", 0)), "discount": "di_fake"}
    return {
        "id": given.get("id") or stripe.state.new_id("line_item"), "object": "line_item",
        "amount": amount,
        "currency": price["currency"], "description": price["nickname"],
        "discount_amounts": [discount], "discountable": True, "discounts": [],
        "invoice": invoice_id, "livemode": stripe.state.live,
        "metadata": given.get("metadata") or {},
        "parent": _line_parent(stripe, given, subscription),
        "period": given.get("period") or period,
        "pricing": {"price_details": {"price": price["id"], "product": price["product"]},
                    "type": "price_details", "unit_amount_decimal": price["unit_amount_decimal"]},
        "quantity": quantity, "subscription": subscription, "subtotal": amount,
        "taxes": [tax] if tax["amount"] else [],
    }  # fmt: skip


def _line_parent(stripe: Stripe, given: Object, subscription: str | None) -> Object:
    proration = bool(given.get("proration"))
    billed_once = bool(given.get("item")) or subscription is None
    details: Object = {
        "invoice_item": stripe.state.new_id("item") if proration or billed_once else None,
        "proration": proration, "proration_details": {"credited_items": _credited(given)},
        "subscription": subscription,
    }  # fmt: skip
    if billed_once:
        return {
            "invoice_item_details": details, "subscription_item_details": None,
            "type": "invoice_item_details",
        }  # fmt: skip
    details["subscription_item"] = stripe.state.new_id("subscription_item")
    return {
        "invoice_item_details": None, "subscription_item_details": details,
        "type": "subscription_item_details",
    }  # fmt: skip


def _credited(given: Object) -> Object | None:
    line = given.get("credits")
    return line and {"invoice": line["invoice"], "invoice_line_items": [line["id"]]}
