"""The values of grants: credits with an expiry or a priority of their own."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Literal, NamedTuple

if TYPE_CHECKING:
    from datetime import timedelta
    from uuid import UUID

# Priority, whether it never expires, expiry, whether it is paid, seq.
BurnKey = tuple[int, bool, datetime, bool, int]

_NO_TIME = datetime.min.replace(tzinfo=UTC)

AllowancePeriod = Literal["day", "week", "month"]


class Allowance(NamedTuple):
    """Free credits of every period of UTC.

    Attributes:
        amount: credits; 0: none.
        period: a day, a week that begins on Monday, or a calendar month.
        carry_over: how many periods the credits outlive their own.
    """

    amount: int
    period: AllowancePeriod
    carry_over: int = 0


class Grant(NamedTuple):
    """Credits that came by one entry and have an expiry or a priority of their own.

    Attributes:
        seq: the seq of that entry.
        amount: the credits that came.
        remaining: the credits that are left.
        pinned: the part of `remaining` that holds have set aside.
        priority: 0, used first, to 100, used last.
        expire_time: when the credits that no hold has set aside lapse; None: never.
        asked_time: the expiry that the caller named; None where the caller named none.
        valid_for: the lifetime that the caller named; None where the caller named none.
        paid: whether they are paid credits, which are used after promotional ones.
        series: the series of a plan that credits roll over in.
        revoked: whether an operator revoked it.
        open: whether spends and holds may draw on it. A grant that is used up or revoked, or whose
            time was settled, is closed; it may still have credits that holds have set aside.
        lapsed: how many of its credits lapsed or were revoked.
        counted: how many of those the reversals of its purchase have counted.
        reversed: how many credits the reversals of its purchase return: those that they moved,
            from here or from elsewhere, and the counted ones.
    """

    user_id: UUID
    seq: int
    amount: int
    remaining: int
    pinned: int = 0
    priority: int = 50
    expire_time: datetime | None = None
    asked_time: datetime | None = None
    valid_for: timedelta | None = None
    paid: bool = False
    series: str | None = None
    revoked: bool = False
    open: bool = True
    lapsed: int = 0
    counted: int = 0
    reversed: int = 0

    @property
    def rest(self) -> int:
        """The credits that are left and that no hold has set aside."""
        return self.remaining - self.pinned

    def burn_key(self) -> BurnKey:
        """Its place in the burn order: a grant with a lower key is used first."""
        expire_time = self.expire_time
        return (
            self.priority,
            expire_time is None,
            expire_time or _NO_TIME,
            self.paid,
            self.seq,
        )

    def expiry_key(self) -> tuple[bool, datetime, int]:
        """Its place among grants in the order of their expiry."""
        return self.expire_time is None, self.expire_time or _NO_TIME, self.seq


class GrantChange(NamedTuple):
    """The change of a grant by an entry; a grant is the sum of its changes.

    Attributes:
        seq: the seq of the entry.
        grant_seq: the seq of the grant.
        hold_seq: the hold whose pinned credits changed; None where none did.
        remaining_change: credits that came (above 0) or went.
        pinned_change: credits that the hold set aside (above 0) or no longer does.
        expire_after: the expiry of the grant afterwards.
        lapsed_at: when the credits lapsed; None for all other changes.
        reversed_seq: the seq of the purchase whose reversals took or gave back these credits;
            None for all other changes.
    """

    user_id: UUID
    seq: int
    grant_seq: int
    hold_seq: int | None
    remaining_change: int
    pinned_change: int
    remaining_after: int
    pinned_after: int
    expire_after: datetime | None
    lapsed_at: datetime | None = None
    reversed_seq: int | None = None
