"""The rules against the model: random batches of requests, repeated, altered and mixed by user.

Every ordinary run draws the same examples (derandomized), so that it fails today if it fails at
all; with `--long` new ones are drawn each time, and Hypothesis prints how to repeat a failure.
"""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from uuid import UUID

import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st
from kit.extent import extent, unless_long
from kit.rule_tables import remembers, without_kept_key
from model.drawn import ALICE, BOB, GIVEN_KEY, STEPS, Again, as_entry, as_prices, as_refused, asked
from model.ledger import BALANCE_LIMIT, Done, ModelLedger, Refused, Request

from credit_service.errors import Refusal
from credit_service.rules import model
from credit_service.rules.batch_state import BatchState
from credit_service.rules.commands import Charge, Purchase, Refund, Spend
from credit_service.rules.decide import decide
from credit_service.rules.model import Account, Payment, Purchased, Spent
from credit_service.rules.pricing import Price, PriceList
from credit_service.rules.terms import Terms

SINCE = datetime(2026, 1, 1, tzinfo=UTC)


def _terms(min_balance=0, **unit_costs):
    listed = {name: Price(cost, "piece") for name, cost in unit_costs.items()}
    return Terms(PriceList(listed), min_balance)


TERMS_IN_TURN = (
    _terms(stem_separation=3, render=2),
    _terms(stem_separation=4),
    _terms(stem_separation=3, render=2, mastering=1, min_balance=2),
    _terms(stem_separation=3, render=1, min_balance=-3),
)
OPENING_BALANCES = (0, 3, 12, 20, 20, -4, BALANCE_LIMIT - 2, -BALANCE_LIMIT)


@dataclass(frozen=True)
class Batch:
    """The requests of one transaction, its terms and clock; a user may be deleted before it."""

    steps: list[Request | Again]
    terms: Terms
    clock_seconds: int
    deleted: UUID | None


BATCHES = st.lists(
    st.builds(
        Batch,
        st.lists(STEPS, min_size=2, max_size=8),
        st.sampled_from([TERMS_IN_TURN[0], *TERMS_IN_TURN]),
        st.integers(-2, 3),
        st.sampled_from([None] * 8 + [BOB]),
    ),
    min_size=2,
    max_size=8,
)


class Book:
    """The rows that were written; a batch loads only those that it refers to."""

    def __init__(self):
        self.accounts = {ALICE: Account(ALICE), BOB: Account(BOB)}
        self.entries = {}
        self.refunded = {}
        self.bought = {}
        self.kept = {}

    def open(self, user, balance):
        self.accounts[user] = Account(user, balance, 0, 1, SINCE)
        self.entries[user, 1] = model.Entry(
            user_id=user,
            seq=1,
            type="grant" if balance > 0 else "reversal",
            call="adopted",
            amount=abs(balance),
            requested_amount=None,
            balance_change=balance,
            held_change=0,
            balance_after=balance,
            held_after=0,
            floor=None,
            description="",
            timestamp=SINCE,
            operation=None,
            quantity=None,
            unit_cost=None,
            price_version=None,
            reference="",
            metadata={},
            related_seq=None,
            idempotency_key=GIVEN_KEY,
            caller="migration",
            payment=None,
        )

    def delete(self, user):
        self.accounts.pop(user)
        self.entries = {entry_id: e for entry_id, e in self.entries.items() if entry_id[0] != user}
        self.kept = {place: kept for place, kept in self.kept.items() if place[0] != user}

    def state(self, now, commands):
        users = {command.user_id for command in commands}
        keys = {(command.user_id, command.idempotency_key) for command in commands}
        spend_ids = {(c.user_id, c.spend_seq) for c in commands if isinstance(c, Refund)}
        refs = {c.payment.ref for c in commands if isinstance(c, Purchase) and c.payment}
        state = BatchState.of(now, *(a for user, a in self.accounts.items() if user in users))
        for (user_id, seq), entry in self.entries.items():
            if (user_id, entry.idempotency_key) in keys:
                state.users[user_id].by_key[entry.idempotency_key] = entry
            if (user_id, seq) in spend_ids:
                spent = Spent(entry, self.refunded.get((user_id, seq), 0))
                state.users[user_id].spends[seq] = spent
        for user_id, key in keys & self.kept.keys():
            seq, call = self.kept[user_id, key]
            user = state.users[user_id]
            user.by_key[key], user.kept_calls[key] = self.entries[user_id, seq], call
        for ref, bought in self.bought.items():
            if ref in refs:
                entry = self.entries.get((bought.user_id, bought.seq))
                state.purchases[ref] = bought._replace(entry=entry)
        return state

    def write(self, state):
        for entry in state.posted:
            entry_id = entry.user_id, entry.seq
            assert entry_id not in self.entries
            self.entries[entry_id] = entry
        for user_id, user in state.users.items():
            self.accounts[user_id] = user.account
            for kept in user.kept_keys:
                assert (user_id, kept.key) not in self.kept
                self.kept[user_id, kept.key] = kept.seq, kept.call
            for seq in user.refunded:
                self.refunded[user_id, seq] = user.spends[seq].refunded
        for ref, bought in state.bought.items():
            assert ref not in self.bought
            self.bought[ref] = Purchased(bought.user_id, bought.seq, bought.amount, None)

    def adds_up(self, user):
        account = self.accounts[user]
        entries = [self.entries[user, seq] for seq in range(1, account.seq + 1)]
        assert account.balance == sum(entry.balance_change for entry in entries)
        assert account.held == sum(entry.held_change for entry in entries) == 0
        times = [entry.timestamp for entry in entries]
        assert times == sorted(times)
        assert account.last_updated == (times[-1] if times else None)
        for entry in entries:
            if entry.type == "spend":
                assert entry.balance_after - entry.held_after >= entry.floor
                given_back = sum(e.amount for e in entries if e.related_seq == entry.seq)
                assert given_back == self.refunded.get((user, entry.seq), 0) <= entry.amount


def as_command(request):
    """A request as the servicer gives it to the rules."""
    common = {
        "user_id": request.user,
        "idempotency_key": request.key,
        "description": request.note,
        "reference": request.note,
        "metadata": {"note": request.note} if request.note else {},
        "validate_only": request.validate_only,
        "caller": "test",
    }
    match request.call:
        case "PurchaseCredits":
            payment = Payment(request.payment, 100, "eur") if request.payment else None
            return Purchase(**common, amount=request.amount, payment=payment)
        case "SpendCredits":
            charge = Charge(
                request.amount, request.operation, request.quantity, request.expected_cost
            )
            return Spend(**common, charge=charge)
        case _:
            return Refund(**common, spend_seq=request.transaction, amount=request.amount)


def rules_agree_with_the_model(openings, batches):
    book, ledger, earlier, now = Book(), ModelLedger((ALICE, BOB)), [], SINCE
    for user, balance in zip((ALICE, BOB), openings, strict=True):
        if balance:
            book.open(user, balance)
            ledger.open(user, GIVEN_KEY, balance)
    for batch in batches:
        now += timedelta(seconds=batch.clock_seconds)
        if batch.deleted in ledger.books:
            book.delete(batch.deleted)
            ledger.delete(batch.deleted)
        requests = asked(batch.steps, earlier)
        commands = [as_command(request) for request in requests]
        state = book.state(now, commands)
        for request, command in zip(requests, commands, strict=True):
            before, known = repr(state), remembers(state, command)
            try:
                outcome = decide(state, command, batch.terms)
            except Refusal as refusal:
                answer = as_refused(refusal)
                event(refusal.reason)
            else:
                answer = Done(as_entry(outcome.entry), outcome.replayed)
                assert outcome.account == state.users[request.user].account
                event("replayed" if outcome.replayed else request.call)
            assert answer == ledger.take(request, as_prices(batch.terms))
            if isinstance(answer, Refused) or request.validate_only or (answer.replayed and known):
                assert repr(state) == before
            elif answer.replayed:
                assert without_kept_key(state, command) == before
                event("key kept")
            else:
                assert state.users[request.user].posted[-1] == outcome.entry
                assert outcome.entry.floor == (
                    batch.terms.min_balance if outcome.entry.type == "spend" else None
                )
            for user_id, user in state.users.items():
                assert user.account.balance == ledger.balance(user_id)
                assert user.account.held == 0
        book.write(state)
        for user in book.accounts:
            book.adds_up(user)


_FORGETFUL = settings(database=None)
_OPENINGS = st.tuples(*(2 * [st.sampled_from(OPENING_BALANCES)]))


@settings(_FORGETFUL, derandomize=True, max_examples=unless_long(100, 300))
@given(_OPENINGS, BATCHES)
def test_the_rules_agree_with_the_model(openings, batches):
    rules_agree_with_the_model(openings, batches)


@pytest.mark.long
@pytest.mark.timeout(900)
@settings(_FORGETFUL, max_examples=extent(300, 1500))
@given(_OPENINGS, BATCHES)
def test_the_rules_agree_with_the_model_over_many_sequences(openings, batches):
    rules_agree_with_the_model(openings, batches)
