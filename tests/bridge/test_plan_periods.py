"""The periods of plans: shares of a month by the calendar, and ends of later periods."""

from datetime import UTC, datetime
from fractions import Fraction

import pytest

from stripe_bridge.plan_periods import Interval, Period, interval_of, later, share_of

MONTH, YEAR, WEEK = Interval(0, 1), Interval(0, 12), Interval(7, 0)


def at(text):
    return int(datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp())


def period(start, end):
    return Period(at(start), at(end))


@pytest.mark.parametrize(
    ("start", "end", "interval", "share"),
    [
        ("2026-04-16", "2026-05-01", MONTH, Fraction(1, 2)),
        ("2026-04-01", "2026-05-01", MONTH, Fraction(1)),
        ("2026-02-15", "2026-03-01", MONTH, Fraction(1, 2)),
        ("2027-12-31", "2028-01-01", YEAR, Fraction(1, 365)),
        ("2028-12-31", "2029-01-01", YEAR, Fraction(1, 366)),
        ("2026-04-16", "2026-04-23", WEEK, Fraction(1)),
        ("2026-04-22", "2026-04-23", WEEK, Fraction(1, 7)),
        ("2026-01-01", "2026-01-02", Interval(0, 3), Fraction(1, 92)),
        # Longer than a period, which no plan is: at most the whole.
        ("2026-03-01", "2026-05-01", MONTH, Fraction(1)),
    ],
)
def test_a_share_of_a_period_is_the_share_of_its_time(start, end, interval, share):
    assert share_of(period(start, end), interval, None) == share


def test_the_billed_amount_decides_between_the_possible_first_days_of_a_month():
    rest = period("2026-02-14", "2026-02-28")
    # It began on 28, 29, 30 or 31 January, and the longest gives the least.
    assert share_of(rest, MONTH, None) == Fraction(14, 31)
    assert share_of(rest, MONTH, Fraction(50, 100)) == Fraction(1, 2)
    assert share_of(rest, MONTH, Fraction(48, 100)) == Fraction(14, 29)
    assert share_of(rest, MONTH, Fraction(1, 100)) == Fraction(14, 31)
    assert share_of(period("2026-04-16", "2026-05-01"), MONTH, Fraction(1)) == Fraction(1, 2)


@pytest.mark.parametrize(
    ("start", "end", "interval", "count", "then"),
    [
        ("2026-04-01", "2026-05-01", MONTH, 0, "2026-05-01"),
        ("2026-04-01", "2026-05-01", MONTH, 2, "2026-07-01"),
        ("2026-01-31T10:30", "2026-02-28T10:30", MONTH, 1, "2026-03-31T10:30"),
        ("2026-02-28", "2026-03-31", MONTH, 1, "2026-04-30"),
        ("2028-02-29", "2029-02-28", YEAR, 3, "2032-02-29"),
        ("2026-04-16", "2026-04-23", WEEK, 2, "2026-05-07"),
        ("2026-11-30", "2026-12-30", MONTH, 1, "2027-01-30"),
    ],
)
def test_later_periods_end_on_the_day_of_the_plan(start, end, interval, count, then):
    assert later(period(start, end), interval, count) == at(then)


@pytest.mark.parametrize(
    ("price", "interval"),
    [
        ({"recurring": {"interval": "month", "interval_count": 3}}, Interval(0, 3)),
        ({"recurring": {"interval": "year"}}, YEAR),
        ({"object": "plan", "interval": "week", "interval_count": 1}, WEEK),
        ({"recurring": {"interval": "day", "interval_count": 90}}, Interval(90, 0)),
        ({"recurring": None}, None),
        ({"recurring": {"interval": ["month"], "interval_count": 1}}, None),
        ({"recurring": {"interval": "month", "interval_count": 10**9}}, None),
        ("price_1", None),
        (None, None),
    ],
)
def test_a_price_says_how_often_it_renews(price, interval):
    assert interval_of(price) == interval
