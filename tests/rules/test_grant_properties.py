"""The rules of grants against the model that keeps each credit as an object of its own.

Both are given the same random histories. After every batch they agree about the pool, about every
grant, every hold's pins and which credits paid for which entry, and the book adds up. Every
ordinary run draws the same examples (derandomized); with `--long` each run draws new ones.
"""

from dataclasses import dataclass, replace

import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st
from kit.extent import extent
from model.drawn_grants import FLOORS, GRACE, Told, histories
from model.drawn_holds import ALICE
from model.grant_book import GrantBook, as_command, terms, time
from model.grant_credits import NEVER
from model.grant_histories import GRACE_DAYS, HISTORIES
from model.grant_law import require_the_law
from model.grants import ModelGrants

from credit_service.errors import CreditError, Refusal
from credit_service.rules.commands import Charge, Keyed, Spend, SpendTogether
from credit_service.rules.decide import decide


@dataclass(frozen=True)
class Way:
    """How a history is given to the rules: the contents of batches, and when the sweeper runs.

    `sweeps` are seconds after the step before, by the step's place; `limit` is how many ends and
    lapses a batch settles. Steps at one time are one batch, but those in `apart` begin a new one.
    """

    sparse: bool
    limit: int
    sweeps: dict[int, int]
    apart: frozenset[int] = frozenset()


class Teller:
    """Gives a history to the rules, in batches of one step or more, and to the model."""

    def __init__(self, floor, way):
        self.model = ModelGrants(floor=floor, grace=GRACE)
        self.told = Told(self.model)
        self.book = GrantBook(terms(floor, GRACE), sparse=way.sparse, limit=way.limit)
        self.way = way
        # The seqs in the rules; `Told.made` has the seqs in the model.
        self.made = {"hold": [], "spent": []}
        # The next batch: the place of each step, its call, its fields and its refusal.
        self.batch = []

    def tell(self, place, step):
        if step.seconds or step.call == "look" or place in self.way.apart:
            self.decide()
        swept = self.way.sweeps.get(place, 0)
        if 0 < swept <= step.seconds:
            self._sweep(self.told.now + swept)
        answer = self.told.tell(step)
        if answer is None:
            return
        if step.call == "look":
            self._sweep(self.told.now)
        else:
            self._ask(place, step.call, *answer)
        require_the_law(self.model)
        if not self.batch:
            self.agree()

    def _sweep(self, seconds):
        self.book.write(self.book.state(time(seconds), [], looked_at=False))

    def _ask(self, place, call, fields, reason):
        try:
            named = self._named(fields, call)
        except IndexError:
            # It refers to an entry of this batch, which no caller knows before its answer.
            self._decide()
            named = self._named(fields, call)
        self.batch.append((call, as_command(call, named, f"key {place}"), reason))
        if call == "allowance":
            # Due ends and lapses are settled once, when a batch begins.
            self._decide()

    def decide(self):
        """Decides the steps since the last batch as one batch; then rules and model must agree."""
        if self.batch:
            self._decide()
            self.agree()

    def _decide(self):
        batch, self.batch = self.batch, []
        if len(batch) > 1:
            event("several in a batch")
        state = self.book.state(time(self.told.now), [command for _, command, _ in batch])
        for call, command, reason in batch:
            self._changes_nothing(state, command, reason)
            refused, outcome = _decided(state, command, self.book.terms)
            assert refused == reason
            event(refused or f"{call} {'again' if outcome.replayed else 'new'}")
            if outcome is not None:
                self._remember(call, outcome.entry)
        self.book.write(state)

    def _remember(self, call, entry):
        if call == "hold":
            self.made["hold"].append(entry.seq)
        elif call in {"spend", "capture"} and entry.type in {"spend", "capture"}:
            self.made["spent"].append(entry.seq)

    def _changes_nothing(self, state, command, reason):
        """A call that only validates, and an atomic batch with a refused spend, change nothing."""
        before = repr(state)
        if isinstance(command, Keyed):
            tried = [replace(command, validate_only=True)]
            if isinstance(command, Spend):
                too_much = replace(command, charge=Charge(10**12), idempotency_key="too much")
                who = {"user_id": ALICE, "caller": "test"}
                tried.append(SpendTogether(spends=(command, too_much), **who))
            for each in tried:
                refused, outcome = _decided(state, each, self.book.terms)
                if isinstance(each, SpendTogether):
                    assert all(isinstance(part, CreditError) for part in outcome.parts)
                else:
                    assert refused == reason
                assert repr(state) == before

    def _named(self, fields, call):
        named = dict(fields)
        if "hold" in named:
            named["hold"] = self.made["hold"][named["hold"]]
        if "line" in named:
            named["line"] = self.made["spent"][named["line"]]
        if "grant" in named:
            named["grant"] = list(self.book.grants)[named["grant"]]
        if call == "reverse":
            named["payment"] = self.told.made["payment"][named["payment"]]
        return named

    def agree(self):
        """Asserts that the book of the rules and the model agree about every credit."""
        account, model, book = self.book.account, self.model, self.book
        assert (account.balance, account.held) == (model.balance, model.held)
        assert (account.in_grants, account.pinned) == (model.in_grants, model.pinned)
        places = {seq: place for place, seq in enumerate(book.grants)}
        grants = [
            (
                grant.amount,
                grant.remaining,
                grant.pinned,
                NEVER if grant.expire_time is None else grant.expire_time,
                grant.revoked,
                grant.lapsed,
                grant.counted,
            )
            for grant in book.grants.values()
        ]
        assert grants == [
            (
                grant.amount,
                grant.remaining,
                len(grant.pinned),
                NEVER if grant.expire == NEVER else time(grant.expire),
                grant.revoked,
                grant.lapsed,
                grant.purchase.counted if grant.purchase else 0,
            )
            for grant in model.grants.values()
        ]
        model_places = {grant: place for place, grant in enumerate(model.grants.values())}
        pins = self.book.pins
        for seq, modelled in zip(self.made["hold"], self.told.made["hold"], strict=True):
            hold = model.holds[modelled]
            expected = [model_places[credit.grant] for credit in hold.pins]
            held = pins.get(seq, {}) if hold.state == "held" else {}
            paid = [places[grant] for grant, many in held.items() for _ in range(many)]
            assert sorted(paid) == (sorted(expected) if hold.state == "held" else [])
            assert book.holds[seq].state == hold.state
        for seq, modelled in zip(self.made["spent"], self.told.made["spent"], strict=True):
            drawn = [
                places[change.grant_seq]
                for change in book.changes
                if change.seq == seq
                for _ in range(-change.remaining_change)
            ]
            line = model.lines[modelled - 1]
            assert sorted(drawn) == sorted(model_places[credit.grant] for credit in line.drawn)


def _decided(state, command, terms):
    """The reason of a refusal (None without one), and the outcome."""
    try:
        return None, decide(state, command, terms)
    except Refusal as refusal:
        return refusal.reason, None


def rules_agree_with_the_model(floor, steps, way):
    teller = Teller(floor, way)
    for place, step in enumerate(steps):
        teller.tell(place, step)
    teller.decide()


@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("name", HISTORIES)
def test_the_rules_end_a_history_as_worked_out_by_hand(name, sparse):
    history = HISTORIES[name]
    book = GrantBook(terms(history.floor, GRACE_DAYS * 86_400), sparse=sparse)
    seqs, refused = [], {}
    for place, step in enumerate(history.steps):
        seqs.append(None)
        commands = []
        if step.call != "look":
            commands = [as_command(step.call, step.asked(seqs), f"key {place}")]
        state = book.state(time(step.seconds), commands, looked_at=bool(commands))
        for command in commands:
            reason, outcome = _decided(state, command, book.terms)
            if reason is not None:
                refused[place] = reason
            elif outcome.entry is not None:
                seqs[-1] = outcome.entry.seq
        book.write(state)
    account = book.account
    assert refused == history.refused
    assert account.balance - account.in_grants == history.end.pool
    assert tuple(grant.remaining for grant in book.grants.values()) == history.end.grants
    assert account.held == history.end.held


_WAYS = st.builds(
    Way,
    st.booleans(),
    st.sampled_from([1, 2, 500]),
    st.dictionaries(st.integers(0, 30), st.integers(1, 5), max_size=12),
    st.frozensets(st.integers(0, 80), max_size=40),
)


@settings(derandomize=True, max_examples=50)
@given(FLOORS, histories(allowances=True), _WAYS)
def test_the_rules_of_grants_agree_with_the_model(floor, steps, way):
    rules_agree_with_the_model(floor, steps, way)


@pytest.mark.long
@pytest.mark.timeout(900)
@settings(database=None, max_examples=extent(200, 2_000))
@given(FLOORS, histories(allowances=True, longest=80), _WAYS)
def test_the_rules_of_grants_agree_with_the_model_over_many_histories(floor, steps, way):
    rules_agree_with_the_model(floor, steps, way)
