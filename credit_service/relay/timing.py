"""All waiting times of the relay, in seconds."""

from __future__ import annotations

import random
from dataclasses import dataclass

_DAY = 24 * 60 * 60


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """Times in seconds; tests have shorter ones.

    Attributes:
        lease: how long the lease lasts without being renewed.
        look: how long an endpoint that has everything waits before it looks again.
        save: how often the place of an endpoint is written.
        attempt: how long an attempt may take in all.
        pause: the first pause before an endpoint that takes nothing is tried again; each further
            one is twice as long, up to `pause_max`.
        retry: the first wait before an event that was parked is tried again; each further wait is
            four times as long, up to `retry_max`.
        dead: how long until an event that was parked is given up.
        kept: how long an event that was given up is listed.
        drain: how long requests in flight may take to end when the relay stops.
    """

    lease: float = 10.0
    look: float = 0.25
    save: float = 0.5
    attempt: float = 10.0
    pause: float = 1.0
    pause_max: float = 60.0
    retry: float = 5.0
    retry_max: float = 6 * 60 * 60.0
    dead: float = 3.0 * _DAY
    kept: float = 30.0 * _DAY
    drain: float = 5.0

    def pause_after(self, failures: int) -> float:
        """How long to leave an endpoint alone after this many rounds in which it took nothing."""
        return _jittered(min(self.pause * 2 ** min(failures, 20), self.pause_max))

    def retry_after(self, tries: int) -> float:
        """How long to wait before trying again an event that has failed this many times."""
        return _jittered(min(self.retry * 4 ** min(tries - 1, 20), self.retry_max))


def _jittered(seconds: float) -> float:
    return seconds * random.uniform(0.8, 1.2)  # noqa: S311  # so that retries spread out
