"""Measures several loads side by side: they take turns, and like turns are compared."""

from __future__ import annotations

import math
import statistics
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from benchmark import machine
from benchmark.plan import Plan

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from benchmark.children import Server
    from benchmark.clients import Clients

# The share from which on a client process counts as fully used.
GENERATOR_FULL = 0.9


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """The result of one turn of a load.

    Attributes:
        rate: units of work a second, such as spends.
        offered: units of work that were begun a second.
        server_us: processor time of the server per unit, in microseconds.
        database_us: processor time of PostgreSQL, all its processes, per unit, in microseconds.
        clients_us: processor time of the client processes per unit, in microseconds.
        server: processors that the server used, 1 being one of them wholly.
        database: processors that PostgreSQL used.
        generator: the part of a processor that the busiest client process used.
        waited_us: microseconds from when a call was due to its answer.
        failed: calls that were not answered with OK, by status code and reason.
    """

    rate: float
    offered: float
    server_us: float
    database_us: float
    server: float
    database: float
    generator: float
    clients_us: float = 0
    waited_us: list[int] = field(default_factory=list)
    failed: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """A load on a server, to be taken in turns with others.

    Attributes:
        server: what is called.
        call: a name of `calls.CALLS`, `watch` or `flood`.
        first_user: number of the first user.
        users: how many.
        in_flight: calls that wait at the same time, over all client processes.
        units: of work in a call.
        rate: calls a second, over all client processes; None: as many as are answered.
        connections: of each client process.
        processes: client processes that share it; None: all.
    """

    server: Server
    call: str
    first_user: int
    users: int
    in_flight: int
    units: int = 1
    rate: float | None = None
    connections: int = 1
    processes: int | None = None

    def run(self, clients: Clients, database_pid: int, seconds: float) -> Sample:
        """Runs the load on the server for this number of seconds."""
        plan = Plan(
            target=self.server.target,
            call=self.call,
            first_user=self.first_user,
            users=self.users,
            in_flight=self.in_flight,
            seconds=seconds,
            start_at=0,
            rate=self.rate,
            connections=self.connections,
        )
        pids = (self.server.pid, database_pid)
        before = [machine.cpu_seconds(pid) for pid in pids]
        outcomes = clients.carry_out(plan, self.processes)
        server, database = (
            machine.cpu_seconds(pid) - earlier for pid, earlier in zip(pids, before, strict=True)
        )
        failed: Counter[str] = Counter()
        for outcome in outcomes:
            failed.update(outcome.failed)
        took = max(outcome.seconds for outcome in outcomes)
        begun = self.units * sum(outcome.begun for outcome in outcomes)
        units = max(1, begun)
        return Sample(
            rate=self.units * sum(outcome.answered for outcome in outcomes) / seconds,
            offered=begun / seconds,
            server_us=server * 1e6 / units,
            database_us=database * 1e6 / units,
            server=server / took,
            database=database / took,
            generator=max(outcome.cpu_seconds / outcome.seconds for outcome in outcomes),
            clients_us=sum(outcome.cpu_seconds for outcome in outcomes) * 1e6 / units,
            waited_us=[us for outcome in outcomes for us in outcome.waited_us],
            failed=dict(failed),
        )


def in_turns(
    runs: Mapping[str, Callable[[float], Sample]],
    turns: int,
    seconds: float,
    say: Callable[[str], None],
) -> dict[str, list[Sample]]:
    """Runs every load once to warm up, and then all of them in turns, there and back again.

    Args:
        runs: by name, functions that run a load for a number of seconds.
        turns: how often each.
        seconds: how long each time.
        say: is called with lines of progress.

    Returns:
        The samples of each, in the order of the turns.
    """
    samples: dict[str, list[Sample]] = {name: [] for name in runs}
    names = list(runs)
    for name in names:
        say(f"warming up: {name}")
        runs[name](min(seconds, 0.4))
    for turn in range(turns):
        for name in names:
            started = time.monotonic()
            sample = runs[name](seconds)
            samples[name].append(sample)
            took = time.monotonic() - started
            say(f"turn {turn + 1} of {turns}: {name}: {sample.rate:,.0f}/s ({took:.1f} s)")
        names.reverse()
    return samples


@dataclass(frozen=True, slots=True)
class Ratio:
    """How two loads compare: the middle, least and greatest of their turns."""

    middle: float
    least: float
    greatest: float


def ratio(above: list[Sample], below: list[Sample]) -> Ratio:
    """Divides the rates turn by turn, so that a slow turn of both has no effect."""
    each = [one.rate / (other.rate or 1) for one, other in zip(above, below, strict=True)]
    return Ratio(statistics.median(each), min(each), max(each))


def middle_rate(samples: list[Sample]) -> float:
    """Returns the median of the rates."""
    return statistics.median(sample.rate for sample in samples)


def failures(samples: Mapping[str, list[Sample]]) -> dict[str, int]:
    """Adds up the calls that failed, by load, status code and reason."""
    found: Counter[str] = Counter()
    for name, each in samples.items():
        for sample in each:
            for code, count in sample.failed.items():
                found[f"{name}: {code}"] += count
    return dict(found)


def quantile_ms(waited_us: list[int], part: float) -> float:
    """Returns a quantile of times, in milliseconds, by the nearest rank."""
    ordered = sorted(waited_us)
    return ordered[math.ceil(part * len(ordered)) - 1] / 1000 if ordered else 0.0
