"""Random changes of plan, delivered with every fault, compared with shares of months.

Every run draws the same lives and deliveries. With `--long` there are more, some of them drawn
differently each time.
"""

import itertools
import random
import time
from dataclasses import dataclass
from datetime import UTC, datetime

import pytest
from hypothesis import HealthCheck, Phase, example, given, settings
from hypothesis import strategies as st
from kit.extent import extent, unless_long
from kit.stripe_fakes import fake_stripe
from kit.stripe_lives import events_as_sent
from kit.stripe_plans import Change, Plan, PlanLife
from kit.stripe_postmen import hired

from stripe_bridge.catalog import Catalog, Listed, Policy
from stripe_bridge.settle import EVENT_TYPES

_WEEK_SECONDS = 7 * 86_400
_weeks = itertools.count(1)

# The last gives no credits.
PLANS = ((1_000, 100), (10_000, 1_000), (3_500, 777), (2_000, 0))


def _month(drawn):
    """Changes in the order of time, with less and less of the month left."""
    return tuple(sorted(drawn, key=lambda change: -change.left))


_CHANGES = st.builds(
    Change,
    plan=st.integers(0, len(PLANS) - 1),
    left=st.integers(1, 99),
    bill=st.sampled_from(["now", "now", "later"]),
)
_MONTHS = st.lists(_CHANGES, max_size=3, unique_by=lambda change: change.left).map(_month)
_LIVES = st.builds(
    PlanLife,
    first=st.integers(0, 2),
    months=st.lists(_MONTHS, min_size=1, max_size=2).map(tuple),
    refunds=st.lists(st.tuples(st.integers(0, 9), st.sampled_from([100, 50, 33])), max_size=2).map(
        tuple
    ),
)


@dataclass(frozen=True)
class Example:
    """Lives of subscriptions, the version of the events, their losses, and their order."""

    lives: list[PlanLife]
    version: str
    drops: bool
    seed: int


_EXAMPLES = st.builds(
    Example,
    lives=st.lists(_LIVES, min_size=2, max_size=4),
    version=st.sampled_from(["2022-08-01", "2024-10-28.acacia", "2026-10-28.endive"]),
    drops=st.booleans(),
    seed=st.integers(0, 2**32),
)
_UP_AND_DOWN = PlanLife(0, ((Change(1, 90), Change(0, 60), Change(1, 20)),), ((1, 50),))
_LATER = PlanLife(1, ((Change(2, 80, "later"), Change(3, 50), Change(0, 10, "later")), ()))


@pytest.fixture(scope="module")
async def fake():
    async with fake_stripe() as running:
        yield running


@pytest.fixture
async def postmen(fake, database, service):
    prices = [
        (await fake.price(amount, recurring={"interval": "month", "interval_count": 1}))["id"]
        for amount, _ in PLANS
    ]
    listed = {
        price: Listed(credits_)
        for price, (_, credits_) in zip(prices, PLANS, strict=True)
        if credits_
    }
    async with hired(fake, database, service, Policy(catalog=Catalog(by_price=listed))) as postmen:
        postmen.plans = [Plan(price, *plan) for price, plan in zip(prices, PLANS, strict=True)]
        yield postmen


async def balances_are_shares_of_months(postmen, drawn):
    lots = random.Random(drawn.seed)
    # Each example has weeks of its own, without other events.
    ahead = next(_weeks) * _WEEK_SECONDS
    await postmen.fake.settings(clock_offset_seconds=ahead, api_version=drawn.version)
    since = datetime.fromtimestamp(time.time() + ahead - 60, UTC)
    # The twins have the same life, and one of them gets every event once and in the order of time.
    users = [await postmen.database.user() for _ in drawn.lives]
    twins = [await postmen.database.user() for _ in drawn.lives]
    played = [
        await life.play(postmen.fake, user, postmen.plans)
        for life, user in zip(drawn.lives, users, strict=True)
    ]
    halfway = await sent_since(postmen, since)
    for life, twin in zip(drawn.lives, twins, strict=True):
        await life.play(postmen.fake, twin, postmen.plans)
    everything = await sent_since(postmen, since)
    seen = {event["id"] for event in halfway}
    for event in reversed([each for each in everything if each["id"] not in seen]):
        assert (await postmen.bridges[0].deliver(event)).status_code == 200
    await postmen.deliver(halfway, lots, drops=drawn.drops)
    if drawn.drops:
        await postmen.reconcile(since)
    found = await postmen.balances(users)
    assert found == await postmen.balances(twins)
    for balance, invoices in zip(found, played, strict=True):
        # Each invoice gives whole credits for each line, and takes whole ones once for all lines.
        tolerance = sum(len(invoice.lines) + 1 for invoice in invoices)
        assert abs(balance - sum(each.credits_left for each in invoices)) < tolerance
    assert (await postmen.reconcile(since)).repaired == 0
    assert not await postmen.database.faults()


async def sent_since(postmen, since):
    """The events that the bridge subscribes to, newest first."""
    sent = await events_as_sent(postmen.fake, int(since.timestamp()))
    return [each for each in sent if each["type"] in EVENT_TYPES]


_RACES = settings(
    database=None,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@settings(_RACES, derandomize=True, max_examples=unless_long(1, 4))
@example(drawn=Example([_UP_AND_DOWN, _LATER], "2026-10-28.endive", drops=True, seed=1))
@example(drawn=Example([_UP_AND_DOWN, _LATER], "2022-08-01", drops=False, seed=2))
@given(drawn=_EXAMPLES)
async def test_balances_are_shares_of_months_however_plans_change_and_events_come(postmen, drawn):
    await balances_are_shares_of_months(postmen, drawn)


@pytest.mark.long
@pytest.mark.timeout(600)
@settings(_RACES, max_examples=extent(6, 60))
@given(drawn=_EXAMPLES)
async def test_balances_are_shares_of_months_in_a_long_run(postmen, drawn):
    await balances_are_shares_of_months(postmen, drawn)
