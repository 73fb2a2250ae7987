"""Watching accounts: one poll per process for all its watched users together.

The ledger is the truth, so a change made through any replica is found, and the writers pay nothing
for it. (NOTIFY inside the writing transactions was tried: it halved throughput.)
"""

from __future__ import annotations

import asyncio
from contextlib import contextmanager
from typing import TYPE_CHECKING

import structlog

from credit_service.errors import LedgerUnavailable, Overloaded

if TYPE_CHECKING:
    from collections.abc import Iterator
    from uuid import UUID

    from credit_service.ledger.reads import Reads
    from credit_service.ledger.watched_due import WatchedDue
    from credit_service.rules.model import Account

_log = structlog.get_logger()

POLL_SECONDS = 0.1
WATCHERS_MAX = 10_000


class Watcher:
    """One listener; it holds the newest state only, so a slow one costs the others nothing.

    Attributes:
        user_id: whom it watches.
        registered_in: the poll that was running, or had run last, when it was registered.
    """

    def __init__(self, user_id: UUID, registered_in: int) -> None:
        self.user_id = user_id
        self.registered_in = registered_in
        self._newest: Account | None = None
        self._changed = asyncio.Event()

    def put(self, account: Account) -> None:
        """Replaces what the listener has not taken yet."""
        self._newest = account
        self._changed.set()

    async def next(self) -> Account:
        """Waits for a state that the listener has not taken yet."""
        await self._changed.wait()
        self._changed.clear()
        assert self._newest is not None  # noqa: S101  # put before the event was set
        return self._newest


class Watchers:
    """All listeners of this process, and the poll that serves them."""

    def __init__(self, reads: Reads, due: WatchedDue) -> None:
        """Takes what it works with.

        Args:
            reads: reads the accounts.
            due: records what is due of them.
        """
        self._reads = reads
        self._due = due
        self._watchers: dict[UUID, set[Watcher]] = {}
        self._seen: dict[UUID, Account | None] = {}
        self._count = 0
        self._polls = 0
        self._any = asyncio.Event()

    @contextmanager
    def watch(self, user_id: UUID) -> Iterator[Watcher]:
        """Registers a listener for the length of the block.

        It gets the account as it is, and then each change, in order. Each state is read later than
        anything that the caller has read before the block.

        Raises:
            Overloaded: 10,000 are listening to this process.
        """
        if self._count >= WATCHERS_MAX:
            raise Overloaded
        watcher = Watcher(user_id, self._polls)
        self._count += 1
        self._watchers.setdefault(user_id, set()).add(watcher)
        self._due.add(user_id)
        # Forgetting the state that was seen makes the next poll read the account for the newcomer.
        self._seen[user_id] = None
        self._any.set()
        try:
            yield watcher
        finally:
            self._count -= 1
            self._watchers[user_id].discard(watcher)
            if not self._watchers[user_id]:
                del self._watchers[user_id], self._seen[user_id]
                self._due.remove(user_id)
            if not self._watchers:
                self._any.clear()

    async def recorded(self, user_id: UUID) -> None:
        """Waits until what is due of a watched user is recorded, for a second at most."""
        await self._due.recorded(user_id)

    async def poll(self) -> None:
        """Looks for changes every 100 ms while there are listeners; runs until it is cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            await self._any.wait()
            started = loop.time()
            try:
                self._polls += 1
                await self._reads.changes(self._seen, self._take)
                if self._due.is_planned:
                    self._due.look(await self._reads.now())
            except LedgerUnavailable:
                # Health and the log report it. The listeners wait and miss no last state.
                await asyncio.sleep(POLL_SECONDS)
            except Exception:
                # The poll must outlive any failure.
                _log.exception("watch poll failed")
            await asyncio.sleep(max(0.0, POLL_SECONDS - (loop.time() - started)))

    def _take(self, account: Account) -> None:
        self._due.plan(account)
        self._tell(account)

    def _tell(self, account: Account) -> None:
        # A listener that came while the poll was running may have read a later state already. It
        # waits for the next poll, which reads the account again, because for it no state is seen
        # yet.
        listeners = self._watchers.get(account.user_id, set())
        earlier = [each for each in listeners if each.registered_in < self._polls]
        if len(earlier) == len(listeners) > 0:
            self._seen[account.user_id] = account
        for watcher in earlier:
            watcher.put(account)
