"""What refunds and disputes take back. Pure: objects in, a reversal out.

Each reversal says how much of the purchase's money one refund or dispute holds now, so that events
may repeat or come in any order. Only the ratio of its two amounts matters, and a ratio means
something inside one currency alone.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from stripe_bridge.fields import MINOR_MAX, Object, currency, id_of, minor, objects
from stripe_bridge.model import Basis, Needed, Needs, Nothing, Notice, Reversal, Unresolved

if TYPE_CHECKING:
    from collections.abc import Iterable

_INQUIRIES = {
    "warning_needs_response",
    "warning_under_review",
    "warning_closed",
    "prevented",
}
# A difference of one part in so many is left by the exchange rates of different days.
_NEGLIGIBLE_PART = 20

_WORD = re.compile(r"[a-z_]{1,40}")


class CurrencyMismatch(Unresolved):
    """A refund is in another currency than its charge, so that its share is unknown."""

    def __init__(self, refund_id: str) -> None:
        super().__init__(
            "currency_mismatch", f"{refund_id} is in another currency than its charge."
        )


def basis_of_intent(intent_id: str, charge: Object) -> Basis:
    """Says what a purchase was paid with that a payment intent paid for.

    The amount of the charge, not what was captured of it: with several captures the captured amount
    would change over time, and the first reversal of a payment fixes what was paid.

    Args:
        intent_id: the intent's.
        charge: its charge.

    Raises:
        Unresolved: amount_malformed, currency_malformed.
    """
    paid, paid_in = _paid(charge, "amount")
    return Basis(intent_id, paid, paid_in, paid, paid, paid_in)


def basis_of_invoice(invoice: Object, contributed_minor: int | None, charge: Object) -> Basis:
    """Says what a purchase was paid with that is an invoice: all its payments, off Stripe too.

    Args:
        invoice: as API versions since 2025-03-31 show it, whose `amount_paid` counts every payment.
        contributed_minor: what of it the charge paid; None: Stripe does not show it, and the charge
            paid with all that it is of.
        charge: one of the charges that paid it.

    Raises:
        Unresolved: id_malformed, amount_malformed, currency_malformed.
    """
    paid, paid_in = _paid(invoice, "amount_paid")
    charged, charged_in = _paid(charge, "amount")
    contributed = charged if contributed_minor is None else contributed_minor
    return Basis(id_of(invoice), paid, paid_in, min(contributed, paid), charged, charged_in)


def of_capture(intent: Object) -> Reversal | None:
    """Says what a partial capture takes back: the rest that was authorized and never received.

    Args:
        intent: a payment intent in any API version.

    Returns:
        The reversal, whose revision grows with what was received; None where all was.
    """
    amount, received = intent.get("amount"), intent.get("amount_received")
    if intent.get("status") != "succeeded" or type(amount) is not int or type(received) is not int:
        return None
    if not 0 <= received < amount <= MINOR_MAX:
        return None
    intent_id = id_of(intent)
    return Reversal(
        intent_id,
        intent_id,
        received + 1,
        amount - received,
        amount,
        currency(intent),
        "captured in part",
    )


def of_refund(refund: Object, *, basis: Basis, failed: bool = False) -> Reversal | Nothing:
    """Says what a refund takes back (Stripe: "The Refund object").

    A pending refund takes its share already, because its money is promised; when it fails, the
    second revision gives the share back.

    Args:
        refund: in any API version.
        basis: what the purchase was paid with, and by the charge that is refunded.
        failed: the event was `refund.failed`, whatever the status says.

    Returns:
        The reversal: revision 1 with the refund's amount, or revision 2 with 0 once it failed or
        was cancelled. A refund above its charge takes what the charge is of.

    Raises:
        CurrencyMismatch: its share is unknown.
        Unresolved: id_malformed, amount_malformed, currency_malformed.
    """
    refund_id = id_of(refund)
    status = refund.get("status")
    if failed or status in ("failed", "canceled"):
        reason = "refund canceled" if status == "canceled" else "refund failed"
        return _reversal(basis, refund_id, 2, 0, reason=reason)
    amount = minor(refund, "amount")
    if currency(refund) != basis.charge_currency:
        raise CurrencyMismatch(refund_id)
    return _reversal(basis, refund_id, 1, basis.share(amount), reason="refund")


def of_dispute(dispute: Object, *, basis: Basis) -> Reversal | Nothing:
    """Says what a dispute takes back (Stripe: "The Dispute object", `balance_transactions`).

    The balance transactions tell when money went and came: from the withdrawal on the disputed
    share is taken, and once the money is back nothing is. They do not tell how much, because they
    are in the account's currency at the rates of their days, and a fee may be among them. Only
    where a real part of the money came back the share follows them, and a person should look. A
    dispute that is won keeps nothing of what came back only in part.

    Args:
        dispute: in any API version.
        basis: what the purchase was paid with, and by the charge that is disputed.

    Returns:
        The reversal, whose revision is the number of balance transactions, and one more where the
        result made up for a return in part; a dispute in another currency takes the whole charge,
        with `Notice.OTHER_CURRENCY`. Nothing while no money was withdrawn: `inquiry`, or
        `not_withdrawn`.

    Raises:
        Needs: dispute, when the object lacks its balance transactions.
        Unresolved: id_malformed, amount_malformed, currency_malformed; currency_mismatch, when the
            transactions are in several currencies.
    """
    dispute_id = id_of(dispute)
    listed = dispute.get("balance_transactions")
    if listed is None:
        raise Needs(Needed.DISPUTE, dispute_id)
    moves = _moves(listed, dispute_id)
    withdrawn = max((-amount for amount in moves if amount < 0), default=0)
    status = dispute.get("status")
    if not withdrawn:
        return Nothing("inquiry" if str(status) in _INQUIRIES else "not_withdrawn")
    away = _away(moves, withdrawn)
    in_part = 0 < away < withdrawn
    won_in_part = in_part and status == "won"
    amount = minor(dispute, "amount")
    foreign = currency(dispute) != basis.charge_currency
    disputed = basis.charge_minor if foreign else amount
    notice = None
    if foreign:
        notice = Notice.OTHER_CURRENCY
    elif in_part:
        notice = Notice.PARTLY_RETURNED
    elif status == "lost" and not away:
        notice = Notice.LOST_AND_RETURNED
    return _reversal(
        basis,
        dispute_id,
        len(moves) + won_in_part,
        0 if won_in_part else basis.share(disputed * away // withdrawn),
        reason=", ".join(_words(dispute, away, withdrawn, foreign=foreign)),
        notice=notice,
    )


def _reversal(
    basis: Basis,
    caused_by: str,
    revision: int,
    reversed_minor: int,
    *,
    reason: str,
    notice: Notice | None = None,
) -> Reversal:
    return Reversal(
        basis.paid_by,
        caused_by,
        revision,
        reversed_minor,
        basis.paid_minor,
        basis.currency,
        reason,
        notice,
    )


def _paid(obj: Object, field: str) -> tuple[int, str]:
    """Reads an amount above zero and its currency."""
    paid = minor(obj, field)
    if not paid:
        raise Unresolved("amount_malformed", f"The {field} of {id_of(obj)} is nothing.")
    return paid, currency(obj)


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


def _away(moves: list[int], withdrawn: int) -> int:
    """Follows the moves, the oldest first, to what is away of the largest withdrawal.

    A smaller withdrawal beside it is a fee, and adds nothing. What rates and rounding leave over
    counts neither as money that is away nor as money that came back.
    """
    away = 0
    for amount in moves:
        away = min(max(away - amount, 0), withdrawn)
    if away * _NEGLIGIBLE_PART <= withdrawn:
        return 0
    if (withdrawn - away) * _NEGLIGIBLE_PART <= withdrawn:
        return withdrawn
    return away


def _words(dispute: Object, away: int, withdrawn: int, *, foreign: bool) -> Iterable[str]:
    why = dispute.get("reason")
    known = isinstance(why, str) and _WORD.fullmatch(why)
    yield f"dispute {why}" if known else "dispute"
    if away < withdrawn:
        yield "partly returned" if away else "returned"
    if foreign:
        yield "in another currency than the charge"
