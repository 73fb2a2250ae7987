"""The rows of the table, by the names that `--only` takes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from benchmark import (
    crowds,
    deployment,
    expiring,
    following,
    granted,
    growth,
    latency,
    model,
    throughput,
    together,
    webhooks,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from benchmark.lines import Line
    from benchmark.testbed import Testbed

# Measured one after the other, after the rows of `throughput`.
_APART: Mapping[str, Callable[[Testbed], list[Line]]] = {
    "coalesced": together.client,
    "latency": latency.half_load,
    "books": growth.long_books,
    "memory": deployment.memory,
    "processes": deployment.processes,
    "model": model.growth,
    "pgbouncer": deployment.pooler,
    "expiry": expiring.sweeper,
    "mass-expiry": expiring.mass,
    "grants": granted.spends,
    "lapses": expiring.lapses,
    "watchers": latency.watchers,
    "webhooks": webhooks.relay,
    "feed": following.feed,
    "overload": crowds.overload,
}

NAMES = (*throughput.ROWS, *_APART)


def measure(testbed: Testbed, names: Iterable[str]) -> Iterator[list[Line]]:
    """Measures rows in the order of the table, and yields lines as soon as they are known.

    Args:
        testbed: what they run on.
        names: of `NAMES`.
    """
    chosen = set(names)
    yield throughput.measure(testbed, [name for name in throughput.ROWS if name in chosen])
    for name, row in _APART.items():
        if name in chosen:
            yield row(testbed)
