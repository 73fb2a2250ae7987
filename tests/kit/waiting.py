"""How long tests wait: for a state and not for a time, and longer on a slower or busier machine.

A deadline here only decides when a test gives up, so it costs nothing while tests pass.
"""

import asyncio
import os
import time
from collections.abc import Callable

_PACE = "TEST_PACE"

# The processor time of `_work` on the machine for which the literal deadlines were written.
_REFERENCE_SECONDS = 0.06
# The suite keeps the processors busier than they are while the pace is measured.
_MARGIN = 2.0
_PACE_MAX = 30.0


def measure_pace() -> None:
    """Measures how slow the machine is at the moment, for this process and those it starts."""
    if _PACE not in os.environ:
        os.environ[_PACE] = f"{_pace():.1f}"


def _pace() -> float:
    slowest = 0.0
    for _ in range(5):
        started = time.perf_counter()
        _work()
        slowest = max(slowest, time.perf_counter() - started)
    return min(max(1.0, slowest / _REFERENCE_SECONDS) * _MARGIN, _PACE_MAX)


def _work() -> int:
    return sum(number * number % 7 for number in range(1_000_000))


def patience(seconds: float) -> float:
    """Gives a deadline in seconds, lengthened by as much as this machine is slower."""
    return seconds * float(os.environ.get(_PACE, "1"))


def too_late(started: float, seconds: float) -> bool:
    """Returns whether a deadline has passed.

    It first measures the machine again, because the load may have come since the start.

    Args:
        started: when the wait began, by `time.monotonic`.
        seconds: the deadline on an idle machine.
    """
    if time.monotonic() - started <= patience(seconds):
        return False
    os.environ[_PACE] = f"{max(patience(1), _pace()):.1f}"
    return time.monotonic() - started > patience(seconds)


async def eventually(
    claim: Callable[[], object], seconds: float = 15, every: float = 0.05
) -> object:
    """Waits until a claim holds.

    Args:
        claim: a function or a coroutine function; it holds when its result is true.
        seconds: the deadline on an idle machine.
        every: the seconds between two looks.

    Returns:
        The result of the claim.
    """
    started = time.monotonic()
    while True:
        result = claim()
        if asyncio.iscoroutine(result):
            result = await result
        if result:
            return result
        if too_late(started, seconds):
            raise AssertionError(f"never came true: {claim}")
        await asyncio.sleep(every)
