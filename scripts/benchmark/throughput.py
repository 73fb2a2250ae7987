"""Rows of calls per second, all side by side in the same turns."""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from typing import TYPE_CHECKING

from benchmark import measuring, pgbench
from benchmark.calls import BATCH_ITEMS, PAGE_ENTRIES
from benchmark.lines import Line, at_least, at_most, busy, compared
from benchmark.numbering import READERS, SPREAD

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from benchmark.measuring import Sample
    from benchmark.testbed import Testbed

    Samples = Mapping[str, list[Sample]]

_READERS = 1_000
_BATCHES_IN_FLIGHT = 10
_HOT = (SPREAD, 1)

SPREAD_100, SPREAD_400 = (
    "SpendCredits, spread, 100 in flight",
    "SpendCredits, spread, 400 in flight",
)
_EMPTY_100, _EMPTY_400 = "empty RPC, 100 in flight", "empty RPC, 400 in flight"
_EACH_100 = "transaction per call, spread, 100 in flight"
_EACH_400 = "transaction per call, spread, 400 in flight"
_HOT_100, _EACH_HOT = "SpendCredits, one hot user", "transaction per call, one hot user"
_PG_SPREAD = f"pgbench, {pgbench.CLIENTS} clients, spread"
_PG_HOT = f"pgbench, {pgbench.CLIENTS} clients, one hot user"
_BATCH = f"BatchSpendCredits of {BATCH_ITEMS}, spread"
_BATCH_HOT = f"BatchSpendCredits of {BATCH_ITEMS}, one hot user"
_BALANCE, _HISTORY = "GetUserCredit", f"GetTransactionHistory({PAGE_ENTRIES})"
_HOLD = "HoldCredits and CaptureHold, spread"


def _loads(testbed: Testbed) -> dict[str, Callable[[], Callable[[float], Sample]]]:
    """Makes each load, by its name; a load is made only if a row needs it."""
    service, rival, load = testbed.service, testbed.rival, testbed.load

    def history() -> Callable[[float], Sample]:
        # One entry more than a page, so that every page is full and has a page after it.
        testbed.fill(READERS, _READERS, PAGE_ENTRIES + 1)
        return load(service, "history", 100, users=(READERS, _READERS))

    return {
        _EMPTY_100: lambda: load(rival, "empty", 100),
        SPREAD_100: lambda: load(service, "spend", 100),
        _EACH_100: lambda: load(rival, "transaction", 100),
        _EMPTY_400: lambda: load(rival, "empty", 400),
        SPREAD_400: lambda: load(service, "spend", 400),
        _EACH_400: lambda: load(rival, "transaction", 400),
        _HOT_100: lambda: load(service, "spend", 100, users=_HOT),
        _EACH_HOT: lambda: load(rival, "transaction", 100, users=_HOT),
        _PG_SPREAD: lambda: pgbench.load(testbed, testbed.extent.users),
        _PG_HOT: lambda: pgbench.load(testbed, 1),
        _BATCH: lambda: load(service, "batch", _BATCHES_IN_FLIGHT, units=BATCH_ITEMS),
        _BATCH_HOT: lambda: load(
            service, "batch", _BATCHES_IN_FLIGHT, units=BATCH_ITEMS, users=_HOT
        ),
        _BALANCE: lambda: load(service, "balance", 100),
        _HISTORY: history,
        _HOLD: lambda: load(service, "hold and capture", 100),
    }


@dataclass(frozen=True, slots=True)
class _Row:
    loads: tuple[str, ...]
    lines: Callable[[Samples], list[Line]]


def _spend(samples: Samples) -> list[Line]:
    return [
        compared("spend", samples, SPREAD_100, _EMPTY_100, target=at_least(0.60)),
        compared("spend", samples, SPREAD_400, _EMPTY_400, target=at_least(0.60)),
        compared("spend", samples, SPREAD_100, _EACH_100, target=at_least(2.0)),
        compared("spend", samples, SPREAD_400, _EACH_400, target=at_least(2.0)),
    ]


def _hot(samples: Samples) -> list[Line]:
    return [
        compared("hot", samples, _HOT_100, SPREAD_100, target=at_least(0.95)),
        compared("hot", samples, _HOT_100, _EACH_HOT, target=at_least(4.0)),
    ]


def _pgbench(samples: Samples) -> list[Line]:
    return [
        compared("pgbench", samples, SPREAD_100, _PG_SPREAD),
        compared("pgbench", samples, _HOT_100, _PG_HOT, target=at_least(3.0)),
    ]


def _batch(samples: Samples) -> list[Line]:
    return [
        compared("batch", samples, _BATCH, SPREAD_100, target=at_least(6.0)),
        compared("batch", samples, _BATCH_HOT, _HOT_100, target=at_least(6.0)),
        compared("batch", samples, _BATCH, _PG_SPREAD, target=at_least(5.0)),
        compared("batch", samples, _BATCH_HOT, _PG_SPREAD, target=at_least(5.0)),
    ]


def _reads(samples: Samples) -> list[Line]:
    return [
        compared("reads", samples, _BALANCE, _EMPTY_100, target=at_least(0.70)),
        compared("reads", samples, _HISTORY, _EMPTY_100, target=at_least(0.40)),
    ]


def _holds(samples: Samples) -> list[Line]:
    return [compared("holds", samples, _HOLD, SPREAD_100, target=at_most(2.2), cost=True)]


def _cpu(samples: Samples) -> list[Line]:
    def line(name: str, whose: str, used: Callable[[Sample], float], against: str) -> Line:
        each, other = samples[name], samples[against]
        spread = [used(sample) for sample in each]
        beside = statistics.median(used(sample) for sample in other)
        note = f"{against}: {beside:,.0f} us; turns {min(spread):,.0f} to {max(spread):,.0f}"
        return Line(
            row="cpu",
            measured=f"{whose} CPU of {name}",
            against=against,
            value=statistics.median(spread),
            unit="us",
            note=f"{note}; {busy(each, other)}",
            failed=measuring.failures({name: each, against: other}),
        )

    def server(sample: Sample) -> float:
        return sample.server_us

    def database(sample: Sample) -> float:
        return sample.database_us

    return [
        line(SPREAD_100, "server", server, _EMPTY_100),
        line(_HOLD, "server", server, _EMPTY_100),
        line(_BATCH, "server", server, _EMPTY_100),
        line(SPREAD_100, "database", database, _EACH_100),
        line(_HOLD, "database", database, _EACH_100),
        line(_BATCH, "database", database, _EACH_100),
    ]


# In the order of the table.
ROWS: Mapping[str, _Row] = {
    "spend": _Row((_EMPTY_100, SPREAD_100, _EACH_100, _EMPTY_400, SPREAD_400, _EACH_400), _spend),
    "hot": _Row((SPREAD_100, _HOT_100, _EACH_HOT), _hot),
    "pgbench": _Row((SPREAD_100, _HOT_100, _PG_SPREAD, _PG_HOT), _pgbench),
    "batch": _Row((SPREAD_100, _HOT_100, _PG_SPREAD, _BATCH, _BATCH_HOT), _batch),
    "reads": _Row((_EMPTY_100, _BALANCE, _HISTORY), _reads),
    "holds": _Row((SPREAD_100, _HOLD), _holds),
    "cpu": _Row((_EMPTY_100, SPREAD_100, _EACH_100, _HOLD, _BATCH), _cpu),
}


def measure(testbed: Testbed, chosen: list[str]) -> list[Line]:
    """Measures the chosen rows of this module in common turns."""
    rows = [ROWS[name] for name in chosen]
    needed = {name for row in rows for name in row.loads}
    loads = {name: make() for name, make in _loads(testbed).items() if name in needed}
    samples = testbed.in_turns(loads) if loads else {}
    return [line for row in rows for line in row.lines(samples)]
