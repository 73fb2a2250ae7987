"""The row of coalescing: the same client with it and without it, at several numbers of callers."""

from __future__ import annotations

import statistics
from typing import TYPE_CHECKING

from benchmark import measuring
from benchmark.client_calls import coalesced
from benchmark.lines import Line, at_least, at_most, compared

if TYPE_CHECKING:
    from collections.abc import Mapping

    from benchmark.lines import Target
    from benchmark.measuring import Sample
    from benchmark.testbed import Testbed

_ROW = "coalesced"
_SPEND, _HOLD = "client spend", "client hold and capture"

# How many are in flight, over all client processes, and the target of the ratio of their rates.
_SPENDS: Mapping[int, Target | None] = {
    1: at_least(0.97),
    100: at_least(4.0),
    1_000: None,
    3_500: None,
}
_HOLDS_IN_FLIGHT = 100

# The number in flight at which the median wait may not grow.
_USUAL = 100


def client(testbed: Testbed) -> list[Line]:
    """Measures spends, and holds with their captures, of `CreditClient(coalesce=...)`."""
    pairs = [
        (f"spends of CreditClient, {count:,} in flight", _SPEND, count, target)
        for count, target in _SPENDS.items()
    ]
    name = f"holds and captures of CreditClient, {_HOLDS_IN_FLIGHT} in flight"
    pairs.append((name, _HOLD, _HOLDS_IN_FLIGHT, None))
    lines = []
    for name, call, count, target in pairs:
        # A client of one call is one process: two would take turns.
        processes = 1 if count == 1 else None
        samples = testbed.in_turns(
            {
                each: testbed.load(testbed.service, made, count, processes=processes)
                for each, made in ((coalesced(name), coalesced(call)), (name, call))
            }
        )
        lines.append(compared(_ROW, samples, coalesced(name), name, target=target))
        lines.append(
            _median_wait(samples, coalesced(name), name, to_reach=(call, count) == (_SPEND, _USUAL))
        )
        lines.append(_server_time(samples, coalesced(name), name))
    return lines


def _median_wait(
    samples: Mapping[str, list[Sample]], name: str, other: str, *, to_reach: bool
) -> Line:
    """Compares the median wait of a call, turn by turn."""
    one, two = (
        [measuring.quantile_ms(sample.waited_us, 0.5) for sample in samples[each]]
        for each in (name, other)
    )
    ratios = [mine / (its or 1) for mine, its in zip(one, two, strict=True)]
    return Line(
        row=_ROW,
        measured=f"{name}, p50",
        against=other,
        value=statistics.median(ratios),
        target=at_most(1.0) if to_reach else None,
        note=f"{statistics.median(one):.1f} ms : {statistics.median(two):.1f} ms;"
        f" turns {min(ratios):.2f} to {max(ratios):.2f}",
        failed=measuring.failures({each: samples[each] for each in (name, other)}),
    )


def _server_time(samples: Mapping[str, list[Sample]], name: str, other: str) -> Line:
    one, two = ([sample.server_us for sample in samples[each]] for each in (name, other))
    return Line(
        row=_ROW,
        measured=f"server CPU of {name}",
        against=other,
        value=statistics.median(one),
        unit="us",
        note=f"{other}: {statistics.median(two):,.0f} us; turns {min(one):,.0f} to {max(one):,.0f}",
        failed=measuring.failures({each: samples[each] for each in (name, other)}),
    )
