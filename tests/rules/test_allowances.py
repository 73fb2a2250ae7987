"""The rules of allowances: given when a call looks at an account, never twice in a period."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from kit.grant_tables import DAY, HOUR, Left, Story, at, grant, hold, spend
from kit.rule_tables import ALICE, NOON, TERMS

from credit_service.fields import BALANCE_MAX
from credit_service.rules import allowances
from credit_service.rules.batch_state import BatchState
from credit_service.rules.commands import SetPolicy
from credit_service.rules.due import settle
from credit_service.rules.grant_values import Allowance
from credit_service.rules.model import Account, Policy

MONTHLY = Allowance(20, "month")
FREE = replace(TERMS, allowance=MONTHLY)
# NOON is on 1 January, a Thursday.
MONTH = 31 * DAY


def utc(*parts):
    return datetime(*parts, tzinfo=UTC)


@pytest.mark.parametrize(
    ("time", "period", "end"),
    [
        (utc(2026, 1, 1), "day", utc(2026, 1, 2)),
        (utc(2026, 12, 31, 23, 59, 59, 999999), "day", utc(2027, 1, 1)),
        (utc(2026, 1, 1, 12), "week", utc(2026, 1, 5)),
        (utc(2026, 1, 5), "week", utc(2026, 1, 12)),
        (utc(2026, 1, 4, 23), "week", utc(2026, 1, 5)),
        (utc(2024, 2, 29, 5), "month", utc(2024, 3, 1)),
        (utc(2026, 12, 1), "month", utc(2027, 1, 1)),
    ],
)
def test_a_period_ends(time, period, end):
    assert allowances.period_end(time, period) == end


@pytest.mark.parametrize(
    ("start", "period", "count", "end"),
    [
        (utc(2026, 1, 1), "month", 0, utc(2026, 1, 1)),
        (utc(2026, 1, 1), "month", 1, utc(2026, 2, 1)),
        (utc(2026, 11, 1), "month", 14, utc(2028, 1, 1)),
        (utc(2026, 1, 5), "week", 2, utc(2026, 1, 19)),
        (utc(2026, 2, 28), "day", 1, utc(2026, 3, 1)),
    ],
)
def test_periods_follow_each_other(start, period, count, end):
    assert allowances.after_periods(start, period, count) == end


def looked_at(account, now, terms=FREE):
    """The account after a look at it in which nothing else is due."""
    state = BatchState.of(now, account)
    settle(state.users[ALICE], (), (), terms, next_end=None, next_lapse=account.next_lapse)
    return state.users[ALICE]


def test_the_first_look_in_a_period_gives_its_allowance():
    user = looked_at(Account(ALICE), NOON)
    (entry,) = user.posted
    assert (entry.type, entry.call, entry.amount) == ("grant", "allowance", 20)
    assert (entry.idempotency_key, entry.caller) == (None, "credit_service")
    made = user.grants[1]
    assert (made.expire_time, made.paid, made.priority) == (utc(2026, 2, 1), False, 50)
    assert user.account.allowance_until == utc(2026, 2, 1)
    assert looked_at(user.account, NOON + 30 * DAY).posted == []
    assert looked_at(user.account, utc(2026, 2, 1) - timedelta(microseconds=1)).posted == []
    assert len(looked_at(user.account, utc(2026, 2, 1)).posted) == 1


def test_periods_without_a_look_are_not_made_up_for():
    story = Story(HOUR, terms=FREE)
    story.do(5 * MONTH)
    assert story.left() == Left(0, {1: (0, 0), 3: (20, 0)})
    assert story.entries() == [("grant", 20, 0), ("lapse", -20, 0), ("grant", 20, 0)]


def test_an_allowance_is_carried_over_for_the_configured_number_of_periods():
    terms = replace(TERMS, allowance=Allowance(20, "month", 1))
    story = Story(HOUR, MONTH, terms=terms)
    assert story.left() == Left(0, {1: (20, 0), 2: (20, 0)})
    story.do(MONTH)
    assert story.left() == Left(0, {1: (0, 0), 2: (20, 0), 4: (20, 0)})


def test_the_last_one_lapses_before_the_next_is_given():
    story = Story(HOUR, spend(5), MONTH, terms=FREE)
    assert story.entries()[2:] == [("lapse", -15, 0), ("grant", 20, 0)]


@pytest.mark.parametrize(
    ("change", "amount"),
    [(Allowance(500, "day"), 500), (Allowance(0, "month"), None), (Allowance(7, "month"), 7)],
)
def test_a_changed_allowance_begins_after_the_period_that_was_granted(change, amount):
    story = Story(HOUR, terms=FREE)
    policy = {"frozen": None, "min_balance": None, "limits": None}
    story.do(SetPolicy(user_id=ALICE, caller="operator", allowance=change, **policy))
    assert story.alice.account.policy == Policy(allowance=change)
    story.do(20 * DAY)
    assert len(story.entries()) == 1
    story.do(11 * DAY)
    given = [n for kind, n, _ in story.entries()[1:] if kind == "grant"]
    assert given == ([] if amount is None else [amount])


@pytest.mark.parametrize("terms", [FREE, replace(TERMS, allowance=Allowance(99, "day"))])
def test_nothing_is_given_again_when_the_clock_or_the_configuration_goes_back(terms):
    user = looked_at(Account(ALICE), NOON)
    assert looked_at(user.account, NOON - 60 * DAY, terms).posted == []
    assert looked_at(user.account, NOON + HOUR, terms).posted == []


def test_a_user_who_was_deleted_and_created_again_gets_no_second_one():
    again = Account(ALICE, allowance_until=utc(2026, 2, 1))
    assert looked_at(again, NOON).posted == []


def test_the_allowance_pays_debt_first():
    user = looked_at(Account(ALICE, -15), NOON)
    assert (user.account.balance, user.grants[1].remaining) == (5, 5)


def test_the_sweeper_gives_none():
    state = BatchState.of(NOON, Account(ALICE))
    user = state.users[ALICE]
    settle(user, (), (), FREE, next_end=None, next_lapse=None, looked_at=False)
    assert (user.posted, user.is_changed) == ([], False)


def test_while_more_is_due_none_is_given():
    state = BatchState.of(NOON, Account(ALICE))
    user = state.users[ALICE]
    settle(user, (), (), FREE, next_end=None, next_lapse=None, more=True)
    assert (user.posted, user.is_changed) == ([], False)


def test_an_account_at_the_balance_limit_gets_none():
    assert looked_at(Account(ALICE, BALANCE_MAX - 19), NOON).posted == []


def test_ends_that_are_due_before_an_allowance_come_before_it():
    story = Story(
        hold(20, "h", ttl=HOUR),
        grant(30, at(DAY, 60), "g"),
        hold(30, "h2", ttl=2 * HOUR),
        terms=replace(TERMS, min_balance=-20),
    )
    story.terms = replace(FREE, min_balance=-20)
    story.do(3 * HOUR)
    kinds = [kind for kind, *_ in story.entries()[3:]]
    assert kinds == ["expire", "expire", "grant"]
