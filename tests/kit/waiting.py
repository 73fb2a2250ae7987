"""How long tests wait: for a state and not for a time, and longer on a slower or busier machine.

A deadline here only says when something will never come true, so it costs nothing while tests pass.
"""

import asyncio
import os
import time
from collections.abc import Callable

_PACE = "TEST_PACE"

# The processor time of `_work` on the machine that the literal deadlines were written on.
_REFERENCE_SECONDS = 0.06
# The suite itself keeps the processors busier than they are while the pace is measured.
_MARGIN = 2.0
_PACE_MAX = 30.0


def measure_pace() -> None:
    """Measures how slow the machine is at the moment, for this process and those it starts."""
    if _PACE in os.environ:
        return
    slowest = 0.0
    for _ in range(5):
        started = time.perf_counter()
        _work()
        slowest = max(slowest, time.perf_counter() - started)
    pace = max(1.0, slowest / _REFERENCE_SECONDS) * _MARGIN
    os.environ[_PACE] = f"{min(pace, _PACE_MAX):.1f}"


def _work() -> int:
    return sum(number * number % 7 for number in range(1_000_000))


def patience(seconds: float) -> float:
    """Gives a deadline in seconds, made longer by as much as this machine is slower."""
    return seconds * float(os.environ.get(_PACE, "1"))


async def eventually(
    claim: Callable[[], object], seconds: float = 15, every: float = 0.05
) -> object:
    """Waits until a claim holds.

    Args:
        claim: a function or a coroutine function; it holds when its result is true.
        seconds: the deadline on an idle machine.
        every: how often it is looked at, in seconds.

    Returns:
        What the claim returned.
    """
    deadline = time.monotonic() + patience(seconds)
    while True:
        result = claim()
        if asyncio.iscoroutine(result):
            result = await result
        if result:
            return result
        if time.monotonic() > deadline:
            raise AssertionError(f"never came true: {claim}")
        await asyncio.sleep(every)
