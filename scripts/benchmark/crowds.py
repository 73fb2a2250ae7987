"""The row of overload: how many spends are answered when too many are asked for."""

from __future__ import annotations

import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from benchmark import floods, measuring
from benchmark.calls import DEADLINE_SECONDS
from benchmark.lines import Line, at_most

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from benchmark.measuring import Sample
    from benchmark.testbed import Testbed

_CROWDS = (100, 1_000, 3_500, 10_000)
_CONNECTIONS = 4

# The effect of a crowd shows only once deadlines begin to pass.
_SECONDS_MIN = DEADLINE_SECONDS

_RECOVERY_SECONDS = 5.0
_SLICE_SECONDS = 0.5
_SLICES_MAX = 40

_CHECK_SECONDS = 0.1


def overload(testbed: Testbed) -> list[Line]:
    """Measures spends answered in time: for crowds that wait as `RetryInfo` asks, and in floods."""
    names = {count: f"SpendCredits, {count:,} in flight" for count in _CROWDS}
    loads = {
        name: testbed.load(testbed.service, "spend", count, connections=_CONNECTIONS)
        for count, name in names.items()
    }
    checks: list[float] = []
    crowd = names[_CROWDS[-1]]
    loads[crowd] = _watched(loads[crowd], testbed.service.target, checks)
    seconds = max(_SECONDS_MIN, testbed.extent.seconds)
    samples = measuring.in_turns(loads, testbed.extent.turns, seconds, testbed.say)
    best = max(samples, key=lambda name: measuring.middle_rate(samples[name]))
    rate = measuring.middle_rate(samples[best])
    usual, flood = loads[names[_CROWDS[0]]], floods.load(testbed, floods.TIMES * rate)
    return [
        *(floods.goodput(samples, name, best) for name in samples),
        _recovery(testbed, "crowd", loads[crowd], usual, rate),
        *floods.four_times(testbed, (best, loads[best]), rate, seconds),
        _recovery(testbed, "flood", flood, usual, rate),
        *floods.beside_others(testbed, loads[best], rate, seconds),
        Line(
            row=floods.ROW,
            measured=f"health check beside {_CROWDS[-1]:,} in flight, the longest",
            value=max(checks) * 1000,
            unit="ms",
            note=f"{len(checks)} checks",
        ),
    ]


def _recovery(
    testbed: Testbed,
    what: str,
    crowd: Callable[[float], Sample],
    usual: Callable[[float], Sample],
    rate: float,
) -> Line:
    testbed.say(f"the {what} comes once more, and leaves")
    crowd(_SECONDS_MIN)
    left_at = time.monotonic()
    value = None
    for _ in range(_SLICES_MAX):
        sample = usual(_SLICE_SECONDS)
        if sample.rate >= floods.GOODPUT * rate and not sample.failed:
            value = time.monotonic() - left_at
            break
    return Line(
        row=floods.ROW,
        measured=f"seconds from the end of the {what} until {floods.GOODPUT:.0%} of the best rate",
        value=value,
        unit="s",
        target=at_most(_RECOVERY_SECONDS),
        note=f"in slices of {_SLICE_SECONDS:g} s at {_CROWDS[0]} in flight",
    )


def _watched(
    crowd: Callable[[float], Sample], target: str, checks: list[float]
) -> Callable[[float], Sample]:
    def run(seconds: float) -> Sample:
        with _checking(target, checks):
            return crowd(seconds)

    return run


@contextmanager
def _checking(target: str, checks: list[float]) -> Iterator[None]:
    """Asks for the service's health again and again, and notes the seconds of each answer."""
    ended = threading.Event()

    def check() -> None:
        with grpc.insecure_channel(target) as channel:
            check_health = health_pb2_grpc.HealthStub(channel).Check  # type: ignore[attr-defined]
            while not ended.wait(_CHECK_SECONDS):
                started = time.monotonic()
                check_health(health_pb2.HealthCheckRequest(), wait_for_ready=True)
                checks.append(time.monotonic() - started)

    thread = threading.Thread(target=check, name="health checks")
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
