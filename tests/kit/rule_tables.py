"""The rules as rows of a table: a history, a short command, the result that it must have."""

from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime, timedelta
from uuid import UUID

import pytest

from credit_service.errors import IdempotencyKeyReused, Refusal
from credit_service.rules.batch_state import BatchState
from credit_service.rules.commands import Adjust, Charge, Command, Purchase, Refund, Spend
from credit_service.rules.decide import decide
from credit_service.rules.model import (
    Account,
    Payment,
    Policy,
    Purchased,
    transaction_id,
)
from credit_service.rules.pricing import Price, PriceList
from credit_service.rules.terms import Terms

ALICE, BOB, STRANGER = (UUID(int=number) for number in (1, 2, 3))
NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)

PRICES = PriceList({"stem_separation": Price(10, "separation"), "render": Price(5, "render")})
DEARER = PriceList({"stem_separation": Price(12, "separation")})
TERMS = Terms(PRICES, 0)
OTHER_TERMS = Terms(DEARER, 0)

OPEN = Policy()


def _common(user, key, changes):
    return {
        "user_id": user,
        "idempotency_key": key,
        "description": "",
        "reference": "",
        "metadata": {},
        "validate_only": False,
        "caller": "worker",
    } | changes


def purchase(amount, key="new", ref=None, *, user=ALICE, **changes):
    payment = None if ref is None else Payment(ref, 999, "eur")
    return Purchase(amount=amount, payment=payment, **_common(user, key, changes))


def spend(amount, key="new", *, user=ALICE, expected_cost=None, **changes):
    cost = Charge(amount, expected_cost=expected_cost)
    return Spend(charge=cost, **_common(user, key, changes))


def charge(operation, quantity=1, key="new", *, user=ALICE, expected_cost=None, **changes):
    cost = Charge(None, operation, quantity, expected_cost)
    return Spend(charge=cost, **_common(user, key, changes))


def adjust(amount, key="new", *, user=ALICE, debt=False, **changes):
    return Adjust(amount=amount, allow_debt=debt, **_common(user, key, changes))


def refund(seq, amount=None, key="new", *, user=ALICE, **changes):
    return Refund(spend_seq=seq, amount=amount, **_common(user, key, changes))


@dataclass(frozen=True)
class Given:
    """Alice's account at first, then earlier commands; the row itself runs under `terms`."""

    balance: int = 0
    done: tuple[Command, ...] = ()
    held: int = 0
    policy: Policy = OPEN
    terms: Terms = TERMS
    deleted: dict[str, Purchased] = field(default_factory=dict)

    def state(self, *, same_batch):
        alice = Account(ALICE, self.balance, self.held, policy=self.policy)
        state = BatchState.of(NOON, alice, Account(BOB))
        state.purchases.update(self.deleted)
        for command in self.done:
            assert not decide(state, command, TERMS).replayed
        return state if same_batch else loaded(state)


def loaded(state):
    """The state that the next batch loads."""
    accounts = [user.account for user in state.users.values()]
    after = BatchState.of(state.now + timedelta(seconds=1), *accounts)
    after.purchases.update(state.purchases)
    for user_id, user in state.users.items():
        after.users[user_id].by_key.update(user.by_key)
        after.users[user_id].kept_calls.update(user.kept_calls)
        after.users[user_id].spends.update(user.spends)
    return after


def given(balance=0, *done, **rest):
    return Given(balance, done, **rest)


@dataclass(frozen=True)
class Writes:
    """An entry with these two changes, which leaves this balance."""

    balance_change: int
    held_change: int
    balance_after: int


@dataclass(frozen=True)
class Replays:
    """Alice's entry with this seq, and her account as it is now."""

    seq: int


def reused(field_, seq=1):
    return IdempotencyKeyReused(field_, transaction_id(ALICE, seq))


def row(claim, *values):
    return pytest.param(*values, id=claim)


BOUGHT = purchase(100, "k", "pi_1")
SPENT = spend(10, "k")
CHARGED = charge("render", 2, "k")
PAID_BY_ALICE = given(0, BOUGHT)
ALL_BACK = given(10, SPENT, refund(1, key="r1"))
PARTLY_BACK = given(10, SPENT, refund(1, 4, "r1"))
POOR = given(1)
FAR_AWAY = Purchased(STRANGER, 7, 100, entry=None)


def judge(before, command, expected, *, same_batch):
    """Checks that a row gives its result, once validated and once for real."""
    state = before.state(same_batch=same_batch)
    unchanged, entries = repr(state), dict(state.users[ALICE].spends)
    known = remembers(state, command)
    user = state.users.get(command.user_id)
    account = user and user.account

    validated = answer(state, replace(command, validate_only=True), before.terms)
    assert repr(state) == unchanged
    got = answer(state, command, before.terms)

    match expected:
        case Refusal():
            assert (type(got), asdict(got)) == (type(expected), asdict(expected))
            assert asdict(validated) == asdict(expected)
            assert repr(state) == unchanged
        case Replays(seq):
            assert got.replayed
            assert got.entry == entries[seq].entry
            assert got.account == account
            assert validated == got
            assert (repr(state) if known else without_kept_key(state, command)) == unchanged
        case Writes():
            entry = got.entry
            assert Writes(entry.balance_change, entry.held_change, entry.balance_after) == expected
            assert (entry.seq, entry.held_after) == (account.seq + 1, account.held)
            assert not got.replayed
            assert got.account == user.account
            after = got.account
            assert (after.balance, after.held) == (entry.balance_after, entry.held_after)
            assert (after.seq, after.last_updated) == (entry.seq, entry.timestamp)
            assert user.posted[-1] == entry
            assert validated == got._replace(account=account)


def remembers(state, command):
    """Whether the state knows the key of a command."""
    user = state.users.get(command.user_id)
    return user is not None and command.idempotency_key in user.by_key


def without_kept_key(state, command):
    """The state as it was before it kept this command's key; does not change the state."""
    user, key = state.users[command.user_id], command.idempotency_key
    assert user.kept_keys[-1].key == key
    kept, entry, call = user.kept_keys.pop(), user.by_key.pop(key), user.kept_calls.pop(key)
    shown = repr(state)
    user.kept_keys.append(kept)
    user.by_key[key], user.kept_calls[key] = entry, call
    return shown


def answer(state, command, terms):
    try:
        return decide(state, command, terms)
    except Refusal as refusal:
        return refusal
