"""What the rules write, and how the commands of one batch interact."""

from datetime import timedelta

import pytest
from kit.rule_tables import (
    ALICE,
    BOB,
    NOON,
    PARTLY_BACK,
    PRICES,
    SPENT,
    TERMS,
    answer,
    charge,
    given,
    purchase,
    refund,
    spend,
)

from credit_service.errors import InsufficientCredits, PaymentReused
from credit_service.rules.batch_state import BatchState
from credit_service.rules.model import (
    Account,
    Entry,
    Payment,
    Purchased,
    transaction_id,
)
from credit_service.rules.terms import Terms

FACTS = {
    "description": "a mix",
    "reference": "job 7",
    "metadata": {"track": "12"},
    "caller": "worker-3",
}


def entry(**rest):
    """An entry of a user who had three and whose account held 5 of 105 credits."""
    empty = dict.fromkeys(Entry._fields) | Entry._field_defaults
    common = {
        "user_id": ALICE,
        "seq": 4,
        "held_change": 0,
        "held_after": 5,
        "timestamp": NOON,
        "idempotency_key": "new",
    }
    return Entry(**empty | common | FACTS | rest)


@pytest.mark.parametrize(
    ("command", "kept"),
    [
        (
            purchase(7, ref="pi_1", **FACTS),
            entry(
                type="purchase",
                call="PurchaseCredits",
                amount=7,
                requested_amount=7,
                balance_change=7,
                balance_after=112,
                payment=Payment("pi_1", 999, "eur"),
            ),
        ),
        (
            spend(7, **FACTS),
            entry(
                type="spend",
                call="SpendCredits",
                amount=7,
                requested_amount=7,
                balance_change=-7,
                balance_after=98,
                floor=-1,
            ),
        ),
        (
            charge("render", 3, expected_cost=15, **FACTS),
            entry(
                type="spend",
                call="SpendCredits",
                amount=15,
                balance_change=-15,
                balance_after=90,
                floor=-1,
                operation="render",
                quantity=3,
                unit_cost=5,
                price_version=PRICES.version,
            ),
        ),
        (
            refund(1, **FACTS),
            entry(
                type="refund",
                call="RefundCredits",
                amount=10,
                balance_change=10,
                balance_after=115,
                operation="render",
                related_seq=1,
            ),
        ),
        (
            refund(1, 4, **FACTS),
            entry(
                type="refund",
                call="RefundCredits",
                amount=4,
                requested_amount=4,
                balance_change=4,
                balance_after=109,
                operation="render",
                related_seq=1,
            ),
        ),
        (
            refund(None, 4, **FACTS),
            entry(
                type="refund",
                call="RefundCredits",
                amount=4,
                requested_amount=4,
                balance_change=4,
                balance_after=109,
            ),
        ),
    ],
    ids=["purchase", "spend", "charge", "refund of all", "partial refund", "refund of no spend"],
)
def test_an_entry_keeps_what_was_asked_and_what_it_did(command, kept):
    state = given(10, charge("render", 2, "k")).state(same_batch=False)
    alice = state.users[ALICE]
    alice.account, alice.now = Account(ALICE, 105, 5, 3, NOON), NOON
    assert answer(state, command, Terms(PRICES, -1)).entry == kept
    assert state.posted == [kept]


EARLIER, LATER = NOON - timedelta(seconds=1), NOON + timedelta(seconds=1)


@pytest.mark.parametrize(
    ("last_updated", "written"),
    [(None, NOON), (EARLIER, NOON), (NOON, NOON), (LATER, LATER)],
    ids=["first entry", "clock moved on", "clock did not move", "clock was set back"],
)
def test_time_never_runs_backwards_in_an_account(last_updated, written):
    state = BatchState.of(NOON, Account(ALICE, last_updated=last_updated), Account(BOB))
    first = answer(state, purchase(1, "k1"), TERMS)
    second = answer(state, purchase(1, "k2"), TERMS)
    assert first.entry.timestamp == second.entry.timestamp == written
    assert state.users[ALICE].account.last_updated == written
    assert answer(state, purchase(1, user=BOB), TERMS).entry.timestamp == NOON


def test_a_refused_key_works_after_a_top_up():
    state = given(0).state(same_batch=True)
    assert isinstance(answer(state, SPENT, TERMS), InsufficientCredits)
    answer(state, purchase(10), TERMS)
    outcome = answer(state, SPENT, TERMS)
    assert (outcome.replayed, outcome.account.balance) == (False, 0)


def test_two_commands_with_one_key_in_one_batch_are_one():
    state = given(30).state(same_batch=True)
    first, second = answer(state, SPENT, TERMS), answer(state, SPENT, TERMS)
    assert (first.replayed, second.replayed) == (False, True)
    assert (second.entry, second.account.balance) == (first.entry, 20)
    third = answer(state, spend(11, "k"), TERMS)
    assert (third.field, third.transaction_id) == ("amount", transaction_id(ALICE, 1))
    assert state.posted == [first.entry]


def test_one_payment_in_one_batch_is_credited_once():
    state = given().state(same_batch=True)
    first = answer(state, purchase(5, "k1", "pi_1"), TERMS)
    second = answer(state, purchase(5, "k2", "pi_1"), TERMS)
    assert (second.entry, second.replayed) == (first.entry, True)
    assert isinstance(answer(state, purchase(5, "k1", "pi_1", user=BOB), TERMS), PaymentReused)
    assert list(state.bought) == ["pi_1"]
    assert state.bought["pi_1"] == Purchased(ALICE, 1, 5, first.entry)


def test_refunds_of_one_spend_in_one_batch_are_written_as_one_sum():
    state = PARTLY_BACK.state(same_batch=False)
    answer(state, refund(1, 1, "r2"), TERMS)
    answer(state, refund(1, 2, "r3"), TERMS)
    alice = state.users[ALICE]
    assert [alice.spends[seq].refunded for seq in alice.refunded] == [7]


def test_later_commands_do_not_see_a_command_that_only_validates():
    state = given(0).state(same_batch=True)
    checked = answer(state, purchase(10, "k", "pi_1", validate_only=True), TERMS)
    assert (checked.entry.balance_after, checked.account.balance) == (10, 0)
    assert isinstance(answer(state, spend(1, "k"), TERMS), InsufficientCredits)
    assert not answer(state, purchase(9, "k", "pi_1", user=BOB), TERMS).replayed
    assert len(state.posted) == 1
