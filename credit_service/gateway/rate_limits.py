"""How many requests a user may make, how many streams may be open, and how long they last."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from credit_service.gateway.problems import Problem

if TYPE_CHECKING:
    from uuid import UUID

_USERS_MAX = 10_000


@dataclass(frozen=True, slots=True)
class Rate:
    """`burst` requests at once, and then `per_second` requests per second."""

    burst: int
    per_second: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """The limits of one gateway process. Rates are for one user.

    Attributes:
        streams: maximum number of open streams; more are refused.
        streams_per_user: maximum number of open streams of a user; another one ends the oldest.
        stream_seconds: how long a stream lasts.
        heartbeat_seconds: time between two heartbeats on a quiet stream.
        write_seconds: how long a reader may take for one piece of a stream.
        link_seconds: how long the service may be silent before pages see that it is away.
        reads: pages of history and of holds.
        quotes: quotes.
        usage: usage reports.
        checkouts: requests that reach the bridge.
        streams_opened: streams opened.
    """

    streams: int = 2000
    streams_per_user: int = 6
    stream_seconds: float = 15 * 60
    heartbeat_seconds: float = 15
    write_seconds: float = 30
    link_seconds: float = 1
    reads: Rate = Rate(60, 20)
    quotes: Rate = Rate(30, 10)
    usage: Rate = Rate(10, 0.5)
    checkouts: Rate = Rate(20, 1)
    streams_opened: Rate = Rate(20, 1)


class Bucket:
    """Keeps each user within a rate; it holds one number for each user."""

    def __init__(self, rate: Rate) -> None:
        self._gap = 1 / rate.per_second
        self._ahead = (rate.burst - 1) * self._gap
        # When each user's bucket is full again (the generic cell rate algorithm).
        self._full_at: dict[UUID, float] = {}
        self._prune_at = _USERS_MAX

    def take(self, user_id: UUID) -> None:
        """Counts one request of a user.

        Raises:
            Problem: 429, with the seconds after which the next one is allowed.
        """
        now = time.monotonic()
        full_at = max(now, self._full_at.get(user_id, now))
        if full_at - now > self._ahead:
            raise Problem("TOO_MANY_REQUESTS", retry_after=full_at - now - self._ahead)
        self._full_at[user_id] = full_at + self._gap
        if len(self._full_at) > self._prune_at:
            self._prune(now)

    def _prune(self, now: float) -> None:
        # A full bucket is the same as none. The number of buckets that are left decides when to
        # prune next, so that the work stays in proportion to the requests.
        self._full_at = {user: full for user, full in self._full_at.items() if full > now}
        self._prune_at = max(_USERS_MAX, 2 * len(self._full_at))
