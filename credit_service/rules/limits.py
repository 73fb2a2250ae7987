"""Spend limits: what an account may spend in each minute, hour and day of UTC."""

from __future__ import annotations

from datetime import timedelta
from functools import lru_cache
from typing import TYPE_CHECKING

from credit_service.errors import AboveSpendLimit, SpendLimitExceeded
from credit_service.rules.model import NO_LIMITS, SpendCounters

if TYPE_CHECKING:
    from datetime import datetime

    from credit_service.rules.model import Account

_MINUTE, _HOUR, _DAY = timedelta(minutes=1), timedelta(hours=1), timedelta(days=1)


@lru_cache(maxsize=4)  # every command of a batch asks for the windows of the same time
def windows(now: datetime) -> tuple[tuple[str, datetime, timedelta], ...]:
    """The windows of UTC that a time lies in: name, beginning and length."""
    minute = now.replace(second=0, microsecond=0)
    hour = minute.replace(minute=0)
    return (
        ("minute", minute, _MINUTE),
        ("hour", hour, _HOUR),
        ("day", hour.replace(hour=0), _DAY),
    )


def count(counters: SpendCounters, spent: int, now: datetime) -> SpendCounters:
    """Adds credits to the counters of the present windows.

    Args:
        counters: as they were; those of a window that has ended start over from 0.
        spent: credits that count against the limits; 0 leaves the counters as they are.
        now: the time of the batch.
    """
    if not spent:
        return counters
    minute, hour, day = _present(counters, now)
    return SpendCounters(now, minute + spent, hour + spent, day + spent)


def require_within_limits(account: Account, cost: int, now: datetime) -> None:
    """Lets an account spend `cost` more credits in the present minute, hour and day.

    Raises:
        AboveSpendLimit: that is more than one of them ever allows.
        SpendLimitExceeded: that is more than is left in one of them. Of several it names the
            longest, because no attempt succeeds before that one ends.
    """
    limits = account.policy.limits
    if limits == NO_LIMITS:
        return
    never = above_limit(account, cost)
    if never is not None:
        raise never
    asked = zip(limits, _present(account.counters, now), windows(now), strict=True)
    for limit, used, (name, start, length) in reversed(list(asked)):
        if limit is not None and used + cost > limit:
            left_ms = int((start + length - now).total_seconds() * 1000) + 1
            raise SpendLimitExceeded(name, limit, used, left_ms)


def above_limit(account: Account, cost: int) -> AboveSpendLimit | None:
    """Says whether `cost` credits at once are more than a whole window allows.

    Returns:
        The refusal, which names the lowest of the account's limits; None if they fit.
    """
    limits = account.policy.limits
    lowest = min(
        ((limit, name) for name, limit in zip(limits._fields, limits, strict=True) if limit),
        default=None,
    )
    if lowest is None or cost <= lowest[0]:
        return None
    limit, name = lowest
    return AboveSpendLimit(cost, name, limit)


def _present(counters: SpendCounters, now: datetime) -> tuple[int, int, int]:
    """The credits spent in the present minute, hour and day of UTC."""
    counted_at = counters.counted_at
    if counted_at is None:
        return 0, 0, 0
    (_, minute, _), (_, hour, _), (_, day, _) = windows(now)
    return (
        counters.minute if counted_at >= minute else 0,
        counters.hour if counted_at >= hour else 0,
        counters.day if counted_at >= day else 0,
    )
