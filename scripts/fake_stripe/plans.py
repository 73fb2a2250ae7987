"""Subscriptions: their months, and changes of the plan within a month, with prorations.

Stripe credits the rest of what was billed for the old plan, and bills the rest of the month for the
new plan, at once or with the next month ("Prorations").
"""

from datetime import UTC, datetime

from .billing import invoice
from .payments import found, make_customer
from .state import Object
from .stripe import Stripe


def subscribe(stripe: Stripe, given: Object) -> Object:
    """Begins a subscription and pays its first month.

    Args:
        stripe: the fake.
        given: `price`, `quantity`, `metadata` of the subscription, `customer`, and `more` lines of
            the first invoice.

    Returns:
        The first invoice.
    """
    state = stripe.state
    customer = given.get("customer") or make_customer(stripe, {})["id"]
    begun = datetime.fromtimestamp(state.now(), UTC)
    # Every month has this day.
    start = begun.replace(day=min(begun.day, 28))
    made = state.add(
        "subscription",
        {
            "customer": customer, "metadata": given.get("metadata") or {},
            "_plan": {"price": given["price"], "quantity": int(given.get("quantity", 1))},
            "_end": int(start.timestamp()), "_billed": None, "_pending": [],
        },
    )  # fmt: skip
    return _month(stripe, made, "subscription_create", given.get("more") or [])


def renew(stripe: Stripe, given: Object) -> Object:
    """Bills the next month, with the lines that earlier changes left to it; returns the invoice."""
    made = found(stripe, "subscription", given["subscription"])
    return _month(stripe, made, "subscription_cycle", [])


def change_plan(stripe: Stripe, given: Object) -> Object | None:
    """Changes the plan within a month.

    Args:
        stripe: the fake.
        given: `subscription`; the new `price` and `quantity`; `left`, how much of the month is
            left, in percent; `bill`: now, with what was left to be billed, or later; `status` of
            the invoice, if it is not paid; `unattributed`: the credit line does not say what it
            gives back.

    Returns:
        The invoice; None: it is billed with the next month.
    """
    made = found(stripe, "subscription", given["subscription"])
    start, end = _month_before(made["_end"]), made["_end"]
    now = end - (end - start) * int(given["left"]) // 100
    made["_plan"] = {"price": given["price"], "quantity": int(given.get("quantity", 1))}
    price = found(stripe, "price", given["price"])
    whole = price["unit_amount"] * made["_plan"]["quantity"]
    rest = {"start": now, "end": end}
    debit = {
        **made["_plan"], "id": stripe.state.new_id("line_item"), "proration": True, "item": True,
        "amount": round(whole * (end - now) / (end - start)), "period": rest,
    }  # fmt: skip
    lines = [_credit(made, rest, attributed=not given.get("unattributed")), debit]
    made["_billed"] = debit
    made["_pending"] += lines
    if given.get("bill", "now") == "later":
        return None
    return _bill(stripe, made, "subscription_update", [], given.get("status", "paid"))


def _month(stripe: Stripe, made: Object, reason: str, more: list[Object]) -> Object:
    start = made["_end"]
    made["_end"] = _month_after(start)
    price = found(stripe, "price", made["_plan"]["price"])
    month = {
        **made["_plan"], "id": stripe.state.new_id("line_item"),
        "amount": price["unit_amount"] * made["_plan"]["quantity"],
        "period": {"start": start, "end": made["_end"]},
    }  # fmt: skip
    made["_billed"] = month
    return _bill(stripe, made, reason, [month, *more], "paid")


def _bill(stripe: Stripe, made: Object, reason: str, lines: list[Object], status: str) -> Object:
    """Bills the lines, after those that earlier changes left to be billed."""
    lines, made["_pending"] = [*made["_pending"], *lines], []
    customer = found(stripe, "customer", made["customer"])
    id_ = stripe.state.new_id("invoice")
    for line in lines:
        line["invoice"] = id_
    billed = invoice(
        stripe,
        {
            "id": id_, "lines": lines, "billing_reason": reason, "customer": made["customer"],
            "subscription": made["id"], "metadata": made["metadata"], "status": status,
            "balance": -customer["balance"],
        },
    )  # fmt: skip
    customer["balance"] = billed["ending_balance"]
    return billed


def _credit(made: Object, rest: Object, *, attributed: bool) -> Object:
    """Makes the line that gives back the rest of the last bill for the plan."""
    billed = made["_billed"]
    whole = billed["period"]["end"] - billed["period"]["start"]
    amount = round(billed["amount"] * (rest["end"] - rest["start"]) / whole)
    return {
        "price": billed["price"], "quantity": billed["quantity"], "amount": -amount,
        "proration": True, "item": True, "period": rest,
        "credits": billed if attributed else None,
    }  # fmt: skip


def _month_after(seconds: int) -> int:
    moment = datetime.fromtimestamp(seconds, UTC)
    year, month = divmod(moment.year * 12 + moment.month, 12)
    return int(moment.replace(year=year, month=month + 1).timestamp())


def _month_before(seconds: int) -> int:
    moment = datetime.fromtimestamp(seconds, UTC)
    year, month = divmod(moment.year * 12 + moment.month - 2, 12)
    return int(moment.replace(year=year, month=month + 1).timestamp())
