"""The row of the sweeper: expired holds it records a second, of accounts nobody touches."""

from __future__ import annotations

import asyncio
import statistics
import time
from typing import TYPE_CHECKING

from benchmark import book
from benchmark.children import BenchmarkError
from benchmark.lines import Line, at_least
from benchmark.numbering import EXPIRING

if TYPE_CHECKING:
    from benchmark.stand import Stand

_HOLDS = 3_000
_HOLDS_FULL = 20_000
# The sweeper takes so many at once; the first of them start the clock.
_AT_ONCE = 500
_SECONDS_MAX = 120.0
_POLL_SECONDS = 0.1


def sweeper(stand: Stand) -> list[Line]:
    """Measures expiries a second, by the times of the entries."""
    holds = _HOLDS_FULL if stand.extent.full else _HOLDS
    rates = []
    for turn in range(stand.extent.turns):
        rates.append(_swept(stand, EXPIRING + turn * holds, holds))
        stand.say(f"turn {turn + 1} of {stand.extent.turns}: expiries: {rates[-1]:,.0f}/s")
    return [
        Line(
            row="expiry",
            measured="expired holds recorded by the sweeper",
            value=statistics.median(rates),
            unit="/s",
            target=at_least(1_000),
            note=f"{holds:,} holds at once; turns {min(rates):,.0f} to {max(rates):,.0f}",
        )
    ]


def _swept(stand: Stand, first_user: int, holds: int) -> float:
    stand.fill(first_user, holds)
    owner_url = stand.cluster.owner_url
    asyncio.run(book.expire_holds(owner_url, first_user, holds))
    deadline = time.monotonic() + _SECONDS_MAX
    while len(times := asyncio.run(book.expiries(owner_url, first_user, holds))) < holds:
        if time.monotonic() > deadline:
            raise BenchmarkError(
                f"the sweeper recorded {len(times)} of {holds} expiries in {_SECONDS_MAX:.0f} s"
            )
        time.sleep(_POLL_SECONDS)
    return (holds - _AT_ONCE) / (times[-1] - times[_AT_ONCE - 1]).total_seconds()
