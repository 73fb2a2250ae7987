"""Rows of the sweeper: how many expiries it records a second, and its effect on other calls."""

from __future__ import annotations

import asyncio
import statistics
import time
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from benchmark import book, measuring
from benchmark.children import BenchmarkError
from benchmark.lines import Line, at_least, below, busy
from benchmark.numbering import EXPIRING, EXPIRING_TOGETHER, LAPSING

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from benchmark.measuring import Sample
    from benchmark.testbed import Testbed

_HOLDS = 3_000
_HOLDS_FULL = 20_000
_SECONDS_MAX = 120.0
_POLL_SECONDS = 0.1

# Users with as many holds each as an account may have open, all due at the same instant, as after a
# crash of the whole fleet of workers.
_TOGETHER = 500
_TOGETHER_FULL = 10_000
_EACH = 100
_PART_SECONDS = 5.0
_TOGETHER_SECONDS_MAX = 1_800.0

# Users with a grant each that lapses at the same midnight.
_LAPSES = 20_000
_LAPSES_FULL = 1_000_000


def sweeper(testbed: Testbed) -> list[Line]:
    """Measures expiries a second, by the times of the entries."""
    holds = _HOLDS_FULL if testbed.extent.full else _HOLDS
    rates = []
    for turn in range(testbed.extent.turns):
        rates.append(_swept(testbed, EXPIRING + turn * holds, holds))
        testbed.say(f"turn {turn + 1} of {testbed.extent.turns}: expiries: {rates[-1]:,.0f}/s")
    return [
        Line(
            row="expiry",
            measured="expired holds recorded by the sweeper",
            value=statistics.median(rates),
            unit="/s",
            target=at_least(1_000),
            note=f"{holds:,} users with one each; turns {min(rates):,.0f} to {max(rates):,.0f}",
        )
    ]


def mass(testbed: Testbed) -> list[Line]:
    """Measures the expiry of very many holds at once, while others spend at half load."""
    most = testbed.in_turns({"maximum load": testbed.load(testbed.service, "spend", 100)})
    rate = measuring.middle_rate(most["maximum load"]) / 2
    users = _TOGETHER_FULL if testbed.extent.full else _TOGETHER
    holds = users * _EACH
    testbed.fill(EXPIRING_TOGETHER, users)
    owner_url = testbed.cluster.owner_url
    load = testbed.load(testbed.service, "spend", 0, rate=rate)
    asyncio.run(book.expire_holds(owner_url, EXPIRING_TOGETHER, users, _EACH))
    times, samples = _loaded(
        testbed, load, holds, lambda: book.expiries(owner_url, EXPIRING_TOGETHER, users)
    )
    waited = [us for sample in samples for us in sample.waited_us]
    failed = {**measuring.failures(most), **measuring.failures({"spends": samples})}
    note = f"{users:,} users with {_EACH} each, due at one instant; spends of others {rate:,.0f}/s"
    return [
        Line(
            row="mass-expiry",
            measured="expired holds recorded while others spend at half load",
            value=_rate(times),
            unit="/s",
            target=at_least(1_000),
            note=note,
            failed=failed,
        ),
        Line(
            row="mass-expiry",
            measured="latency of the others' spends meanwhile, p99",
            value=measuring.quantile_ms(waited, 0.99),
            unit="ms",
            target=below(100),
            note=f"{len(waited):,} calls; {busy(samples)}",
        ),
    ]


def lapses(testbed: Testbed) -> list[Line]:
    """Measures the lapse of very many grants at once, while others spend as fast as they can."""
    users = _LAPSES_FULL if testbed.extent.full else _LAPSES
    testbed.fill(LAPSING, users)
    owner_url = testbed.cluster.owner_url
    midnight = datetime.now(UTC) - timedelta(hours=1)
    asyncio.run(book.give_grants(owner_url, LAPSING, users, 1, midnight))
    load = testbed.load(testbed.service, "spend", 100)
    times, samples = _loaded(testbed, load, users, lambda: book.lapses(owner_url, LAPSING, users))
    return [
        Line(
            row="lapses",
            measured="lapsed grants recorded while others spend at full load",
            value=_rate(times),
            unit="/s",
            target=at_least(1_000),
            note=f"{users:,} users with one each, due at one instant; spends of others"
            f" {measuring.middle_rate(samples):,.0f}/s; {busy(samples)}",
            failed=measuring.failures({"spends": samples}),
        )
    ]


def _loaded(
    testbed: Testbed, load: Callable[[float], Sample], total: int, read: Callable[[], Any]
) -> tuple[dict[datetime, int], list[Sample]]:
    """Runs the load until all is recorded; returns the counts by time, and the load's samples."""
    deadline = time.monotonic() + _TOGETHER_SECONDS_MAX
    samples = []
    while True:
        samples.append(load(_PART_SECONDS))
        times: dict[datetime, int] = asyncio.run(read())
        recorded = sum(times.values())
        testbed.say(f"{recorded:,} of {total:,} are recorded")
        if recorded == total:
            return times, samples
        _require_time(deadline, recorded, total)


def _swept(testbed: Testbed, first_user: int, holds: int) -> float:
    testbed.fill(first_user, holds)
    owner_url = testbed.cluster.owner_url
    asyncio.run(book.expire_holds(owner_url, first_user, holds))
    deadline = time.monotonic() + _SECONDS_MAX
    while True:
        times = asyncio.run(book.expiries(owner_url, first_user, holds))
        recorded = sum(times.values())
        if recorded == holds:
            return _rate(times)
        _require_time(deadline, recorded, holds)
        time.sleep(_POLL_SECONDS)


def _require_time(deadline: float, recorded: int, holds: int) -> None:
    if time.monotonic() > deadline:
        raise BenchmarkError(f"the sweeper is too slow: it recorded {recorded} of {holds}")


def _rate(times: dict[datetime, int]) -> float:
    """Returns expiries a second; the first batch starts the clock."""
    first, last = min(times), max(times)
    return (sum(times.values()) - times[first]) / (last - first).total_seconds()
