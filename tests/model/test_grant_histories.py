"""The plain model of single credits: histories with ends worked out by hand, and its law."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from model.drawn_grants import FLOORS, GRACE, Told, histories
from model.grant_credits import Refused
from model.grant_histories import HISTORIES
from model.grant_law import require_the_law
from model.grants import ModelGrants


def _ask(model, step, seqs):
    if step.call == "look":
        model.look(step.seconds)
        return None
    line = model.take(step.call, step.seconds, **step.asked(seqs))
    return line and line.seq


@pytest.mark.parametrize("name", HISTORIES)
def test_the_model_ends_a_history_as_worked_out_by_hand(name):
    history = HISTORIES[name]
    model, seqs, refused = ModelGrants(floor=history.floor), [], {}
    for place, step in enumerate(history.steps):
        try:
            seqs.append(_ask(model, step, seqs))
        except Refused as refusal:
            refused[place] = refusal.reason
            seqs.append(None)
        require_the_law(model)
    assert refused == history.refused
    assert model.pool == history.end.pool
    assert tuple(grant.remaining for grant in model.grants.values()) == history.end.grants
    assert model.held == history.end.held


def keeps_the_law_whenever_it_is_looked_at(floor, steps, looks):
    seldom = Told(ModelGrants(floor=floor, grace=GRACE))
    often = Told(ModelGrants(floor=floor, grace=GRACE))
    for place, step in enumerate(steps):
        for seconds in sorted(looks.get(place, ())):
            if seconds <= step.seconds:
                often.model.look(often.now + seconds, posts_allowance=False)
        told = seldom.tell(step)
        assert often.tell(step) == told
        require_the_law(seldom.model)
        require_the_law(often.model)
        if told is not None:
            assert _state(seldom.model) == _state(often.model)


def _state(model):
    grants = [(g.remaining, len(g.pinned), g.expire, g.lapsed) for g in model.grants.values()]
    return model.pool, model.held, grants, [line.balance_change for line in model.lines]


_LOOKS = st.dictionaries(st.integers(0, 30), st.lists(st.integers(0, 5), max_size=2), max_size=12)


@settings(derandomize=True, max_examples=50)
@given(FLOORS, histories(allowances=True), _LOOKS)
def test_the_model_keeps_the_law_at_every_look(floor, steps, looks):
    keeps_the_law_whenever_it_is_looked_at(floor, steps, looks)


@pytest.mark.long
@pytest.mark.timeout(900)
@settings(database=None, max_examples=2_000)
@given(FLOORS, histories(allowances=True, longest=80), _LOOKS)
def test_the_model_keeps_the_law_over_many_histories(floor, steps, looks):
    keeps_the_law_whenever_it_is_looked_at(floor, steps, looks)
