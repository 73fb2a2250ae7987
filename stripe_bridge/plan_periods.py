"""The periods of a plan: how long a price's period is, and when it ends some periods later.

A month is a calendar month in UTC, and keeps its day as far as the month has it (Stripe: "Set the
subscription billing cycle date"): a plan that began on 31 January renews on 28 February and on 31
March.
"""

from __future__ import annotations

import calendar
from datetime import UTC, datetime, timedelta
from fractions import Fraction
from typing import TYPE_CHECKING, NamedTuple

from stripe_bridge.fields import child

if TYPE_CHECKING:
    from stripe_bridge.fields import Object

_DAYS = {"day": 1, "week": 7}
_MONTHS = {"month": 1, "year": 12}
_COUNT_MAX = 3 * 366  # days; Stripe's own maximum is three years

# The times that a date of Python can have, with room for some periods.
_SECONDS_MAX = 200_000_000_000


class Period(NamedTuple):
    """A span of time, in seconds since 1970."""

    start: int
    end: int


class Interval(NamedTuple):
    """How often a plan renews; either days or months are 0."""

    days: int
    months: int


def interval_of(price: object) -> Interval | None:
    """Reads how often a price renews; None: it is not an object, or is sold once."""
    if not isinstance(price, dict):
        return None
    # A plan, the predecessor of a price, has the fields itself.
    recurring = child(price, "recurring") or price
    unit, count = recurring.get("interval"), recurring.get("interval_count", 1)
    if not isinstance(unit, str) or type(count) is not int or not 1 <= count <= _COUNT_MAX:
        return None
    if unit in _DAYS:
        return Interval(_DAYS[unit] * count, 0)
    return Interval(0, _MONTHS[unit] * count) if unit in _MONTHS else None


def period_of(line: Object) -> Period | None:
    """Reads the span of time that a line of an invoice is for; None: it shows none."""
    shown = child(line, "period")
    start, end = shown.get("start"), shown.get("end")
    if type(start) is not int or type(end) is not int or not 0 <= start < end <= _SECONDS_MAX:
        return None
    return Period(start, end)


def share_of(rest: Period, interval: Interval, billed: Fraction | None) -> Fraction:
    """Computes the share of a whole period that its rest is.

    Args:
        rest: from the change of the plan to the end of the period.
        interval: how long the whole period is.
        billed: the share of the price that was billed; None: unknown. It decides only if the
            calendar leaves several days for the start, because a period that ends on 30 April may
            have begun on 30 or 31 March.

    Returns:
        Above 0, and 1 at most.
    """
    end = _at(rest.end)
    days = [end.day]
    if interval.months and _ends_a_month(end):
        days = [*range(end.day, 32)]
    starts = {_moved(end, interval, -1, day) for day in days}
    shares = [
        min(Fraction(rest.end - rest.start, rest.end - start), Fraction(1))
        for start in sorted(starts)
    ]
    return shares[0] if billed is None else min(shares, key=lambda each: abs(each - billed))


def later(period: Period, interval: Interval, count: int) -> int:
    """Says when the period `count` periods after this one ends, in seconds since 1970.

    Args:
        period: a whole period, or its rest.
        interval: how long a whole one is.
        count: how many periods later, 0 or more.
    """
    start, end = _at(period.start), _at(period.end)
    # In a short month, only the start shows the plan's day.
    day = max(start.day, end.day) if _ends_a_month(end) else end.day
    return _moved(end, interval, count, day)


def _ends_a_month(moment: datetime) -> bool:
    return moment.day == calendar.monthrange(moment.year, moment.month)[1]


def _at(seconds: int) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)


def _moved(moment: datetime, interval: Interval, count: int, day: int) -> int:
    if not interval.months:
        return int((moment + timedelta(days=interval.days * count)).timestamp())
    months = moment.year * 12 + moment.month - 1 + interval.months * count
    year, month = months // 12, months % 12 + 1
    last = calendar.monthrange(year, month)[1]
    return int(moment.replace(year=year, month=month, day=min(day, last)).timestamp())
