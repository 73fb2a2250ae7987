"""Alerts of random histories against the plain model, while the maker of alerts is killed."""

import asyncio
import random
import sys
from datetime import timedelta

import pytest
from kit.alerts import (
    LOW_TERMS,
    all_is_read,
    announced_of,
    histories,
    nothing_waits,
)
from kit.commands import ask, grant, hold, keyed, lanes, spend
from kit.extent import extent
from kit.paths import ROOT
from kit.programs import Command
from kit.waiting import eventually
from model.alerts import announced

from credit_service.rules.commands import Release, SetPolicy

COOL_DOWN = timedelta(seconds=0.5)
LEVELS = {"fine": "balance.recovered", "low": "balance.low", "depleted": "balance.depleted"}

pytestmark = pytest.mark.timeout(300)


def a_policy(user_id, **changes):
    fields = {"frozen": None, "min_balance": None, "limits": None} | changes
    return SetPolicy(user_id=user_id, caller="test", **fields)


def commands(user_id, draw):
    """Some commands of one user that may share a transaction, of all kinds."""
    kinds = [
        lambda: spend(user_id, draw.randint(1, 15)),
        lambda: spend(user_id, draw.randint(1, 15)),
        lambda: grant(user_id, draw.randint(1, 15)),
        lambda: hold(user_id, draw.randint(1, 8), draw.choice([0.2, 60])),
        lambda: a_policy(user_id, alert_below=draw.choice([0, 5, 10, 20])),
        lambda: a_policy(user_id, min_balance=draw.choice([-5, 0, 5])),
        lambda: a_policy(user_id, frozen=draw.random() < 0.4),
        lambda: a_policy(user_id, reset=("alert_below", "min_balance", "frozen")),
    ]
    return [draw.choice(kinds)() for _ in range(draw.randint(1, 4))]


async def lives(writers, user_id, draw, steps):
    """Makes calls on an account, with pauses of about the length of a cool-down."""
    for _ in range(steps):
        answers = await ask(writers, *commands(user_id, draw))
        held = [made.hold.seq for made in answers if getattr(made, "hold", None) is not None]
        if held and draw.random() < 0.5:
            await ask(writers, keyed(Release, user_id, hold_seq=held[0]))
        await asyncio.sleep(draw.choice([0, 0, 0.01, 0.1, 0.6]))


class Workers:
    """Two processes that make alerts; now and then one is killed and another takes its place."""

    def __init__(self, database):
        self._command = (
            *(sys.executable, "-m", "kit.alert_worker", database.service_url),
            str(COOL_DOWN.total_seconds()),
        )
        self._running = [self._start() for _ in range(2)]

    def _start(self):
        return Command(ROOT / "tests", *self._command)

    async def are_killed(self, draw):
        while True:
            await asyncio.sleep(draw.uniform(0.2, 1.5))
            place = draw.randrange(2)
            self._running[place].popen.kill()
            await asyncio.to_thread(self._running[place].close)
            self._running[place] = self._start()

    def close(self):
        for worker in self._running:
            worker.close()


@pytest.mark.parametrize("seed", range(extent(1, 10)))
async def test_the_alerts_are_those_of_the_model_despite_kills(database, seed):
    draw = random.Random(seed)
    workers = Workers(database)
    try:

        async def begun():
            return await database.fetch("SELECT FROM credit_relay_readers")

        await eventually(begun)
        users = [await database.user(20) for _ in range(8)]
        async with lanes(database.service_url, 2) as writers:
            killing = asyncio.create_task(workers.are_killed(draw))
            await asyncio.gather(*(lives(writers, user_id, draw, 25) for user_id in users))
            await database.execute("DELETE FROM auth.users WHERE id = $1", users[0])
            killing.cancel()
        await asyncio.wait({killing})
        await all_is_read(database)
        await nothing_waits(database)
    finally:
        workers.close()
    seen = await histories(database, LOW_TERMS)
    assert set(seen) == set(users[1:])
    made = 0
    for user_id, history in seen.items():
        wanted = announced(history, round(COOL_DOWN.total_seconds() * 1e6), float("inf"))
        alerts = await announced_of(database, user_id)
        assert alerts == [
            (LEVELS[level], number if number > 0 else f"p{-number}") for _, level, number in wanted
        ]
        made += len(alerts)
    assert made > 20
    assert not await database.fetch("SELECT FROM credit_alerts WHERE user_id = $1", users[0])
