"""Rows of time: how long a spend takes at half of the maximum load, and a change to a watcher."""

from __future__ import annotations

from typing import TYPE_CHECKING

from benchmark import measuring
from benchmark.lines import Line, below, busy
from benchmark.numbering import WATCHED

if TYPE_CHECKING:
    from benchmark.lines import Target
    from benchmark.testbed import Testbed

_WATCHERS = 1_000
_CHANGES_A_SECOND = 100
_QUANTILES = (("p50", 0.5), ("p99", 0.99), ("p99.9", 0.999))


def half_load(testbed: Testbed) -> list[Line]:
    """Measures spends that come at a fixed rate, half of what the service can answer."""
    most = testbed.in_turns({"maximum load": testbed.load(testbed.service, "spend", 100)})
    rate = measuring.middle_rate(most["maximum load"]) / 2
    name = "SpendCredits, open loop"
    samples = testbed.in_turns(
        {name: testbed.load(testbed.service, "spend", 0, rate=rate)}, part=2.0
    )
    failed = {**measuring.failures(most), **measuring.failures(samples)}
    waited = [us for sample in samples[name] for us in sample.waited_us]
    targets: dict[str, Target] = {"p99": below(25)}
    return [
        Line(
            row="latency",
            measured=f"latency at half of the maximum load, {quantile}",
            value=measuring.quantile_ms(waited, part),
            unit="ms",
            target=targets.get(quantile),
            note=f"{rate:,.0f}/s, {len(waited):,} calls; {busy(samples[name])}",
            failed=failed,
        )
        for quantile, part in _QUANTILES
    ]


def watchers(testbed: Testbed) -> list[Line]:
    """Measures how long a change takes from the sending of the spend to its watcher."""
    testbed.fill(WATCHED, _WATCHERS)
    name = f"{_WATCHERS:,} watchers"
    load = testbed.load(
        testbed.service,
        "watch",
        0,
        users=(WATCHED, _WATCHERS),
        rate=_CHANGES_A_SECOND,
        processes=1,
    )
    samples = testbed.in_turns({name: load})
    waited = [us for sample in samples[name] for us in sample.waited_us]
    quantiles = ", ".join(
        f"{quantile} {measuring.quantile_ms(waited, part):.0f} ms" for quantile, part in _QUANTILES
    )
    return [
        Line(
            row="watchers",
            measured=f"{name}, a change reaches its own, p99",
            value=measuring.quantile_ms(waited, 0.99),
            unit="ms",
            target=below(250),
            note=f"{quantiles}; {len(waited):,} changes at {_CHANGES_A_SECOND}/s",
            failed=measuring.failures(samples),
        )
    ]
