"""The rules of holds, as rows of a table: the history, a command, the result that it must have.

Every row runs twice: with its history loaded from the book, and decided in the same batch. Each
time it is validated first, which must change nothing and give the same answer.
"""

from dataclasses import asdict, dataclass, replace
from datetime import timedelta

from kit.rule_tables import ALICE, BOB, NOON, TERMS, remembers, without_kept_key

from credit_service.errors import (
    InvalidRequest,
    Refusal,
)
from credit_service.rules.batch_state import BatchState
from credit_service.rules.commands import Capture, Charge, Extend, Keyed, MakeHold, Release
from credit_service.rules.decide import decide
from credit_service.rules.due import settle
from credit_service.rules.model import NO_LIMITS, Account, Policy, SpendLimits
from credit_service.rules.terms import Terms

QUARTER = timedelta(minutes=15)
INSTANT = timedelta(microseconds=1)


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


def hold(amount=10, key="h", *, ttl=QUARTER, user=ALICE, expected_cost=None, **changes):
    cost = Charge(amount, expected_cost=expected_cost)
    return MakeHold(charge=cost, ttl=ttl, **_common(user, key, changes))


def hold_for(operation, quantity=1, key="h", *, expected_cost=None, **changes):
    cost = Charge(None, operation, quantity, expected_cost)
    return replace(hold(key=key, **changes), charge=cost)


def capture(seq=1, amount=None, key="c", *, quantity=None, overage=False, user=ALICE, **changes):
    return Capture(
        hold_seq=seq,
        amount=amount,
        quantity=quantity,
        allow_overage=overage,
        **_common(user, key, changes),
    )


def release(seq=1, key="r", *, user=ALICE, **changes):
    return Release(hold_seq=seq, **_common(user, key, changes))


def extend(seq=1, ttl=QUARTER, *, user=ALICE):
    return Extend(user_id=user, caller="worker", hold_seq=seq, ttl=ttl)


@dataclass(frozen=True)
class Given:
    """Alice's balance at first, then commands, passing time (timedelta) and altered account rows.

    The row itself runs under `terms`.
    """

    balance: int
    steps: tuple[object, ...]
    terms: Terms

    def state(self, *, same_batch):
        state = BatchState.of(NOON, Account(ALICE, self.balance), Account(BOB, 100))
        for step in self.steps:
            if isinstance(step, timedelta):
                state = loaded(state, step)
            elif isinstance(step, dict):
                alice = state.users[ALICE]
                alice.account = alice.account._replace(**step)
            else:
                assert not decide(state, step, TERMS).replayed
        return state if same_batch else loaded(state)


def loaded(state, later=timedelta(0)):
    """The state that the next batch loads: everything earlier, with due holds ended."""
    accounts = [user.account for user in state.users.values()]
    after = BatchState.of(state.now + later, *accounts)
    after.purchases.update(state.purchases)
    for user_id, user in state.users.items():
        later_user = after.users[user_id]
        later_user.by_key.update(user.by_key)
        later_user.kept_calls.update(user.kept_calls)
        later_user.spends.update(user.spends)
        later_user.holds.update(user.holds)
        later_user.ended.update(user.ended)
    expire_due(after.users[ALICE])
    return after


def expire_due(user):
    """Ends all due holds, like a batch that has room for them."""
    opened = [hold for hold in user.holds.values() if hold.state == "held"]
    due = [hold for hold in opened if hold.expires_at <= user.now]
    later = [hold.expires_at for hold in opened if hold.expires_at > user.now]
    if due:
        in_order = sorted(due, key=lambda hold: (hold.expires_at, hold.seq))
        settle(user, in_order, (), TERMS, next_end=min(later, default=None), next_lapse=None)


def given(balance=0, *steps, terms=TERMS):
    return Given(balance, steps, terms)


@dataclass(frozen=True)
class Posts:
    """An entry of this type: its changes of balance and held, and both after it.

    The hold that it leaves, if it is about one: its state and the captured credits.
    """

    type: str
    changes: tuple[int, int]
    after: tuple[int, int]
    hold: tuple[str, int] | None = None
    late: bool = False


@dataclass(frozen=True)
class Replays:
    """The entry with this seq in Alice's book, and the hold as it is now."""

    seq: int
    hold: tuple[str, int]
    late: bool = False


@dataclass(frozen=True)
class Invalid:
    """An InvalidRequest that names this field; its words are for people."""

    field: str


def policy(*, limits=NO_LIMITS, **changes):
    """The change of the account row that sets its policy."""
    return {"policy": Policy(limits=limits, **changes)}


FROZEN = policy(frozen=True)
LIMITED = policy(limits=SpendLimits(minute=10))
LATE = QUARTER + INSTANT


def judge(before, command, expected, *, same_batch):
    """Checks that a row gives its result, once validated and once for real."""
    state = before.state(same_batch=same_batch)
    unchanged, entries = repr(state), dict(state.users[ALICE].spends)
    known = isinstance(command, Keyed) and remembers(state, command)
    seq = _seq(state, command)
    validated = answer(state, replace(command, validate_only=True), before.terms)
    assert repr(state) == unchanged
    got = answer(state, command, before.terms)
    match expected:
        case Invalid(name):
            assert isinstance(got, InvalidRequest)
            assert got.field == name
            assert asdict(validated) == asdict(got)
            assert repr(state) == unchanged
        case Refusal():
            assert (type(got), asdict(got)) == (type(expected), asdict(expected))
            assert asdict(validated) == asdict(expected)
            assert repr(state) == unchanged
        case Replays():
            assert got.replayed
            assert got.entry == entries[expected.seq].entry
            assert (got.hold.state, got.hold.captured) == expected.hold
            assert got.late == expected.late
            assert validated == got
            assert (repr(state) if known else without_kept_key(state, command)) == unchanged
        case Posts():
            entry = got.entry
            changes = entry.balance_change, entry.held_change
            after = entry.balance_after, entry.held_after
            shown = got.hold and (got.hold.state, got.hold.captured)
            assert Posts(entry.type, changes, after, shown, got.late) == expected
            assert (entry.seq, got.replayed) == (seq + 1, False)
            assert (got.account.balance, got.account.held, got.account.seq) == (*after, seq + 1)
            assert got.account == state.users[ALICE].account
            assert state.users[ALICE].posted[-1] == entry
            assert validated.entry == entry
            assert not validated.replayed
            adds_up(state)


def _seq(state, command):
    user = state.users.get(command.user_id)
    return user.account.seq if user else None


def answer(state, command, terms):
    try:
        return decide(state, command, terms)
    except Refusal as refusal:
        return refusal


def adds_up(state):
    """Checks that Alice's row agrees with her holds, and each hold with its entries."""
    alice = state.users[ALICE]
    account = alice.account
    open_holds = [hold for hold in alice.holds.values() if hold.state == "held"]
    assert account.open_holds == len(open_holds)
    assert account.held == sum(h.amount for h in open_holds)
    if open_holds:
        assert account.next_hold_expiry <= min(h.expires_at for h in open_holds)
    for value in alice.holds.values():
        assert (value.settled_seq is None) == (value.state == "held")
        assert (value.captured > 0) == (value.captured_seq is not None)
