"""Polls Stripe's newest events, and settles those that were not delivered.

Without polls, a lost delivery would wait until Stripe repeats it, which may take hours. Several
bridges may poll at once.
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

import structlog

from stripe_bridge import failure_log, metrics
from stripe_bridge.model import Settled
from stripe_bridge.settle import EVENT_TYPES
from stripe_bridge.settle_many import Finding, settle_many
from stripe_bridge.stripe_api import StripeAway, StripeRefuses

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from stripe_bridge.fields import Object
    from stripe_bridge.settle import Settler
    from stripe_bridge.stripe_api import StripeReads

_log = structlog.get_logger()

LOOK_BACK_SECONDS = 24 * 60 * 60
OVERLAP_SECONDS = 10 * 60
GRACE_SECONDS = 30
LISTED_SECONDS = 30 * 24 * 60 * 60


class Poller:
    """Settles the events that Stripe lists.

    It remembers the events that it has settled until Stripe no longer lists them, or no later poll
    asks for them.
    """

    def __init__(
        self,
        stripe: StripeReads,
        settler: Settler,
        *,
        look_back_seconds: int = LOOK_BACK_SECONDS,
        overlap_seconds: int = OVERLAP_SECONDS,
        grace_seconds: int = GRACE_SECONDS,
        listed_seconds: int = LISTED_SECONDS,
    ) -> None:
        """Starts without any settled event.

        Args:
            stripe: lists the events.
            settler: settles them.
            look_back_seconds: the age of the events to begin with.
            overlap_seconds: how much later than a newer event an event may be listed.
            grace_seconds: how long the poller leaves an event to its delivery before it settles it.
            listed_seconds: the age up to which Stripe lists events.
        """
        self._stripe = stripe
        self._settler = settler
        self._since = int(time.time()) - look_back_seconds
        self._overlap_seconds = overlap_seconds
        self._grace_seconds = grace_seconds
        self._listed_seconds = listed_seconds
        self._settled: dict[str, int] = {}

    async def run(self, poll_seconds: float) -> None:
        """Polls until it is cancelled, even after failures, with this pause after each poll."""
        while True:
            try:
                await self.poll()
            except (StripeAway, StripeRefuses) as problem:
                metrics.POLLS_FAILED.inc()
                _log.warning("poll failed", problem=str(problem))
            except Exception as error:
                # The loop must survive any failure, because the next poll may succeed.
                metrics.POLLS_FAILED.inc()
                failure_log.log_failure("poll failed", error)
            await asyncio.sleep(poll_seconds)

    async def poll(self) -> bool:
        """Settles the events since the last poll.

        Returns:
            Whether all of them are settled; otherwise the next poll tries the rest again.

        Raises:
            StripeAway, StripeRefuses: they cannot be listed.
        """
        now = int(time.time())
        newest = self._since
        left = 0
        async for group in settle_many(self._events(now), self._settler.listed_event):
            away = 0
            for event, found in group:
                created = int(event.get("created") or self._since)
                if isinstance(found, Finding) and found.passing:
                    left += 1
                    away += found.away
                else:
                    self._settled[event["id"]] = created
                newest = max(newest, created)
                _tell(event, found)
            if away == len(group):
                # The rest would fail as well.
                break
        if not left:
            self._since = max(self._since, newest - self._overlap_seconds)
            metrics.POLLED_UNTIL.set(now - self._grace_seconds)
        # Otherwise an event that can never be settled would let this set grow for ever.
        self._since = max(self._since, now - self._listed_seconds)
        self._settled = {
            event_id: created
            for event_id, created in self._settled.items()
            if created >= self._since
        }
        return not left

    async def _events(self, now: int) -> AsyncIterator[Object]:
        until = now - self._grace_seconds
        async for event in self._stripe.events(
            types=list(EVENT_TYPES), created={"gte": self._since, "lte": until}
        ):
            if event["id"] not in self._settled:
                yield event


def _tell(event: Object, found: Settled | Finding) -> None:
    if isinstance(found, Finding):
        outcome, alerts, quiet = "unresolved", not found.passing, False
    else:
        outcome, alerts = found.outcome, found.alerts
        quiet = outcome in ("replayed", "nothing") and not alerts
    metrics.POLLED.labels(outcome, found.reason).inc()
    if quiet:
        return
    if alerts:
        metrics.ALERTS.labels(found.reason).inc()
    _log.warning(
        "polled",
        event_id=event["id"],
        type=event.get("type"),
        outcome=outcome,
        reason=found.reason,
        refs=found.refs if isinstance(found, Settled) else (),
        problem=found.detail if isinstance(found, Finding) else "",
    )
