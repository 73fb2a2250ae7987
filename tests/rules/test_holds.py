"""The rules of holds as a table: making, releasing and extending them, and their ends by time.

Every row runs twice, with its history loaded from the ledger and decided in the same batch. Each
time the command is validated first, which must change nothing and give the same answer.
"""

from dataclasses import asdict, dataclass, field, replace
from datetime import timedelta

import pytest
from kit.hold_tables import (
    FROZEN,
    INSTANT,
    LATE,
    LIMITED,
    QUARTER,
    Invalid,
    Posts,
    Replays,
    adds_up,
    answer,
    capture,
    extend,
    given,
    hold,
    hold_for,
    judge,
    loaded,
    policy,
    release,
)
from kit.rule_tables import ALICE, BOB, NOON, PRICES, STRANGER, TERMS, row, spend

from credit_service.errors import (
    AccountFrozen,
    HoldExpired,
    HoldNotActive,
    HoldNotFound,
    InsufficientCredits,
    PriceChanged,
    Refusal,
    SpendLimitExceeded,
    TooManyHolds,
    UserNotFound,
)
from credit_service.rules.decide import decide
from credit_service.rules.model import transaction_id
from credit_service.rules.terms import Terms

MAKING = [
    row(
        "credits are set aside",
        given(10),
        hold(10),
        Posts("hold", (0, 10), (10, 10), ("held", 0)),
    ),
    row(
        "work is priced by the list",
        given(20),
        hold_for("stem_separation", 2),
        Posts("hold", (0, 20), (20, 20), ("held", 0)),
    ),
    row(
        "what is held cannot be held again",
        given(10, hold(6)),
        hold(5, "h2"),
        InsufficientCredits(required=5, available=4, held=6, shortfall=1),
    ),
    row(
        "what is held cannot be spent",
        given(10, hold(6)),
        spend(5),
        InsufficientCredits(required=5, available=4, held=6, shortfall=1),
    ),
    row("what is left can be spent", given(10, hold(6)), spend(4), Posts("spend", (-4, 0), (6, 6))),
    row(
        "an account's own floor lets it hold on credit",
        given(0, policy(min_balance=-5)),
        hold(5),
        Posts("hold", (0, 5), (0, 5), ("held", 0)),
    ),
    row(
        "an account's own floor is kept",
        given(0, policy(min_balance=-5)),
        hold(6),
        InsufficientCredits(required=6, available=0, held=0, shortfall=1),
    ),
    row(
        "an indebted account holds nothing",
        given(-5),
        hold(1),
        InsufficientCredits(required=1, available=-5, held=0, shortfall=6),
    ),
    row("a frozen account holds nothing", given(10, FROZEN), hold(1), AccountFrozen()),
    row("frozen comes before price", given(10, FROZEN), hold_for("juggling"), AccountFrozen()),
    row("an unknown operation", given(10), hold_for("juggling"), Invalid("charge.operation")),
    row(
        "the price has changed",
        given(10),
        hold_for("stem_separation", expected_cost=9),
        PriceChanged(10, PRICES.version),
    ),
    row(
        "price comes before credits",
        given(0),
        hold_for("stem_separation", expected_cost=9),
        PriceChanged(10, PRICES.version),
    ),
    row(
        "one hold too many, until the first of them ends",
        given(10, hold(1, "h1", ttl=2 * QUARTER), hold(1, "h2"), terms=Terms(PRICES, 0, 2)),
        hold(1, "h3"),
        TooManyHolds(2, 15 * 60 * 1000),
    ),
    row(
        "price comes before too many holds",
        given(10, hold(1), terms=Terms(PRICES, 0, 1)),
        hold_for("render", key="h2", expected_cost=9),
        PriceChanged(5, PRICES.version),
    ),
    row(
        "too many holds comes before credits",
        given(10, hold(10), terms=Terms(PRICES, 0, 1)),
        hold(1, "h2"),
        TooManyHolds(1, 15 * 60 * 1000),
    ),
    row(
        "a captured hold makes room",
        given(10, hold(1), capture(), terms=Terms(PRICES, 0, 1)),
        hold(1, "h2"),
        Posts("hold", (0, 1), (9, 1), ("held", 0)),
    ),
    row(
        "an expired hold makes room",
        given(10, hold(10), QUARTER, terms=Terms(PRICES, 0, 1)),
        hold(10, "h2"),
        Posts("hold", (0, 10), (10, 10), ("held", 0)),
    ),
    row(
        "holds count against the spend limit",
        given(99, LIMITED, hold(6)),
        hold(5, "h2"),
        SpendLimitExceeded("minute", 10, 6, 60_001),
    ),
    row(
        "a released hold still counts",
        given(99, LIMITED, hold(6), release()),
        hold(5, "h2"),
        SpendLimitExceeded("minute", 10, 6, 60_001),
    ),
    row("an unknown user", given(), hold(1, user=STRANGER), UserNotFound(str(STRANGER))),
]

RELEASING = [
    row(
        "gives all of it back",
        given(10, hold(10)),
        release(),
        Posts("release", (0, -10), (10, 0), ("released", 0)),
    ),
    row(
        "leaves other holds",
        given(10, hold(4), hold(6, "h2")),
        release(),
        Posts("release", (0, -4), (10, 6), ("released", 0)),
    ),
    row(
        "of a frozen account",
        given(10, hold(10), FROZEN),
        release(),
        Posts("release", (0, -10), (10, 0), ("released", 0)),
    ),
    row(
        "of an indebted account",
        given(10, hold(10), {"balance": -30}),
        release(),
        Posts("release", (0, -10), (-30, 0), ("released", 0)),
    ),
    row(
        "once more",
        given(10, hold(10), release()),
        release(key="r2"),
        Replays(2, ("released", 0)),
    ),
    row(
        "once more after a capture of zero",
        given(10, hold(10), capture(amount=0)),
        release(),
        Replays(2, ("released", 0)),
    ),
    row(
        "after it expired, with the entry of its expiry",
        given(10, hold(10), LATE),
        release(),
        Replays(2, ("expired", 0)),
    ),
    row(
        "after it expired, with the right one of several entries",
        given(10, hold(3), hold(2, "h2", ttl=QUARTER / 3), hold(5, "h3"), LATE),
        release(),
        Replays(5, ("expired", 0)),
    ),
    row(
        "after it was captured",
        given(10, hold(10), capture()),
        release(),
        HoldNotActive("CAPTURED"),
    ),
    row(
        "after it was captured late",
        given(10, hold(10), LATE, capture()),
        release(),
        HoldNotActive("CAPTURED"),
    ),
    row("no such hold", given(10), release(), HoldNotFound(transaction_id(ALICE, 1))),
    row("an unknown user", given(), release(user=STRANGER), UserNotFound(str(STRANGER))),
]


@pytest.mark.parametrize("same_batch", [False, True], ids=["loaded", "same batch"])
@pytest.mark.parametrize(("before", "command", "expected"), [*MAKING, *RELEASING])
def test_making_and_releasing(before, command, expected, same_batch):
    judge(before, command, expected, same_batch=same_batch)


def test_hold_takes_its_facts_from_its_making():
    state = given(99).state(same_batch=True)
    made = decide(state, hold_for("render", 3, reference="job 7", ttl=QUARTER), TERMS)
    value, entry = made.hold, made.entry
    assert (value.user_id, value.seq, value.created_at) == (ALICE, entry.seq, NOON)
    assert value.expires_at == NOON + QUARTER
    assert (value.operation, value.quantity, value.unit_cost) == ("render", 3, 5)
    assert (value.price_version, value.reference) == (PRICES.version, "job 7")
    assert (entry.hold_seq, entry.floor, entry.quantity, entry.unit_cost) == (entry.seq, 0, 3, 5)


@dataclass(frozen=True)
class Until:
    """The hold is open, and ends this long after it was made."""

    after: timedelta
    done: object = field(default=None)


DAY = timedelta(days=1)
KEPT_ALIVE = (
    hold(ttl=DAY),
    DAY - INSTANT,
    extend(ttl=DAY),
    DAY - INSTANT,
    extend(ttl=DAY),
    DAY - timedelta(hours=1),
)

EXTENDING = [
    row("from now on", given(10, hold(), QUARTER / 3), extend(), Until(QUARTER * 4 / 3)),
    row("never to an earlier end", given(10, hold()), extend(ttl=QUARTER / 3), Until(QUARTER)),
    row(
        "in its last moment",
        given(10, hold(), QUARTER - INSTANT),
        extend(),
        Until(2 * QUARTER - INSTANT),
    ),
    row(
        "at most 72 hours after it was made",
        given(10, *KEPT_ALIVE),
        extend(ttl=DAY),
        Until(3 * DAY),
    ),
    row(
        "again at the end of its life",
        given(10, *KEPT_ALIVE, extend(ttl=DAY)),
        extend(ttl=DAY),
        Until(3 * DAY),
    ),
    row(
        "of a frozen account",
        given(10, hold(), FROZEN, QUARTER / 3),
        extend(),
        Until(QUARTER * 4 / 3),
    ),
    row("at the very instant it ends", given(10, hold(), QUARTER), extend(), HoldExpired()),
    row(
        "at the end of its longest life",
        given(10, *KEPT_ALIVE, extend(ttl=DAY), DAY),
        extend(),
        HoldExpired(),
    ),
    row("after a capture", given(10, hold(), capture()), extend(), HoldNotActive("CAPTURED")),
    row("after a release", given(10, hold(), release()), extend(), HoldNotActive("RELEASED")),
    row(
        "after a late capture",
        given(10, hold(), LATE, capture()),
        extend(),
        HoldNotActive("CAPTURED"),
    ),
    row("no such hold", given(10), extend(), HoldNotFound(transaction_id(ALICE, 1))),
    row(
        "a hold of another user",
        given(10, hold()),
        extend(user=BOB),
        HoldNotFound(transaction_id(BOB, 1)),
    ),
    row("an unknown user", given(), extend(user=STRANGER), UserNotFound(str(STRANGER))),
]


@pytest.mark.parametrize("same_batch", [False, True], ids=["loaded", "same batch"])
@pytest.mark.parametrize(("before", "command", "expected"), EXTENDING)
def test_extending(before, command, expected, same_batch):
    state = before.state(same_batch=same_batch)
    unchanged, user = repr(state), state.users.get(command.user_id)
    account = user and user.account
    got = answer(state, command, before.terms)
    if isinstance(expected, Refusal):
        assert (type(got), asdict(got)) == (type(expected), asdict(expected))
        assert repr(state) == unchanged
        return
    assert (got.hold.state, got.hold.expires_at) == ("held", NOON + expected.after)
    assert got.entry is None
    assert got.account == account
    assert state.users[ALICE].holds[1] == got.hold
    assert state.users[ALICE].changed_holds == {1}
    assert answer(state, command, before.terms).hold == got.hold
    adds_up(state)


def test_due_holds_end_before_anything_else_the_soonest_first():
    before = given(
        10, hold(3), hold(2, "h2", ttl=QUARTER / 3), hold(5, "h3", ttl=2 * QUARTER), LATE
    )
    state = before.state(same_batch=True)
    decide(state, spend(5, "s"), TERMS)
    written = [(e.type, e.call, e.hold_seq, e.held_after, e.caller) for e in state.posted]
    assert written == [
        ("expire", "expiry", 2, 8, "credit_service"),
        ("expire", "expiry", 1, 5, "credit_service"),
        ("spend", "SpendCredits", None, 5, "worker"),
    ]
    account = state.users[ALICE].account
    assert (account.open_holds, account.next_hold_expiry) == (1, NOON + 2 * QUARTER)
    adds_up(state)


def test_a_due_hold_ends_once_and_an_extended_one_not_yet():
    before = given(10, hold(3), hold(2, "h2"), QUARTER / 3, extend(2), QUARTER - INSTANT)
    state = before.state(same_batch=True)
    assert [(e.type, e.hold_seq) for e in state.posted] == [("expire", 1)]
    assert state.users[ALICE].account.next_hold_expiry == NOON + QUARTER * 4 / 3
    state = loaded(state, timedelta(0))
    assert state.posted == []
    state = loaded(state, QUARTER)
    assert [(e.type, e.hold_seq) for e in state.posted] == [("expire", 2)]
    assert state.users[ALICE].account.next_hold_expiry is None


@pytest.mark.parametrize(
    ("command", "end"),
    [(capture(), "captured"), (capture(amount=0), "released"), (release(), "released")],
)
def test_a_hold_is_made_and_settled_in_one_batch(command, end):
    state = given(10, hold(), command).state(same_batch=True)
    alice = state.users[ALICE]
    assert [e.seq for e in state.posted] == [1, 2]
    assert alice.changed_holds == {1}
    assert alice.holds[1].state == end
    assert (alice.account.open_holds, alice.account.next_hold_expiry) == (0, None)


def test_a_hold_that_was_only_validated_is_not_there():
    state = given(10).state(same_batch=True)
    validated = decide(state, hold(validate_only=True), TERMS).hold
    assert (validated.state, validated.amount) == ("held", 10)
    assert isinstance(answer(state, capture(), TERMS), HoldNotFound)
    decide(state, hold(5, "h2"), TERMS)
    assert validated.seq not in state.users[ALICE].holds


def test_each_hold_has_one_outcome_however_often_it_is_settled():
    attempts = [capture(key="1"), release(key="2"), capture(amount=0, key="3"), capture(key="4")]
    for first in attempts:
        state = given(10, hold(), first).state(same_batch=True)
        for second in attempts:
            answer(state, replace(second, idempotency_key=f"{second.idempotency_key}'"), TERMS)
        assert len([e for e in state.posted if e.hold_seq == 1 and e.type != "hold"]) == 1
