"""How an object looks in an API version: the fields that moved, and the events that came later.

The dates are from Stripe's changelog (https://docs.stripe.com/changelog).
"""

from .state import Object, State

NEWEST = "2026-10-28.endive"

_EMBEDDED_LISTS_GONE = "2022-11-15"  # charge.refunds, payment_intent.charges
_REFUND_EVENTS = "2024-10-28"  # refund.created, .updated and .failed for every refund
PAID_OFF_STRIPE = "2026-05-27"  # invoice.amount_paid_off_stripe, where it is asked for
BASIL = "2025-03-31"  # only invoice_payments links invoices and their payments
_SESSIONS_WITH_STATUS = "2020-08-27"  # a version before sessions had mode and payment_status


def shown(state: State, made: Object, version: str) -> Object:
    """Returns the object as this version shows it; nested parts are shared, so only read them."""
    view = {name: value for name, value in made.items() if not name.startswith("_")}
    change = _CHANGES.get(made["object"])
    if change is not None:
        change(state, made, view, version[:10])
    return view


def sent(event_type: str, version: str) -> bool:
    """Whether an endpoint of this version gets such events at all."""
    return not event_type.startswith("refund.") or version[:10] >= _REFUND_EVENTS


def list_of(data: list[Object], url: str, *, has_more: bool = False) -> Object:
    """Stripe's list object."""
    return {"object": "list", "data": data, "has_more": has_more, "url": url}


def _session(_state: State, made: Object, view: Object, date: str) -> None:
    seen = made["_presentment"]
    if date >= BASIL:
        # The session stays in the currency of its price; what the customer saw is another field.
        view["presentment_details"] = seen and {
            "presentment_amount": seen["amount"],
            "presentment_currency": seen["currency"],
        }
    else:
        view["currency_conversion"] = seen and {
            "amount_subtotal": made["amount_subtotal"],
            "amount_total": made["amount_total"],
            "fx_rate": seen["fx_rate"],
            "source_currency": made["currency"],
        }
        if seen:
            view |= {
                "amount_subtotal": seen["amount"],
                "amount_total": seen["amount"],
                "currency": seen["currency"],
            }
    if date < _SESSIONS_WITH_STATUS:
        for name in ("mode", "payment_status", "status", "metadata", "amount_total"):
            view.pop(name, None)


def _intent(state: State, made: Object, view: Object, date: str) -> None:
    if date < _EMBEDDED_LISTS_GONE:
        del view["latest_charge"]
        charges = state.referring("charge", "payment_intent", made["id"]) or []
        newest_first = [shown(state, each, date) for each in reversed(charges)]
        view["charges"] = list_of(newest_first, f"/v1/charges?payment_intent={made['id']}")
    if date < BASIL:
        view["invoice"] = made.get("_invoice")


def _charge(state: State, made: Object, view: Object, date: str) -> None:
    if date < _EMBEDDED_LISTS_GONE:
        view["refunds"] = refunds_of(state, made, date)
    if date < BASIL:
        view["invoice"] = made.get("_invoice")


def refunds_of(state: State, charge: Object, version: str) -> Object:
    """The refunds of a charge as they are embedded: the newest ten."""
    refunds = list(reversed(state.referring("refund", "charge", charge["id"]) or []))
    data = [shown(state, each, version) for each in refunds[:10]]
    return list_of(data, f"/v1/charges/{charge['id']}/refunds", has_more=len(refunds) > 10)


def _invoice(state: State, made: Object, view: Object, date: str) -> None:
    lines = [shown(state, each, date) for each in made["_lines"][:10]]
    more = len(made["_lines"]) > 10
    view["lines"] = list_of(lines, f"/v1/invoices/{made['id']}/lines", has_more=more)
    if date >= BASIL:
        return
    of_subscription = (view.pop("parent") or {}).get("subscription_details") or {}
    off_stripe = made["_off_stripe"]
    view |= {
        "amount_paid": made["amount_paid"] - off_stripe,
        "amount_remaining": made["amount_remaining"] + off_stripe,
        "subscription": of_subscription.get("subscription"),
        "subscription_details": {"metadata": of_subscription.get("metadata")},
        "payment_intent": made["_payment_intent"],
        "charge": made["_charge"],
        "paid": made["status"] == "paid",
        "paid_out_of_band": off_stripe > 0,
    }


def _line(state: State, made: Object, view: Object, date: str) -> None:
    if date >= BASIL:
        return
    parent = view.pop("parent")
    item = parent["subscription_item_details"] or parent["invoice_item_details"]
    price = state.get("price", view.pop("pricing")["price_details"]["price"])
    view |= {
        "price": price and shown(state, price, date),
        "proration": item["proration"],
        "proration_details": item["proration_details"],
        "subscription": item["subscription"],
        "subscription_item": item.get("subscription_item"),
        "tax_amounts": [{"amount": tax["amount"], "inclusive": False} for tax in view.pop("taxes")],
        "type": "invoiceitem" if item["invoice_item"] else "subscription",
    }


_CHANGES = {
    "checkout.session": _session,
    "payment_intent": _intent,
    "charge": _charge,
    "invoice": _invoice,
    "line_item": _line,
}
