"""Two replicas are killed while several processes send their calls in shared requests."""

import asyncio
import os
import random
import signal
import sys
from collections import Counter
from contextlib import AsyncExitStack, asynccontextmanager

import pytest
from kit.callers_together import CALLERS
from kit.extent import extent, unless_long
from kit.paths import ROOT
from kit.programs import free_port, process
from kit.services import running, server_settings
from kit.waiting import eventually, patience

from credit_service.client import CreditClient

PROGRAM = ROOT / "tests/kit/callers_together.py"
CLIENTS = 3


class Callers:
    """A process of callers, and its output."""

    def __init__(self, made):
        self._made = made
        self.asked, self.done, self.failed = {}, {}, {}
        self._reading = asyncio.create_task(self._read())

    async def _read(self):
        async for line in self._made.stdout:
            match line.decode().split():
                case ["asks", key, kind, user, field]:
                    self.asked[key] = (kind, user, field.split("=", 1))
                case ["done", key, entry]:
                    self.done[key] = entry
                case ["failed", key, reason]:
                    self.failed[key] = reason

    async def end(self):
        """Lets every call end."""
        self._made.stdin.close()
        await self._reading
        assert await self._made.wait() == 0


class Replica:
    """A service on a port of its own that is killed and started again."""

    def __init__(self, url):
        self.port = free_port()
        self._environment = {
            "CREDIT_DATABASE_URL": url,
            "CREDIT_LISTEN": f"127.0.0.1:{self.port}",
        }
        self._running = None

    async def start(self):
        self._running = process("serve", **self._environment)
        server = self._running.__enter__()
        await asyncio.to_thread(server.wait_until_listening)
        self._server = server

    async def kill(self):
        self._server.signal(signal.SIGKILL)
        await asyncio.to_thread(self._server.wait)
        self.close()

    def close(self):
        running, self._running = self._running, None
        if running is not None:
            running.__exit__(None, None, None)


@asynccontextmanager
async def callers(target, name, users):
    made = await asyncio.create_subprocess_exec(
        sys.executable,
        str(PROGRAM),
        target,
        name,
        *map(str, users),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    try:
        yield Callers(made)
    finally:
        if made.returncode is None:
            made.kill()
        await made.wait()


async def ask_again(client, kind, user, field, key):
    """Repeats a call with its key."""
    name, value = field
    match kind:
        case "spend":
            return await client.spend_credits(user, amount=int(value), idempotency_key=key)
        case "hold":
            return await client.hold_credits(user, amount=int(value), idempotency_key=key)
        case _:
            return await client.capture_hold(user, **{name: value}, idempotency_key=key)


async def entries(database):
    """The number of entries of each key, and the id of one of them."""
    rows = await database.fetch(
        "SELECT idempotency_key, count(*), min(user_id::text || '-' || seq::text)"
        " FROM credit_transactions WHERE call <> 'PurchaseCredits' GROUP BY 1"
    )
    return Counter({row[0]: row[1] for row in rows}), {row[0]: row[2] for row in rows}


async def test_fifty_deliveries_of_one_key_through_many_clients_are_one_charge(database):
    user_id = await database.user(100)
    async with (
        running(server_settings(database.service_url)) as one,
        running(server_settings(database.service_url)) as two,
    ):
        options = {"coalesce": True, "deadline_seconds": patience(10)}
        clients = [await each.client(**options) for each in (one, two) for _ in range(3)]
        for key in ("a", "b", "c"):
            answers = await asyncio.gather(
                *(
                    client.spend_credits(user_id, amount=3, idempotency_key=key)
                    for number in range(50)
                    for client in [clients[number % len(clients)]]
                )
            )
            assert [answer.replayed for answer in answers].count(False) == 1
            assert len({answer.transaction.id for answer in answers}) == 1
        assert (await clients[0].get_user_credit(user_id)).balance == 91
    assert not await database.faults()


@pytest.mark.timeout(600)
async def test_killed_replicas_lose_and_double_nothing_of_calls_that_were_sent_together(database):
    lots = random.Random(unless_long(1, None))
    users = [await database.user(10**6) for _ in range(200)]
    replicas = [Replica(database.service_url) for _ in range(2)]
    target = ",".join(f"127.0.0.1:{replica.port}" for replica in replicas)
    async with AsyncExitStack() as stack:
        for replica in replicas:
            stack.callback(replica.close)
            await replica.start()
        clients = [
            await stack.enter_async_context(callers(target, f"client-{number}", users))
            for number in range(CLIENTS)
        ]

        def done():
            return sum(len(client.done) for client in clients)

        for turn in range(unless_long(4, extent(10, 60))):
            goal = done() + 10 * CALLERS
            await eventually(lambda goal=goal: done() >= goal, seconds=60)
            victims = replicas if turn % 4 == 3 else [lots.choice(replicas)]
            for victim in victims:
                await victim.kill()
            for victim in victims:
                await victim.start()
        await asyncio.gather(*(client.end() for client in clients))
        asked = {key: call for client in clients for key, call in client.asked.items()}
        said = {key: entry for client in clients for key, entry in client.done.items()}
        failed = {key: why for client in clients for key, why in client.failed.items()}
        assert set(failed.values()) <= {"OUTCOME_UNKNOWN"}
        assert set(asked) == said.keys() | failed.keys()
        times, ids = await entries(database)
        assert max(times.values()) == 1
        assert set(times) <= set(asked)
        assert {key: ids[key] for key in said} == said
        async with CreditClient(target, deadline_seconds=patience(10)) as client:
            for key in failed:
                again = await ask_again(client, *asked[key], key)
                assert again.replayed == (key in times)
        times, _ = await entries(database)
        assert times == Counter(dict.fromkeys(asked, 1))
        print(f"{len(said)} answered, {len(failed)} unknown")
    assert not await database.faults()
