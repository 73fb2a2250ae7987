"""One function per SQL statement about grants; the statements are in sql/."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, NamedTuple

from credit_service.ledger.rows import grant_row, to_columns, to_grant
from credit_service.ledger.statement_texts import SQL, text
from credit_service.ledger.store import expect
from credit_service.rules.grant_values import Grant, GrantChange

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence
    from datetime import datetime
    from uuid import UUID

    import asyncpg
    from asyncpg.pool import PoolConnectionProxy

    from credit_service.rules.model import EntryId

    _Connection = asyncpg.Connection | PoolConnectionProxy

_COLUMNS = len(Grant._fields)


class AskedGrants(NamedTuple):
    """Which grants a batch needs; pairs of user and seq unless it says otherwise.

    Attributes:
        purchases: purchases, for what their reversals changed and for their grants.
        entries: entries, for their changes and the grants that these name.
        holds: holds, for their pins.
        all_holds: users, for the pins of all their open holds.
        grants: grants.
        series: pairs of user and series, for its open grants.
        draws: by user, the credits that open grants are to cover, in burn order.
    """

    purchases: set[EntryId]
    entries: set[EntryId]
    holds: set[EntryId]
    all_holds: set[UUID]
    grants: set[EntryId]
    series: set[tuple[UUID, str]]
    draws: dict[UUID, int]


class LoadedGrants(NamedTuple):
    """Grants and changes of grants, the changes of an entry in their order."""

    grants: list[Grant]
    changes: list[GrantChange]


async def load_due_grants(
    connection: _Connection, user_ids: Sequence[UUID], now: datetime, limit: int
) -> list[Grant]:
    """Reads open grants whose time has passed, by user in the given order, the soonest first."""
    rows = await connection.fetch(text(connection, "load_due_grants"), user_ids, now, limit)
    return [to_grant(row) for row in rows]


async def load_next_lapses(
    connection: _Connection, user_ids: Collection[UUID], now: datetime
) -> dict[UUID, datetime]:
    """Reads when the next grant that is not yet due lapses, for each user who has one."""
    rows = await connection.fetch(text(connection, "load_next_lapses"), user_ids, now)
    return {row[0]: row[1] for row in rows}


async def load_grants(connection: _Connection, asked: AskedGrants, now: datetime) -> LoadedGrants:
    """Reads grants and their changes.

    Args:
        connection: to the database.
        asked: which; see sql/load_grants.sql.
        now: grants due by then cover nothing.
    """
    columns = [
        *_columns(asked.purchases),
        *_columns(asked.entries),
        *_columns(asked.holds),
        asked.all_holds,
        *_columns(asked.grants),
        *_columns(asked.series),
        *_columns(asked.draws.items()),
    ]
    rows = await connection.fetch(text(connection, "load_grants"), *columns, now)
    loaded = LoadedGrants([], [])
    for row in rows:
        if row[0] is None:
            loaded.changes.append(GrantChange._make(row[_COLUMNS:-1]))
        else:
            loaded.grants.append(to_grant(row[:_COLUMNS]))
    return loaded


async def settled_at(
    connection: _Connection, user_id: UUID, seq: int, time: datetime
) -> tuple[int, int, int] | None:
    """Reads the last of what was due by a time and recorded right after a seq.

    Returns:
        The seq of its entry, and balance and held after it; None if there is none.
    """
    row = await connection.fetchrow(SQL["settled_at"], user_id, seq, time)
    return None if row is None else (row[0], row[1], row[2])


def _columns(pairs: Collection[tuple[object, object]]) -> list[Sequence[object]]:
    return to_columns(pairs) if pairs else [(), ()]


async def upsert_grants(connection: _Connection, grants: Collection[Grant]) -> None:
    """Writes grants that were made or changed."""
    columns = to_columns(grant_row(grant) for grant in grants)
    expect(await connection.execute(text(connection, "upsert_grants"), *columns), len(grants))


async def insert_grant_changes(connection: _Connection, changes: Sequence[GrantChange]) -> None:
    """Records changes of grants; those of an entry in their order."""
    steps: Counter[EntryId] = Counter()
    rows = []
    for change in changes:
        entry_id = change[:2]
        steps[entry_id] += 1
        rows.append((*change, steps[entry_id]))
    expect(
        await connection.execute(text(connection, "insert_grant_changes"), *to_columns(rows)),
        len(rows),
    )


async def upsert_allowances(
    connection: _Connection, untils: Collection[tuple[UUID, datetime]]
) -> None:
    """Records until when users have had an allowance."""
    columns = to_columns(untils)
    expect(await connection.execute(SQL["upsert_allowances"], *columns), len(untils))
