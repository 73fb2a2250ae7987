"""The rules of late captures as a table: after the end of the hold, in full, in part and beyond.

Every row runs twice, with its history loaded from the ledger and decided in the same batch. Each
time the command is validated first, which must change nothing and give the same answer.
"""

from datetime import timedelta

import pytest
from kit.hold_tables import (
    FROZEN,
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
)
from kit.rule_tables import OTHER_TERMS, PRICES, row, spend

from credit_service.errors import (
    AboveSpendLimit,
    AccountFrozen,
    HoldExpired,
    HoldNotActive,
    InsufficientCredits,
    SpendLimitExceeded,
)
from credit_service.rules.model import SpendLimits
from credit_service.rules.terms import Terms

CAPTURING_LATE = [
    row(
        "at the very instant it ends",
        given(10, hold(10), QUARTER),
        capture(),
        Posts("capture", (-10, 0), (0, 0), ("expired", 10), late=True),
    ),
    row(
        "long after it ended",
        given(10, hold(10), timedelta(days=400)),
        capture(),
        Posts("capture", (-10, 0), (0, 0), ("expired", 10), late=True),
    ),
    row(
        "the credits were spent meanwhile",
        given(10, hold(10), LATE, spend(5, "s")),
        capture(),
        HoldExpired(),
    ),
    row(
        "the credits were held meanwhile",
        given(10, hold(10), LATE, hold(5, "h2")),
        capture(),
        HoldExpired(),
    ),
    row(
        "a part that is still there",
        given(10, hold(10), LATE, spend(5, "s")),
        capture(amount=5),
        Posts("capture", (-5, 0), (0, 0), ("expired", 5), late=True),
    ),
    row(
        "by quantity at the hold's price",
        given(15, hold_for("render", 3), LATE, terms=OTHER_TERMS),
        capture(quantity=2),
        Posts("capture", (-10, 0), (5, 0), ("expired", 10), late=True),
    ),
    row(
        "more than was held, where allowed and there",
        given(15, hold(10), LATE),
        capture(amount=15, overage=True),
        Posts("capture", (-15, 0), (0, 0), ("expired", 15), late=True),
    ),
    row(
        "more than was held",
        given(15, hold(10), LATE),
        capture(amount=15),
        Invalid("amount"),
    ),
    row(
        "zero is answered with the expiry",
        given(10, hold(10), LATE),
        capture(amount=0),
        Replays(2, ("expired", 0)),
    ),
    row(
        "below the floor",
        given(10, hold(10), LATE, terms=Terms(PRICES, 1)),
        capture(),
        HoldExpired(),
    ),
    row(
        "within a limit that the hold itself has used up",
        given(10, policy(limits=SpendLimits(day=10)), hold(10), LATE),
        capture(),
        Posts("capture", (-10, 0), (0, 0), ("expired", 10), late=True),
    ),
    row(
        "within a limit that was lowered below what was spent",
        given(20, hold(10), spend(5, "s"), policy(limits=SpendLimits(day=1)), LATE),
        capture(),
        Posts("capture", (-10, 0), (5, 0), ("expired", 10), late=True),
    ),
    row(
        "a part within a limit that other spends have used up",
        given(30, LIMITED, hold(4), spend(6, "s"), LATE),
        capture(amount=3),
        Posts("capture", (-3, 0), (21, 0), ("expired", 3), late=True),
    ),
    row(
        "more than was held within what is left of the limit",
        given(99, LIMITED, hold(4), LATE),
        capture(amount=10, overage=True),
        Posts("capture", (-10, 0), (89, 0), ("expired", 10), late=True),
    ),
    row(
        "more than was held counts against the limit",
        given(99, policy(limits=SpendLimits(day=10)), hold(4), LATE),
        capture(amount=11, overage=True),
        SpendLimitExceeded("day", 10, 4, 42_300_000),
    ),
    row(
        "more than was held and than the limit itself",
        given(99, policy(limits=SpendLimits(day=10)), hold(4), LATE),
        capture(amount=15, overage=True),
        AboveSpendLimit(11, "day", 10),
    ),
    row(
        "more than was held, where only what was held is there",
        given(10, hold(10), LATE),
        capture(amount=15, overage=True),
        InsufficientCredits(required=15, available=10, held=0, shortfall=5),
    ),
    row(
        "more than was held, where other holds leave only that",
        given(20, hold(10), LATE, hold(8, "h2")),
        capture(amount=15, overage=True),
        InsufficientCredits(required=15, available=12, held=8, shortfall=3),
    ),
    row(
        "more than was held, where not even that is there",
        given(10, hold(10), LATE, spend(1, "s")),
        capture(amount=15, overage=True),
        HoldExpired(),
    ),
    row("from a frozen account", given(10, hold(10), FROZEN, LATE), capture(), AccountFrozen()),
    row(
        "captured late before",
        given(99, hold(10), LATE, capture()),
        capture(key="c2"),
        HoldNotActive("CAPTURED"),
    ),
    row(
        "captured late before, under the same key",
        given(10, hold(10), LATE, capture()),
        capture(),
        Replays(3, ("expired", 10), late=True),
    ),
]


@pytest.mark.parametrize("same_batch", [False, True], ids=["loaded", "same batch"])
@pytest.mark.parametrize(("before", "command", "expected"), CAPTURING_LATE)
def test_capturing_late(before, command, expected, same_batch):
    judge(before, command, expected, same_batch=same_batch)
