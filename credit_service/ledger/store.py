"""One function per SQL statement, values in, values out; the statements are in sql/."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from credit_service.database.statements import fetch_by_values
from credit_service.ledger.rows import (
    account_row,
    entry_row,
    moved_row,
    policy_row,
    reversal_row,
    to_account,
    to_account_less_due,
    to_columns,
    to_entry,
)
from credit_service.ledger.statement_texts import SQL, text
from credit_service.rules.model import (
    Account,
    Entry,
    Hold,
    PolicyChange,
    Purchased,
    Returned,
    Reversal,
    Usage,
)

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence
    from datetime import datetime
    from uuid import UUID

    import asyncpg
    from asyncpg.pool import PoolConnectionProxy

    from credit_service.rules.model import EntryId, EntryType, HoldState, KeptKey, Spent

    _Connection = asyncpg.Connection | PoolConnectionProxy

# The locks that a transaction takes on the table of accounts before it writes entries.
WRITING = ("RowShareLock", "RowExclusiveLock")


class Known(NamedTuple):
    """A key that an earlier call used, and the entry that the call was answered with.

    Attributes:
        kept_call: the call's RPC where another call had made the entry; None where it made the
            entry itself.
    """

    key: str
    kept_call: str | None
    entry: Entry


class StaleAccountError(Exception):
    """A write met a different number of rows than the lock promised; the batch must start over."""


async def lock_accounts(connection: _Connection, user_ids: Collection[UUID]) -> dict[UUID, Account]:
    """Locks the rows of those users who have an account, until the transaction ends."""
    rows = await connection.fetch(SQL["lock_accounts"], user_ids)
    return {row[0]: to_account(row) for row in rows}


async def find_locked(connection: _Connection, user_ids: Collection[UUID]) -> set[UUID]:
    """Finds whose account row another transaction has locked; waits for none of them."""
    return {row[0] for row in await connection.fetch(SQL["find_locked"], user_ids)}


async def find_users(connection: _Connection, user_ids: Collection[UUID]) -> set[UUID]:
    """Finds which of the users exist."""
    return {row[0] for row in await connection.fetch(SQL["find_users"], user_ids)}


async def find_newcomers(
    connection: _Connection, user_ids: Collection[UUID]
) -> dict[UUID, tuple[bool, datetime | None]]:
    """Tells for users without an account whether they exist and until when they had allowances."""
    rows = await connection.fetch(SQL["find_newcomers"], user_ids)
    return {user_id: (known, until) for user_id, until, known in rows}


async def add_users(connection: _Connection, user_ids: Collection[UUID]) -> None:
    """Adds those of the users who do not exist yet."""
    await connection.execute(SQL["add_users"], user_ids)


async def load_entries_by_key(
    connection: _Connection, user_ids: Sequence[UUID], keys: Sequence[str], *, writes: bool = False
) -> tuple[datetime, int, list[Known]]:
    """Reads the database's time and what is known of the pairs of user and key.

    Returns:
        The time, the number of this transaction in the order of the feed (0 unless it `writes`),
        and what is known.
    """
    rows = await connection.fetch(text(connection, "load_entries_by_key"), user_ids, keys, writes)
    now, number = rows[0][:2]
    found = (row[2:] for row in rows if row[2] is not None)
    known = [Known(key, kept_call, to_entry(row)) for key, kept_call, *row in found]
    return now, number, known


async def load_entries(
    connection: _Connection, entry_ids: Collection[EntryId]
) -> dict[EntryId, Entry]:
    """Reads the entries with these ids."""
    user_ids, seqs = to_columns(entry_ids)
    rows = await connection.fetch(text(connection, "load_entries"), user_ids, seqs)
    return {(row[0], row[1]): to_entry(row) for row in rows}


async def load_refunds(
    connection: _Connection, spend_ids: Collection[EntryId]
) -> dict[EntryId, int]:
    """Reads how many credits were given back of these spends."""
    user_ids, seqs = to_columns(spend_ids)
    rows = await connection.fetch(text(connection, "load_refunds"), user_ids, seqs)
    return {(row[0], row[1]): row[2] for row in rows}


async def load_purchases(
    connection: _Connection, payment_refs: Collection[str]
) -> dict[str, Purchased]:
    """Reads the purchases of the payments; the entries are not filled in."""
    rows = await connection.fetch(SQL["load_purchases"], payment_refs)
    return {row[0]: Purchased(row[1], row[2], row[3], entry=None) for row in rows}


async def insert_entries(
    connection: _Connection, entries: Sequence[Entry], txs: Mapping[UUID, int]
) -> None:
    """Adds entries to the ledger.

    Args:
        connection: in the batch's transaction.
        entries: those of a user in order.
        txs: the place in the feed of each user's entries.

    Raises:
        StaleAccountError: the database took another number of rows.
    """
    columns = to_columns(entry_row(entry, txs[entry.user_id]) for entry in entries)
    expect(await connection.execute(text(connection, "insert_entries"), *columns), len(entries))


async def insert_accounts(connection: _Connection, accounts: Sequence[Account]) -> None:
    """Opens accounts.

    Raises:
        StaleAccountError: another transaction has opened one of them.
    """
    columns = to_columns(account_row(account) for account in accounts)
    expect_rows(await connection.fetch(SQL["insert_accounts"], *columns), len(accounts))


async def update_accounts(connection: _Connection, changes: Sequence[tuple[Account, int]]) -> None:
    """Writes accounts that were locked at the given seq.

    Raises:
        StaleAccountError: one of them is no longer at that seq.
    """
    columns = to_columns((*account_row(account), old_seq) for account, old_seq in changes)
    expect(await connection.execute(text(connection, "update_accounts"), *columns), len(changes))


async def move_accounts(connection: _Connection, changes: Sequence[tuple[Account, int]]) -> None:
    """Writes accounts of which only credits moved, as `update_accounts` does."""
    columns = to_columns((*moved_row(account), old_seq) for account, old_seq in changes)
    expect(await connection.execute(text(connection, "move_accounts"), *columns), len(changes))


async def insert_purchases(connection: _Connection, entries: Sequence[Entry]) -> None:
    """Records the payments of purchase entries as credited.

    Raises:
        StaleAccountError: another transaction has credited one of them.
    """
    rows = (
        (p.ref, e.user_id, e.seq, e.amount, p.amount_minor, p.currency, e.timestamp)
        for e in entries
        if (p := e.payment) is not None
    )
    expect_rows(await connection.fetch(SQL["insert_purchases"], *to_columns(rows)), len(entries))


async def upsert_refunds(connection: _Connection, spends: Sequence[Spent]) -> None:
    """Writes how many credits were given back of each spend."""
    rows = ((s.entry.user_id, s.entry.seq, s.entry.amount, s.refunded) for s in spends)
    expect(
        await connection.execute(text(connection, "upsert_refunds"), *to_columns(rows)), len(spends)
    )


async def upsert_holds(connection: _Connection, holds: Collection[Hold]) -> None:
    """Writes holds that were made or changed."""
    columns = to_columns(holds)
    expect(await connection.execute(text(connection, "upsert_holds"), *columns), len(holds))


async def insert_policy_changes(
    connection: _Connection, changes: Collection[PolicyChange], txs: Mapping[UUID, int]
) -> None:
    """Records changes of policies, with each user's place in the feed."""
    columns = to_columns(policy_row(change, txs[change.user_id]) for change in changes)
    expect(
        await connection.execute(text(connection, "insert_policy_changes"), *columns), len(changes)
    )


async def insert_kept_keys(connection: _Connection, keys: Collection[KeptKey]) -> None:
    """Records the keys of calls that were answered with the entry of another call."""
    expect(
        await connection.execute(text(connection, "insert_kept_keys"), *to_columns(keys)), len(keys)
    )


async def insert_reversals(connection: _Connection, reversals: Collection[Reversal]) -> None:
    """Records reversals.

    Raises:
        StaleAccountError: another transaction has recorded one of them, or the first revision of
            one of them.
    """
    columns = to_columns(reversal_row(reversal) for reversal in reversals)
    expect_rows(await connection.fetch(SQL["insert_reversals"], *columns), len(reversals))


async def load_reversals(
    connection: _Connection, revisions: Collection[tuple[str, int]]
) -> dict[tuple[str, int], Reversal]:
    """Reads the recorded ones of the revisions, and the highest of each named reversal.

    They are pairs of reversal_ref and revision; the entries of the reversals are not filled in.
    """
    rows = await connection.fetch(SQL["load_reversals"], *to_columns(revisions))
    return {(row[0], row[1]): Reversal(*row) for row in rows}


async def load_returned(
    connection: _Connection, payment_refs: Collection[str]
) -> dict[str, Returned]:
    """Adds up what the reversals of each payment returned; a payment without any is missing."""
    rows = await connection.fetch(SQL["load_returned"], payment_refs)
    return {row[0]: Returned(*row[1:]) for row in rows}


async def find_payer(connection: _Connection, payment_ref: str) -> UUID | None:
    """Finds the user to whom a payment was credited."""
    found = await load_purchases(connection, [payment_ref])
    return found[payment_ref].user_id if found else None


async def load_holds(connection: _Connection, hold_ids: Collection[EntryId]) -> dict[EntryId, Hold]:
    """Reads the holds with these ids."""
    user_ids, seqs = to_columns(hold_ids)
    rows = await connection.fetch(text(connection, "load_holds"), user_ids, seqs)
    return {(row[0], row[1]): Hold(*row) for row in rows}


async def load_due_holds(
    connection: _Connection, user_ids: Sequence[UUID], now: datetime, limit: int
) -> list[Hold]:
    """Reads open holds whose time has passed, by user in the given order, the soonest first."""
    rows = await connection.fetch(text(connection, "load_due_holds"), user_ids, now, limit)
    return [Hold(*row) for row in rows]


async def load_next_expiries(
    connection: _Connection, user_ids: Collection[UUID], now: datetime
) -> dict[UUID, datetime]:
    """Reads when each user's next hold that is not yet due ends; a user without one is missing."""
    rows = await connection.fetch(text(connection, "load_next_expiries"), user_ids, now)
    return {row[0]: row[1] for row in rows}


async def list_holds(
    connection: _Connection, user_id: UUID, *, newest: int, state: HoldState | None, limit: int
) -> tuple[datetime, list[Hold]]:
    """Lists holds with seq <= `newest`, newest first, and reads the database's time."""
    rows = await connection.fetch(SQL["list_holds"], user_id, newest, state, limit)
    return rows[0][0], [Hold(*row[1:]) for row in rows if row[1] is not None]


async def find_due_users(
    connection: _Connection, limit: int, without: Collection[UUID]
) -> list[tuple[UUID, int]]:
    """Finds users with due holds or grants that are not recorded, and how many each has.

    It looks at `limit` holds and `limit` grants, the longest due first, of users not in `without`.
    """
    rows = await connection.fetch(SQL["find_due_users"], limit, without)
    return [(row[0], row[1]) for row in rows]


async def expired_unrecorded_at(
    connection: _Connection, user_id: UUID, seq: int, time: datetime
) -> int:
    """Sums what was still recorded as held at seq and time though it had expired, in credits."""
    return await connection.fetchval(SQL["expired_unrecorded_at"], user_id, seq, time) or 0


async def get_account(
    connection: _Connection, user_id: UUID
) -> tuple[datetime, Account | None, bool]:
    """Reads the time, an account less what is due to expire, and whether its user exists.

    The account is None if it was never opened.
    """
    ((now, *columns),) = await connection.fetch(SQL["get_account"], user_id)
    if columns[0] is not None:
        return now, to_account_less_due(columns), True
    # A statement of its own: a function that reads one distributed table cannot be called in a
    # statement about another.
    return now, None, bool(await find_users(connection, [user_id]))


async def read_accounts(
    connection: _Connection, user_ids: Collection[UUID]
) -> tuple[datetime | None, list[Account]]:
    """Reads accounts as they are recorded, and the time of the read; None where there are none."""
    rows = await connection.fetch(SQL["read_accounts"], user_ids)
    return (rows[0][-1] if rows else None), [to_account(row[:-1]) for row in rows]


async def list_accounts(connection: _Connection, first: UUID, limit: int) -> list[UUID]:
    """Lists the users with accounts, in their order, from one of them on."""
    return [row[0] for row in await connection.fetch(SQL["list_accounts"], first, limit)]


async def find_writers(connection: _Connection) -> set[str]:
    """Finds the transactions that have locked accounts to write entries, or are about to."""
    return {row[0] for row in await connection.fetch(SQL["find_writers"], WRITING)}


async def changed_accounts(
    connection: _Connection, seen: Collection[tuple[UUID, int, int, datetime | None]]
) -> list[Account]:
    """Reads those accounts, less what is due to expire, that differ from what was seen of them.

    That is user, seq, number of policy changes and time of the last change of each account.
    """
    rows = await connection.fetch(text(connection, "changed_accounts"), *to_columns(seen))
    return [to_account_less_due(row) for row in rows]


async def list_known_accounts(connection: _Connection, user_ids: Collection[UUID]) -> list[Account]:
    """Reads the accounts of those users who exist; an account that was never opened is empty."""
    rows = await connection.fetch(SQL["list_known_accounts"], user_ids)
    return [Account(row[0]) if row[1] is None else to_account_less_due(row) for row in rows]


async def report_usage(
    connection: _Connection, start: datetime, end: datetime, *, seconds: float
) -> list[Usage]:
    """Adds up the entries of all users with start <= time < end."""
    rows = await connection.fetch(SQL["report_usage"], start, end, timeout=seconds)
    return [_usage(row) for row in rows]


async def report_usage_of_user(
    connection: _Connection, user_id: UUID, *, after: int, until: int, seconds: float
) -> list[Usage]:
    """Adds up the entries of a user with after < seq <= until."""
    statement = SQL["report_usage_of_user"]
    rows = await connection.fetch(statement, user_id, after, until, timeout=seconds)
    return [_usage(row) for row in rows]


def _usage(row: asyncpg.Record) -> Usage:
    day, operation, *sums = row
    return Usage(day, operation, *(int(value or 0) for value in sums))


async def list_entries_by_time(
    connection: _Connection, after: tuple[datetime, UUID, int], end: datetime, limit: int
) -> list[Entry]:
    """Lists entries of all users in the order of time, user and seq: after those, before `end`."""
    rows = await connection.fetch(SQL["list_entries_by_time"], *after, end, limit)
    return [to_entry(row) for row in rows]


async def count_entries_before(connection: _Connection, user_id: UUID, time: datetime) -> int:
    """Counts a user's entries before a time, which is the seq of the last of them."""
    return await connection.fetchval(SQL["count_entries_before"], user_id, time) or 0


async def list_entries(
    connection: _Connection,
    user_id: UUID,
    *,
    newest: int | None,
    older_than_all: int = 0,
    types: Sequence[EntryType] | None = None,
    reference: str | None = None,
    related_seq: int | None = None,
    grant_seq: int | None = None,
    limit: int,
    looks_at: int,
) -> tuple[int | None, int, list[Entry]]:
    """Lists entries with `older_than_all` < seq <= `newest`, newest first.

    It returns `limit` entries at most, and looks at no more than `looks_at` to find them. Before
    the entries it returns the seq that it started at, which is None if the user has no account, and
    how many grants the account has had: without any, no entry changed one.
    """
    values = (newest, older_than_all, types, reference, related_seq, limit, looks_at, grant_seq)
    if related_seq is None:
        rows = await connection.fetch(SQL["list_entries"], user_id, *values)
    else:
        # An index covers the relations of entries.
        rows = await fetch_by_values(connection, SQL["list_entries"], user_id, *values)
    began_at, grants_made = rows[0][-2:] if rows else (None, 0)
    return began_at, grants_made, [to_entry(row) for row in rows if row[0] is not None]


def expect(tag: str, rows: int) -> None:
    """Holds a command tag such as "INSERT 0 3" or "UPDATE 3" to the number of rows."""
    if int(tag.rpartition(" ")[2]) != rows:
        raise StaleAccountError(tag)


def expect_rows(returned: Sequence[asyncpg.Record], rows: int) -> None:
    """As `expect`, from the rows returned: Citus counts in the tag what ON CONFLICT left out."""
    if len(returned) != rows:
        raise StaleAccountError(f"{len(returned)} of {rows} rows")
