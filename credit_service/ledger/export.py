"""The ledger as pages for an export: accounts in the order of users, entries in that of time."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, NamedTuple

import asyncpg

from credit_service.database.postgres import ALL_PLANS
from credit_service.ledger import account_listing, store
from credit_service.rules.model import FIRST_USER

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable
    from uuid import UUID

    from credit_service.rules.model import Account, Entry

PAGE_ROWS = 1_000

# How many accounts a page looks at.
_LOOKS_AT = 10_000

# The first stretch of time that a page of entries reads, and the shortest one.
_STRETCH = timedelta(hours=1)
_STRETCH_MIN = timedelta(seconds=1)

# How long a page of entries may take before it is read from a shorter stretch.
_PAGE_MS = 60_000

_LOOK_AGAIN_SECONDS = 0.05

# Before all entries, and after them.
BEGINNING, END = datetime(1, 1, 1, tzinfo=UTC), datetime(9999, 12, 31, tzinfo=UTC)


class EntryPlace(NamedTuple):
    """A place in the order of entries: right after the entry of this time, user and seq."""

    time: datetime
    user_id: UUID = FIRST_USER
    seq: int = 0


async def present(connection: asyncpg.Connection, wait: Callable[[int], None]) -> datetime:
    """Waits until no entry with a time before the present can still be committed.

    A batch takes the time of its entries after it has locked its accounts, and commits later. So
    the export waits for the transactions that hold such a lock now.

    Args:
        connection: to the database.
        wait: called with the number of transactions that it still waits for, after each look.

    Returns:
        The present, as it was when the waiting began, by the database's clock.
    """
    now: datetime = await connection.fetchval("SELECT clock_timestamp()")
    writers = await store.find_writers(connection)
    while writers:
        wait(len(writers))
        await asyncio.sleep(_LOOK_AGAIN_SECONDS)
        writers &= await store.find_writers(connection)
    return now


async def accounts(
    connection: asyncpg.Connection, first: UUID | None, since: datetime
) -> AsyncGenerator[tuple[datetime, list[Account], UUID | None]]:
    """Goes through the accounts that changed at a time or later, in the order of their users.

    Args:
        connection: to the database.
        first: start at this user; None: there are no more.
        since: the time.

    Yields:
        Pages: the moment at which all its accounts were as they are shown, the accounts, and the
        user to go on from; None after the last page.
    """
    while first is not None:
        query = account_listing.AccountQuery(page_size=PAGE_ROWS, first=first, changed_since=since)
        async with connection.transaction(isolation="repeatable_read", readonly=True):
            now, found, first = await account_listing.find_accounts(connection, query, _LOOKS_AT)
        yield now, found, first


async def entries(
    connection: asyncpg.Connection, place: EntryPlace, until: datetime
) -> AsyncGenerator[tuple[list[Entry], EntryPlace]]:
    """Goes through the entries after a place and before a time, in the order of time.

    Entries of the same time come in the order of users and seqs. A page is read from a stretch of
    time, because the index of times tells only roughly where a time lies; the stretch follows the
    number of entries in it.

    Yields:
        Pages: the entries, and the place to go on from.
    """
    stretch = _STRETCH
    while place.time < until:
        end = place.time + stretch if stretch < until - place.time else until
        try:
            page = await _entries(connection, place, end)
        except asyncpg.QueryCanceledError:
            if stretch <= _STRETCH_MIN:
                raise
            stretch /= 16
            continue
        if len(page) == PAGE_ROWS:
            last = page[-1]
            stretch = max(last.timestamp - place.time, _STRETCH_MIN)
            place = EntryPlace(last.timestamp, last.user_id, last.seq)
        else:
            if len(page) < PAGE_ROWS // 2:
                stretch *= 4
            place = EntryPlace(end)
        yield page, place


async def _entries(connection: asyncpg.Connection, place: EntryPlace, end: datetime) -> list[Entry]:
    async with connection.transaction(readonly=True):
        await connection.execute(f"SET LOCAL statement_timeout = {_PAGE_MS}; {ALL_PLANS}")
        return await store.list_entries_by_time(connection, place, end, PAGE_ROWS)
