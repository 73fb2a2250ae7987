"""Subscriptions, as far as somebody who watches their invoices sees them."""

from .payments import found, make_customer, make_intent, succeed
from .state import Object
from .stripe import Stripe

_MONTH_SECONDS = 30 * 86400


def invoice(stripe: Stripe, given: Object) -> Object:
    """Makes the paid invoice of a subscription's month, with its payment.

    Args:
        stripe: the fake.
        given: `lines` (each price, quantity, and where wanted amount, proration, metadata);
            `metadata` and `customer_metadata` (of the subscription and of the customer);
            `customer` and `subscription` to go on with those of an earlier invoice;
            `billing_reason`, `out_of_band`, `status`, `currency`, `livemode`.

    Returns:
        The invoice.
    """
    state = stripe.state
    live = given.get("livemode")
    customer = given.get("customer")
    if customer is None:
        of_customer = {"metadata": given.get("customer_metadata") or {}, "livemode": live}
        customer = make_customer(stripe, of_customer)["id"]
    subscription = given.get("subscription") or state.new_id("subscription")
    id_ = given.get("id") or state.new_id("invoice")
    lines = [_line(stripe, each, id_, subscription) for each in given["lines"]]
    total = sum(line["amount"] for line in lines)
    currency = given.get("currency") or (lines[0]["currency"] if lines else "eur")
    out_of_band, status = bool(given.get("out_of_band")), given.get("status", "paid")
    paid = total if status == "paid" else 0
    manual = given.get("billing_reason") == "manual"
    made = state.add(
        "invoice",
        {
            "id": id_, "amount_due": total, "amount_overpaid": 0, "amount_paid": paid,
            "amount_paid_off_stripe": paid if out_of_band else 0, "amount_remaining": total - paid,
            "attempt_count": 1, "attempted": True, "auto_advance": False,
            "billing_reason": given.get("billing_reason", "subscription_cycle"),
            "collection_method": "charge_automatically", "currency": currency,
            "customer": customer, "customer_email": "ada@example.com", "description": None,
            "discounts": [], "livemode": live, "metadata": given.get("invoice_metadata") or {},
            "number": f"FAKE-{state.counts().get('invoice', 0) + 1:04d}",
            "parent": None if manual else {
                "quote_details": None, "type": "subscription_details",
                "subscription_details": {
                    "metadata": given.get("metadata") or {}, "subscription": subscription,
                },
            },
            "period_end": state.now(), "period_start": state.now() - _MONTH_SECONDS,
            "starting_balance": 0, "status": status, "subtotal": total, "total": total,
            "status_transitions": {"finalized_at": state.now(), "paid_at": state.now()},
            "_lines": lines, "_out_of_band": out_of_band, "_payment_intent": None, "_charge": None,
        },
    )  # fmt: skip
    changes: list[tuple[str, Object]] = []
    if paid > 0 and not out_of_band:
        changes = _paid(stripe, made)
    if status == "paid":
        changes += [("invoice.paid", made), ("invoice.payment_succeeded", made)]
    else:
        changes.append(("invoice.payment_failed", made))
    stripe.tell(*changes)
    return made


def _paid(stripe: Stripe, made: Object) -> list[tuple[str, Object]]:
    intent = make_intent(
        stripe,
        {
            "amount": made["amount_paid"], "currency": made["currency"],
            "customer": made["customer"], "livemode": made["livemode"], "_invoice": made["id"],
        },
    )  # fmt: skip
    charge = succeed(stripe, intent)
    made |= {"_payment_intent": intent["id"], "_charge": charge["id"]}
    payment = stripe.state.add(
        "invoice_payment",
        {
            "amount_paid": made["amount_paid"], "amount_requested": made["amount_due"],
            "currency": made["currency"], "invoice": made["id"], "is_default": True,
            "livemode": made["livemode"],
            "payment": {"payment_intent": intent["id"], "type": "payment_intent"},
            "status": "paid",
            "status_transitions": {"canceled_at": None, "paid_at": stripe.state.now()},
        },
    )  # fmt: skip
    return [
        ("charge.succeeded", charge),
        ("payment_intent.succeeded", intent),
        ("invoice_payment.paid", payment),
    ]


def _line(stripe: Stripe, given: Object, invoice_id: str, subscription: str) -> Object:
    price = found(stripe, "price", given["price"], param="lines[price]")
    quantity = int(given.get("quantity", 1))
    proration = bool(given.get("proration"))
    item = {
        "invoice_item": stripe.state.new_id("item") if proration else None, "proration": proration,
        "proration_details": None, "subscription": subscription,
        "subscription_item": stripe.state.new_id("subscription_item"),
    }  # fmt: skip
    amount = given.get("amount", price["unit_amount"] * quantity)
    return {
        "id": stripe.state.new_id("line_item"), "object": "line_item", "amount": amount,
        "currency": price["currency"], "description": price["nickname"], "discountable": True,
        "discounts": [], "invoice": invoice_id, "livemode": stripe.state.live,
        "metadata": given.get("metadata") or {},
        "parent": {"invoice_item_details": None, "subscription_item_details": item,
                   "type": "subscription_item_details"},
        "period": {"end": stripe.state.now() + _MONTH_SECONDS, "start": stripe.state.now()},
        "pricing": {"price_details": {"price": price["id"], "product": price["product"]},
                    "type": "price_details", "unit_amount_decimal": price["unit_amount_decimal"]},
        "quantity": quantity, "subscription": subscription, "subtotal": amount, "taxes": [],
    }  # fmt: skip
