"""Keys of holds, captures and releases: a repeat is distinguished from another request.

Every row runs twice, with its history loaded from the ledger and decided in the same batch. Each
time the command is validated first, which must change nothing and give the same answer.
"""

from datetime import timedelta

import pytest
from kit.hold_tables import (
    FROZEN,
    LATE,
    QUARTER,
    Replays,
    capture,
    extend,
    given,
    hold,
    hold_for,
    judge,
    release,
)
from kit.rule_tables import NOON, OTHER_TERMS, PRICES, TERMS, reused, row, spend

from credit_service.rules.decide import decide
from credit_service.rules.terms import Terms

KEYS = [
    row("a repeated hold", given(10, hold()), hold(), Replays(1, ("held", 0))),
    row("of a captured hold", given(10, hold(), capture()), hold(), Replays(1, ("captured", 10))),
    row("of a released hold", given(10, hold(), release()), hold(), Replays(1, ("released", 0))),
    row("of an expired hold", given(10, hold(), LATE), hold(), Replays(1, ("expired", 0))),
    row(
        "of a hold captured late",
        given(10, hold(), LATE, capture()),
        hold(),
        Replays(1, ("expired", 10)),
    ),
    row(
        "fields that are not compared may differ in a repeat",
        given(10, hold()),
        hold(ttl=timedelta(hours=1), expected_cost=3, description="again", reference="other"),
        Replays(1, ("held", 0)),
    ),
    row("a repeat on a frozen account", given(10, hold(), FROZEN), hold(), Replays(1, ("held", 0))),
    row(
        "a repeat at the maximum number of holds",
        given(10, hold(), terms=Terms(PRICES, 0, 1)),
        hold(),
        Replays(1, ("held", 0)),
    ),
    row(
        "a repeat though the operation left the list",
        given(10, hold_for("render"), terms=OTHER_TERMS),
        hold_for("render"),
        Replays(1, ("held", 0)),
    ),
    row(
        "a repeated capture", given(10, hold(), capture()), capture(), Replays(2, ("captured", 10))
    ),
    row(
        "a repeated capture by quantity",
        given(10, hold_for("render", 2), capture(quantity=1)),
        capture(quantity=1),
        Replays(2, ("captured", 5)),
    ),
    row(
        "a repeated capture of zero",
        given(10, hold(), capture(amount=0)),
        capture(amount=0),
        Replays(2, ("released", 0)),
    ),
    row(
        "a repeated capture with overage need not allow it again",
        given(20, hold(), capture(amount=15, overage=True)),
        capture(amount=15),
        Replays(2, ("captured", 15)),
    ),
    row("a repeated release", given(10, hold(), release()), release(), Replays(2, ("released", 0))),
    row("another amount", given(10, hold()), hold(9), reused("amount")),
    row("an amount for work", given(10, hold_for("render", 2)), hold(10), reused("amount")),
    row("work for an amount", given(10, hold()), hold_for("render", 2), reused("amount")),
    row(
        "another operation",
        given(10, hold_for("render")),
        hold_for("stem_separation"),
        reused("operation"),
    ),
    row(
        "another quantity", given(10, hold_for("render")), hold_for("render", 2), reused("quantity")
    ),
    row("a spend with a hold's key", given(10, hold()), spend(10, "h"), reused("call")),
    row("a hold with a spend's key", given(10, spend(10, "h")), hold(), reused("call")),
    row(
        "a capture with the hold's key",
        given(10, hold()),
        capture(key="h"),
        reused("call"),
    ),
    row(
        "a capture of another hold",
        given(20, hold(), hold(key="h2"), capture()),
        capture(2),
        reused("hold_id", 3),
    ),
    row(
        "a capture of another amount",
        given(10, hold(), capture(amount=4)),
        capture(amount=5),
        reused("amount", 2),
    ),
    row(
        "all is another amount than the same number",
        given(10, hold(), capture()),
        capture(amount=10),
        reused("amount", 2),
    ),
    row(
        "a capture of another quantity",
        given(10, hold_for("render", 2), capture(quantity=1)),
        capture(quantity=2),
        reused("quantity", 2),
    ),
    row(
        "zero with the key of all",
        given(10, hold(), capture()),
        capture(amount=0),
        reused("amount", 2),
    ),
    row(
        "a release with a capture's key",
        given(10, hold(), capture(amount=0)),
        release(key="c"),
        reused("call", 2),
    ),
    row(
        "a release of another hold",
        given(20, hold(), hold(key="h2"), release()),
        release(2),
        reused("hold_id", 3),
    ),
]


@pytest.mark.parametrize("same_batch", [False, True], ids=["loaded", "same batch"])
@pytest.mark.parametrize(("before", "command", "expected"), KEYS)
def test_a_key_tells_a_repeat_from_another_request(before, command, expected, same_batch):
    judge(before, command, expected, same_batch=same_batch)


def test_a_repeat_of_a_hold_shows_its_extended_end():
    state = given(10, hold(), QUARTER / 3, extend()).state(same_batch=False)
    assert decide(state, hold(), TERMS).hold.expires_at == NOON + QUARTER * 4 / 3
