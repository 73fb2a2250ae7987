"""The lines of a flood: spends at four times the rate that the service can answer.

The callers of a crowd wait for their answers, so they call no faster than they are answered. Those
of a flood do not wait.
"""

from __future__ import annotations

import statistics
import sys
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

from benchmark import measuring
from benchmark.calls import DEADLINE_SECONDS
from benchmark.children import Child
from benchmark.lines import Line, at_least, below, compared

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from benchmark.measuring import Sample
    from benchmark.testbed import Testbed

    Run = Callable[[float], Sample]

ROW = "overload"
GOODPUT = 0.8

TIMES = 4
_BUSY = 8
_CONNECTIONS = 4

# The errors that callers are prepared for; any other voids the figures. gRPC itself answers
# CANCELLED to a call that it has no room for, before the service sees it. A lane answers
# LEDGER_UNAVAILABLE to a call whose deadline has passed when its turn comes.
_EXPECTED = {
    "UNAVAILABLE OVERLOADED": "OVERLOADED",
    "CANCELLED": "CANCELLED by gRPC unseen",
    "DEADLINE_EXCEEDED": "missed their deadline",
    "UNAVAILABLE LEDGER_UNAVAILABLE": "missed it in a lane",
}


def load(testbed: Testbed, rate: float) -> Run:
    """Makes a flood of `rate` spends a second, over all client processes."""
    return testbed.load(testbed.service, "flood", 0, rate=rate, connections=_CONNECTIONS)


def four_times(testbed: Testbed, usual: tuple[str, Run], rate: float, seconds: float) -> list[Line]:
    """Measures four times the greatest rate beside the load that reached it.

    Args:
        testbed: what it runs on.
        usual: the load that reached the greatest rate, and its name.
        rate: the greatest rate, in spends a second.
        seconds: how long a turn is.
    """
    name = f"SpendCredits, {TIMES} times the best rate offered"
    loads = dict([usual, (name, load(testbed, TIMES * rate))])
    samples = measuring.in_turns(loads, testbed.extent.turns, seconds, testbed.say)
    return _lines(samples, name, usual[0])


def beside_others(testbed: Testbed, usual: Run, rate: float, seconds: float) -> list[Line]:
    """Measures the full load of the idle machine while eight programs use all of its processors.

    Args:
        testbed: what it runs on.
        usual: a load that waits for its answers.
        rate: the greatest rate of the idle machine, in spends a second.
        seconds: how long a turn is.
    """
    busy = f"beside {_BUSY} busy processes"
    name, other = f"SpendCredits, the best rate offered {busy}", f"SpendCredits, waiting, {busy}"
    loads = {other: usual, name: load(testbed, rate)}
    with _busy_processes(testbed):
        samples = measuring.in_turns(loads, testbed.extent.turns, seconds, testbed.say)
    return _lines(samples, name, other)


def goodput(samples: Mapping[str, list[Sample]], name: str, best: str) -> Line:
    """Makes the line of a crowd; its refusals and missed deadlines are figures, not faults."""
    line = compared(ROW, samples, name, best, target=at_least(GOODPUT))
    failed = measuring.failures({name: samples[name]})
    counts = {said: failed.pop(f"{name}: {kind}", 0) for kind, said in _EXPECTED.items()}
    calls = sum(len(sample.waited_us) for sample in samples[name]) + sum(counts.values())
    shares = ", ".join(f"{count / max(1, calls):.1%} {said}" for said, count in counts.items())
    return replace(line, note=f"{line.note}; {shares}", failed=failed)


def _lines(samples: Mapping[str, list[Sample]], name: str, other: str) -> list[Line]:
    line = goodput(samples, name, other)
    offered = statistics.median(sample.offered for sample in samples[name])
    waited = [us for sample in samples[name] for us in sample.waited_us]
    middle, longest = (measuring.quantile_ms(waited, part) for part in (0.5, 1.0))
    return [
        replace(line, note=f"{offered:,.0f}/s offered; {line.note}"),
        Line(
            row=ROW,
            measured=f"{name}, latency of what is answered, p99",
            value=measuring.quantile_ms(waited, 0.99),
            unit="ms",
            target=below(DEADLINE_SECONDS * 1000),
            note=f"p50 {middle:,.0f} ms, the longest {longest:,.0f} ms; {len(waited):,} answers",
            failed=line.failed,
        ),
    ]


@contextmanager
def _busy_processes(testbed: Testbed) -> Iterator[None]:
    testbed.say(f"starting {_BUSY} busy processes")
    command = [sys.executable, "-c", "while True: pass"]
    with ExitStack() as stack:
        for number in range(_BUSY):
            log = testbed.directory / f"busy {number}.log"
            stack.enter_context(Child("a busy process", command, log))
        yield
