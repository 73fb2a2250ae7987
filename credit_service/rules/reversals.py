"""The rules of money that went back: a purchase's refunds and disputes take its credits along.

Each reversal is absolute and revisioned, so any order, repetition or interleaving of the same calls
ends in the same balance. What was spent meanwhile becomes debt.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from credit_service.errors import PaymentMismatch, PaymentNotFound, ReversalReused, UserDeleted
from credit_service.rules.model import Outcome, Reversal

if TYPE_CHECKING:
    from collections.abc import Iterable

    from credit_service.rules.batch_state import BatchState
    from credit_service.rules.commands import Reverse
    from credit_service.rules.terms import Terms


def reverse(state: BatchState, command: Reverse, _terms: Terms) -> Outcome:
    """Records a revision and posts the difference that it makes, in either direction."""
    purchase = state.purchases.get(command.payment_ref)
    if purchase is None:
        raise PaymentNotFound(command.payment_ref)
    if purchase.entry is None:
        raise UserDeleted(command.payment_ref)
    user = state.user(command.user_id)
    recorded = state.reversals.get((command.reversal_ref, command.revision))
    if recorded is not None:
        _require_same(command, recorded)
        return Outcome(recorded.entry, user.account, replayed=True)
    others = list(state.reversals.values())
    if any(
        other.reversal_ref == command.reversal_ref and other.payment_ref != command.payment_ref
        for other in others
    ):
        raise ReversalReused(command.reversal_ref, "payment_ref")
    earlier = [other for other in others if other.payment_ref == command.payment_ref]
    for other in earlier:
        if (other.paid_minor, other.currency) != (command.paid_minor, command.currency):
            raise PaymentMismatch(command.payment_ref, other.paid_minor, other.currency)
    new = Reversal(
        reversal_ref=command.reversal_ref,
        revision=command.revision,
        payment_ref=command.payment_ref,
        user_id=command.user_id,
        seq=None,
        reversed_minor=command.reversed_minor,
        paid_minor=command.paid_minor,
        currency=command.currency,
        reason=command.reason,
        recorded_at=user.time,
        caller=command.caller,
    )
    more = taken(purchase.amount, [*earlier, new]) - taken(purchase.amount, earlier)
    if more:
        entry = user.entry(
            command,
            kind="reversal",
            amount=abs(more),
            balance_change=-more,
            related_seq=purchase.seq,
            description=command.reason,
            reference=command.reversal_ref,
        )
        new = new._replace(seq=entry.seq, entry=entry)
    if not command.validate_only:
        if new.entry is not None:
            user.post(new.entry)
        state.put_reversal(new)
    return Outcome(new.entry, user.account, replayed=False)


def taken(granted: int, reversals: Iterable[Reversal]) -> int:
    """How many credits of a purchase its reversals take, all of them together.

    Args:
        granted: the credits of the purchase.
        reversals: every recorded revision; they agree on what was paid.
    """
    counting: dict[str, Reversal] = {}
    for reversal in reversals:
        highest = counting.get(reversal.reversal_ref)
        if highest is None or reversal.revision > highest.revision:
            counting[reversal.reversal_ref] = reversal
    if not counting:
        return 0
    paid = next(iter(counting.values())).paid_minor
    total = min(paid, sum(reversal.reversed_minor for reversal in counting.values()))
    return granted * total // paid


def _require_same(command: Reverse, recorded: Reversal) -> None:
    for field in ("payment_ref", "reversed_minor", "paid_minor", "currency"):
        if getattr(command, field) != getattr(recorded, field):
            raise ReversalReused(command.reversal_ref, field)
