"""Estimates the wait of a call, so that a call which cannot wait as long is refused at once."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from credit_service.errors import Overloaded

if TYPE_CHECKING:
    from collections.abc import Callable

# Fewer calls are not a queue: their rate shows the demand and not the capacity, and all of them may
# wait for one locked account. A measurement needs this many answers too.
FEW_CALLS = 50

# A call is admitted if the wait takes no more than this part of its caller's time, because the wait
# is an estimate, and a caller that is refused needs time to try again.
WAIT_PART_MAX = 0.5

# The time of a caller that set no deadline.
_NO_DEADLINE_SECONDS = 10.0

# Older answers count half as much as those of about the last second.
_HALVED_AFTER_SECONDS = 1.0
_HALVED_AFTER_ANSWERS = 4 * FEW_CALLS

# A refused caller is asked to come back when the calls before it are answered, within these bounds.
_RETRY_MS_MIN, _RETRY_MS_MAX = 200, 2_000


class WaitingTime:
    """Estimates a wait: the calls that wait already, divided by the answers a second."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        """Starts without measurements, so only a pause in the answers bounds the first queue.

        Args:
            clock: gives seconds.
        """
        self._clock = clock
        self._seen_at = self._moved_at = clock()
        self._seconds = 0.0
        self._answers = 0.0

    def require(self, waiting: int, seconds_left: float | None) -> None:
        """Refuses a call that would wait too long.

        Args:
            waiting: how many calls wait already.
            seconds_left: until its deadline; None: it has none.

        Raises:
            Overloaded: the wait would take more than half of the time left.
        """
        now = self._count(waiting)
        if waiting < FEW_CALLS:
            self._moved_at = now
        # While no call is answered, only the length of this pause is known.
        wait = now - self._moved_at
        if self._answers >= FEW_CALLS:
            wait += waiting * self._seconds / self._answers
        left = _NO_DEADLINE_SECONDS if seconds_left is None else seconds_left
        if wait > left * WAIT_PART_MAX:
            raise Overloaded(min(max(int(wait * 1000), _RETRY_MS_MIN), _RETRY_MS_MAX))

    def answered(self, waiting: int) -> None:
        """Counts an answer.

        Args:
            waiting: how many calls were waiting, this one included.
        """
        self._moved_at = self._count(waiting)
        if waiting >= FEW_CALLS:
            self._answers += 1

    def _count(self, waiting: int) -> float:
        """Counts the time since the last call or answer, if calls waited; returns the time now."""
        now = self._clock()
        if waiting >= FEW_CALLS:
            self._seconds += now - self._seen_at
            if self._seconds > _HALVED_AFTER_SECONDS and self._answers > _HALVED_AFTER_ANSWERS:
                self._seconds /= 2
                self._answers /= 2
        self._seen_at = now
        return now
