"""Every process that writes, sends or reads events is killed; each event comes at least once.

Two services write, two relays send to two endpoints, and one process reads the stream. PostgreSQL,
the receivers and the reader are killed too. The events that each received are compared with the
ledger.
"""

import asyncio
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from contextlib import ExitStack
from pathlib import Path
from uuid import uuid4

import orjson
import pytest
from kit.alerts import LOW_TERMS, all_is_read, histories, nothing_waits
from kit.batches import INDEPENDENT, item
from kit.clusters import Cluster
from kit.event_receiver import FAILED
from kit.extent import extent
from kit.paths import ROOT
from kit.programs import Command, Process, free_port
from kit.relays import endpoint, write_endpoints
from kit.waiting import eventually, patience
from model.alerts import announced

from credit_service.client import CreditClient, item_error
from credit_service.database import migrations
from credit_service.errors import InsufficientCredits, OutcomeUnknown, Unavailable

ENTRIES = extent(2_000, 100_000)
ROUNDS = extent(1, 3)
USERS = extent(25, 200)
BATCH = extent(20, 100)
CALLERS = 8
# How far the writers may be ahead, so that every process has work when it is killed.
AHEAD = ENTRIES // 4
FAILURES = 40

COOL_DOWN_SECONDS = 1
LEVELS = {"fine": "balance.recovered", "low": "balance.low", "depleted": "balance.depleted"}

pytestmark = pytest.mark.timeout(extent(300, 1200))


class Notes:
    """The notes of one receiver or reader over all its lives, checked as they come in.

    Attributes:
        entries: user and seq to the key and the balance after it.
        alerts: the types for each user, in the order in which they first came.
        faults: entries that came before an earlier one of the same user, or changed since.
        count: the number of events, repeats included.
        failed: the number of requests that were answered with a failure on purpose.
    """

    def __init__(self, directory: Path) -> None:
        directory.mkdir()
        self._directory = directory
        self._lives = 0
        self._read = 0
        self._newest = Counter()
        self._ids = set()
        self.entries = {}
        self.alerts = {}
        self.faults = []
        self.count = 0
        self.failed = 0

    @property
    def file(self) -> Path:
        """The file of the present life."""
        return self._directory / str(self._lives)

    def begin_life(self) -> None:
        """Begins the notes of the next life; the last line of a killed one may be cut."""
        self.look()
        self._lives += 1
        self._read = 0

    def look(self) -> None:
        """Reads the notes since the last look."""
        if not self.file.exists():
            return
        with self.file.open("rb") as file:
            file.seek(self._read)
            lines, end, _ = file.read().rpartition(b"\n")
        self._read += len(lines) + len(end)
        for line in lines.splitlines():
            if line == FAILED.encode():
                self.failed += 1
            else:
                self.count += 1
                user, seq, key, balance_after, *event = orjson.loads(line)
                if event and not event[0].startswith("entry."):
                    self._note_alert(user, *event)
                else:
                    self._note_entry(user, seq, (key, balance_after))

    def _note_alert(self, user, kind, name):
        if name not in self._ids:
            self._ids.add(name)
            self.alerts.setdefault(user, []).append(kind)

    def _note_entry(self, user, seq, entry):
        if seq > self._newest[user] + 1:
            self.faults.append(f"{user}: {seq} came after {self._newest[user]}")
        self._newest[user] = max(self._newest[user], seq)
        if self.entries.setdefault((user, seq), entry) != entry:
            self.faults.append(f"{user}: {seq} came as two entries")


class Program:
    """A process that is killed and started again, at the same address."""

    def __init__(self, start, begin_life=lambda: None):
        self._start = start
        self._begin_life = begin_life
        self._running = start()

    def _kill(self):
        self._running.signal(signal.SIGKILL)
        self._running.wait()
        self._running.close()

    async def is_killed(self):
        await asyncio.to_thread(self._kill)
        # Not in a thread, because the notes are read meanwhile.
        self._begin_life()
        self._running = self._start()

    def wait_for(self, pattern):
        self._running.wait_for(pattern)

    def close(self):
        self._running.close()


class Writers:
    """Callers of both services that spend in batches, and buy for users with too few credits."""

    def __init__(self, targets, users, received):
        self._targets = targets
        self._users = users
        self._received = received
        self._random = random.Random(3)
        self._buying = set()
        self.written = 0

    async def run(self):
        async with asyncio.TaskGroup() as group:
            for number in range(CALLERS):
                group.create_task(self._write(self._targets[number % len(self._targets)]))

    async def _write(self, target):
        async with CreditClient(target, deadline_seconds=patience(5)) as client:
            while self.written < ENTRIES:
                if self.written > min(len(each.entries) for each in self._received) + AHEAD:
                    await asyncio.sleep(0.02)
                    continue
                users = self._random.sample(self._users, BATCH)
                items = [item(user_id, self._random.randint(1, 8)) for user_id in users]
                for user_id in await self._spend(client, items):
                    if user_id in self._buying:
                        continue
                    self._buying.add(user_id)
                    key = uuid4().hex
                    await answered(
                        lambda user_id=user_id, key=key: client.purchase_credits(
                            user_id, 40, payment=None, idempotency_key=key
                        )
                    )
                    self._buying.remove(user_id)
                    self.written += 1

    async def _spend(self, client, items):
        """Repeats a batch until every item is decided; returns the users with too few credits."""
        poor = []
        while items:
            results = await answered(
                lambda items=items: client.batch_spend_credits(items, mode=INDEPENDENT)
            )
            open_items = []
            for asked, result in zip(items, results, strict=True):
                error = item_error(result)
                if error is None:
                    self.written += 1
                elif isinstance(error, InsufficientCredits):
                    poor.append(asked.user_id)
                else:
                    assert isinstance(error, Unavailable | OutcomeUnknown), error
                    open_items.append(asked)
            items = open_items
        return poor


async def answered(ask):
    """Repeats a call, with the same keys, until it is answered."""
    while True:
        try:
            return await ask()
        except (Unavailable, OutcomeUnknown):
            await asyncio.sleep(0.05)


@pytest.fixture
async def cluster():
    directory = Path(tempfile.mkdtemp(prefix="credit-cluster-"))
    os.chmod(directory, 0o755)  # noqa: PTH101  # if root runs this, the server runs as `nobody`
    made = Cluster(directory)
    try:
        await asyncio.to_thread(made.start)
        await migrations.migrate(made.database.owner_url, "credit_service", lambda _line: None)
        yield made
    finally:
        made.stop()
        shutil.rmtree(directory)


def kit_program(module, *arguments):
    return Command(ROOT / "tests", sys.executable, "-m", module, *map(str, arguments))


class Stage:
    """All processes, and the events that they received."""

    def __init__(self, cluster, directory, stack):
        self.steady = Notes(directory / "steady")
        self.failing = Notes(directory / "failing")
        self.stream = Notes(directory / "stream")
        self.received = {"steady": self.steady, "failing": self.failing, "stream": self.stream}
        self.one_fails_of = ENTRIES // FAILURES
        ports = [free_port(), free_port()]
        self.targets = [f"127.0.0.1:{port}" for port in ports]
        settings = {
            "CREDIT_DATABASE_URL": cluster.database.service_url,
            "CREDIT_ALERT_BELOW": str(LOW_TERMS.alert_below),
            "CREDIT_ALERT_COOL_DOWN_SECONDS": str(COOL_DOWN_SECONDS),
        }
        hooks = {name: free_port() for name in ("steady", "failing")}
        endpoints = directory / "endpoints.toml"
        write_endpoints(endpoints, *(endpoint(name, port) for name, port in hooks.items()))
        sends = {"CREDIT_WEBHOOKS": str(endpoints), "CREDIT_WEBHOOKS_PRIVATE": "true"}
        cursor = directory / "cursor"

        def starts(name, start, begin_life=lambda: None):
            self.programs[name] = made = Program(start, begin_life)
            stack.callback(made.close)

        self.programs = {}
        for number, target in enumerate(self.targets):
            listens = {**settings, "CREDIT_LISTEN": target}
            starts(f"service {number}", lambda listens=listens: Process(("serve",), listens))
        for name, port in hooks.items():
            notes = self.received[name]

            def receive(notes=notes, name=name, port=port):
                one_fails_of = self.one_fails_of if name == "failing" else 0
                return kit_program("kit.event_receiver", port, notes.file, one_fails_of)

            starts(f"receiver {name}", receive, notes.begin_life)
        for number in range(2):
            starts(f"relay {number}", lambda: Process(("relay",), {**settings, **sends}))
        starts(
            "reader",
            lambda: kit_program("kit.event_reader", self.targets[1], cursor, self.stream.file),
            self.stream.begin_life,
        )

    async def is_ready(self, database):
        """Waits until both services listen and a relay has started all its parts."""
        for number in range(2):
            await asyncio.to_thread(self.programs[f"service {number}"].wait_for, "listens on")

        async def begun():
            # Alerts begin at the end of the feed, so nothing may be written earlier.
            readers = await database.fetch("SELECT FROM credit_relay_readers")
            return len(readers) == len(("alerts", "steady", "failing"))

        await eventually(begun, 60)

    async def look(self):
        """Reads the notes as they grow, and fails on the first fault."""
        while True:
            self.look_once()
            await asyncio.sleep(0.1)

    def look_once(self):
        for name, notes in self.received.items():
            notes.look()
            assert not notes.faults, (name, notes.faults[:10])

    async def are_killed(self, cluster, writers):
        """Kills each in turn, at even intervals of written entries."""
        victims = [*self.programs, "postgresql"] * ROUNDS
        random.Random(5).shuffle(victims)
        for number, victim in enumerate(victims, 1):
            goal = ENTRIES * number // (len(victims) + 1)
            await eventually(lambda goal=goal: writers.written >= goal, extent(60, 300))
            if victim == "postgresql":
                await asyncio.to_thread(cluster.kill)
                await asyncio.to_thread(cluster.start)
            else:
                await self.programs[victim].is_killed()
        return len(victims)

    async def stops_failing(self):
        self.one_fails_of = 0
        await self.programs["receiver failing"].is_killed()


async def test_despite_kills_every_event_comes_at_least_once_and_in_order(cluster, tmp_path):
    database = cluster.database
    started = time.monotonic()
    users = [await database.user() for _ in range(USERS)]
    with ExitStack() as stack:
        stage = Stage(cluster, tmp_path, stack)
        await stage.is_ready(database)
        writers = Writers(stage.targets, users, stage.received.values())
        async with asyncio.TaskGroup() as group:
            looking = group.create_task(stage.look())
            writing = group.create_task(writers.run())
            killing = group.create_task(stage.are_killed(cluster, writers))
            await asyncio.wait({writing, killing})
            await stage.stops_failing()
            rows = await database.fetch(
                "SELECT user_id, seq, idempotency_key, balance_after FROM credit_transactions"
            )
            ledger = {(str(user), seq): (key, after) for user, seq, key, after in rows}
            for name, notes in stage.received.items():
                await eventually(
                    lambda notes=notes: len(notes.entries) >= len(ledger), extent(120, 600)
                )
                assert notes.entries == ledger, name
            await all_is_read(database)
            await nothing_waits(database)
            ((alerts,),) = await database.fetch("SELECT count(*) FROM credit_alerts")
            for notes in (stage.steady, stage.failing):
                await eventually(lambda notes=notes: alerts_in(notes) >= alerts, extent(60, 300))
            looking.cancel()
        stage.look_once()
    wanted = {
        str(user_id): [LEVELS[level] for _, level, _ in made]
        for user_id, history in (await histories(database, LOW_TERMS)).items()
        if (made := announced(history, COOL_DOWN_SECONDS * 1_000_000, float("inf")))
    }
    assert stage.steady.alerts == wanted
    assert stage.failing.alerts == wanted
    assert sum(map(len, wanted.values())) > USERS
    assert len(ledger) >= ENTRIES
    assert stage.failing.failed > 0
    assert not await database.faults()
    print(
        f"{len(ledger)} entries, {alerts} alerts, {killing.result() + 1} kills,"
        f" {stage.failing.failed} failures, {time.monotonic() - started:.0f} s, with repeats"
        f" { {name: notes.count for name, notes in stage.received.items()} }"
    )


def alerts_in(notes):
    return sum(map(len, notes.alerts.values()))
