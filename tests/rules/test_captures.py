"""The rules of captures as a table: in time, in part, beyond what is held, and refunded.

Every row runs twice, with its history loaded from the ledger and decided in the same batch. Each
time the command is validated first, which must change nothing and give the same answer.
"""

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
    capture,
    given,
    hold,
    hold_for,
    judge,
    policy,
    release,
)
from kit.rule_tables import ALICE, BOB, OTHER_TERMS, PRICES, STRANGER, TERMS, refund, row, spend

from credit_service.errors import (
    AboveSpendLimit,
    AccountFrozen,
    HoldNotActive,
    HoldNotFound,
    InsufficientCredits,
    RefundExceedsSpend,
    SpendLimitExceeded,
    UserNotFound,
)
from credit_service.fields import AMOUNT_MAX
from credit_service.rules.decide import decide
from credit_service.rules.model import SpendLimits, transaction_id
from credit_service.rules.terms import Terms

CAPTURING = [
    row(
        "all of it",
        given(10, hold(10)),
        capture(),
        Posts("capture", (-10, -10), (0, 0), ("captured", 10)),
    ),
    row(
        "a part, and the rest is free at once",
        given(10, hold(10)),
        capture(amount=4),
        Posts("capture", (-4, -10), (6, 0), ("captured", 4)),
    ),
    row(
        "zero is a release",
        given(10, hold(10)),
        capture(amount=0),
        Posts("release", (0, -10), (10, 0), ("released", 0)),
    ),
    row(
        "by quantity at the hold's price",
        given(15, hold_for("render", 3)),
        capture(quantity=2),
        Posts("capture", (-10, -15), (5, 0), ("captured", 10)),
    ),
    row(
        "by quantity though the list no longer has the operation",
        given(15, hold_for("render", 3), terms=OTHER_TERMS),
        capture(quantity=2),
        Posts("capture", (-10, -15), (5, 0), ("captured", 10)),
    ),
    row(
        "by amount where the hold was priced",
        given(15, hold_for("render", 3)),
        capture(amount=7),
        Posts("capture", (-7, -15), (8, 0), ("captured", 7)),
    ),
    row(
        "by quantity where the hold was of an amount",
        given(10, hold(10)),
        capture(quantity=1),
        Invalid("quantity"),
    ),
    row(
        "a quantity beyond all credits",
        given(15, hold_for("render", 3)),
        capture(quantity=AMOUNT_MAX, overage=True),
        Invalid("quantity"),
    ),
    row("more than is held", given(99, hold(10)), capture(amount=11), Invalid("amount")),
    row(
        "a larger quantity than is held",
        given(99, hold_for("render")),
        capture(quantity=2),
        Invalid("quantity"),
    ),
    row(
        "more than is held, where allowed and there",
        given(20, hold(10)),
        capture(amount=15, overage=True),
        Posts("capture", (-15, -10), (5, 0), ("captured", 15)),
    ),
    row(
        "more than is held, down to the floor",
        given(15, hold(10)),
        capture(amount=15, overage=True),
        Posts("capture", (-15, -10), (0, 0), ("captured", 15)),
    ),
    row(
        "more than is there",
        given(12, hold(10)),
        capture(amount=15, overage=True),
        InsufficientCredits(required=15, available=12, held=0, shortfall=3),
    ),
    row(
        "more than other holds leave",
        given(20, hold(10), hold(8, "h2")),
        capture(amount=13, overage=True),
        InsufficientCredits(required=13, available=12, held=8, shortfall=1),
    ),
    row(
        "the held amount, though more is allowed",
        given(10, hold(10)),
        capture(amount=10, overage=True),
        Posts("capture", (-10, -10), (0, 0), ("captured", 10)),
    ),
    row(
        "an account below its floor pays what is held",
        given(10, hold(10), terms=Terms(PRICES, 5)),
        capture(),
        Posts("capture", (-10, -10), (0, 0), ("captured", 10)),
    ),
    row(
        "an indebted account pays what is held",
        given(10, hold(10), {"balance": -30}),
        capture(),
        Posts("capture", (-10, -10), (-40, 0), ("captured", 10)),
    ),
    row(
        "an indebted account pays no more than is held",
        given(10, hold(10), {"balance": -30}),
        capture(amount=11, overage=True),
        InsufficientCredits(required=11, available=-30, held=0, shortfall=41),
    ),
    row(
        "a frozen account pays what is held",
        given(10, hold(10), FROZEN),
        capture(),
        Posts("capture", (-10, -10), (0, 0), ("captured", 10)),
    ),
    row(
        "a frozen account pays no more than is held",
        given(99, hold(10), FROZEN),
        capture(amount=11, overage=True),
        AccountFrozen(),
    ),
    row(
        "what is held was counted before",
        given(99, LIMITED, hold(10)),
        capture(),
        Posts("capture", (-10, -10), (89, 0), ("captured", 10)),
    ),
    row(
        "what is more than held counts against the spend limit",
        given(99, LIMITED, hold(8)),
        capture(amount=11, overage=True),
        SpendLimitExceeded("minute", 10, 8, 60_001),
    ),
    row(
        "what is more than held is more than the limit itself",
        given(99, LIMITED, hold(8)),
        capture(amount=19, overage=True),
        AboveSpendLimit(11, "minute", 10),
    ),
    row(
        "what is held, though the limit was lowered below what was spent",
        given(99, hold(8), policy(limits=SpendLimits(day=1))),
        capture(),
        Posts("capture", (-8, -8), (91, 0), ("captured", 8)),
    ),
    row(
        "a moment before it ends",
        given(10, hold(10), QUARTER - INSTANT),
        capture(),
        Posts("capture", (-10, -10), (0, 0), ("captured", 10)),
    ),
    row(
        "captured before",
        given(99, hold(10), capture()),
        capture(key="c2"),
        HoldNotActive("CAPTURED"),
    ),
    row(
        "captured before in part",
        given(99, hold(10), capture(amount=1)),
        capture(key="c2", amount=1),
        HoldNotActive("CAPTURED"),
    ),
    row(
        "captured before, now to be released by zero",
        given(99, hold(10), capture()),
        capture(key="c2", amount=0),
        HoldNotActive("CAPTURED"),
    ),
    row(
        "released before",
        given(99, hold(10), release()),
        capture(),
        HoldNotActive("RELEASED"),
    ),
    row(
        "released before, now by zero once more",
        given(99, hold(10), release()),
        capture(amount=0),
        Replays(2, ("released", 0)),
    ),
    row(
        "no such hold",
        given(10, hold(10)),
        capture(9),
        HoldNotFound(transaction_id(ALICE, 9)),
    ),
    row(
        "an entry that made no hold",
        given(10, spend(1)),
        capture(),
        HoldNotFound(transaction_id(ALICE, 1)),
    ),
    row(
        "a hold of another user",
        given(10, hold(10)),
        capture(user=BOB),
        HoldNotFound(transaction_id(BOB, 1)),
    ),
    row("an unknown user", given(), capture(user=STRANGER), UserNotFound(str(STRANGER))),
]

REFUNDING = [
    row(
        "all of a capture",
        given(10, hold(10), capture(amount=6)),
        refund(2),
        Posts("refund", (6, 0), (10, 0)),
    ),
    row(
        "a part of a capture",
        given(10, hold(10), capture(amount=6)),
        refund(2, 4),
        Posts("refund", (4, 0), (8, 0)),
    ),
    row(
        "more than was captured, though as much was held",
        given(10, hold(10), capture(amount=6)),
        refund(2, 7),
        RefundExceedsSpend(6),
    ),
    row(
        "more than is left of a capture",
        given(10, hold(10), capture(amount=6), refund(2, 4, "f")),
        refund(2, 3),
        RefundExceedsSpend(2),
    ),
    row(
        "a late capture",
        given(10, hold(10), LATE, capture()),
        refund(3),
        Posts("refund", (10, 0), (10, 0)),
    ),
    row(
        "to a frozen account",
        given(10, hold(10), capture(), FROZEN),
        refund(2),
        Posts("refund", (10, 0), (10, 0)),
    ),
    row("a hold", given(10, hold(10)), refund(1), Invalid("transaction_id")),
    row("a release", given(10, hold(10), release()), refund(2), Invalid("transaction_id")),
    row("an expiry", given(10, hold(10), LATE), refund(2), Invalid("transaction_id")),
]


@pytest.mark.parametrize("same_batch", [False, True], ids=["loaded", "same batch"])
@pytest.mark.parametrize(("before", "command", "expected"), CAPTURING)
def test_capturing_in_time(before, command, expected, same_batch):
    judge(before, command, expected, same_batch=same_batch)


@pytest.mark.parametrize("same_batch", [False, True], ids=["loaded", "same batch"])
@pytest.mark.parametrize(("before", "command", "expected"), REFUNDING)
def test_refunding_a_capture(before, command, expected, same_batch):
    judge(before, command, expected, same_batch=same_batch)


@pytest.mark.parametrize(
    ("command", "priced"),
    [(capture(), (None, None, None)), (capture(quantity=2), (2, 5, PRICES.version))],
)
def test_capture_keeps_the_price_it_used(command, priced):
    state = given(99, hold_for("render", 3)).state(same_batch=True)
    entry = decide(state, command, OTHER_TERMS).entry
    assert (entry.operation, entry.hold_seq) == ("render", 1)
    assert (entry.quantity, entry.unit_cost, entry.price_version) == priced


@pytest.mark.parametrize("later", [timedelta(0), LATE])
def test_a_refund_of_a_capture_carries_its_operation(later):
    state = given(99, hold_for("render"), later, capture()).state(same_batch=True)
    captured = state.posted[-1].seq
    assert decide(state, refund(captured), TERMS).entry.operation == "render"


@pytest.mark.parametrize(
    ("command", "counted"), [(capture(), 10), (capture(amount=13, overage=True), 13)]
)
def test_a_hold_counts_when_it_is_made_and_a_capture_only_its_overage(command, counted):
    state = given(99, policy(limits=SpendLimits(minute=50)), hold(10), command).state(
        same_batch=True
    )
    assert state.users[ALICE].account.counters.minute == counted
