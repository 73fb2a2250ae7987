"""The database's clock is set back and put right again, in the middle of any history.

Nothing is lost, doubled or below what the law allows: the ledger adds up, reads show due holds and
lapses as they are later recorded, and no allowance comes twice.
"""

from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import HealthCheck, Phase, event, given, settings
from hypothesis import strategies as st
from kit.clock import move_clock
from kit.commands import opened_by_floor
from kit.extent import extent
from kit.rule_tables import TERMS
from model.drawn_grants import histories
from model.lane_histories import MINUTE, History, recorded

from credit_service.ledger.verify import verify
from credit_service.rules.grant_values import Allowance

DAY = 24 * 60
DAILY = Allowance(2, "day")


FLOORS = (0, -5)


@pytest.fixture
async def by_floor(database):
    terms = {floor: replace(TERMS, min_balance=floor, allowance=DAILY) for floor in FLOORS}
    async with opened_by_floor(database, terms) as opened:
        yield opened


async def nothing_is_lost_when_the_clock_goes_back(by_floor, floor, steps, moves):
    database, opened = by_floor
    clerk, reads = opened[floor]
    user = await database.user()
    history = History(database, clerk, user)
    for place, step in enumerate(steps):
        if place in moves:
            await move_clock(database, user, moves[place] * MINUTE)
            event("set back" if moves[place] < 0 else "put right")
        await history.tell(step)
    before, _, expiring, _ = await reads.account_with_entries(user, 0)
    await recorded(clerk, database, user)
    after, _, lapsing, _ = await reads.account_with_entries(user, 0)
    assert (after.balance, after.held, lapsing) == (before.balance, before.held, expiring)
    assert after.balance - after.in_grants >= 0 or after.in_grants == after.pinned
    given_ = await database.fetch(
        "SELECT entry.timestamp, granted.asked_time FROM credit_transactions AS entry"
        " INNER JOIN credit_grants AS granted USING (user_id, seq)"
        " WHERE entry.user_id = $1 AND entry.call = 'allowance' ORDER BY seq",
        user,
    )
    for one, next_one in pairwise(given_):
        assert next_one["timestamp"] >= one["asked_time"]
    assert not await database.faults()
    faults = []
    assert (await verify(database.connection, user, faults.append, print))[1] == 0, faults
    # Keeps the sums after the next example short.
    await database.execute("DELETE FROM auth.users WHERE id = $1", user)


_MOVES = st.sampled_from([-1, -2, -5, -60, -2 * DAY, 1, 5, 60, DAY, 2 * DAY])
_DRAWN = {
    "floor": st.sampled_from(FLOORS),
    "steps": histories(shortest=5, longest=25),
    "moves": st.dictionaries(st.integers(0, 25), _MOVES, min_size=3, max_size=12),
}
_HISTORIES = settings(
    database=None,
    # A smaller history would take minutes to find.
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@settings(_HISTORIES, derandomize=True, max_examples=extent(10, 10))
@given(**_DRAWN)
async def test_a_clock_that_is_set_back_loses_and_doubles_nothing(by_floor, floor, steps, moves):
    await nothing_is_lost_when_the_clock_goes_back(by_floor, floor, steps, moves)


@pytest.mark.long
@pytest.mark.timeout(900)
@settings(_HISTORIES, max_examples=extent(80, 400))
@given(**_DRAWN)
async def test_a_clock_that_is_often_set_back_loses_and_doubles_nothing(
    by_floor, floor, steps, moves
):
    await nothing_is_lost_when_the_clock_goes_back(by_floor, floor, steps, moves)
