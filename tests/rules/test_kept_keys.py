"""Keys of calls that were answered with the entry of another call: they are remembered as well.

Every row runs twice, with its history loaded from the ledger and decided in the same batch. The
answered call is validated first, which must keep nothing.
"""

from dataclasses import asdict, replace

import pytest
from kit.commands import grant
from kit.hold_tables import LATE, capture, given, hold, hold_for, loaded, release
from kit.rule_tables import ALICE, TERMS, answer, charge, purchase, refund, reused, row, spend

from credit_service.rules.decide import decide

KEY = "k"
BOUGHT = purchase(10, "b", "pi_1")

EXPIRED = given(10, hold(), LATE)
RELEASED = given(10, hold(), release())
# A history, a call that is answered with one of its entries, and the seq of that entry.
ANSWERED = {
    "the release of an expired hold": (EXPIRED, release(key=KEY), 2),
    "the release of a released hold": (RELEASED, release(key=KEY), 2),
    "the release of a hold that was captured with 0": (
        given(10, hold(), capture(amount=0)),
        release(key=KEY),
        2,
    ),
    "a capture of 0 of an expired hold": (EXPIRED, capture(amount=0, key=KEY), 2),
    "a capture of 0 of a released hold": (RELEASED, capture(amount=0, key=KEY), 2),
    "a purchase by a credited payment": (given(0, BOUGHT), purchase(10, KEY, "pi_1"), 1),
}

OTHERS = {
    "spend": spend(1, KEY),
    "charge": charge("render", 1, KEY),
    "refund": refund(1, 1, KEY),
    "grant": grant(ALICE, 10, KEY),
    "hold": hold(1, KEY),
    "hold for an operation": hold_for("render", 1, KEY),
    "purchase": purchase(10, KEY, "pi_1"),
    "purchase of more": purchase(11, KEY, "pi_1"),
    "purchase by another payment": purchase(10, KEY, "pi_2"),
    "purchase without a payment": purchase(10, KEY),
    "release": release(key=KEY),
    "release of another hold": release(3, KEY),
    "capture of 0": capture(amount=0, key=KEY),
    "capture of 0 of another hold": capture(3, 0, KEY),
    "capture of all": capture(key=KEY),
    "capture of a part": capture(amount=1, key=KEY),
    "capture by quantity": capture(key=KEY, quantity=1),
}


def differs_in(answered, other):
    """The field that the contract says to name: the first compared field that differs."""
    if answered.call != other.call:
        return "call"
    if answered.call == "PurchaseCredits":
        return "amount" if answered.amount != other.amount else "payment"
    if answered.call == "CaptureHold" and other.amount != 0:
        return "amount"
    return "hold_id"


def answered(name, *, same_batch):
    """A state in which the call was answered, the call, and its answer."""
    before, command, seq = ANSWERED[name]
    state = before.state(same_batch=same_batch)
    entry = state.users[ALICE].spends[seq].entry
    unchanged, posted = repr(state), len(state.posted)
    assert decide(state, replace(command, validate_only=True), TERMS).replayed
    assert repr(state) == unchanged
    first = decide(state, command, TERMS)
    assert (first.entry, first.replayed) == (entry, True)
    assert len(state.posted) == posted
    return (state if same_batch else loaded(state)), command, first


BOTH = pytest.mark.parametrize("same_batch", [False, True], ids=["loaded", "same batch"])


@BOTH
@pytest.mark.parametrize("name", ANSWERED)
def test_the_same_call_again_is_answered_with_the_same_entry(name, same_batch):
    state, command, first = answered(name, same_batch=same_batch)
    unchanged = repr(state)
    again = decide(state, command, TERMS)
    assert again == first._replace(account=again.account)
    assert repr(state) == unchanged


@BOTH
@pytest.mark.parametrize("other", OTHERS)
@pytest.mark.parametrize("name", ANSWERED)
def test_another_call_by_the_key_is_refused(name, other, same_batch):
    state, command, first = answered(name, same_batch=same_batch)
    if OTHERS[other].request() == command.request():
        return
    unchanged = repr(state)
    got = answer(state, OTHERS[other], TERMS)
    expected = reused(differs_in(command, OTHERS[other]), first.entry.seq)
    assert (type(got), asdict(got)) == (type(expected), asdict(expected))
    assert repr(state) == unchanged


@BOTH
@pytest.mark.parametrize("name", [name for name in ANSWERED if "expired" in name])
def test_a_late_capture_leaves_the_answer_to_the_release_as_it_was(name, same_batch):
    state, command, first = answered(name, same_batch=same_batch)
    assert decide(state, capture(key="late"), TERMS).late
    again = decide(state, command, TERMS)
    assert again.entry == first.entry
    assert (again.hold.state, again.hold.captured) == ("expired", 10)


@pytest.mark.parametrize(
    ("before", "command"),
    [
        row("a refused release", given(10, hold(), capture()), release(key=KEY)),
        row("a refused purchase", given(0, BOUGHT), purchase(11, KEY, "pi_1")),
        row("a validated release", EXPIRED, release(key=KEY, validate_only=True)),
    ],
)
def test_a_call_that_was_not_answered_ok_uses_up_no_key(before, command):
    state = before.state(same_batch=False)
    answer(state, command, TERMS)
    assert not state.users[ALICE].kept_keys
    assert not decide(state, grant(ALICE, 1, KEY), TERMS).replayed
