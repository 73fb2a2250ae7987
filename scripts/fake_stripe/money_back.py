"""Refunds and disputes: the money that they move, and the events about it."""

from .payments import Refused, found, make_refund
from .state import Object
from .stripe import Stripe

_DISPUTE_FEE = 1500


def charge_of(stripe: Stripe, payment: str) -> Object:
    """Finds the charge behind the id of a charge, payment intent, session or invoice."""
    object_ = stripe.state.find(payment)
    if object_ is None:
        raise Refused(f"No such payment: '{payment}'", status=404, code="resource_missing")
    match object_["object"]:
        case "charge":
            return object_
        case "payment_intent":
            return found(stripe, "charge", object_["latest_charge"] or "none")
        case "invoice":
            return found(stripe, "charge", object_["_charge"] or "none")
        case _:
            return charge_of(stripe, object_["payment_intent"] or "none")


def refund(
    stripe: Stripe,
    charge: Object,
    *,
    amount: int | None = None,
    status: str = "succeeded",
    reason: str | None = None,
    metadata: Object | None = None,
) -> Object:
    """Refunds a charge in whole (without `amount`: all that is left) or in part."""
    left = charge["amount_captured"] + charge["_released"] - charge["amount_refunded"]
    taken = left if amount is None else amount
    if charge["refunded"] or left == 0:
        raise Refused(
            f"Charge {charge['id']} has already been refunded.", code="charge_already_refunded"
        )
    if not 0 < taken <= left:
        raise Refused(
            f"Refund amount ({taken}) is greater than unrefunded amount on charge ({left})",
            param="amount",
        )
    made = make_refund(stripe, charge, taken, metadata=metadata or {}, reason=reason, status=status)
    if status in {"pending", "requires_action", "succeeded"}:
        _count(charge, taken)
    changes = [("refund.created", made), ("charge.refunded", charge)]
    if status in {"failed", "canceled"}:
        changes = [("refund.created", made), ("refund.failed", made)]
    stripe.tell(*changes)
    return made


def change_refund(stripe: Stripe, made: Object, *, status: str) -> Object:
    """A refund succeeds, fails or is cancelled later, even days after it had succeeded."""
    counted = {"pending", "requires_action", "succeeded"}
    charge = found(stripe, "charge", made["charge"])
    if made["status"] in counted and status not in counted:
        _count(charge, -made["amount"])
        made["failure_balance_transaction"] = stripe.state.new_id("balance_transaction")
        made["failure_reason"] = "expired_or_canceled_card"
    made["status"] = status
    changes = [("refund.updated", made), ("charge.refund.updated", made)]
    if status == "failed":
        changes.append(("refund.failed", made))
    stripe.tell(*changes)
    return made


def _count(charge: Object, taken: int) -> None:
    charge["amount_refunded"] += taken
    received = charge["amount_captured"] + charge["_released"]
    charge["refunded"] = charge["amount_refunded"] == received


def dispute(
    stripe: Stripe,
    charge: Object,
    *,
    amount: int | None = None,
    reason: str = "fraudulent",
    withdraw: bool = True,
    settled: int | None = None,
    settled_in: str | None = None,
    fee_apart: bool = False,
) -> Object:
    """Opens a dispute; without `withdraw` it is an inquiry that has taken no money yet.

    Args:
        stripe: the fake.
        charge: the disputed charge.
        amount: how much of it; None: all.
        reason: the one that the bank gives.
        withdraw: the money is taken at once.
        settled: the amount in the account's currency at that day's rate; None: the same amount.
        settled_in: the account's currency; None: the charge's.
        fee_apart: the fee is a transaction of its own.
    """
    status = "needs_response" if withdraw else "warning_needs_response"
    made = stripe.state.add(
        "dispute",
        {
            "amount": charge["amount"] if amount is None else amount, "balance_transactions": [],
            "charge": charge["id"], "currency": charge["currency"],
            "enhanced_eligibility_types": [], "evidence": {}, "evidence_details": {
                "due_by": stripe.state.now() + 7 * 86400, "has_evidence": False,
                "past_due": False, "submission_count": 0,
            },
            "is_charge_refundable": not withdraw, "livemode": charge["livemode"], "metadata": {},
            "payment_intent": charge["payment_intent"],
            "payment_method_details": {"card": {"brand": "visa"}, "type": "card"},
            "reason": reason, "status": status,
            "_settled_in": settled_in or charge["currency"],
        },
    )  # fmt: skip
    charge["disputed"] = True
    changes = [("charge.dispute.created", made)]
    if withdraw:
        _withdraw(stripe, made, made["amount"] if settled is None else settled, fee_apart)
        changes.append(("charge.dispute.funds_withdrawn", made))
    stripe.tell(*changes)
    return made


def withdraw(stripe: Stripe, made: Object, *, amount: int | None = None) -> Object:
    """An inquiry becomes a dispute, or an appeal of the bank takes the money again."""
    _withdraw(stripe, made, made["amount"] if amount is None else amount, fee_apart=False)
    made |= {"status": "needs_response", "is_charge_refundable": False}
    stripe.tell(("charge.dispute.updated", made), ("charge.dispute.funds_withdrawn", made))
    return made


def reinstate(stripe: Stripe, made: Object, *, amount: int | None = None) -> Object:
    """Money of a dispute is returned, all that is withdrawn or less; the status stays."""
    _move(stripe, made, _away(made) if amount is None else amount)
    stripe.tell(("charge.dispute.funds_reinstated", made))
    return made


def win(stripe: Stripe, made: Object, *, settled: int | None = None) -> Object:
    """The dispute is won: the withdrawn money is returned, `settled` in the account's currency."""
    made["status"] = "won"
    changes = [("charge.dispute.closed", made)]
    if back := _away(made) if settled is None else settled:
        _move(stripe, made, back)
        changes.append(("charge.dispute.funds_reinstated", made))
    stripe.tell(*changes)
    return made


def lose(stripe: Stripe, made: Object, *, returned: int = 0) -> Object:
    """The dispute is lost; a part (in the account's currency) can still be returned."""
    made["status"] = "lost"
    changes = [("charge.dispute.closed", made)]
    if returned:
        _move(stripe, made, returned)
        changes.append(("charge.dispute.funds_reinstated", made))
    stripe.tell(*changes)
    return made


def change_dispute(stripe: Stripe, made: Object, *, status: str) -> Object:
    """A dispute changes its status and no money moves."""
    made["status"] = status
    closes = status in {"warning_closed", "prevented"}
    stripe.tell(("charge.dispute.closed" if closes else "charge.dispute.updated", made))
    return made


def _away(made: Object) -> int:
    amounts: list[int] = [each["amount"] for each in made["balance_transactions"]]
    return -sum(amounts)


def _withdraw(stripe: Stripe, made: Object, amount: int, fee_apart: bool) -> None:
    _move(stripe, made, -amount, fee=0 if fee_apart else _DISPUTE_FEE)
    if fee_apart:
        _move(stripe, made, -_DISPUTE_FEE)


def _move(stripe: Stripe, made: Object, amount: int, *, fee: int = 0) -> None:
    transaction = {
        "id": stripe.state.new_id("balance_transaction"), "object": "balance_transaction",
        "amount": amount, "available_on": stripe.state.now(), "created": stripe.state.now(),
        "currency": made["_settled_in"], "description": f"Chargeback for {made['charge']}",
        "exchange_rate": None, "fee": fee, "fee_details": [], "net": amount - fee,
        "reporting_category": "dispute" if amount < 0 else "dispute_reversal",
        "source": made["id"], "status": "available", "type": "adjustment",
    }  # fmt: skip
    # A new list: an answer that is being written still shows the old one.
    made["balance_transactions"] = [*made["balance_transactions"], transaction]
