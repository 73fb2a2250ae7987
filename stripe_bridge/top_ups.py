"""Charges saved cards for requested top-ups.

The credit service keeps the requests, Stripe keeps the payments, and the bridge keeps nothing. So
it may be killed at any moment, and several bridges may work at once.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

import structlog

from credit_service.errors import CreditError, OutcomeUnknown, Unavailable
from stripe_bridge import failure_log, metrics
from stripe_bridge.model import Unresolved
from stripe_bridge.stripe_api import StripeAway, StripeRefuses
from stripe_bridge.top_up_work import Charging, TopUpWork, Worked

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from credit_service.v1 import credit_service_pb2 as pb

_log = structlog.get_logger()

_AT_ONCE = 8


class TopUps:
    """Works on the open requests, round by round."""

    def __init__(self, charging: Charging) -> None:
        """Starts with the first round that is asked for."""
        self._charging = charging

    async def run(self, pause_seconds: float) -> None:
        """Works round by round until it is cancelled, even after failures."""
        while True:
            try:
                open_ = 0
                async for worked in self.round():
                    open_ += 1
                    _tell(worked)
                metrics.OPEN_TOP_UPS.set(open_)
            except CreditError as problem:
                metrics.TOP_UP_ROUNDS_FAILED.inc()
                _log.warning("top-ups not listed", problem=str(problem))
            except Exception as error:
                # The loop must survive any failure, because the next round may succeed.
                metrics.TOP_UP_ROUNDS_FAILED.inc()
                failure_log.log_failure("top-ups failed", error)
            await asyncio.sleep(pause_seconds)

    async def round(self) -> AsyncIterator[Worked]:
        """Does for every open request what can be done now.

        Raises:
            CreditError: the requests cannot be listed.
        """
        group: list[pb.TopUpRequest] = []
        async for top_up in self._charging.credit_service.list_top_ups():
            group.append(top_up)
            if len(group) == _AT_ONCE:
                done = await self._work_group(group)
                for worked in done:
                    yield worked
                if all(worked.outcome == "away" for worked in done):
                    # The rest would fail as well.
                    return
                group = []
        for worked in await self._work_group(group):
            yield worked

    async def _work_group(self, group: list[pb.TopUpRequest]) -> list[Worked]:
        return list(await asyncio.gather(*map(self._work_safely, group)))

    async def _work_safely(self, top_up: pb.TopUpRequest) -> Worked:
        try:
            return await self.work(top_up)
        except StripeAway as problem:
            return Worked(top_up, "away", "stripe_away", str(problem))
        except StripeRefuses as refuses:
            return Worked(top_up, "unresolved", "stripe_refuses", str(refuses))
        except Unresolved as unresolved:
            return Worked(top_up, "unresolved", unresolved.reason, unresolved.detail)
        except CreditError as error:
            away = isinstance(error, (Unavailable, OutcomeUnknown))
            outcome = "away" if away else "unresolved"
            return Worked(top_up, outcome, error.reason.lower(), str(error))
        except Exception as error:
            # An unexpected failure with one request must not stop the others.
            failure_log.log_failure("top-up failed", error, top_up=top_up.id)
            return Worked(top_up, "unresolved", "bug", "An unexpected failure, which is logged.")

    async def work(self, top_up: pb.TopUpRequest) -> Worked:
        """Does for one open request what can be done now; raises as `TopUpWork.done` does."""
        return await TopUpWork(top_up, self._charging).done()


def _tell(worked: Worked) -> None:
    """Logs and counts the work on a request; waiting is not logged or counted."""
    if worked.outcome in ("waiting", "closed"):
        return
    metrics.TOP_UPS.labels(worked.outcome, worked.reason).inc()
    level = logging.INFO
    if worked.outcome == "unresolved":
        metrics.ALERTS.labels(worked.reason).inc()
        level = logging.ERROR
    elif worked.outcome == "away":
        level = logging.WARNING
    _log.log(
        level,
        "top-up",
        top_up=worked.top_up.id,
        user=worked.top_up.user_id,
        payment=worked.payment,
        outcome=worked.outcome,
        reason=worked.reason,
        problem=worked.detail,
    )
