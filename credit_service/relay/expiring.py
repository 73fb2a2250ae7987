"""The walk that announces which credits expire soon: `credits.expiring`, once for each expiry.

It goes through the open grants in the order of their times, a page at a time, and starts again some
time after it has reached the end. So it holds one page in memory even if a million grants expire on
one day, and a grant that is made late, or whose expiry has changed, is found by the next walk.
"""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from credit_service.relay import alert_store
from credit_service.relay.alert_store import NewAlert
from credit_service.rules.model import FIRST_USER, transaction_id

if TYPE_CHECKING:
    from uuid import UUID

    from credit_service.ledger.read_connections import ReadPool
    from credit_service.relay.alert_store import ExpiringGrant
    from credit_service.relay.lease import Reader

_PAGE = 500

# How long the walk rests at its end, unless the walk itself took longer.
REST_SECONDS = 60.0

_BEGINNING = (datetime.min.replace(tzinfo=UTC), FIRST_USER, 0)


class ExpiringWalk:
    """A walk over the grants that expire within some days."""

    def __init__(self, pool: ReadPool, days: int, rest_seconds: float = REST_SECONDS) -> None:
        """Begins before the first grant.

        Args:
            pool: connections to the database.
            days: how many days before its expiry a grant is announced.
            rest_seconds: how long it rests at its end.
        """
        self._pool = pool
        self._days = days
        self._rest_seconds = rest_seconds
        self._after: tuple[datetime, UUID, int] = _BEGINNING
        self._began_at = self._rests_until = 0.0

    async def step(self, reader: Reader) -> None:
        """Announces the new expiries of the next page, unless the walk rests.

        Raises:
            LeaseLostError: another process makes the alerts now.
            LedgerUnavailable: the database is away.
        """
        now = asyncio.get_running_loop().time()
        if now < self._rests_until:
            return
        if self._after == _BEGINNING:
            self._began_at = now
        async with self._pool.lend() as connection:
            page = await alert_store.find_expiring(connection, self._days, self._after, _PAGE)
        if news := [grant for grant in page if grant.is_news]:
            async with reader.writing() as connection:
                await alert_store.put_expiring(connection, news)
                await alert_store.insert_alerts(connection, _alerts(news))
        if len(page) < _PAGE:
            self._after = _BEGINNING
            self._rests_until = now + max(self._rest_seconds, now - self._began_at)
        else:
            self._after = (page[-1].expire_time, page[-1].user_id, page[-1].seq)


def _alerts(grants: list[ExpiringGrant]) -> list[NewAlert]:
    return [
        NewAlert(
            grant.user_id,
            "credits.expiring",
            None,
            {
                "user_id": str(grant.user_id),
                "grant_id": transaction_id(grant.user_id, grant.seq),
                "remaining": grant.remaining,
                "held": grant.pinned,
                "expire_time": f"{grant.expire_time.astimezone(UTC):%Y-%m-%dT%H:%M:%S.%fZ}",
            },
        )
        for grant in grants
    ]
