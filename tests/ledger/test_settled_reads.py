"""Reads add up due expiries and lapses in one statement; the rules later settle them one by one.

Random histories run through the lanes, time passes, and everything is read before and after the
due changes are recorded. Every ordinary run draws the same histories (derandomized).
"""

from itertools import pairwise

import pytest
from hypothesis import HealthCheck, Phase, event, example, given, settings
from hypothesis import strategies as st
from kit.clock import move_clock
from kit.commands import opened_by_floor
from kit.extent import extent
from kit.rule_tables import TERMS
from model.drawn_grants import AMOUNTS, LENGTHS, PAID_MINOR, Step, histories
from model.lane_histories import MINUTE, History, recorded

from credit_service.rules.terms import Terms


async def everything_read(reads, user, moments):
    """The account as it is now, and the account and the report as of each moment."""
    account, _, expiring, _ = await reads.account_with_entries(user, 0)
    shared = await reads.account(user)
    now = (account.balance, account.held, account.in_grants, account.pinned, account.open_grants)
    assert now == (shared.balance, shared.held, shared.in_grants, shared.pinned, shared.open_grants)
    past = []
    for moment in moments:
        then, _, lapsing = await reads.account_at(user, moment, 0)
        dated, pools = await reads.grants.liability(moment)
        past.append((then.balance, then.held, lapsing, dated, pools))
    return now, expiring, past


async def moments_of(database, user):
    """The present, the times of holds and grants that have passed, and times between them."""
    rows = await database.fetch(
        """
        WITH times AS (
            SELECT expires_at AS time FROM credit_holds WHERE user_id = $1
            UNION SELECT expire_time FROM credit_grants WHERE user_id = $1
            UNION SELECT last_updated FROM user_credits WHERE user_id = $1
            UNION SELECT now()
        )
        SELECT time FROM times
        WHERE time BETWEEN (SELECT last_updated FROM user_credits WHERE user_id = $1) AND now()
        ORDER BY time
        """,
        user,
    )
    times = [row[0] for row in rows]
    between = [one + (two - one) / 2 for one, two in pairwise(times)]
    return [*times, *between]


FLOORS = (0, -5)


@pytest.fixture
async def by_floor(database):
    terms = {floor: Terms(TERMS.prices, floor) for floor in FLOORS}
    async with opened_by_floor(database, terms) as opened:
        yield opened


async def reads_show_what_is_then_recorded(by_floor, floor, steps, minutes):
    database, opened = by_floor
    clerk, reads = opened[floor]
    user = await database.user()
    history = History(database, clerk, user)
    for step in steps:
        await history.tell(step)
    await move_clock(database, user, minutes * MINUTE)
    moments = await moments_of(database, user)
    before = await everything_read(reads, user, moments)
    [account] = await database.fetch("SELECT * FROM user_credits WHERE user_id = $1", user) or [{}]
    await recorded(clerk, database, user)
    assert await everything_read(reads, user, moments) == before
    lines = await database.fetch(
        "SELECT call FROM credit_transactions WHERE user_id = $1 AND seq > $2",
        user,
        account.get("seq", 0),
    )
    for call in {row[0] for row in lines}:
        event(call)
    if lines and account["balance"] < account["in_grants"]:
        event("with a debt")
    assert not await database.faults()
    # Keeps the next example's reads of all users short.
    await database.execute("DELETE FROM auth.users WHERE id = $1", user)


_HISTORIES = settings(
    database=None,
    # A smaller history would take minutes to find.
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


def _at_once(call, **fields):
    return st.builds(Step, st.just(0), st.just(call), st.fixed_dictionaries(fields), st.just(0))


# The last steps, all due later: credits, holds that reserve them, and debt.
_LAST = st.lists(
    st.one_of(
        _at_once("grant", amount=AMOUNTS, lasts=LENGTHS),
        _at_once("grant", amount=AMOUNTS, lasts=LENGTHS, priority=st.just(60)),
        *[_at_once("hold", amount=AMOUNTS, ttl=LENGTHS)] * 3,
        _at_once("revoke"),
        _at_once("adjust", amount=AMOUNTS.map(lambda n: -n), allow_debt=st.just(True)),
    ),
    min_size=4,
    max_size=12,
)
_DRAWN = {
    "floor": st.sampled_from(FLOORS),
    "steps": st.builds(list.__add__, histories(shortest=2, longest=15), _LAST),
    "minutes": st.sampled_from([1, 2, 3, 5, 8, 13, 90]),
}

# Two holds end, and the credits of the first pay the whole debt.
_IN_DEBT = [
    Step(0, "purchase", {"amount": 6, "payment": "pi_1"}),
    Step(0, "spend", {"amount": 6}),
    Step(0, "grant", {"amount": 6, "lasts": MINUTE}),
    Step(0, "hold", {"amount": 6, "ttl": 6}),
    Step(0, "grant", {"amount": 6, "lasts": 7}),
    Step(0, "hold", {"amount": 6, "ttl": 8}),
    Step(0, "reverse", {"reversal": "re_1", "revision": 1, "minor": PAID_MINOR}),
]


@example(floor=0, steps=_IN_DEBT, minutes=7)
@example(floor=0, steps=_IN_DEBT, minutes=9)
@settings(_HISTORIES, derandomize=True, max_examples=extent(15, 15))
@given(**_DRAWN)
async def test_a_read_shows_due_changes_as_later_recorded(by_floor, floor, steps, minutes):
    await reads_show_what_is_then_recorded(by_floor, floor, steps, minutes)


@pytest.mark.long
@pytest.mark.timeout(900)
@settings(_HISTORIES, max_examples=extent(100, 500))
@given(**_DRAWN)
async def test_many_reads_show_due_changes_as_later_recorded(by_floor, floor, steps, minutes):
    await reads_show_what_is_then_recorded(by_floor, floor, steps, minutes)
