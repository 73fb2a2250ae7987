"""The numbers of the feed on this server, and how they move after a failover or restore.

A number is the id of a transaction plus an offset. A server that lost commits gives out ids again,
so the numbers of another server or timeline are a leap above all earlier ones. Readers wait until
the owner has said that they may go on: only the owner knows whether commits were lost.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from uuid import UUID

    import asyncpg

_NUMBERS = """
    SELECT
        feed_id, feed_offset, leap, passed, system_identifier, timeline,
        server_system_identifier, server_timeline,
        base + pg_snapshot_xmin(pg_current_snapshot())::text::bigint
    FROM credit_feed_numbers
"""

_MOVE = """
    UPDATE credit_feed
    SET feed_offset = $1, system_identifier = $2, timeline = $3
"""

_MAKE_KNOWN = """
    INSERT INTO credit_feed_advances (number, tx, advanced_at, reason)
    SELECT coalesce(max(number), 0) + 1, $1, now(), $2
    FROM credit_feed_advances
"""


@dataclass(frozen=True, slots=True)
class Numbers:
    """The numbers of the feed on the server.

    Attributes:
        feed_id: names the feed; a copy of the database has the same.
        offset: the number added to the ids of transactions when the owner last let readers go on.
        leap: the number added for each timeline since.
        passed: how many leaps the owner has not acknowledged; the feed waits unless it is 0.
        system: the server that the offset is for, by its system identifier.
        timeline: the timeline of that server's write-ahead log.
        server_system: the system identifier of the present server.
        server_timeline: the timeline of the present server.
        boundary: items with this number or a higher one cannot be read yet.
    """

    feed_id: UUID
    offset: int
    leap: int
    passed: int
    system: int
    timeline: int
    server_system: int
    server_timeline: int
    boundary: int

    @property
    def problem(self) -> str:
        """Why the feed waits; empty if it does not."""
        if not self.passed:
            return ""
        if self.server_system != self.system:
            return (
                f"the database is on another server than before (system {self.server_system},"
                f" before {self.system}): it was restored, moved or upgraded"
            )
        return (
            f"the database had a failover or was restored to an earlier moment (timeline"
            f" {self.server_timeline}, before {self.timeline})"
        )


async def read_numbers(connection: asyncpg.Connection) -> Numbers:
    """Reads the numbers as they are now."""
    [row] = await connection.fetch(_NUMBERS)
    return Numbers(*row)


async def advance(
    connection: asyncpg.Connection, *, nothing_lost: bool, restored: bool
) -> Numbers | None:
    """Lets readers go on after a failover or restore.

    Args:
        connection: as the owner of the tables.
        nothing_lost: whether every commit is still there, so that readers need not know.
        restored: whether the files of the database were brought back from a copy, which the server
            itself cannot notice.

    Returns:
        The numbers as they were; None where there was nothing to do.

    Raises:
        asyncpg.LockNotAvailableError: a transaction has kept the accounts locked for five seconds.
    """
    async with connection.transaction(isolation="read_committed"):
        await connection.execute("SET LOCAL lock_timeout = '5s'")
        # Waits for the transactions that have a number already, and keeps others from getting one.
        await connection.execute("LOCK TABLE user_credits IN EXCLUSIVE MODE")
        numbers = await read_numbers(connection)
        leaps = numbers.passed + restored
        if not leaps:
            return None
        offset = numbers.offset + leaps * numbers.leap
        await connection.execute(_MOVE, offset, numbers.server_system, numbers.server_timeline)
        if not nothing_lost:
            reason = numbers.problem or "the database was brought back from a copy of its files"
            await connection.execute(_MAKE_KNOWN, offset, reason)
        return numbers
