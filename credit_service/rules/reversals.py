"""The rules of money that went back: a purchase's refunds and disputes take its credits back.

Each reversal is absolute and revisioned, so any order, repetition or interleaving of the same calls
ends in the same balance. Credits that were spent meanwhile become debt.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from credit_service.errors import PaymentMismatch, PaymentNotFound, ReversalReused, UserDeleted
from credit_service.rules import grants, returns, top_ups
from credit_service.rules.model import Outcome, Returned, Reversal

if TYPE_CHECKING:
    from credit_service.rules.batch_state import BatchState
    from credit_service.rules.commands import Reverse
    from credit_service.rules.model import Purchased
    from credit_service.rules.terms import Terms
    from credit_service.rules.user_state import UserState


def reverse(state: BatchState, command: Reverse, terms: Terms) -> Outcome:
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
    latest = state.latest_reversals.get(command.reversal_ref)
    if latest is not None and latest.payment_ref != command.payment_ref:
        raise ReversalReused(command.reversal_ref, "payment_ref")
    before = state.returned.get(command.payment_ref)
    if before is None:
        before = Returned(0, command.paid_minor, command.currency)
    elif (before.paid_minor, before.currency) != (command.paid_minor, command.currency):
        raise PaymentMismatch(command.payment_ref, before.paid_minor, before.currency)
    after = before._replace(reversed_minor=before.reversed_minor + _change(command, latest))
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
        opens_ref=command.reversal_ref if latest is None else None,
    )
    returned = _taken(purchase.amount, before), _taken(purchase.amount, after)
    moved, counted = returns.moved(user, purchase.seq, *returned)
    new = new._replace(counted=counted)
    if moved:
        entry = user.entry(
            command,
            kind="reversal",
            amount=abs(moved),
            balance_change=-moved,
            related_seq=purchase.seq,
            description=command.reason,
            reference=command.reversal_ref,
        )
        new = new._replace(seq=entry.seq, entry=entry)
    if not command.validate_only:
        if user.account.grants_made:
            _move(user, purchase, new, returned, terms)
        elif new.entry is not None:
            user.post(new.entry)
        state.put_reversal(new, after)
        if after.reversed_minor > before.reversed_minor:
            top_ups.follow_reversal(user, command.payment_ref, command.caller)
    return Outcome(new.entry, user.account, replayed=False)


def _move(
    user: UserState,
    purchase: Purchased,
    new: Reversal,
    returned: tuple[int, int],
    terms: Terms,
) -> None:
    """Posts the credits that a revision moves, from grants and from the pool.

    Args:
        user: the purchase's.
        purchase: the purchase of the payment.
        new: the revision.
        returned: the credits that the purchase's reversals return without the revision and with it.
        terms: with the grace of credits that come back.
    """
    before, after = returned
    grant, entry, free = user.grants.get(purchase.seq), new.entry, grants.free_pool(user.account)
    moved_before = before - (grant.counted if grant else 0)
    if grant is not None:
        counted = grant.counted + new.counted
        user.put_grant(grant._replace(reversed=after, counted=counted))
    if entry is None:
        return
    user.post(entry)
    if entry.balance_change < 0:
        returns.take(user, entry.seq, purchase.seq, entry.amount, free)
    else:
        returns.give(
            user,
            entry.seq,
            purchase.seq,
            entry.amount,
            before=moved_before,
            grace=terms.refund_grace,
        )


def _taken(granted: int, returned: Returned) -> int:
    """How many of the `granted` credits of a purchase its reversals take together."""
    return granted * min(returned.paid_minor, returned.reversed_minor) // returned.paid_minor


def _change(command: Reverse, latest: Reversal | None) -> int:
    """The change of the returned sum by a new revision, in minor units; only the highest counts.

    Args:
        command: the new revision.
        latest: the highest revision recorded before; None if there is none.
    """
    if latest is None:
        return command.reversed_minor
    if command.revision < latest.revision:
        return 0
    return command.reversed_minor - latest.reversed_minor


def _require_same(command: Reverse, recorded: Reversal) -> None:
    for field in ("payment_ref", "reversed_minor", "paid_minor", "currency"):
        if getattr(command, field) != getattr(recorded, field):
            raise ReversalReused(command.reversal_ref, field)
