"""Reads of the book for answers: accounts, entries, holds and reports, present or past.

Every answer is true at one moment of its call. It comes from one statement, or from several in one
snapshot. The only exception is an answer that found nothing: a second statement then tells whether
the user exists, and each of the two findings was true when it was made.
"""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING

from credit_service.database.postgres import ALL_PLANS
from credit_service.errors import HoldNotFound, InvalidRequest, PaymentNotFound, UserNotFound
from credit_service.ledger import account_listing, metrics, store
from credit_service.ledger.grant_reads import GrantReads, expiring, with_changes, with_lapsed
from credit_service.ledger.present_accounts import is_simple, read_at, read_present
from credit_service.ledger.read_connections import repeated
from credit_service.ledger.shared_account_reads import AccountReads
from credit_service.ledger.top_up_reads import TopUpReads, read_status
from credit_service.rules.holds import at
from credit_service.rules.model import Account, transaction_id

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
    from datetime import datetime
    from uuid import UUID

    from asyncpg.pool import PoolConnectionProxy

    from credit_service.ledger.grant_listing import Expiring
    from credit_service.ledger.read_connections import ReadPool
    from credit_service.rules.model import Entry, EntryType, Hold, HoldState, Usage
    from credit_service.rules.terms import Terms
    from credit_service.rules.top_ups import TopUpStatus

# How many entries a filtered page of history looks at before it comes back short, and how many
# accounts a filtered page of accounts.
SCAN_LIMIT = 10_000

# How long a report may take.
REPORT_SECONDS = 60

_RESOLUTION = timedelta(microseconds=1)

_SEQ_MAX = 2**63 - 1


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
    types: Sequence[EntryType] | None = None
    start: datetime | None = None
    end: datetime | None = None
    reference: str | None = None
    related_seq: int | None = None
    grant_seq: int | None = None


class Reads:
    """Reads the ledger through pools of its own; one statement, or one snapshot, per answer."""

    def __init__(self, pool: ReadPool, report_pool: ReadPool, terms: Terms) -> None:
        """Takes what it works with.

        Args:
            pool: connections for the reads.
            report_pool: connections for reports, which take long and so have their own.
            terms: with the configured allowance.
        """
        self._pool = pool
        self._report_pool = report_pool
        self._terms = terms
        self._accounts = AccountReads(pool, terms)
        # One report at a time, so that reports do not slow down the spends.
        self._report_turn = asyncio.Semaphore(1)
        self.grants = GrantReads(pool, self._report, REPORT_SECONDS)
        self.top_ups = TopUpReads(pool)
        for state, count in (("open", pool.count), ("idle", pool.idle)):
            metrics.POOL_CONNECTIONS.labels(state).set_function(count)

    @repeated
    async def payer(self, payment_ref: str) -> UUID:
        """Finds the user to whom a payment was credited.

        Raises:
            PaymentNotFound: it was never credited.
            LedgerUnavailable: the database is away.
        """
        async with self._pool.lend() as connection:
            user_id = await store.find_payer(connection, payment_ref)
        if user_id is None:
            raise PaymentNotFound(payment_ref)
        return user_id

    def account(self, user_id: UUID) -> asyncio.Future[Account]:
        """Reads an account as it is now.

        Returns:
            A future. It raises UserNotFound if the user is not in the user table, and
            LedgerUnavailable if the database is away.
        """
        return self._accounts.read(user_id)

    @repeated
    async def account_with_entries(
        self, user_id: UUID, size: int
    ) -> tuple[Account, list[Entry], list[Expiring], TopUpStatus | None]:
        """Reads an account as it is now: newest entries that moved the balance, lapses, top-ups.

        Args:
            user_id: whose.
            size: how many entries at most.

        Raises:
            UserNotFound: the user is not in the user table.
            LedgerUnavailable: the database is away.
        """
        async with self._pool.snapshot() as connection:
            now, account = await _account(connection, user_id)
            if not is_simple(account, self._terms):
                [account] = await read_present(connection, [user_id], self._terms)
            entries = await _newest_entries(connection, account, size)
            top_ups = await read_status(connection, account, now)
            if account.expiring is not None:
                return account, entries, list(account.expiring), top_ups
            return account, entries, await expiring(connection, account), top_ups

    @repeated
    async def account_at(
        self, user_id: UUID, time: datetime, size: int
    ) -> tuple[Account, list[Entry], list[Expiring]]:
        """Reads an account as it was at a time, entries of that very microsecond included.

        Args:
            user_id: whose.
            time: when.
            size: the maximum number of entries, the newest as of that time.

        Returns:
            The account, the entries, newest first, and the next lapses as of then.

        Raises:
            InvalidRequest: the time is still to come.
            UserNotFound: the user is not in the user table.
            LedgerUnavailable: the database is away.
        """
        async with self._pool.snapshot() as connection:
            now, account = await _account(connection, user_id)
            # If the clock was set back, the newest entry may be a little ahead of it.
            if time > max(now, account.last_updated or now):
                raise InvalidRequest("as_of", f"is still to come; it is {now.isoformat()} now.")
            seq = await store.count_entries_before(connection, user_id, time + _RESOLUTION)
            if seq == 0:
                return account._replace(balance=0, held=0, seq=0, last_updated=None), [], []
            entry = (await store.load_entries(connection, [(user_id, seq)]))[user_id, seq]
            # What falls due is recorded later, when the account is next looked at.
            if account.grants_made > 0:
                balance, held, expiring_next = await read_at(connection, entry, time)
            else:
                over = await store.expired_unrecorded_at(connection, user_id, seq, time)
                balance, held, expiring_next = entry.balance_after, entry.held_after - over, []
            then = account._replace(
                balance=balance,
                held=held,
                seq=seq,
                last_updated=entry.timestamp,
            )
            entries = await _newest_entries(connection, then, size)
            return then, entries, expiring_next

    @repeated
    async def history(self, query: HistoryQuery) -> tuple[list[Entry], int | None]:
        """Reads a page of entries, newest first.

        Returns:
            The entries, and the seq to go on from; None when there are no more.

        Raises:
            UserNotFound: the user is not in the user table.
            LedgerUnavailable: the database is away.
        """
        user_id, newest = query.user_id, query.newest
        # An entry changes the grant that it makes, and is not related to itself.
        oldest_excluded = max(query.related_seq or 0, (query.grant_seq or 1) - 1)
        several = query.start is not None or query.end is not None
        async with self._pool.snapshot() if several else self._pool.lend() as connection:
            if query.end is not None:
                before = await store.count_entries_before(connection, user_id, query.end)
                newest = before if newest is None else min(newest, before)
            if query.start is not None:
                before = await store.count_entries_before(connection, user_id, query.start)
                oldest_excluded = max(oldest_excluded, before)
            began_at, grants_made, entries = await store.list_entries(
                connection,
                user_id,
                newest=newest,
                older_than_all=oldest_excluded,
                types=query.types,
                reference=query.reference,
                related_seq=query.related_seq,
                grant_seq=query.grant_seq,
                limit=query.page_size,
                looks_at=SCAN_LIMIT,
            )
            if began_at is None:
                await _require_user(connection, user_id)
                return [], None
            if grants_made > 0:
                entries = await with_changes(connection, user_id, entries)
        bottom = max(oldest_excluded, began_at - SCAN_LIMIT)
        onward = entries[-1].seq - 1 if len(entries) == query.page_size else bottom
        return entries, onward if onward > oldest_excluded else None

    @repeated
    async def entry_at(self, user_id: UUID, seq: int) -> Entry | None:
        """Reads an entry of the user by its seq; None if there is none.

        Raises:
            UserNotFound: the user is not in the user table.
            LedgerUnavailable: the database is away.
        """
        async with self._pool.lend() as connection:
            entry = (await store.load_entries(connection, [(user_id, seq)])).get((user_id, seq))
            if entry is None:
                await _require_user(connection, user_id)
                return None
            return (await with_changes(connection, user_id, [entry]))[0]

    @repeated
    async def entry_under(self, user_id: UUID, key: str) -> Entry | None:
        """Reads the entry that a call with this key made or was answered with, if there is one.

        Raises:
            UserNotFound: the user is not in the user table.
            LedgerUnavailable: the database is away.
        """
        async with self._pool.lend() as connection:
            _, _, known = await store.load_entries_by_key(connection, [user_id], [key])
            if not known:
                await _require_user(connection, user_id)
                return None
            return (await with_changes(connection, user_id, [known[0].entry]))[0]

    @repeated
    async def hold(self, user_id: UUID, seq: int) -> Hold:
        """Reads a hold in its present state.

        Raises:
            HoldNotFound: the user has no hold with this seq.
            UserNotFound: the user is not in the user table.
            LedgerUnavailable: the database is away.
        """
        async with self._pool.lend() as connection:
            now, found = await store.list_holds(
                connection, user_id, newest=seq, state=None, limit=1
            )
            if not found or found[0].seq != seq:
                await _require_user(connection, user_id)
                raise HoldNotFound(transaction_id(user_id, seq))
        return at(found[0], now)

    @repeated
    async def holds(
        self, user_id: UUID, *, state: HoldState | None, newest: int | None, page_size: int
    ) -> tuple[list[Hold], int | None]:
        """Reads a page of holds, newest first.

        Args:
            user_id: whose.
            state: only these; None: all.
            newest: start at this seq and go down; None: at the newest.
            page_size: how many at most.

        Returns:
            The holds, and the seq to go on from; None when there are no more.

        Raises:
            UserNotFound: the user is not in the user table.
            LedgerUnavailable: the database is away.
        """
        async with self._pool.lend() as connection:
            now, found = await store.list_holds(
                connection,
                user_id,
                newest=_SEQ_MAX if newest is None else newest,
                state=state,
                limit=page_size + 1,
            )
            if not found:
                await _require_user(connection, user_id)
        onward = found[page_size].seq if len(found) > page_size else None
        return [at(hold, now) for hold in found[:page_size]], onward

    async def changes(
        self, seen: Mapping[UUID, Account | None], take: Callable[[Account], None]
    ) -> None:
        """Reads accounts that differ from what was seen, as `AccountReads.changes` does.

        Raises:
            LedgerUnavailable: the database is away.
        """
        await self._accounts.changes(seen, take)

    @repeated
    async def now(self) -> datetime:
        """Reads the database's clock.

        Raises:
            LedgerUnavailable: the database is away.
        """
        async with self._pool.lend() as connection:
            now: datetime = await connection.fetchval("SELECT clock_timestamp()")
            return now

    @repeated
    async def usage(self, user_id: UUID | None, start: datetime, end: datetime) -> list[Usage]:
        """Adds up the entries with start <= time < end, of one user or all.

        Raises:
            UserNotFound: the user is not in the user table.
            LedgerUnavailable: the database is away, or the report takes longer than a minute.
        """
        async with self._report() as connection:
            if user_id is None:
                lines = await store.report_usage(connection, start, end, seconds=REPORT_SECONDS)
            else:
                await _account(connection, user_id)
                lines = await store.report_usage_of_user(
                    connection,
                    user_id,
                    after=await store.count_entries_before(connection, user_id, start),
                    until=await store.count_entries_before(connection, user_id, end),
                    seconds=REPORT_SECONDS,
                )
            return await with_lapsed(connection, lines, start, end, user_id, seconds=REPORT_SECONDS)

    @asynccontextmanager
    async def _report(self) -> AsyncIterator[PoolConnectionProxy]:
        """Lends a connection to one report at a time, in one snapshot."""
        async with (
            self._report_turn,
            self._report_pool.lend() as connection,
            connection.transaction(isolation="repeatable_read"),
        ):
            # A standby refuses the first statement, so a report never lacks the last writes.
            await connection.execute(
                "SET TRANSACTION READ WRITE;"
                f" SET LOCAL statement_timeout = '{REPORT_SECONDS}s'; {ALL_PLANS}"
            )
            yield connection

    @repeated
    async def accounts(
        self, query: account_listing.AccountQuery
    ) -> tuple[datetime, list[Account], UUID | None]:
        """Reads a page of accounts, all as they were at one moment.

        Returns:
            That moment, the accounts, and the user to go on from; None when there are no more.

        Raises:
            LedgerUnavailable: the database is away.
        """
        async with (
            self._pool.lend() as connection,
            connection.transaction(isolation="repeatable_read", readonly=True),
        ):
            return await account_listing.find_accounts(connection, query, SCAN_LIMIT)

    @repeated
    async def due_users(self, limit: int, without: Collection[UUID]) -> list[tuple[UUID, int]]:
        """Finds users with holds or grants whose time has passed and is not recorded yet.

        Args:
            limit: the maximum number of such holds and of such grants to look at, the longest due
                first.
            without: users to leave out.

        Returns:
            The users, the longest due first, and how many of those each has.

        Raises:
            LedgerUnavailable: the database is away.
        """
        async with self._pool.lend() as connection:
            return await store.find_due_users(connection, limit, without)

    async def check(self) -> bool:
        """Tells whether a server that can be written answers; until one does, reads are refused.

        Called once a second.
        """
        return await self._pool.check()


async def _account(connection: PoolConnectionProxy, user_id: UUID) -> tuple[datetime, Account]:
    now, account, known = await store.get_account(connection, user_id)
    if not known:
        raise UserNotFound(str(user_id))
    return now, account or Account(user_id)


async def _require_user(connection: PoolConnectionProxy, user_id: UUID) -> None:
    if not await store.find_users(connection, [user_id]):
        raise UserNotFound(str(user_id))


async def _newest_entries(
    connection: PoolConnectionProxy, account: Account, size: int
) -> list[Entry]:
    if size == 0 or account.seq == 0:
        return []
    _, grants_made, entries = await store.list_entries(
        connection, account.user_id, newest=account.seq, limit=size, looks_at=SCAN_LIMIT
    )
    if grants_made == 0:
        return entries
    return await with_changes(connection, account.user_id, entries)
