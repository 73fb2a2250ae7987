"""Contended rows: accounts that another transaction keeps locked, and the calls that wait for them.

When a lane finds such a row, its user is served apart from the others for a while, so that only
that user waits for it.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from credit_service.errors import LedgerUnavailable
from credit_service.ledger.batches import (
    by_user,
    fail,
    of_users,
    out_of_patience,
    postponed,
    users_of,
    wanted,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from uuid import UUID

    from credit_service.ledger.batches import BatchRunner, Stuck, Waiting
    from credit_service.rules.model import Entry

# How long a user whose row was kept locked is served apart from the others.
_CONTENDED_SECONDS = 10.0

# How often a locked row is looked at.
GLANCE_SECONDS = 0.025

# How long a call waits for its contended row.
_PATIENCE_SECONDS = 0.5


class Contention:
    """Who is contended, and until when. Times are the event loop's, in seconds."""

    def __init__(self, seconds: float = _CONTENDED_SECONDS) -> None:
        """Begins with no user.

        Args:
            seconds: how long a user is contended.
        """
        self._seconds = seconds
        self._until: dict[UUID, float] = {}

    def mark(self, users: Iterable[UUID], now: float) -> None:
        """Makes these users contended from now on."""
        self._until.update(dict.fromkeys(users, now + self._seconds))

    def includes(self, user_id: UUID, now: float) -> bool:
        """Whether the user is contended at this time."""
        return self._until.get(user_id, now) > now

    @property
    def users(self) -> list[UUID]:
        """The contended users; one whose time is over counts until `forget`."""
        return list(self._until)

    def forget(self, now: float) -> None:
        """Drops the users whose time is over."""
        for user_id in [user_id for user_id, until in self._until.items() if until <= now]:
            del self._until[user_id]

    def __bool__(self) -> bool:
        """Whether any user is contended; one whose time is over counts until `forget`."""
        return bool(self._until)


class ContendedCalls:
    """Serves the calls whose rows are free now; the others go back to the queue.

    It holds no row while it waits for another: two processes would keep a row from each other for
    as long as a third row is locked.
    """

    def __init__(self, runner: BatchRunner, contention: Contention) -> None:
        """Takes what it works with.

        Args:
            runner: runs its batches.
            contention: takes the users whose rows stay locked.
        """
        self._runner = runner
        self._contention = contention

    async def serve(self, batch: list[Waiting]) -> list[Waiting]:
        """Answers the calls of a batch, and returns those that go on waiting."""
        locked = await self._runner.find_locked(batch)
        if locked is None:
            return []
        free = of_users(batch, users_of(batch) - locked)
        kept = await self._serve(free, ()) if free else []
        if locked:
            kept += self._keep(of_users(batch, locked))
        if kept:
            await asyncio.sleep(GLANCE_SECONDS)
        return wanted(kept)

    def close(self) -> None:
        """Drops the connection."""
        self._runner.close()

    async def _serve(self, batch: list[Waiting], lost: Sequence[Entry]) -> list[Waiting]:
        left = await self._runner.serve(batch, lost=lost, hurried=True)
        kept = postponed(left.postponed)
        for stuck in left.stuck:
            kept += await self._serve_stuck(stuck)
        return kept

    async def _serve_stuck(self, stuck: Stuck) -> list[Waiting]:
        parts = by_user(stuck.batch)
        if len(parts) > 1:
            # It may be a row that no look shows, of the user table for example.
            return [kept for part in parts for kept in await self._serve(part, stuck.lost)]
        if not stuck.lost:
            return self._keep(stuck.batch)
        fail(stuck.batch, LedgerUnavailable)
        return []

    def _keep(self, batch: list[Waiting]) -> list[Waiting]:
        """Fails the calls whose patience has run out, and returns the others."""
        late = out_of_patience(batch, _PATIENCE_SECONDS)
        self._contention.mark(users_of(late), asyncio.get_running_loop().time())
        fail(late, LedgerUnavailable)
        return wanted(batch)
