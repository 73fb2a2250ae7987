"""The reversal of a dispute. Pure: a dispute in, a reversal out."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from stripe_bridge.fields import MINOR_MAX, currency, id_of, minor, objects
from stripe_bridge.model import Needed, Needs, Nothing, Notice, Unresolved
from stripe_bridge.refund_rules import make_reversal

if TYPE_CHECKING:
    from collections.abc import Iterable

    from stripe_bridge.fields import Object
    from stripe_bridge.model import Basis, Reversal

_INQUIRIES = {
    "warning_needs_response",
    "warning_under_review",
    "warning_closed",
    "prevented",
}

# Exchange rates of different days leave a difference of up to one part in this many.
_NEGLIGIBLE_PART = 20

_WORD = re.compile(r"[a-z_]{1,40}")


def of_dispute(dispute: Object, *, basis: Basis) -> Reversal | Nothing:
    """Says what a dispute reverses (Stripe: "The Dispute object", `balance_transactions`).

    The balance transactions show when money was withdrawn and returned: the disputed share is
    reversed from the withdrawal on, and given back once the money has returned. They do not show
    how much, because they are in the account's currency at the rates of their days, and a fee may
    be among them. The share follows them only if a substantial part of the money returned, and then
    a person should look. A won dispute reverses nothing, even if only a part returned.

    Args:
        dispute: in any API version.
        basis: the money paid for the purchase, in all and by the disputed charge.

    Returns:
        The reversal. Its revision is the number of balance transactions, plus one if the dispute
        was won and only a part returned. A dispute in another currency reverses the whole charge,
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
    return make_reversal(
        basis,
        dispute_id,
        len(moves) + won_in_part,
        0 if won_in_part else basis.share(disputed * away // withdrawn),
        reason=", ".join(_words(dispute, away, withdrawn, foreign=foreign)),
        notice=notice,
    )


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
    """Returns how much of the largest withdrawal is still withdrawn after all moves.

    A smaller withdrawal beside it is a fee and adds nothing. A difference that comes from exchange
    rates or rounding counts neither as withdrawn nor as returned.

    Args:
        moves: amounts of balance transactions, the oldest first; withdrawals are negative.
        withdrawn: the largest withdrawal, above zero.
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
