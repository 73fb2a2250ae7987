"""Rows of the sweeper: expired holds it records a second, and how others fare meanwhile."""

from __future__ import annotations

import asyncio
import statistics
import time
from typing import TYPE_CHECKING

from benchmark import book, measuring
from benchmark.children import BenchmarkError
from benchmark.lines import Line, at_least, below, busy
from benchmark.numbering import EXPIRING, EXPIRING_TOGETHER

if TYPE_CHECKING:
    from datetime import datetime

    from benchmark.testbed import Testbed

_HOLDS = 3_000
_HOLDS_FULL = 20_000
_SECONDS_MAX = 120.0
_POLL_SECONDS = 0.1

# Users with as many holds each as an account may have open, all due at the same instant: what a
# crash of the whole fleet of workers leaves behind.
_TOGETHER = 500
_TOGETHER_FULL = 10_000
_EACH = 100
_PART_SECONDS = 5.0
_TOGETHER_SECONDS_MAX = 1_800.0


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
    deadline = time.monotonic() + _TOGETHER_SECONDS_MAX
    samples = []
    while True:
        samples.append(load(_PART_SECONDS))
        times = asyncio.run(book.expiries(owner_url, EXPIRING_TOGETHER, users))
        recorded = sum(times.values())
        testbed.say(f"{recorded:,} of {holds:,} expiries")
        if recorded == holds:
            break
        _require_time(deadline, recorded, holds)
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
        raise BenchmarkError(f"the sweeper is too slow: it recorded {recorded} of {holds} expiries")


def _rate(times: dict[datetime, int]) -> float:
    """Expiries a second; the first batch starts the clock."""
    first, last = min(times), max(times)
    return (sum(times.values()) - times[first]) / (last - first).total_seconds()
