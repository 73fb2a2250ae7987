"""The row of overload: how many spends are answered however many callers there are."""

from __future__ import annotations

import threading
import time
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from benchmark import measuring
from benchmark.calls import DEADLINE_SECONDS
from benchmark.lines import Line, at_least, at_most, compared

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from benchmark.measuring import Sample
    from benchmark.testbed import Testbed

_ROW = "overload"

_CROWDS = (100, 1_000, 3_500, 10_000)
_CONNECTIONS = 4

# A crowd shows what it does to the service only when deadlines begin to pass.
_SECONDS_MIN = DEADLINE_SECONDS

_GOODPUT = 0.8
_RECOVERY_SECONDS = 5.0
_SLICE_SECONDS = 0.5
_SLICES_MAX = 40

_CHECK_SECONDS = 0.1

# What a crowd is prepared for; anything else voids the figures.
_REFUSED, _MISSED = "UNAVAILABLE OVERLOADED", "DEADLINE_EXCEEDED"


def overload(testbed: Testbed) -> list[Line]:
    """Measures spends answered in time beside crowds that wait as `RetryInfo` asks."""
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
    return [
        *(goodput(samples, name, best) for name in samples),
        _recovery(testbed, loads[crowd], loads[names[_CROWDS[0]]], rate),
        Line(
            row=_ROW,
            measured=f"health check beside {_CROWDS[-1]:,} in flight, the longest",
            value=max(checks) * 1000,
            unit="ms",
            note=f"{len(checks)} checks",
        ),
    ]


def goodput(samples: Mapping[str, list[Sample]], name: str, best: str) -> Line:
    """Makes the line of a crowd; its refusals and missed deadlines are figures and no faults."""
    line = compared(_ROW, samples, name, best, target=at_least(_GOODPUT))
    failed = measuring.failures({name: samples[name]})
    counts = [failed.pop(f"{name}: {kind}", 0) for kind in (_REFUSED, _MISSED)]
    calls = sum(len(sample.waited_us) for sample in samples[name]) + sum(counts)
    refused, missed = (count / max(1, calls) for count in counts)
    note = f"{line.note}; {refused:.1%} OVERLOADED, {missed:.1%} missed their deadline"
    return replace(line, note=note, failed=failed)


def _recovery(
    testbed: Testbed,
    crowd: Callable[[float], Sample],
    usual: Callable[[float], Sample],
    rate: float,
) -> Line:
    testbed.say("the crowd comes once more, and leaves")
    crowd(_SECONDS_MIN)
    left_at = time.monotonic()
    value = None
    for _ in range(_SLICES_MAX):
        sample = usual(_SLICE_SECONDS)
        if sample.rate >= _GOODPUT * rate and not sample.failed:
            value = time.monotonic() - left_at
            break
    return Line(
        row=_ROW,
        measured=f"seconds from the end of the crowd until {_GOODPUT:.0%} of the best rate",
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
