"""The rules of holds against the model: random batches, repeated, altered, and time moving on.

Every ordinary run draws the same examples (derandomized); with `--long` each run draws new ones.
"""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st
from kit.extent import extent, unless_long
from kit.rule_tables import remembers, without_kept_key
from model.drawn_holds import (
    ALICE,
    CAP,
    POLICIES,
    TERMS,
    UNIT_COSTS,
    Again,
    as_command,
    as_done,
    as_line,
    as_refused,
    asked,
    opening,
    steps,
)
from model.holds import ModelHolds, Refused, Request

from credit_service.errors import Refusal
from credit_service.rules.batch_state import BatchState
from credit_service.rules.commands import Capture, Extend, Keyed, Refund, Release
from credit_service.rules.decide import decide
from credit_service.rules.due import settle
from credit_service.rules.model import Account, Spent

SINCE = datetime(2026, 1, 1, tzinfo=UTC)


@dataclass(frozen=True)
class Batch:
    """A batch, with the seconds since the one before and the most due holds that it ends."""

    seconds: int
    steps: list[Request | Again]
    expiries: int = 100


class Book:
    """The rows that were written; a batch loads only those that it refers to."""

    def __init__(self):
        self.account = Account(ALICE)
        self.entries = {}
        self.refunded = {}
        self.holds = {}
        self.kept = {}

    def state(self, now, commands, expiries):
        keys = {getattr(command, "idempotency_key", None) for command in commands}
        by_key = {
            entry.idempotency_key: entry
            for entry in self.entries.values()
            if entry.idempotency_key in keys and entry.idempotency_key is not None
        }
        kept = {key: self.kept[key] for key in keys & self.kept.keys()}
        by_key |= {key: self.entries[seq] for key, (seq, _) in kept.items()}
        spends = {c.spend_seq for c in commands if isinstance(c, Refund)}
        named = {c.hold_seq for c in commands if isinstance(c, Capture | Release | Extend)}
        named |= {entry.hold_seq for entry in by_key.values()}
        loaded = {seq: hold for seq, hold in self.holds.items() if seq in named}
        ended = {
            seq: self.entries[hold.settled_seq]
            for seq, hold in loaded.items()
            if hold.settled_seq is not None
        }
        due = self.account.next_hold_expiry
        state = BatchState.of(now, self.account)
        alice = state.users[ALICE]
        alice.by_key.update(by_key)
        alice.kept_calls.update({key: call for key, (_, call) in kept.items()})
        for seq in spends & self.entries.keys():
            alice.spends[seq] = Spent(self.entries[seq], self.refunded.get(seq, 0))
        alice.holds.update(loaded)
        alice.ended.update(ended)
        if due is not None and due <= now:
            opened = [hold for hold in self.holds.values() if hold.state == "held"]
            ended = [hold for hold in opened if hold.expires_at <= now]
            ended = sorted(ended, key=lambda hold: (hold.expires_at, hold.seq))[:expiries]
            later = [hold.expires_at for hold in opened if hold not in ended]
            alice.more_due = any(end <= now for end in later)
            next_expiry = ended[-1].expires_at if alice.more_due else min(later, default=None)
            settle(alice, ended, (), TERMS, next_end=next_expiry, next_lapse=None)
        return state

    def write(self, state):
        alice = state.users[ALICE]
        for entry in alice.posted:
            assert entry.seq not in self.entries
            self.entries[entry.seq] = entry
        self.kept |= {kept.key: (kept.seq, kept.call) for kept in alice.kept_keys}
        # An unchanged account is not written.
        if alice.is_changed:
            self.account = alice.account
        self.refunded |= {seq: alice.spends[seq].refunded for seq in alice.refunded}
        self.holds |= {seq: alice.holds[seq] for seq in alice.changed_holds}

    def adds_up(self):
        account, entries = self.account, [self.entries[seq + 1] for seq in range(self.account.seq)]
        assert len(entries) == len(self.entries)
        assert account.balance == sum(entry.balance_change for entry in entries)
        assert account.held == sum(entry.held_change for entry in entries) >= 0
        opened = [hold for hold in self.holds.values() if hold.state == "held"]
        assert account.held == sum(hold.amount for hold in opened)
        assert account.open_holds == len(opened) <= CAP
        assert (account.next_hold_expiry is None) == (not opened)
        if opened:
            assert account.next_hold_expiry <= min(hold.expires_at for hold in opened)
        for hold in self.holds.values():
            about = [entry for entry in entries if entry.hold_seq == hold.seq]
            ends = [entry for entry in about if entry.held_change < 0]
            captures = [entry for entry in about if entry.type == "capture"]
            assert [entry.seq for entry in ends] == ([hold.settled_seq] if hold.settled_seq else [])
            assert [entry.seq for entry in captures] == (
                [hold.captured_seq] if hold.captured_seq else []
            )
            assert hold.captured == sum(entry.amount for entry in captures)
            assert hold.expires_at - hold.created_at <= timedelta(hours=72)


def rules_agree_with_the_model(credits_, batches):
    book, model, earlier, now = Book(), ModelHolds(UNIT_COSTS, cap=CAP), [], 0
    for batch in [Batch(0, opening(credits_)), *batches]:
        now += batch.seconds
        requests = asked(batch.steps, earlier)
        commands = [as_command(request) for request in requests]
        state = book.state(SINCE + timedelta(seconds=now), commands, batch.expiries)
        while state.users[ALICE].more_due:
            book.write(state)
            book.adds_up()
            state = book.state(SINCE + timedelta(seconds=now), commands, batch.expiries)
        for request, command in zip(requests, commands, strict=True):
            before = repr(state)
            known = isinstance(command, Keyed) and remembers(state, command)
            try:
                outcome = decide(state, command, TERMS)
            except Refusal as refusal:
                answer = as_refused(refusal)
                event(refusal.reason)
            else:
                answer = as_done(outcome, request)
                event(f"{request.call} {'again' if answer.replayed else 'new'}")
                if outcome.late:
                    event("late")
            assert answer == model.take(request, now)
            if isinstance(answer, Refused) or request.validate_only or (answer.replayed and known):
                assert repr(state) == before
            elif answer.replayed:
                assert without_kept_key(state, command) == before
                event("key kept")
            account = state.users[ALICE].account
            assert (account.balance, account.held) == (model.balance, model.held)
            assert account.open_holds == len(model.open)
        if requests:
            assert [as_line(entry) for entry in state.posted] == [
                line for _, line in model.lines[book.account.seq :]
            ]
            book.write(state)
            book.adds_up()
            written = [as_line(book.entries[seq + 1]) for seq in range(book.account.seq)]
            assert written == [line for _, line in model.lines]
            for seq, hold in book.holds.items():
                assert hold.expires_at == SINCE + timedelta(seconds=model.ends[seq])


_BATCHES = st.lists(
    st.builds(
        Batch,
        st.sampled_from([0, 1, 1, 2, 5, 80_000]),
        st.lists(
            steps(st.sampled_from([1, 2, 3, 10, 10, 86_400])) | POLICIES, min_size=1, max_size=6
        ),
        st.sampled_from([1, 2, 100]),
    ),
    min_size=3,
    max_size=12,
)
_OPENINGS = st.sampled_from([4, 10, 10, 30])


@settings(derandomize=True, max_examples=unless_long(100, 300))
@given(_OPENINGS, _BATCHES)
def test_the_rules_of_holds_agree_with_the_model(credits_, batches):
    rules_agree_with_the_model(credits_, batches)


@pytest.mark.long
@pytest.mark.timeout(900)
@settings(database=None, max_examples=extent(400, 4_000))
@given(_OPENINGS, _BATCHES)
def test_the_rules_of_holds_agree_with_the_model_over_many_sequences(credits_, batches):
    rules_agree_with_the_model(credits_, batches)
