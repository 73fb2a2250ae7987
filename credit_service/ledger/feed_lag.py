"""How far the feed is behind the ledger, and what holds it up: metrics and log lines."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import structlog

from credit_service.errors import LedgerUnavailable
from credit_service.ledger import metrics
from credit_service.ledger.read_connections import repeated
from credit_service.ledger.statement_texts import SQL, of_distributed_book

if TYPE_CHECKING:
    import asyncpg

    from credit_service.ledger.read_connections import ReadPool

_log = structlog.get_logger()

_EVERY_SECONDS = 5.0

# How many entries are counted; a higher count is reported as this one.
ENTRIES_MAX = 10_000

# How long the feed is held up before the log names the cause, and how often it does.
LATE_SECONDS = 10.0
_SAY_AGAIN_SECONDS = 60.0


class FeedLag:
    """Measures how far the feed is behind."""

    def __init__(self, pool: ReadPool) -> None:
        """Takes the connections."""
        self._pool = pool
        self._said: float | None = None

    async def run(self) -> None:
        """Measures every five seconds; runs until it is cancelled."""
        while True:
            try:
                await self.measure()
            except LedgerUnavailable:
                # Health and the log report it.
                pass
            except Exception:
                # The measuring must outlive any failure.
                _log.exception("the feed could not be measured")
            await asyncio.sleep(_EVERY_SECONDS)

    @repeated
    async def measure(self) -> None:
        """Measures once, and says in the log what holds the feed up, at most once a minute.

        A distributed book has no feed, and nothing to measure.

        Raises:
            LedgerUnavailable: the database is away.
        """
        async with self._pool.lend() as connection:
            if of_distributed_book(connection):
                return
            [measured] = await connection.fetch(SQL["measure_feed"], ENTRIES_MAX)
            passed, entries, seconds = measured
            late = passed or seconds > LATE_SECONDS
            holder = None
            if late and not passed:
                holder = await connection.fetchrow(SQL["find_feed_holder"])
        metrics.FEED_STANDING.set(int(passed != 0))
        metrics.FEED_WAITING_ENTRIES.set(entries)
        metrics.FEED_LAG_SECONDS.set(seconds)
        metrics.FEED_HOLDER_SECONDS.set(0 if holder is None else holder["seconds"] or seconds)
        now = asyncio.get_running_loop().time()
        if not late:
            if self._said is not None:
                self._said = None
                _log.info("the feed goes on")
        elif self._said is None or now - self._said >= _SAY_AGAIN_SECONDS:
            self._said = now
            if passed:
                _log.warning(
                    "the feed waits after a failover or restore of the database: see"
                    " `credit-service feed status`, then run `credit-service feed advance`"
                )
            else:
                _log.warning(
                    "the feed waits for a transaction that is still open",
                    seconds=round(seconds),
                    **({} if holder is None else _described(holder)),
                )


def _described(holder: asyncpg.Record) -> dict[str, object]:
    return {
        name: holder[name]
        for name in ("pid", "database", "application", "gid")
        if holder[name] is not None
    }
