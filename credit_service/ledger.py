"""The front of the book: submit a command and await its outcome; the reads."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING

from credit_service import metrics, store
from credit_service.errors import InvalidRequest, LedgerUnavailable, UserNotFound
from credit_service.model import Account
from credit_service.postgres import ACQUIRE_TIMEOUT_SECONDS, UNREACHABLE

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence
    from datetime import datetime
    from uuid import UUID

    import asyncpg
    from asyncpg.pool import PoolConnectionProxy

    from credit_service.lanes import Lane
    from credit_service.model import Command, Entry, Outcome
    from credit_service.rules import Terms

# How many entries a filtered page of history looks at before it comes back short.
SCAN_LIMIT = 10_000

_RESOLUTION = timedelta(microseconds=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class HistoryQuery:
    """Which entries of a user to list. Times are as in the contract: start <= time < end.

    Attributes:
        newest: start at this seq and go down; None: at the newest entry.
        types: only these types; None: whatever moved the balance.
    """

    user_id: UUID
    page_size: int
    newest: int | None = None
    types: Sequence[str] | None = None
    start: datetime | None = None
    end: datetime | None = None
    reference: str | None = None
    related_seq: int | None = None


class Ledger:
    """Gives commands to the lanes and reads the book through a pool of its own."""

    def __init__(self, lanes: Sequence[Lane], pool: asyncpg.Pool, terms: Terms) -> None:
        self._lanes = lanes
        self._pool = pool
        self.terms = terms
        for state, count in (("open", pool.get_size), ("idle", pool.get_idle_size)):
            metrics.POOL_CONNECTIONS.labels(state).set_function(count)

    async def submit(self, command: Command, seconds: float) -> Outcome:
        """Has a command decided and written; returns after its COMMIT.

        Args:
            command: what to do.
            seconds: how long the caller waits for its batch to begin.

        Raises:
            Refusal: the rules said no; nothing was written.
            Unavailable: no final answer; the same key tells later.
            InternalError: the command failed in a way that no caller can mend.
        """
        deadline = asyncio.get_running_loop().time() + seconds
        return await self._lane_of(command.user_id).submit(command, deadline)

    def _lane_of(self, user_id: UUID) -> Lane:
        """Chooses the lane of a user; the only place that may know about shards."""
        return self._lanes[user_id.int % len(self._lanes)]

    async def account(self, user_id: UUID) -> Account:
        """Reads an account as it is now.

        Raises:
            UserNotFound: the user is not in the user table.
            LedgerUnavailable: the database is away.
        """
        async with self._reading() as connection:
            return await _account(connection, user_id)

    async def account_at(self, user_id: UUID, time: datetime) -> Account:
        """Reads an account as it was at a time, entries of that very microsecond included.

        Raises:
            InvalidRequest: the time is still to come.
            UserNotFound: the user is not in the user table.
            LedgerUnavailable: the database is away.
        """
        async with self._reading() as connection:
            account = await _account(connection, user_id)
            now, _ = await store.get_account(connection, user_id)
            # The newest entry may be a hair ahead of a clock that was set back.
            if time > max(now, account.last_updated or now):
                raise InvalidRequest("as_of", f"is still to come; it is {now.isoformat()} now.")
            seq = await store.count_entries_before(connection, user_id, time + _RESOLUTION)
            if seq == 0:
                return Account(user_id)
            entry = (await store.recall_places(connection, [(user_id, seq)]))[user_id, seq]
            return Account(user_id, entry.balance_after, entry.held_after, seq, entry.timestamp)

    async def newest_entries(self, account: Account, size: int) -> list[Entry]:
        """Reads the newest entries that an account had when it was read, newest first."""
        if size == 0 or account.seq == 0:
            return []
        query = HistoryQuery(user_id=account.user_id, page_size=size, newest=account.seq)
        entries, _ = await self.history(query)
        return entries

    async def history(self, query: HistoryQuery) -> tuple[list[Entry], int | None]:
        """Reads a page of entries, newest first.

        Returns:
            The entries, and the seq to go on from; None when there are no more.

        Raises:
            UserNotFound: the user is not in the user table.
            LedgerUnavailable: the database is away.
        """
        user_id = query.user_id
        async with self._reading() as connection:
            account = await _account(connection, user_id)
            newest = account.seq if query.newest is None else min(query.newest, account.seq)
            oldest_excluded = query.related_seq or 0
            if query.end is not None:
                before = await store.count_entries_before(connection, user_id, query.end)
                newest = min(newest, before)
            if query.start is not None:
                before = await store.count_entries_before(connection, user_id, query.start)
                oldest_excluded = max(oldest_excluded, before)
            bottom = max(oldest_excluded, newest - SCAN_LIMIT)
            entries = await store.list_entries(
                connection,
                user_id,
                newest=newest,
                older_than_all=bottom,
                types=query.types,
                reference=query.reference,
                related_seq=query.related_seq,
                limit=query.page_size,
            )
        onward = entries[-1].seq - 1 if len(entries) == query.page_size else bottom
        return entries, onward if onward > oldest_excluded else None

    async def entry_at(self, user_id: UUID, seq: int) -> Entry | None:
        """Reads the entry in a place of the user's book; None where there is none."""
        async with self._reading() as connection:
            await _account(connection, user_id)
            return (await store.recall_places(connection, [(user_id, seq)])).get((user_id, seq))

    async def entry_under(self, user_id: UUID, key: str) -> Entry | None:
        """Reads the entry that a call with this idempotency key made; None where there is none."""
        async with self._reading() as connection:
            await _account(connection, user_id)
            _, entries = await store.recall_keys(connection, [user_id], [key])
            return entries[0] if entries else None

    async def answers(self) -> bool:
        """Tells whether the database answers."""
        try:
            async with self._reading() as connection:
                await connection.fetchval("SELECT 1")
        except LedgerUnavailable:
            return False
        return True

    @asynccontextmanager
    async def _reading(self) -> AsyncIterator[PoolConnectionProxy]:
        try:
            async with self._pool.acquire(timeout=ACQUIRE_TIMEOUT_SECONDS) as connection:
                yield connection
        except UNREACHABLE as error:
            raise LedgerUnavailable from error


async def _account(connection: PoolConnectionProxy, user_id: UUID) -> Account:
    _, account = await store.get_account(connection, user_id)
    if account is not None:
        return account
    if await store.find_users(connection, [user_id]):
        return Account(user_id)
    raise UserNotFound(str(user_id))
