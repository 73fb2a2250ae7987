"""Watching accounts: one poll per process for all its watched users together.

The book is the truth, so a change made through any replica is found, and the writers pay nothing
for it. (NOTIFY inside the writing transactions was tried: it halved throughput.)
"""

from __future__ import annotations

import asyncio
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import structlog

from credit_service.errors import LedgerUnavailable, Overloaded

if TYPE_CHECKING:
    from collections.abc import Iterator
    from uuid import UUID

    from credit_service.ledger.reads import Reads
    from credit_service.rules.model import Account

_log = structlog.get_logger()

POLL_SECONDS = 0.1
WATCHERS_MAX = 10_000


def is_newer(account: Account, shown: Account) -> bool:
    """Whether a reading of an account is later than the one that was shown.

    The poll and the first reading of a listener go separate ways, so that the older of two states
    may come last.
    """
    return _version(account) > _version(shown)


def _version(account: Account) -> tuple[datetime, int, int]:
    # The time comes first because a user who was deleted and created again counts from one.
    time = account.last_updated or datetime.min.replace(tzinfo=UTC)
    return time, account.seq, account.policy_changes


class Watcher:
    """One listener; it holds the newest state only, so a slow one costs the others nothing."""

    def __init__(self, user_id: UUID) -> None:
        self.user_id = user_id
        self._newest: Account | None = None
        self._changed = asyncio.Event()

    def put(self, account: Account) -> None:
        """Replaces what the listener has not taken yet."""
        self._newest = account
        self._changed.set()

    async def next(self) -> Account:
        """Waits for a state that was not taken yet."""
        await self._changed.wait()
        self._changed.clear()
        assert self._newest is not None  # noqa: S101  # put before the event was set
        return self._newest


class Watchers:
    """All listeners of this process, and the poll that serves them."""

    def __init__(self, reads: Reads) -> None:
        self._reads = reads
        self._watchers: dict[UUID, set[Watcher]] = {}
        self._seen: dict[UUID, Account | None] = {}
        self._count = 0
        self._any = asyncio.Event()

    @contextmanager
    def watch(self, user_id: UUID) -> Iterator[Watcher]:
        """Registers a listener for the length of the block; its first state comes with a poll.

        Raises:
            Overloaded: 10,000 are listening to this process.
        """
        if self._count >= WATCHERS_MAX:
            raise Overloaded
        watcher = Watcher(user_id)
        self._count += 1
        self._watchers.setdefault(user_id, set()).add(watcher)
        # Forgetting what was seen makes the next poll read the account again, for the newcomer.
        self._seen[user_id] = None
        self._any.set()
        try:
            yield watcher
        finally:
            self._count -= 1
            self._watchers[user_id].discard(watcher)
            if not self._watchers[user_id]:
                del self._watchers[user_id], self._seen[user_id]
            if not self._watchers:
                self._any.clear()

    async def poll(self) -> None:
        """Looks for changes every 100 ms while anybody listens; runs until it is cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            await self._any.wait()
            started = loop.time()
            try:
                for account in await self._reads.changes(self._seen):
                    self._tell(account)
            except LedgerUnavailable:
                # Health and the log tell of it; the listeners wait, and miss no last state.
                await asyncio.sleep(POLL_SECONDS)
            except Exception:
                # Whatever it is, it must not end the poll.
                _log.exception("watch poll failed")
            await asyncio.sleep(max(0.0, POLL_SECONDS - (loop.time() - started)))

    def _tell(self, account: Account) -> None:
        listeners = self._watchers.get(account.user_id)
        if listeners is None:
            return
        self._seen[account.user_id] = account
        for watcher in listeners:
            watcher.put(account)
