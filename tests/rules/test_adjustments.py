"""Adjustments by operators as rows of the rule table: up, down, the floor and debt."""

import pytest
from kit.rule_tables import (
    POOR,
    SPENT,
    STRANGER,
    Replays,
    Writes,
    adjust,
    given,
    judge,
    purchase,
    refund,
    reused,
    row,
    spend,
)

from credit_service.errors import (
    BalanceLimitExceeded,
    InsufficientCredits,
    InvalidRequest,
    UserNotFound,
)
from credit_service.fields import AMOUNT_MAX, BALANCE_MAX
from credit_service.rules.model import Policy, SpendLimits

FROZEN = given(10, policy=Policy(frozen=True))
LIMITED = given(10, policy=Policy(limits=SpendLimits(1, 1, 1)))
HOLDING = given(10, held=4)
OWN_FLOOR = given(10, policy=Policy(min_balance=6))
FULL = given(BALANCE_MAX)
IN_DEBT = given(-30)
DOWN = adjust(-5, "k")


def missing(required, available, shortfall, held=0):
    return InsufficientCredits(
        required=required, available=available, held=held, shortfall=shortfall
    )


ROWS = [
    row("unknown user", given(), adjust(5, user=STRANGER), UserNotFound(str(STRANGER))),
    row("up", given(10), adjust(5), Writes(+5, 0, 15)),
    row("down", given(10), adjust(-5), Writes(-5, 0, 5)),
    row("down to the floor", given(10), adjust(-10), Writes(-10, 0, 0)),
    row("below the floor", given(10), adjust(-11), missing(11, 10, 1)),
    row("below the floor, debt allowed", given(10), adjust(-11, debt=True), Writes(-11, 0, -1)),
    row("up with debt allowed", given(10), adjust(5, debt=True), Writes(+5, 0, 15)),
    row("an account's own floor", OWN_FLOOR, adjust(-5), missing(5, 10, 1)),
    row("an account's own floor, debt allowed", OWN_FLOOR, adjust(-5, debt=True), Writes(-5, 0, 5)),
    row("held credits stay held", HOLDING, adjust(-7), missing(7, 6, 1, held=4)),
    row("all that is not held", HOLDING, adjust(-6), Writes(-6, 0, 4)),
    row("held credits, debt allowed", HOLDING, adjust(-7, debt=True), Writes(-7, 0, 3)),
    row("a frozen account", FROZEN, adjust(-10), Writes(-10, 0, 0)),
    row("spend limits do not apply", LIMITED, adjust(-10), Writes(-10, 0, 0)),
    row("up out of debt", IN_DEBT, adjust(29), Writes(+29, 0, -1)),
    row("down in debt", IN_DEBT, adjust(-1), missing(1, -30, 31)),
    row("the largest amount", POOR, adjust(AMOUNT_MAX), Writes(AMOUNT_MAX, 0, AMOUNT_MAX + 1)),
    row("too high a balance", FULL, adjust(1), BalanceLimitExceeded(BALANCE_MAX, BALANCE_MAX)),
    row(
        "too deep a debt",
        given(-BALANCE_MAX),
        adjust(-1, debt=True),
        BalanceLimitExceeded(-BALANCE_MAX, BALANCE_MAX),
    ),
    row("the same again", given(10, DOWN), DOWN, Replays(1)),
    row(
        "whether debt is allowed is not compared",
        given(10, DOWN),
        adjust(-5, "k", debt=True),
        Replays(1),
    ),
    row("another amount", given(10, DOWN), adjust(-4, "k"), reused("amount")),
    row("the opposite", given(10, DOWN), adjust(5, "k"), reused("amount")),
    row("the key of a spend", given(10, SPENT), adjust(-10, "k"), reused("call")),
    row("a spend with its key", given(10, DOWN), spend(5, "k"), reused("call")),
    row("a purchase with its key", given(10, adjust(5, "k")), purchase(5, "k"), reused("call")),
    row(
        "a refund of an adjustment",
        given(10, DOWN),
        refund(1),
        InvalidRequest(
            "transaction_id", "names an adjustment; only a spend or a capture can be refunded."
        ),
    ),
]


@pytest.mark.parametrize(("before", "command", "expected"), ROWS)
@pytest.mark.parametrize("same_batch", [False, True], ids=["loaded", "same batch"])
def test_an_adjustment_moves_the_balance_or_is_refused(before, command, expected, same_batch):
    judge(before, command, expected, same_batch=same_batch)
