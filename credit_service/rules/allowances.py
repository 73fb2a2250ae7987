"""The rules of allowances: free credits of each day, week or month of UTC, given when they are due.

No job runs every month: an account gets the allowance of a period when a call first looks at it in
that period. A period without a call is not made up for. Until the last granted period ends, no
further allowance is given, even if the policy, the configuration or the clock changes.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from credit_service.fields import BALANCE_MAX
from credit_service.rules import grants
from credit_service.rules.commands import SERVICE, GiveAllowance, Life

if TYPE_CHECKING:
    from credit_service.rules.grant_values import Allowance, AllowancePeriod
    from credit_service.rules.model import Account
    from credit_service.rules.terms import Terms
    from credit_service.rules.user_state import UserState

_BEGINNING = datetime.min.replace(tzinfo=UTC)

_DAYS = {"day": 1, "week": 7}


def period_end(time: datetime, period: AllowancePeriod) -> datetime:
    """The end of the period of UTC that a time lies in; it belongs to the next one.

    Args:
        time: in UTC.
        period: weeks begin on Monday, months are those of the calendar.
    """
    start = time.replace(hour=0, minute=0, second=0, microsecond=0)
    if period == "week":
        start -= timedelta(days=start.weekday())
    elif period == "month":
        start = start.replace(day=1)
    return after_periods(start, period, 1)


def after_periods(start: datetime, period: AllowancePeriod, count: int) -> datetime:
    """The beginning of the period that comes `count` periods after the one that begins at `start`.

    Args:
        start: the beginning of a period, in UTC.
        period: its length.
        count: periods; 0 is `start` itself.
    """
    if period == "month":
        years, month = divmod(start.month - 1 + count, 12)
        return start.replace(year=start.year + years, month=month + 1)
    return start + timedelta(days=_DAYS[period] * count)


def due(account: Account, terms: Terms, now: datetime) -> Allowance | None:
    """The allowance that an account gets when a call looks at it at a time; None: none."""
    until = account.allowance_until
    if until is not None and now < until:
        return None
    own = account.policy.allowance
    allowance = terms.allowance if own is None else own
    if allowance is None or not allowance.amount:
        return None
    # An account at the limit of a balance gets none, because otherwise the call would be refused.
    return allowance if account.balance + allowance.amount <= BALANCE_MAX else None


def next_time(account: Account, terms: Terms) -> datetime | None:
    """When an account's next allowance is due; None for never, as far as is known now."""
    time = account.allowance_until or _BEGINNING
    return None if due(account, terms, time) is None else time


def give(user: UserState, terms: Terms) -> None:
    """Gives an account the allowance that is due, if one is; it pays debt first."""
    allowance = due(user.account, terms, user.now)
    if allowance is None:
        return
    end = period_end(user.now, allowance.period)
    life = Life(expire_time=after_periods(end, allowance.period, allowance.carry_over))
    command = GiveAllowance(user_id=user.account.user_id, caller=SERVICE)
    entry = user.entry(
        command, kind="grant", amount=allowance.amount, balance_change=allowance.amount
    )
    user.post(entry)
    grants.make(user, entry, life, life.expire_time, paid=False)
    user.account = user.account._replace(allowance_until=end)
