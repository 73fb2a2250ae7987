"""When a call is repeated and how long to wait before it: jitter, and a budget for the client."""

from __future__ import annotations

import random
import time

# A call is sent this many times at most.
TRIES_MAX = 5

_FIRST_PAUSE_SECONDS = 0.1
_LONGEST_PAUSE_SECONDS = 1.0

_TOKENS_MAX = 500.0
_TOKENS_PER_SUCCESS = 0.1
_TOKENS_PER_SECOND = 1.0

# The failure of all calls in flight, as when a service is killed, costs no more than this.
_TOKENS_PER_LOSS_OF_ALL = 200.0


class Pauses:
    """The waits between the tries of one call: each about twice as long as the one before."""

    def __init__(
        self,
        first_seconds: float = _FIRST_PAUSE_SECONDS,
        longest_seconds: float = _LONGEST_PAUSE_SECONDS,
    ) -> None:
        self._step = first_seconds
        self._longest = longest_seconds

    def next(self, asked_seconds: float | None = None) -> float:
        """Returns the next wait in seconds, never less than what the service asked for.

        The jitter keeps clients that failed together from coming back together.
        """
        step = self._step
        self._step = min(2 * step, self._longest)
        own = step * random.uniform(0.5, 1.5)  # noqa: S311  # no secret
        return max(own, (asked_seconds or 0.0) * random.uniform(1.0, 1.2))  # noqa: S311


class RetryBudget:
    """Keeps the repeats of a client from burying a service that is overloaded or away.

    As in gRPC's retry throttling (gRFC A6): a failure costs a token, a success earns a tenth, and
    while no more than half of the tokens are left nothing is repeated. A token a second is earned
    as well, because a worker that makes a call a minute would need an hour to earn them back.
    With more than 200 calls in flight, each failure and each success counts for less, because a
    connection or a request that many calls share can end all of them at once, and each may then be
    repeated.
    """

    def __init__(self) -> None:
        self._tokens = _TOKENS_MAX
        self._counted_at = time.monotonic()

    def succeeded(self, calls_in_flight: int) -> None:
        """Counts a call that the service answered, with a refusal or without.

        Args:
            calls_in_flight: the client's calls without a final answer, with this one.
        """
        self._add(_TOKENS_PER_SUCCESS * _weight(calls_in_flight))

    def failed(self, calls_in_flight: int) -> bool:
        """Counts a try without a final answer; returns whether it may be repeated.

        Args:
            calls_in_flight: the client's calls without a final answer, with this one.
        """
        self._add(-_weight(calls_in_flight))
        return self._tokens > _TOKENS_MAX / 2

    def _add(self, tokens: float) -> None:
        now = time.monotonic()
        earned = (now - self._counted_at) * _TOKENS_PER_SECOND
        self._counted_at = now
        available = min(self._tokens + earned, _TOKENS_MAX)
        self._tokens = min(max(available + tokens, 0.0), _TOKENS_MAX)


def _weight(calls_in_flight: int) -> float:
    return min(1.0, _TOKENS_PER_LOSS_OF_ALL / calls_in_flight)
