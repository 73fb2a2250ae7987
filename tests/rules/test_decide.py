"""The rules as a table: a history, a command, and the two numbers or the refusal.

Rows follow the order in which a command is decided, after its key (test_keys): the state of the
things it refers to, price and expected cost, the balance. Every row runs four ways: with its
history loaded from the ledger or decided in the same batch, and for real or only validated.
"""

from dataclasses import replace

import pytest
from kit.rule_tables import (
    ALICE,
    ALL_BACK,
    BOB,
    CHARGED,
    DEARER,
    FAR_AWAY,
    OTHER_TERMS,
    PAID_BY_ALICE,
    PARTLY_BACK,
    POOR,
    PRICES,
    SPENT,
    STRANGER,
    Replays,
    Writes,
    charge,
    given,
    judge,
    purchase,
    refund,
    row,
    spend,
)

from credit_service.errors import (
    BalanceLimitExceeded,
    InsufficientCredits,
    InvalidRequest,
    PaymentReused,
    PriceChanged,
    RefundExceedsSpend,
    TransactionNotFound,
    UserDeleted,
    UserNotFound,
)
from credit_service.fields import AMOUNT_MAX, BALANCE_MAX
from credit_service.rules.model import (
    Account,
    Payment,
    transaction_id,
)
from credit_service.rules.terms import Terms

ROWS = [
    # The state of the things that the command refers to.
    row("unknown user buys", given(), purchase(5, user=STRANGER), UserNotFound(str(STRANGER))),
    row("unknown user spends", given(), spend(5, user=STRANGER), UserNotFound(str(STRANGER))),
    row(
        "unknown user gets a refund",
        given(),
        refund(None, 5, user=STRANGER),
        UserNotFound(str(STRANGER)),
    ),
    row(
        "unknown user before unknown operation",
        given(),
        charge("juggling", user=STRANGER),
        UserNotFound(str(STRANGER)),
    ),
    row(
        "unknown user before unknown transaction",
        given(),
        refund(9, user=STRANGER),
        UserNotFound(str(STRANGER)),
    ),
    row(
        "a payment is credited once: replay under another key",
        PAID_BY_ALICE,
        purchase(100, "k2", "pi_1"),
        Replays(1),
    ),
    row(
        "the payment's money is not compared",
        PAID_BY_ALICE,
        replace(purchase(100, "k2"), payment=Payment("pi_1", 1, "usd")),
        Replays(1),
    ),
    row(
        "a payment of another user",
        PAID_BY_ALICE,
        purchase(100, "k2", "pi_1", user=BOB),
        PaymentReused("pi_1", "user_id"),
    ),
    row(
        "a payment of another amount",
        PAID_BY_ALICE,
        purchase(99, "k2", "pi_1"),
        PaymentReused("pi_1", "amount"),
    ),
    row(
        "a payment of another user and amount names the user",
        PAID_BY_ALICE,
        purchase(99, "k2", "pi_1", user=BOB),
        PaymentReused("pi_1", "user_id"),
    ),
    row(
        "the payment of a deleted user",
        given(deleted={"pi_9": FAR_AWAY}),
        purchase(100, "k", "pi_9"),
        UserDeleted("pi_9"),
    ),
    row(
        "the payment of a deleted user, for that user",
        given(deleted={"pi_9": FAR_AWAY}),
        purchase(100, "k", "pi_9", user=STRANGER),
        UserDeleted("pi_9"),
    ),
    row(
        "the payment of a deleted user before its amount",
        given(deleted={"pi_9": FAR_AWAY}),
        purchase(1, "k", "pi_9"),
        UserDeleted("pi_9"),
    ),
    row(
        "another payment of the same amount",
        PAID_BY_ALICE,
        purchase(100, "k2", "pi_2"),
        Writes(+100, 0, 200),
    ),
    row(
        "purchases without a payment differ by key",
        given(0, purchase(5, "k")),
        purchase(5, "k2"),
        Writes(+5, 0, 10),
    ),
    row(
        "a transaction that is not there",
        given(10, SPENT),
        refund(2),
        TransactionNotFound(transaction_id(ALICE, 2)),
    ),
    row(
        "a transaction of another user",
        given(10, SPENT),
        refund(1, user=BOB),
        TransactionNotFound(transaction_id(BOB, 1)),
    ),
    row(
        "a refund of a purchase",
        PAID_BY_ALICE,
        refund(1),
        InvalidRequest(
            "transaction_id", "names a purchase; only a spend or a capture can be refunded."
        ),
    ),
    row(
        "a refund of a refund",
        ALL_BACK,
        refund(2),
        InvalidRequest(
            "transaction_id", "names a refund; only a spend or a capture can be refunded."
        ),
    ),
    row("a refund above the spend", given(10, SPENT), refund(1, 11), RefundExceedsSpend(10)),
    row("a refund above what is left", PARTLY_BACK, refund(1, 7), RefundExceedsSpend(6)),
    row("nothing left, some asked for", ALL_BACK, refund(1, 1), RefundExceedsSpend(0)),
    row("nothing left, all asked for", ALL_BACK, refund(1), RefundExceedsSpend(0)),
    # Then price and expected cost.
    row(
        "unknown operation",
        given(100),
        charge("juggling"),
        InvalidRequest(
            "charge.operation", "'juggling' is not on the price list (render, stem_separation)."
        ),
    ),
    row(
        "unknown operation before the expected cost",
        given(100),
        charge("juggling", expected_cost=1),
        InvalidRequest(
            "charge.operation", "'juggling' is not on the price list (render, stem_separation)."
        ),
    ),
    row(
        "cost is the expected one",
        given(10),
        charge("render", 2, expected_cost=10),
        Writes(-10, 0, 0),
    ),
    row(
        "cost is above the expected",
        given(99),
        charge("render", 2, expected_cost=9),
        PriceChanged(10, PRICES.version),
    ),
    row(
        "cost is below the expected",
        given(99),
        charge("render", 2, expected_cost=11),
        PriceChanged(10, PRICES.version),
    ),
    row(
        "the price rose after the quote",
        given(99, terms=OTHER_TERMS),
        charge("stem_separation", expected_cost=10),
        PriceChanged(12, DEARER.version),
    ),
    row(
        "amount is not the expected cost",
        given(99),
        spend(7, expected_cost=8),
        PriceChanged(7, PRICES.version),
    ),
    row("amount is the expected cost", given(99), spend(7, expected_cost=7), Writes(-7, 0, 92)),
    row(
        "the expected cost before the balance",
        POOR,
        charge("render", expected_cost=4),
        PriceChanged(5, PRICES.version),
    ),
    # Then the balance, against the floor.
    row("a purchase adds", given(0), purchase(100), Writes(+100, 0, 100)),
    row("a spend takes", given(30), spend(10), Writes(-10, 0, 20)),
    row(
        "a charge takes quantity times unit cost",
        given(30),
        charge("render", 3),
        Writes(-15, 0, 15),
    ),
    row("the last credit can be spent", given(10), spend(10), Writes(-10, 0, 0)),
    row("one credit short", given(9), spend(10), InsufficientCredits(10, 9, 0, 1)),
    row("an empty account", given(0), charge("stem_separation"), InsufficientCredits(10, 0, 0, 10)),
    row(
        "held credits are not available",
        given(100, held=91),
        spend(10),
        InsufficientCredits(10, 9, 91, 1),
    ),
    row("what is not held is available", given(100, held=90), spend(10), Writes(-10, 0, 90)),
    row(
        "down to a positive floor",
        given(30, terms=Terms(PRICES, 20)),
        spend(10),
        Writes(-10, 0, 20),
    ),
    row(
        "past a positive floor",
        given(30, terms=Terms(PRICES, 20)),
        spend(11),
        InsufficientCredits(11, 30, 0, 1),
    ),
    row(
        "down to a negative floor",
        given(0, terms=Terms(PRICES, -20)),
        spend(20),
        Writes(-20, 0, -20),
    ),
    row(
        "past a negative floor",
        given(0, terms=Terms(PRICES, -20)),
        spend(21),
        InsufficientCredits(21, 0, 0, 1),
    ),
    row("debt cannot spend", given(-30), spend(1), InsufficientCredits(1, -30, 0, 31)),
    row("debt receives a purchase", given(-30), purchase(100), Writes(+100, 0, 70)),
    row("debt receives a purchase and stays debt", given(-30), purchase(10), Writes(+10, 0, -20)),
    row("debt receives a refund", given(-30), refund(None, 10), Writes(+10, 0, -20)),
    row(
        "below the floor a spend is given back",
        given(10, SPENT, terms=Terms(PRICES, 50)),
        refund(1),
        Writes(+10, 0, 10),
    ),
    row(
        "below the floor a purchase is added",
        given(0, terms=Terms(PRICES, 50)),
        purchase(1),
        Writes(+1, 0, 1),
    ),
    row("all of a spend is given back", given(10, SPENT), refund(1), Writes(+10, 0, 10)),
    row("part of a spend is given back", given(10, SPENT), refund(1, 4), Writes(+4, 0, 4)),
    row("all that is left is given back", PARTLY_BACK, refund(1), Writes(+6, 0, 10)),
    row("exactly what is left is given back", PARTLY_BACK, refund(1, 6), Writes(+6, 0, 10)),
    row(
        "a third refund is given",
        given(10, SPENT, refund(1, 4, "r1"), refund(1, 4, "r2")),
        refund(1),
        Writes(+2, 0, 10),
    ),
    row(
        "a third refund has the others counted",
        given(10, SPENT, refund(1, 4, "r1"), refund(1, 4, "r2")),
        refund(1, 3),
        RefundExceedsSpend(2),
    ),
    row(
        "a refund of one spend leaves the other",
        given(20, SPENT, spend(10, "k2"), refund(1, key="r1")),
        refund(2),
        Writes(+10, 0, 20),
    ),
    row(
        "a refund of no spend counts against none",
        given(10, SPENT, refund(None, 10, "r1")),
        refund(1),
        Writes(+10, 0, 20),
    ),
    row("a job that was refunded pays again", ALL_BACK, spend(10, "k2"), Writes(-10, 0, 0)),
    row(
        "a charge is given back after its operation left the price list",
        given(10, CHARGED, terms=OTHER_TERMS),
        refund(1),
        Writes(+10, 0, 10),
    ),
    # Last, the range that the ledger allows.
    row(
        "up to the highest balance", given(BALANCE_MAX - 5), purchase(5), Writes(+5, 0, BALANCE_MAX)
    ),
    row(
        "past the highest balance",
        given(BALANCE_MAX - 5),
        purchase(6),
        BalanceLimitExceeded(BALANCE_MAX - 5, BALANCE_MAX),
    ),
    row(
        "past the highest balance by a refund",
        given(BALANCE_MAX),
        refund(None, 1),
        BalanceLimitExceeded(BALANCE_MAX, BALANCE_MAX),
    ),
    row(
        "down to the lowest balance",
        given(1 - BALANCE_MAX, terms=Terms(PRICES, -2 * BALANCE_MAX)),
        spend(1),
        Writes(-1, 0, -BALANCE_MAX),
    ),
    row(
        "past the lowest balance",
        given(1 - BALANCE_MAX, terms=Terms(PRICES, -2 * BALANCE_MAX)),
        spend(2),
        BalanceLimitExceeded(1 - BALANCE_MAX, BALANCE_MAX),
    ),
    row("the largest amount", given(AMOUNT_MAX), spend(AMOUNT_MAX), Writes(-AMOUNT_MAX, 0, 0)),
]


@pytest.mark.parametrize("same_batch", [False, True], ids=["loaded", "same batch"])
@pytest.mark.parametrize(("before", "command", "expected"), ROWS)
def test_rule(before, command, expected, same_batch):
    judge(before, command, expected, same_batch=same_batch)


@pytest.mark.parametrize(
    ("balance", "held", "floor", "cost", "shortfall"),
    [(10, 0, 0, 10, 0), (10, 0, 0, 3, 0), (10, 4, 0, 10, 4), (10, 0, 5, 10, 5), (-7, 0, -5, 1, 3)],
)
def test_the_shortfall_is_what_must_be_bought_and_never_negative(
    balance, held, floor, cost, shortfall
):
    assert Terms(PRICES, floor).shortfall(Account(ALICE, balance, held), cost) == shortfall
