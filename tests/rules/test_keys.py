"""Idempotency keys as a table: the key is checked before everything else.

Every row runs four ways: with its history loaded from the ledger or decided in the same batch, and
for real or only validated.
"""

from dataclasses import replace

import pytest
from kit.rule_tables import (
    ALL_BACK,
    BOB,
    BOUGHT,
    CHARGED,
    OTHER_TERMS,
    PAID_BY_ALICE,
    PARTLY_BACK,
    PRICES,
    SPENT,
    Replays,
    Writes,
    charge,
    given,
    judge,
    purchase,
    refund,
    reused,
    row,
    spend,
)

from credit_service.fields import BALANCE_MAX
from credit_service.rules.terms import Terms

ROWS = [
    # The key comes first: a repeat is answered with its entry, even if everything else has changed.
    row("a repeated purchase replays", PAID_BY_ALICE, BOUGHT, Replays(1)),
    row("a repeated spend replays on the empty account", given(10, SPENT), SPENT, Replays(1)),
    row(
        "a repeated spend replays below the floor",
        given(10, SPENT, terms=Terms(PRICES, 50)),
        SPENT,
        Replays(1),
    ),
    row(
        "a repeated charge replays after the operation left the price list",
        given(10, CHARGED, terms=OTHER_TERMS),
        CHARGED,
        Replays(1),
    ),
    row(
        "a repeated charge replays at its own price after the price rose",
        given(10, charge("stem_separation", 1, "k"), terms=OTHER_TERMS),
        charge("stem_separation", 1, "k"),
        Replays(1),
    ),
    row(
        "a repeated refund of all replays with nothing left",
        ALL_BACK,
        refund(1, key="r1"),
        Replays(2),
    ),
    row("a repeated partial refund replays", PARTLY_BACK, refund(1, 4, "r1"), Replays(2)),
    row(
        "a repeat replays at the edge of the balance's range",
        given(BALANCE_MAX - 1, purchase(1, "k")),
        purchase(1, "k"),
        Replays(1),
    ),
    row(
        "expected cost is not compared",
        given(10, SPENT),
        replace(SPENT, charge=SPENT.charge._replace(expected_cost=3)),
        Replays(1),
    ),
    row(
        "description is not compared", given(10, SPENT), replace(SPENT, description="x"), Replays(1)
    ),
    row("reference is not compared", given(10, SPENT), replace(SPENT, reference="x"), Replays(1)),
    row(
        "metadata is not compared",
        given(10, SPENT),
        replace(SPENT, metadata={"x": "y"}),
        Replays(1),
    ),
    row("the caller is not compared", given(10, SPENT), replace(SPENT, caller="other"), Replays(1)),
    row(
        "a key is a user's own",
        given(0, BOUGHT),
        purchase(5, "k", user=BOB),
        Writes(+5, 0, 5),
    ),
    # A key used for anything else is refused, and the first field that differs is named.
    row("call differs", given(10, SPENT), purchase(10, "k"), reused("call")),
    row(
        "call differs: refund under a spend's key",
        given(10, SPENT),
        refund(1, 10, "k"),
        reused("call"),
    ),
    row("amount differs", given(20, SPENT), spend(11, "k"), reused("amount")),
    row("amount differs: a charge of the same cost", given(20, SPENT), CHARGED, reused("amount")),
    row("amount differs: the cost of the charge", given(20, CHARGED), SPENT, reused("amount")),
    row(
        "amount differs: all is not the sum it came to",
        ALL_BACK,
        refund(1, 10, "r1"),
        reused("amount", 2),
    ),
    row(
        "amount differs: a sum is not all",
        given(10, SPENT, refund(1, 10, "r1")),
        refund(1, key="r1"),
        reused("amount", 2),
    ),
    row("amount of a purchase differs", PAID_BY_ALICE, purchase(99, "k", "pi_1"), reused("amount")),
    row(
        "operation differs",
        given(20, CHARGED),
        charge("stem_separation", 2, "k"),
        reused("operation"),
    ),
    row("quantity differs", given(20, CHARGED), charge("render", 1, "k"), reused("quantity")),
    row(
        "transaction differs",
        given(20, spend(5, "s1"), spend(5, "s2"), refund(1, key="r1")),
        refund(2, key="r1"),
        reused("transaction_id", 3),
    ),
    row(
        "transaction differs: none was named",
        given(20, SPENT, refund(None, 4, "r1")),
        refund(1, 4, "r1"),
        reused("transaction_id", 2),
    ),
    row("payment differs", PAID_BY_ALICE, purchase(100, "k", "pi_2"), reused("payment")),
    row("payment differs: none is named now", PAID_BY_ALICE, purchase(100, "k"), reused("payment")),
    row(
        "payment differs: none was named",
        given(0, purchase(5, "k")),
        purchase(5, "k", "pi_1"),
        reused("payment"),
    ),
    row("call is named before amount", given(20, SPENT), purchase(9, "k", "pi_1"), reused("call")),
    row("amount is named before operation", given(20, spend(9, "k")), CHARGED, reused("amount")),
    row(
        "operation is named before quantity, at the same cost too",
        given(20, CHARGED),
        charge("stem_separation", 1, "k"),
        reused("operation"),
    ),
    row("amount is named before transaction", PARTLY_BACK, refund(7, 5, "r1"), reused("amount", 2)),
    row(
        "amount is named before payment", PAID_BY_ALICE, purchase(9, "k", "pi_2"), reused("amount")
    ),
    row(
        "a used key is refused before an unknown transaction",
        given(10, SPENT),
        refund(99, key="k"),
        reused("call"),
    ),
    row(
        "a used key is refused before a payment of another user",
        given(0, purchase(5, "b", "pi_2", user=BOB), BOUGHT),
        purchase(100, "k", "pi_2"),
        reused("payment"),
    ),
    row(
        "a used key is refused before the price",
        given(10, SPENT),
        charge("juggling", key="k"),
        reused("amount"),
    ),
    row(
        "a used key is refused before the balance",
        given(10, SPENT),
        spend(99, "k"),
        reused("amount"),
    ),
]


@pytest.mark.parametrize("same_batch", [False, True], ids=["loaded", "same batch"])
@pytest.mark.parametrize(("before", "command", "expected"), ROWS)
def test_key(before, command, expected, same_batch):
    judge(before, command, expected, same_batch=same_batch)
