"""The rules of top-ups as a table: an account, the commands, and the resulting requests."""

from contextlib import suppress
from datetime import UTC, datetime, timedelta

import pytest
from kit.top_up_tables import (
    ALICE,
    NOON,
    POLICY,
    TERMS,
    account,
    capture,
    fail,
    hold,
    note,
    purchase,
    release,
    reverse,
    set_policy,
    spend,
    state,
    together,
)

from credit_service.errors import InsufficientCredits, InvalidRequest, Refusal, TopUpNotFound
from credit_service.rules.decide import decide
from credit_service.rules.top_up_values import TopUpCounts, TopUpId, month_of, parse_top_up_id

OPEN = ["open"]


def newest(user):
    return user.top_ups.requests[max(user.top_ups.requests)]


def note_newest(user):
    return note(newest(user), "pi_1")


def fail_newest(user, failure="try_again"):
    request = newest(user)
    return fail(request, request.tries + 1, failure, request.payment_ref or "")


def give_up(user):
    return fail_newest(user, "given_up")


def not_needed(user):
    return fail_newest(user, "not_needed")


PAID = [spend(81, "a"), note_newest, purchase(1, "pi_1")]

ROWS = [
    ("exactly the threshold does not ask", account(100), [spend(80, "a")], []),
    ("one less than the threshold asks", account(100), [spend(81, "a")], OPEN),
    ("held credits are not available", account(20, 50), [spend(1, "a")], OPEN),
    ("a hold asks", account(100), [hold(81, "a")], OPEN),
    ("an account without a policy never asks", account(100, policy=None), [spend(99, "a")], []),
    ("a frozen account never asks", account(5, frozen=True), [spend(1, "a")], []),
    ("validating asks for nothing", account(100), [spend(81, "a", only=True)], []),
    ("validating a hold asks for nothing", account(100), [hold(81, "a", only=True)], []),
    ("a refused spend asks below the threshold", account(19), [spend(20, "a")], OPEN),
    ("a refused spend does not ask at the threshold", account(20), [spend(21, "a")], []),
    ("validating a refused spend asks for nothing", account(19), [spend(20, "a", only=True)], []),
    ("a refused hold asks as well", account(19), [hold(20, "a")], OPEN),
    ("a repeated spend asks for nothing", account(100), [*PAID, spend(81, "a")], ["succeeded"]),
    ("a purchase never asks", account(1), [purchase(1, "pi_1")], []),
    ("a new policy never asks", account(1), [set_policy(POLICY)], []),
    (
        "a refused batch asks for nothing",
        account(100),
        [together(spend(90, "a"), spend(11, "b"))],
        [],
    ),
    (
        "a batch that succeeds asks once",
        account(100),
        [together(spend(81, "a"), spend(1, "b"))],
        OPEN,
    ),
    ("one request at a time", account(100), [spend(81, "a"), spend(1, "b"), hold(1, "c")], OPEN),
    (
        "a capture asks, as the hold did before its request closed",
        account(100),
        [hold(81, "a"), not_needed, capture(1, "b", 80)],
        ["not_needed"],
    ),
    (
        "a capture of all asks",
        account(100),
        [hold(81, "a"), not_needed, capture(1, "b")],
        ["not_needed", "open"],
    ),
    (
        "a release never asks",
        account(50, policy=POLICY._replace(below=90)),
        [hold(9, "a"), not_needed, release(1, "b")],
        ["not_needed"],
    ),
    (
        "a capture of zero never asks",
        account(50, policy=POLICY._replace(below=90)),
        [hold(9, "a"), not_needed, capture(1, "b", 0)],
        ["not_needed"],
    ),
    (
        "still below after the request closed, the next spend asks",
        account(100),
        [*PAID, spend(1, "b")],
        ["succeeded", "open"],
    ),
    (
        "still below after the request failed, the next spend asks",
        account(100),
        [spend(81, "a"), give_up, spend(1, "b")],
        ["failed", "open"],
    ),
    (
        "a month takes no more charges than the policy says",
        account(100, policy=POLICY._replace(per_month=1)),
        [*PAID, spend(1, "b")],
        ["succeeded"],
    ),
    (
        "a failed request does not count in the month",
        account(100, policy=POLICY._replace(per_month=1)),
        [spend(81, "a"), give_up, spend(1, "b")],
        ["failed", "open"],
    ),
    (
        "three failures switch it off",
        account(100),
        [spend(81, "a"), fail_newest, fail_newest, give_up, spend(1, "b")],
        ["failed"],
    ),
    (
        "two failures do not switch it off",
        account(100),
        [spend(81, "a"), fail_newest, give_up, spend(1, "b")],
        ["failed", "open"],
    ),
    (
        "an unneeded request is no failure",
        account(100),
        [spend(81, "a"), fail_newest, fail_newest, not_needed, spend(1, "b")],
        ["not_needed", "open"],
    ),
    (
        "another purchase switches it on again",
        account(100),
        [spend(81, "a"), fail_newest, fail_newest, give_up, purchase(1, "pi_9"), spend(1, "b")],
        ["failed", "open"],
    ),
    (
        "a purchase that only validates leaves it off",
        account(100),
        [
            spend(81, "a"),
            fail_newest,
            fail_newest,
            give_up,
            purchase(1, "p", only=True),
            spend(1, "b"),
        ],
        ["failed"],
    ),
    (
        "a new policy switches it on again",
        account(100),
        [spend(81, "a"), fail_newest, fail_newest, give_up, set_policy(POLICY), spend(1, "b")],
        ["failed", "open"],
    ),
    (
        "a success switches it on again",
        account(100),
        [
            spend(81, "a"),
            note_newest,
            fail_newest,
            fail_newest,
            give_up,
            purchase(1, "pi_1"),
            spend(1, "b"),
        ],
        ["succeeded", "open"],
    ),
    (
        "a reversal of a top-up switches it off",
        account(100),
        [*PAID, reverse("pi_1", 1, 1), spend(1, "b")],
        ["succeeded"],
    ),
    (
        "a reversal that reverses nothing leaves it on",
        account(100),
        [*PAID, reverse("pi_1", 1, 0), spend(1, "b")],
        ["succeeded", "open"],
    ),
    (
        "a reversal of another purchase leaves it on",
        account(100),
        [*PAID, purchase(1, "pi_9"), reverse("pi_9", 1, 100), spend(1, "b")],
        ["succeeded", "open"],
    ),
    (
        "a dispute that was won leaves it off",
        account(100),
        [*PAID, reverse("pi_1", 1, 100), reverse("pi_1", 2, 0), spend(1, "b")],
        ["succeeded"],
    ),
    (
        "the success of a charge that was under way leaves it off",
        account(100),
        [
            *PAID,
            spend(1, "b"),
            lambda user: note(newest(user), "pi_2"),
            reverse("pi_1", 1, 1),
            purchase(1, "pi_2"),
            spend(1, "c"),
        ],
        ["succeeded", "succeeded"],
    ),
    (
        "a reset policy asks for nothing",
        account(100),
        [set_policy(reset=("top_up",)), spend(99, "a")],
        [],
    ),
]


@pytest.mark.parametrize(
    ("before", "steps", "expected"), [row[1:] for row in ROWS], ids=[row[0] for row in ROWS]
)
def test_the_requests_are_those_of_the_rules(before, steps, expected):
    decided = state(before)
    user = decided.users[ALICE]
    for step in steps:
        if callable(step):
            decide(decided, step(user), TERMS)
        else:
            with suppress(Refusal):
                decide(decided, step, TERMS)
    assert [each.state for each in user.top_ups.requests.values()] == expected


@pytest.mark.parametrize(
    ("now", "asks"),
    [
        (datetime(2026, 1, 31, 23, 59, 59, 999_999, tzinfo=UTC), False),
        (datetime(2026, 2, 1, tzinfo=UTC), True),
    ],
)
def test_the_charges_of_a_month_do_not_count_in_the_next(now, asks):
    decided = state(account(100, policy=POLICY._replace(per_month=1)))
    user = decided.users[ALICE]
    for step in PAID:
        decide(decided, step(user) if callable(step) else step, TERMS)
    user.now = decided.now = now
    decide(decided, spend(1, "b"), TERMS)
    assert (user.top_ups.open is not None) == asks


def test_a_refused_batch_leaves_the_account_as_it_was():
    decided = state(account(100))
    user = decided.users[ALICE]
    before = user.account, user.top_ups
    answer = decide(decided, together(spend(90, "a"), spend(11, "b")), TERMS)
    assert isinstance(answer.parts[1], InsufficientCredits)
    assert (user.account, user.top_ups) == before


def test_a_purchase_of_an_earlier_month_is_not_counted_in_a_later_one():
    january, february = NOON, NOON + timedelta(days=20)
    counts = TopUpCounts().charged_at(january).charged_at(february)
    assert counts.charged_at(january) == counts
    assert (counts.charges_in(february), counts.charges_in(january)) == (1, 0)
    assert counts.month == month_of(february) == datetime(2026, 2, 1, tzinfo=UTC)


def test_an_attempt_that_was_recorded_as_try_again_cannot_be_given_up():
    decided = state(account(100))
    user = decided.users[ALICE]
    for step in (spend(81, "a"), fail_newest):
        decide(decided, step(user) if callable(step) else step, TERMS)
    with pytest.raises(InvalidRequest):
        decide(decided, fail(newest(user), 1, "given_up"), TERMS)
    assert decide(decided, fail(newest(user), 1, "try_again"), TERMS).replayed


def test_a_request_is_known_by_its_number_and_its_time():
    decided = state(account(100))
    user = decided.users[ALICE]
    decide(decided, spend(81, "a"), TERMS)
    request = newest(user)
    other = request.id._replace(created_at=request.created_at - timedelta(microseconds=1))
    with pytest.raises(TopUpNotFound):
        decide(decided, note(other, "pi_1"), TERMS)


@pytest.mark.parametrize("number", [1, 10**15])
@pytest.mark.parametrize("time", [NOON, datetime(9999, 12, 31, tzinfo=UTC)])
def test_an_id_is_read_as_it_was_written(number, time):
    top_up = TopUpId(ALICE, number, time)
    assert parse_top_up_id(str(top_up)) == top_up
    assert len(str(top_up)) <= 80


@pytest.mark.parametrize(
    "text",
    [
        "",
        "t1",
        f"{ALICE}-1-1",
        f"{ALICE}-t01-1",
        f"{ALICE}-t1-",
        f"{ALICE}-t1-x",
        f"{ALICE}-t1--1",
        f"{ALICE}-t\u0661-1",
        f"{ALICE}-t1-999999999999999999",
        f"{str(ALICE).replace('-', '')}-t1-1",
    ],
)
def test_anything_else_is_no_id(text):
    assert parse_top_up_id(text) is None
