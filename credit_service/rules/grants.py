"""The rules of grants: credits with an expiry or a priority of their own, and the pool of the rest.

The burn order is the same everywhere: priority ascending, earliest expiry first (none last),
promotional before paid, older before newer. The pool has priority 50 and no expiry. Credits of a
grant that holds have set aside are pinned: neither its expiry nor a spend touches them.

One law holds after every entry: debt, a pool below zero, remains only while no grant has credits
that no hold has set aside. Credits that come, or come back, pay it first. The pool's share of an
entry is its amount less its changes of grants; no row stores it.
"""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

from credit_service.errors import GrantNotFound, InvalidRequest, TooManyGrants
from credit_service.rules.commands import SERVICE, Lapse, TakeRevoked
from credit_service.rules.grant_values import Grant
from credit_service.rules.model import PRIORITY_DEFAULT, Outcome, transaction_id

if TYPE_CHECKING:
    from collections.abc import Iterable
    from datetime import datetime

    from credit_service.rules.batch_state import BatchState
    from credit_service.rules.commands import Life, RevokeGrant, Rollover
    from credit_service.rules.model import Account, Entry
    from credit_service.rules.terms import Terms
    from credit_service.rules.user_state import UserState

# The longest life that credits may be given: ten years, with the maximum number of leap days.
LIFE_MAX = timedelta(days=3653)

# How many open grants GrantCredits may give an account. Purchases are never refused.
OPEN_GRANTS_MAX = 1000

# Credits of a grant, by its seq.
Part = tuple[int, int]


def expiry(user: UserState, life: Life, terms: Terms, *, with_payment: bool) -> datetime | None:
    """When credits that come now expire; None for never.

    Args:
        user: whose.
        life: as asked.
        terms: with the grace of a payment whose time has passed.
        with_payment: whether a payment buys them, which is never refused for being late.

    Raises:
        InvalidRequest: the time has passed, or is more than ten years ahead.
    """
    if life.valid_for is not None:
        return user.time + life.valid_for
    time = life.expire_time
    if time is None:
        return None
    if time <= user.time:
        if with_payment:
            return user.time + terms.refund_grace
        raise InvalidRequest("expire_time", "has passed; credits must expire in the future.")
    if time > user.time + LIFE_MAX:
        raise InvalidRequest("expire_time", f"is more than {LIFE_MAX.days} days ahead.")
    return time


def has_own_life(life: Life) -> bool:
    """Whether credits become a grant; all others are part of the pool."""
    return (
        life.expire_time is not None
        or life.valid_for is not None
        or life.priority != PRIORITY_DEFAULT
    )


def require_room(account: Account) -> None:
    """Checks that an account may have another open grant.

    Raises:
        TooManyGrants: it has as many as GrantCredits may give.
    """
    if account.open_grants >= OPEN_GRANTS_MAX:
        raise TooManyGrants(OPEN_GRANTS_MAX)


def make(
    user: UserState,
    entry: Entry,
    life: Life,
    expire_time: datetime | None,
    *,
    paid: bool,
    series: str | None = None,
) -> None:
    """Makes the grant of an entry that was posted; it pays debt first."""
    user.put_grant(
        Grant(
            user_id=entry.user_id,
            seq=entry.seq,
            amount=entry.amount,
            remaining=0,
            priority=life.priority,
            expire_time=expire_time,
            asked_time=life.expire_time,
            valid_for=life.valid_for,
            paid=paid,
            series=series,
            open=False,
        )
    )
    user.change_grant(entry.seq, entry.seq, remaining=entry.amount, opens=True)
    pay_debt(user, entry.seq)


def in_order(user: UserState, amount: int, free: int) -> list[Part]:
    """The parts of some credits that grants give, in burn order; the pool gives the remainder.

    Args:
        user: whose.
        amount: credits.
        free: the credits of the pool that no hold has set aside; the pool gives more than that only
            after every grant.
    """
    parts = []
    left = amount
    for priority, *_, seq in user.burn_order():
        if free and priority > PRIORITY_DEFAULT:
            left -= min(left, free)
            free = 0
        part = min(left, user.grants[seq].rest)
        if not part:
            break
        parts.append((seq, part))
        left -= part
    return parts


def free_pool(account: Account) -> int:
    """The credits of the pool that no hold has set aside; never below 0."""
    pool, held = account.balance - account.in_grants, account.held - account.pinned
    return max(0, pool - held)


def draw(user: UserState, entry_seq: int, amount: int) -> None:
    """Takes credits in burn order for an entry that is about to be posted."""
    for seq, part in in_order(user, amount, free_pool(user.account)):
        user.change_grant(entry_seq, seq, remaining=-part)


def pin(user: UserState, hold_seq: int, amount: int) -> None:
    """Sets credits aside in burn order for a hold whose entry is about to be posted."""
    for seq, part in in_order(user, amount, free_pool(user.account)):
        user.change_grant(hold_seq, seq, pinned=part, hold_seq=hold_seq)


def unpin(user: UserState, entry_seq: int, hold_seq: int) -> list[int]:
    """Gives up what a hold has set aside.

    Returns:
        The grants that the credits belong to, for `settle`.
    """
    pins = dict(user.pins.get(hold_seq, {}))
    for seq, part in pins.items():
        user.change_grant(entry_seq, seq, pinned=-part, hold_seq=hold_seq)
    return list(pins)


def capture(user: UserState, entry_seq: int, hold_seq: int, *, held: int, amount: int) -> list[int]:
    """Takes credits that a hold has set aside, in burn order, and gives up the rest.

    Args:
        user: whose.
        entry_seq: the entry that is about to be posted.
        hold_seq: the hold.
        held: the credits of the hold.
        amount: the credits taken; any above `held` are drawn in burn order.

    Returns:
        The grants that the hold had set credits of aside, for `settle`.
    """
    pins = dict(user.pins.get(hold_seq, {}))
    pool, left = held - sum(pins.values()), amount
    for grant in sorted((user.grants[seq] for seq in pins), key=Grant.burn_key):
        if grant.priority > PRIORITY_DEFAULT:
            left -= min(left, pool)
            pool = 0
        pinned = pins[grant.seq]
        taken = min(left, pinned)
        left -= taken
        user.change_grant(entry_seq, grant.seq, remaining=-taken, pinned=-pinned, hold_seq=hold_seq)
    if amount > held:
        draw(user, entry_seq, amount - held)
    return list(pins)


def settle(user: UserState, entry_seq: int, unpinned: Iterable[int], at: datetime) -> None:
    """Pays debt after an entry that was posted, then takes credits that may no longer be drawn on.

    Args:
        user: whose.
        entry_seq: the entry.
        unpinned: the grants of which it gave up what a hold had set aside.
        at: when it did.
    """
    pay_debt(user, entry_seq)
    closed = [
        grant
        for grant in (user.grants[seq] for seq in unpinned)
        if not grant.open and grant.rest > 0
    ]
    lapse(user, [grant.seq for grant in closed if not grant.revoked], at)
    for grant in closed:
        if grant.revoked:
            command = TakeRevoked(user_id=grant.user_id, caller=SERVICE)
            entry = user.entry(
                command,
                kind="revocation",
                amount=grant.rest,
                balance_change=-grant.rest,
                related_seq=grant.seq,
            )
            user.change_grant(entry.seq, grant.seq, remaining=-grant.rest, lapses=True)
            user.post(entry)


def pay_debt(user: UserState, entry_seq: int) -> None:
    """Pays debt with the rests of grants, in burn order, as part of an entry that was posted."""
    debt = user.account.in_grants - user.account.balance
    if debt > 0:
        for seq, part in in_order(user, debt, 0):
            user.change_grant(entry_seq, seq, remaining=-part)


def lapse(user: UserState, seqs: Iterable[int], at: datetime | None) -> None:
    """Takes the rest of grants whose time has passed, and closes them; the pinned part stays.

    Args:
        user: whose.
        seqs: the grants; together they make one entry, or none where all of them is pinned.
        at: when they lapse.
    """
    _lapse_parts(user, [(seq, user.grants[seq].rest) for seq in seqs], at, closes=True)


def roll_over(user: UserState, made: int, rollover: Rollover) -> None:
    """Lapses the credits of a series' older open grants above its cap, earliest expiry first.

    Args:
        user: whose.
        made: the seq of the series' new grant.
        rollover: the series and its cap.
    """
    older = [
        grant
        for grant in user.grants.values()
        if grant.series == rollover.series and grant.open and grant.rest and grant.seq != made
    ]
    above = sum(grant.rest for grant in older) - rollover.cap
    parts = []
    for grant in sorted(older, key=Grant.expiry_key):
        if above <= 0:
            break
        part = min(above, grant.rest)
        parts.append((grant.seq, part))
        above -= part
    _lapse_parts(user, parts, user.time, closes=False)


def _lapse_parts(user: UserState, parts: list[Part], at: datetime | None, *, closes: bool) -> None:
    total = sum(part for _, part in parts)
    if total:
        command = Lapse(user_id=user.account.user_id, caller=SERVICE)
        entry = user.entry(command, kind="lapse", amount=total, balance_change=-total)
    for seq, part in parts:
        if part:
            user.change_grant(entry.seq, seq, remaining=-part, lapses=True, lapsed_at=at)
        if closes:
            user.put_grant(user.grants[seq]._replace(open=False))
    if total:
        user.post(entry)


def revoke(state: BatchState, command: RevokeGrant, _terms: Terms) -> Outcome:
    """Takes the rest of a grant, once; what holds have set aside is taken when they give it up."""
    user = state.user(command.user_id)
    grant = user.grants.get(command.grant_seq)
    if grant is None:
        raise GrantNotFound(transaction_id(command.user_id, command.grant_seq))
    if grant.revoked or not grant.open or not grant.rest:
        if grant.pinned and not grant.revoked and not command.validate_only:
            user.put_grant(grant._replace(revoked=True, open=False))
        made = user.spends[grant.seq].entry
        user.keep_key(command, made)
        return Outcome(made, user.account, replayed=True)
    entry = user.entry(
        command,
        kind="revocation",
        amount=grant.rest,
        balance_change=-grant.rest,
        related_seq=grant.seq,
    )
    if not command.validate_only:
        user.change_grant(entry.seq, grant.seq, remaining=-grant.rest, lapses=True)
        user.put_grant(user.grants[grant.seq]._replace(revoked=True, open=False))
        user.post(entry)
    return Outcome(entry, user.account, replayed=False)
