"""The rules of alerts: levels, cool-downs, and that the last change is never lost."""

from dataclasses import replace
from datetime import timedelta

import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st
from kit.extent import extent
from kit.rule_tables import NOON
from model.alerts import Seen, announced

from credit_service.rules.alerts import (
    NOTHING_ANNOUNCED,
    Change,
    State,
    compare,
    end_cool_down,
    level_of,
)

COOL_DOWN = 60


def at(seconds):
    return NOON + timedelta(seconds=seconds)


def state(available, second=0, *, held=0, number=1, **changes):
    """A state of an account with a threshold of 10 and a floor of 0."""
    change = Change(number, False, number, at(second))
    figures = {"floor": 0, "alert_below": 10} | changes
    return State(change, available + held, held, **figures)


@pytest.mark.parametrize(
    ("figures", "level"),
    [
        (state(10), "fine"),
        (state(9), "low"),
        (state(1), "low"),
        (state(0), "depleted"),
        (state(-5), "depleted"),
        (state(9, held=100), "low"),
        (state(0, held=100), "depleted"),
        (state(1, alert_below=None), "fine"),
        (state(0, alert_below=None), "depleted"),
        # A threshold at or below the floor never makes an account low.
        (state(1, alert_below=0), "fine"),
        (state(6, floor=5), "low"),
        (state(5, floor=5), "depleted"),
        (state(-9, floor=-20, alert_below=-10), "fine"),
        (state(-11, floor=-20, alert_below=-10), "low"),
        (state(-20, floor=-20, alert_below=-10), "depleted"),
        (state(0, frozen=True), None),
        (state(50, frozen=True), None),
        (state(0, has_entries=False), None),
    ],
)
def test_an_account_is_at_a_level(figures, level):
    assert level_of(figures) == level


def alerts_of(states, until=None):
    """The alerts of states in order, and of a cool-down that has ended by a given second."""
    last, alerts = NOTHING_ANNOUNCED, []
    for each in states:
        last, made = compare(last, each, timedelta(seconds=COOL_DOWN))
        alerts += made
    if until is not None and last.cools_until is not None and last.cools_until <= at(until):
        last, made = end_cool_down(last, timedelta(seconds=COOL_DOWN))
        alerts += made
    return [
        (
            alert.type.removeprefix("balance."),
            (alert.time - NOON).total_seconds(),
            alert.state.available,
        )
        for alert in alerts
    ]


@pytest.mark.parametrize(
    ("states", "until", "alerts"),
    [
        pytest.param([(50, 0), (10, 1)], 999, [], id="a fine account"),
        pytest.param([(9, 0)], 999, [("low", 0, 9)], id="low at the first sight"),
        pytest.param([(0, 0)], 999, [("depleted", 0, 0)], id="depleted without being low"),
        pytest.param([(9, 0), (8, 1), (7, 90)], 999, [("low", 0, 9)], id="once"),
        pytest.param(
            [(9, 0), (0, 1)], 999, [("low", 0, 9), ("depleted", 1, 0)], id="worse is not delayed"
        ),
        pytest.param(
            [(9, 0), (50, 60)],
            60,
            [("low", 0, 9), ("recovered", 60, 50)],
            id="better after the cool-down",
        ),
        pytest.param([(9, 0), (50, 59)], 59, [("low", 0, 9)], id="better in the cool-down waits"),
        pytest.param(
            [(9, 0), (50, 30)],
            60,
            [("low", 0, 9), ("recovered", 60, 50)],
            id="and is announced when it ends",
        ),
        pytest.param(
            [(9, 0), (50, 30), (40, 70)],
            70,
            [("low", 0, 9), ("recovered", 60, 50)],
            id="also if it ended before a change",
        ),
        pytest.param(
            [(9, 0), (50, 30), (5, 70)],
            70,
            [("low", 0, 9), ("recovered", 60, 50), ("low", 70, 5)],
            id="before what came later",
        ),
        pytest.param(
            [(9, 0), (50, 30), (8, 40)], 999, [("low", 0, 9)], id="taken back in the cool-down"
        ),
        pytest.param(
            [(0, 0), (50, 10), (4, 20)],
            60,
            [("depleted", 0, 0), ("low", 60, 4)],
            id="the newest state waits",
        ),
        pytest.param(
            [(9, 0), (50, 10), (0, 20)],
            999,
            [("low", 0, 9), ("depleted", 20, 0)],
            id="worse than what waits",
        ),
    ],
)
def test_what_is_announced(states, until, alerts):
    assert alerts_of([state(*each) for each in states], until) == alerts


def test_a_raised_threshold_is_announced():
    raised = [state(50, 0), state(50, 1, alert_below=51)]
    assert alerts_of(raised, 999) == [("low", 1, 50)]


def test_a_threshold_that_is_taken_away_ends_the_alert():
    assert alerts_of([state(9, 0), state(9, 99, alert_below=None)]) == [
        ("low", 0, 9),
        ("recovered", 99, 9),
    ]


def test_a_frozen_account_waits_until_it_is_unfrozen():
    frozen = [state(50, 0), state(5, 1, frozen=True), state(0, 2, frozen=True)]
    assert alerts_of(frozen, 999) == []
    assert alerts_of([*frozen, state(0, 3)], 999) == [("depleted", 3, 0)]


def test_a_waiting_alert_is_not_sent_if_the_account_was_frozen_since():
    states = [state(9, 0), state(50, 10), state(50, 20, frozen=True)]
    assert alerts_of(states, 999) == [("low", 0, 9)]
    assert alerts_of([*states, state(50, 99)]) == [("low", 0, 9), ("recovered", 99, 50)]


def test_a_threshold_crossed_a_hundred_times_a_minute_makes_two_alerts_per_cool_down():
    crossing = [state(10 if place % 2 else 9, place * 0.6) for place in range(1000)]
    alerts = alerts_of(crossing)
    assert 18 <= len(alerts) <= 22
    assert alerts_of(crossing, 9999)[-1] == ("recovered", pytest.approx(600, abs=70), 10)
    assert alerts_of(crossing[:-1], 9999)[-1][0] == "low"


SEEN = st.builds(
    Seen,
    time=st.integers(0, 9),
    number=st.just(0),
    available=st.integers(-2, 9),
    floor=st.sampled_from([0, 0, 0, -1, 2]),
    alert_below=st.sampled_from([None, 0, 5, 5, 5]),
    frozen=st.sampled_from([False, False, False, True]),
    entries=st.sampled_from([0, 1, 1, 1]),
)
# The seconds between one state and the next; several may be of one second.
HISTORIES = st.lists(SEEN, max_size=30)


@settings(max_examples=extent(500, 20_000))
@given(pauses=HISTORIES, cool_down=st.integers(1, 8), idle=st.integers(0, 12))
def test_the_alerts_of_random_histories_are_those_of_the_plain_model(pauses, cool_down, idle):
    second, history = 0, []
    for number, each in enumerate(pauses):
        second += max(0, each.time - 5)
        history.append(replace(each, time=second, number=number))
    until = second + idle
    last, alerts = NOTHING_ANNOUNCED, []
    for each in history:
        last, made = compare(
            last,
            state(
                each.available,
                each.time,
                number=each.number,
                floor=each.floor,
                alert_below=each.alert_below,
                frozen=each.frozen,
                has_entries=each.entries > 0,
            ),
            timedelta(seconds=cool_down),
        )
        alerts += made
    if last.cools_until is not None and last.cools_until <= at(until):
        last, made = end_cool_down(last, timedelta(seconds=cool_down))
        alerts += made
    event(f"{len(alerts)} alerts")
    assert [(alert.time, level_of(alert.state), alert.state.change.number) for alert in alerts] == [
        (at(when), *which) for when, *which in announced(history, cool_down, until)
    ]
    # No change makes two alerts, so that what identifies an alert is never used twice.
    assert len({alert.state.change for alert in alerts}) == len(alerts)
