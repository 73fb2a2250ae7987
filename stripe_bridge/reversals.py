"""What refunds and disputes take back. Pure: objects in, a reversal out.

Each reversal says how much of the charge one refund or dispute holds now, so that events may repeat
or come in any order. Both its amounts are of the charge's currency, for only their ratio matters,
and that means something inside one currency alone.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from stripe_bridge.fields import MINOR_MAX, Object, currency, id_of, minor, objects
from stripe_bridge.model import Needed, Needs, Nothing, Notice, Reversal, Unresolved

if TYPE_CHECKING:
    from collections.abc import Iterable

_INQUIRIES = {
    "warning_needs_response",
    "warning_under_review",
    "warning_closed",
    "prevented",
}
_WORD = re.compile(r"[a-z_]{1,40}")


def of_refund(
    refund: Object, *, charge: Object, paid_by: str, failed: bool = False
) -> Reversal | Nothing:
    """Says what a refund takes back (Stripe: "The Refund object").

    A pending refund takes its share already, since its money is promised; when it fails, the second
    revision gives the share back.

    Args:
        refund: in any API version.
        charge: the charge it refunds.
        paid_by: the id of what paid for the purchase: an intent or an invoice.
        failed: the event was `refund.failed`, whatever the status says.

    Returns:
        The reversal: revision 1 with the refund's amount, or revision 2 with 0 once it failed or
        was cancelled. The credits of an amount above the charge's are those of the charge.

    Raises:
        Unresolved: id_malformed, amount_malformed, currency_malformed; currency_mismatch, when a
            refund stands in another currency than its charge, for then its share is unknown.
    """
    refund_id = id_of(refund)
    paid, paid_currency = _paid(charge)
    status = refund.get("status")
    if failed or status in ("failed", "canceled"):
        reason = "refund canceled" if status == "canceled" else "refund failed"
        return Reversal(paid_by, refund_id, 2, 0, paid, paid_currency, reason)
    amount = minor(refund, "amount")
    if currency(refund) != paid_currency:
        raise Unresolved(
            "currency_mismatch",
            f"{refund_id} is in another currency than its charge {id_of(charge)}.",
        )
    return Reversal(paid_by, refund_id, 1, min(amount, paid), paid, paid_currency, "refund")


def of_dispute(dispute: Object, *, charge: Object, paid_by: str) -> Reversal | Nothing:
    """Says what a dispute takes back (Stripe: "The Dispute object", `balance_transactions`).

    Status and event name decide nothing: the transactions tell what was withdrawn and what came
    back, also for a partial return, an appeal, or a status that is not known yet.

    Args:
        dispute: in any API version.
        charge: the disputed charge.
        paid_by: the id of what paid for the purchase: an intent or an invoice.

    Returns:
        The reversal, whose revision is the number of balance transactions; a dispute in another
        currency takes the whole charge, with `Notice.OTHER_CURRENCY`. Nothing while no money was
        withdrawn: `inquiry`, or `not_withdrawn`.

    Raises:
        Needs: dispute, when the object lacks its balance transactions.
        Unresolved: id_malformed, amount_malformed, currency_malformed; currency_mismatch, when the
            transactions stand in several currencies.
    """
    dispute_id = id_of(dispute)
    listed = dispute.get("balance_transactions")
    if listed is None:
        raise Needs(Needed.DISPUTE, dispute_id)
    moves = _moves(listed, dispute_id)
    first = next((-amount for amount in moves if amount < 0), 0)
    if not first:
        inquiry = str(dispute.get("status")) in _INQUIRIES
        return Nothing("inquiry" if inquiry else "not_withdrawn")
    paid, paid_currency = _paid(charge)
    net = min(max(-sum(moves), 0), first)
    amount = minor(dispute, "amount")
    foreign = currency(dispute) != paid_currency
    reversed_minor = min((paid if foreign else amount) * net // first, paid)
    return Reversal(
        paid_by,
        dispute_id,
        len(moves),
        reversed_minor,
        paid,
        paid_currency,
        ", ".join(_words(dispute, net, first, foreign=foreign)),
        Notice.OTHER_CURRENCY if foreign else None,
    )


def _paid(charge: Object) -> tuple[int, str]:
    """Reads what a charge was made for, which its refunds add up to.

    The amount, not what was captured of it: Stripe releases the rest of a partial capture as a
    refund of the charge, and with several captures the captured amount would change over time.
    """
    paid = minor(charge, "amount")
    if not paid:
        raise Unresolved("amount_malformed", f"The charge {id_of(charge)} is of nothing.")
    return paid, currency(charge)


def _moves(listed: object, dispute_id: str) -> list[int]:
    """Reads the gross amounts of balance transactions, the oldest first."""
    transactions = objects(listed)
    amounts = [entry.get("amount") for entry in transactions]
    moves = [
        amount for amount in amounts if type(amount) is int and -MINOR_MAX <= amount <= MINOR_MAX
    ]
    if not isinstance(listed, list) or len(moves) != len(listed):
        raise Unresolved(
            "amount_malformed", f"A balance transaction of {dispute_id} has no amount."
        )
    if len({str(entry.get("currency")) for entry in transactions}) > 1:
        raise Unresolved(
            "currency_mismatch",
            f"The balance transactions of {dispute_id} are in several currencies.",
        )
    created = [entry.get("created") for entry in transactions]
    times = [moment for moment in created if type(moment) is int]
    if len(times) == len(moves):
        moves = [move for _, move in sorted(zip(times, moves, strict=True), key=lambda at: at[0])]
    return moves


def _words(dispute: Object, net: int, first: int, *, foreign: bool) -> Iterable[str]:
    why = dispute.get("reason")
    known = isinstance(why, str) and _WORD.fullmatch(why)
    yield f"dispute {why}" if known else "dispute"
    if net < first:
        yield "partly returned" if net else "returned"
    if foreign:
        yield "in another currency than the charge"
