"""The rules of credits that go back: into the grants they came from, and out of them again.

A refund retraces the draws of its spend, and a reversal that is given back retraces what it took.
Credits of a grant whose time has passed, or that was revoked, go back into that same grant, which
opens again for a grace period. Where the money of that grant went back meanwhile, it first restores
what the reversals of its purchase took elsewhere, because they would have taken it from here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from credit_service.rules import grants

if TYPE_CHECKING:
    from collections.abc import Iterable
    from datetime import timedelta

    from credit_service.rules.grant_values import Grant, GrantChange
    from credit_service.rules.grants import Part
    from credit_service.rules.model import Spent
    from credit_service.rules.user_state import UserState


class Moved(NamedTuple):
    """The effect of a revision of a reversal, in credits; below zero it gives back.

    Attributes:
        moved: credits that it takes.
        counted: credits that it would take and that had lapsed or been revoked.
    """

    moved: int
    counted: int


def refund(
    user: UserState,
    entry_seq: int,
    spent: Spent,
    amount: int,
    grace: timedelta,
) -> None:
    """Gives credits of a spend back to where they came from; the last drawn come back first.

    Args:
        user: whose.
        entry_seq: the refund's entry, which was posted.
        spent: the entry that drew them, and how many of them were given back before.
        amount: the credits that are given back now.
        grace: how long credits live that go back to a grant whose time has passed.
    """
    drawn = [
        (change.grant_seq, -change.remaining_change)
        for change in user.drawn.get(spent.entry.seq, ())
        if change.remaining_change < 0
    ]
    if drawn:
        # Credits from the pool are not told apart. They come back before any grant.
        pool = max(0, spent.entry.amount - sum(part for _, part in drawn))
        skipped = max(0, spent.refunded - pool)
        left = max(0, spent.refunded + amount - pool) - skipped
        _put_back(
            user, entry_seq, _cut(reversed(drawn), skipped, left), reversed_seq=None, grace=grace
        )
        grants.pay_debt(user, entry_seq)


def moved(user: UserState, purchase_seq: int, before: int, after: int) -> Moved:
    """The effect of a revision after which the reversals of a purchase return `after` credits.

    Credits that lapsed or were revoked are counted once, before anything is moved. Giving back
    starts with credits taken elsewhere, then the counted ones, then the grant's own.

    Args:
        user: the purchase's.
        purchase_seq: the purchase.
        before: the credits that its reversals returned before.
        after: the credits that they return now.
    """
    more, grant = after - before, user.grants.get(purchase_seq)
    if grant is None:
        return Moved(more, 0)
    if more > 0:
        counted = min(more, grant.lapsed - grant.counted)
    else:
        counted = -min(max(0, -more - _elsewhere(user, grant)), grant.counted)
    return Moved(more - counted, counted)


def take(user: UserState, entry_seq: int, purchase_seq: int, amount: int, free: int) -> None:
    """Takes the credits of a reversal: from the purchase's own, then in burn order, then as debt.

    Credits of the purchase's grant that holds have set aside are exchanged: the pins move to other
    credits in burn order, and then to the pool.

    Args:
        user: the purchase's.
        entry_seq: the reversal's entry, which was posted.
        purchase_seq: the purchase.
        amount: credits.
        free: the credits of the pool that no hold had set aside before that entry.
    """
    left, grant = amount, user.grants.get(purchase_seq)
    if grant is None:
        # The credits that it brought are in the pool.
        left -= min(left, free)
        free = 0
    else:
        own = min(left, grant.rest)
        if own:
            user.change_grant(entry_seq, grant.seq, remaining=-own, reversed_seq=grant.seq)
        exchanged = min(left - own, grant.pinned)
        left -= own + exchanged
        free = _exchange(user, entry_seq, grant.seq, exchanged, free)
    for seq, part in grants.in_order(user, left, free):
        user.change_grant(entry_seq, seq, remaining=-part, reversed_seq=purchase_seq)


def give(
    user: UserState,
    entry_seq: int,
    purchase_seq: int,
    amount: int,
    *,
    before: int,
    grace: timedelta,
) -> None:
    """Gives back credits that reversals of a purchase took; those taken elsewhere come first.

    Args:
        user: the purchase's.
        entry_seq: the reversal's entry, which was posted.
        purchase_seq: the purchase.
        amount: credits.
        before: the credits that the reversals had moved until then.
        grace: how long credits live that go back to a grant whose time has passed.
    """
    grant = user.grants.get(purchase_seq)
    elsewhere = before if grant is None else before - _own(user, purchase_seq)
    parts = _taken_elsewhere(user, purchase_seq, min(amount, elsewhere), elsewhere)
    if amount > elsewhere:
        parts.append((purchase_seq, amount - elsewhere))
    _put_back(user, entry_seq, parts, reversed_seq=purchase_seq, grace=grace)
    grants.pay_debt(user, entry_seq)


def _exchange(user: UserState, entry_seq: int, seq: int, amount: int, free: int) -> int:
    """Moves pins of a grant to other credits and takes them; returns the pool's free part."""
    for hold_seq in sorted(user.pins):
        pins = user.pins[hold_seq]
        part = min(amount, pins.get(seq, 0))
        if not part:
            continue
        amount -= part
        user.change_grant(
            entry_seq, seq, remaining=-part, pinned=-part, hold_seq=hold_seq, reversed_seq=seq
        )
        for other, pinned in grants.in_order(user, part, free):
            user.change_grant(entry_seq, other, pinned=pinned, hold_seq=hold_seq)
            part -= pinned
        free = max(0, free - part)
    return free


def _put_back(
    user: UserState,
    entry_seq: int,
    parts: Iterable[Part],
    *,
    reversed_seq: int | None,
    grace: timedelta,
) -> None:
    """Puts credits back into grants, and on to where the grants' reversals took them instead."""
    came: list[Part] = []
    for seq, part in parts:
        user.change_grant(entry_seq, seq, remaining=part, reversed_seq=reversed_seq)
        came.append((seq, part))
    for seq, part in came:  # grows while credits move on
        grant = user.grants[seq]
        elsewhere = _elsewhere(user, grant)
        onward = min(part, elsewhere)
        if onward:
            others = _taken_elsewhere(user, seq, onward, elsewhere)
            user.change_grant(entry_seq, seq, remaining=-onward, reversed_seq=seq)
            for other, restored in others:
                user.change_grant(entry_seq, other, remaining=restored, reversed_seq=seq)
            came.extend(others)
    for seq in dict.fromkeys(seq for seq, _ in came):
        grant = user.grants[seq]
        if not grant.open and grant.rest:
            _reopen(user, entry_seq, grant, grace)


def _reopen(user: UserState, entry_seq: int, grant: Grant, grace: timedelta) -> None:
    """Opens a grant that credits came back to; one that had ended lives at least for the grace."""
    until = grant.expire_time
    if grant.revoked or (until is not None and until <= user.time):
        until = max(until or user.time, user.time + grace)
        user.change_grant(entry_seq, grant.seq, expire_time=until, opens=True)
    else:
        user.put_grant(grant._replace(open=True))


def _elsewhere(user: UserState, grant: Grant) -> int:
    """The credits that the reversals of a grant's purchase took elsewhere and did not give back."""
    moved_credits = grant.reversed - grant.counted
    return max(0, moved_credits - _own(user, grant.seq)) if moved_credits else 0


def _own(user: UserState, seq: int) -> int:
    """The credits that the reversals of a purchase took from its own grant."""
    return -sum(c.remaining_change for c in _reversals(user, seq) if c.grant_seq == seq)


def _taken_elsewhere(user: UserState, seq: int, amount: int, elsewhere: int) -> list[Part]:
    """Where to restore the credits that a purchase's reversals took elsewhere, last taken first.

    Credits taken from the pool are not told apart, and come back before any grant.

    Args:
        user: whose.
        seq: the purchase.
        amount: the credits to restore.
        elsewhere: the credits that they took elsewhere in all.
    """
    net: dict[int, int] = {}
    for change in reversed(_reversals(user, seq)):
        if change.grant_seq != seq:
            taken = net.get(change.grant_seq, 0) - change.remaining_change
            net[change.grant_seq] = taken
    pool = elsewhere - sum(net.values())
    return _cut(net.items(), 0, max(0, amount - pool))


def _reversals(user: UserState, seq: int) -> list[GrantChange]:
    return user.reversed.get(seq, [])


def _cut(parts: Iterable[Part], skipped: int, amount: int) -> list[Part]:
    """The parts that make up `amount` credits after the first `skipped` ones."""
    cut = []
    for seq, part in parts:
        passed = min(part, skipped)
        skipped -= passed
        kept = min(part - passed, amount)
        amount -= kept
        if kept > 0:
            cut.append((seq, kept))
    return cut
