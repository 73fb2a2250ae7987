"""Two services on one book against the model of holds: random requests, all at once.

Every ordinary run draws the same requests (derandomized); they interleave at random.
With `--long` there are more, drawn at random each time, and many more with `--full`.
"""

import asyncio

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from kit.extent import extent
from kit.services import running, server_settings
from kit.waiting import patience
from model.drawn_holds import (
    CAP,
    TERMS,
    UNIT_COSTS,
    asked,
    call,
    opening,
    steps,
)
from model.holds import ModelHolds

from credit_service.errors import CreditError, Refusal
from credit_service.ledger.verify import verify


@pytest.fixture
async def kept(database):
    """The database by one connection, for all examples."""
    async with database.kept_open() as kept:
        yield kept


async def services_agree_with_the_model(database, waves):
    user = await database.user()
    # A busy machine must not make a call fail: the model cannot know whether it had an effect.
    await database.wait_longer_for_locks()
    settings_ = server_settings(database.service_url, terms=TERMS)
    earlier = []
    async with running(settings_) as one, running(settings_) as other:
        clients = [await each.client(deadline_seconds=patience(60)) for each in (one, other)]
        seen = [(request, await call(clients[0], user, request)) for request in opening(12)]
        for wave in waves:
            requests = asked(wave, earlier)
            calls = [(clients[n % 2], user, request) for n, request in enumerate(requests)]
            answers = await asyncio.gather(*(call(*each) for each in calls))
            seen += zip(requests, answers, strict=True)
            # During such a wait some holds end; the assertions hold for any other wait too.
            await asyncio.sleep(0.4)
    await the_book_is_one_the_model_would_write(database, user, seen)
    assert not await database.faults()
    said = []
    [[accounts]] = await database.fetch("SELECT count(*) FROM user_credits")
    assert await verify(database.connection, None, said.append, said.append) == (accounts, 0), said


async def the_book_is_one_the_model_would_write(database, user, seen):
    """Runs the model over the book, line by line; each answer must match one of its states."""
    rows = await database.fetch(
        "SELECT * FROM credit_transactions WHERE user_id = $1 ORDER BY seq", user
    )
    kept = {
        row["seq"]: row
        for row in await database.fetch("SELECT * FROM credit_holds WHERE user_id = $1", user)
    }
    model = ModelHolds(UNIT_COSTS, cap=CAP)
    by_key = {}
    for request, answer in seen:
        if isinstance(answer, Exception) or request.call == "ExtendHold" or request.validate_only:
            continue
        if not answer.replayed:
            assert request.key not in by_key, f"{request} was new to two callers"
            by_key[request.key] = request
    for row in rows:
        time = row["timestamp"].timestamp()
        if len(model.lines) < row["seq"]:
            model.pass_time(time)
        if len(model.lines) < row["seq"]:
            model.take(by_key.pop(row["idempotency_key"]), time)
        if row["type"] == "hold":
            # Extensions are not entries. The last one counts, because it can only put off the end.
            model.ends[row["seq"]] = kept[row["seq"]]["expires_at"].timestamp()
        expected = model.lines[row["seq"] - 1][1]
        got = {
            name: row[name] for name in ("seq", "type", "amount", "balance_change", "held_change")
        }
        assert got == {name: getattr(expected, name) for name in got}
        assert (row["idempotency_key"], row["hold_seq"]) == (expected.key, expected.hold)
    assert not by_key, "acknowledged, but not in the book"
    assert len(model.lines) == len(rows)
    for seq, row in kept.items():
        assert (row["state"], row["captured"]) == (model.state(seq), model.captured(seq))
    lines = [line for _, line in model.lines]
    for request, answer in seen:
        says_what_the_book_says(model, lines, request, answer)


def says_what_the_book_says(model, lines, request, answer):
    if isinstance(answer, CreditError):
        assert isinstance(answer, Refusal), answer
        if answer.reason == "HOLD_NOT_ACTIVE":
            taken = model.captured(request.hold) > 0
            assert answer.state == ("CAPTURED" if taken else model.state(request.hold).upper())
        elif answer.reason == "HOLD_EXPIRED":
            assert model.state(request.hold) == "expired"
        return
    if request.call == "ExtendHold":
        assert answer.state == 1
        return
    if answer.replayed or not request.validate_only:
        line = lines[answer.transaction.seq - 1]
        assert (answer.transaction.amount, answer.transaction.held_change) == (
            line.amount,
            line.held_change,
        )
        if not answer.replayed:
            assert answer.transaction.idempotency_key == request.key
    after = lines[: answer.credit.seq]
    assert answer.credit.balance == sum(line.balance_change for line in after)
    assert answer.credit.held == sum(line.held_change for line in after)


_WAVES = st.lists(
    st.lists(
        steps(st.sampled_from([1, 1, 2, 60])),
        min_size=4,
        max_size=12,
    ),
    min_size=3,
    max_size=5,
)
# A failure of a race may not come back while it is shrunk, so it is shown as it was found.
_RACES = settings(
    database=None,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@pytest.mark.long
@settings(_RACES, derandomize=True, max_examples=8)
@given(waves=_WAVES)
async def test_two_services_keep_holds_as_the_model_does(kept, waves):
    await services_agree_with_the_model(kept, waves)


@pytest.mark.long
@pytest.mark.timeout(1800)
@settings(_RACES, max_examples=extent(6, 40))
@given(waves=_WAVES)
async def test_two_services_keep_holds_as_the_model_does_in_a_storm(kept, waves):
    await services_agree_with_the_model(kept, waves)
