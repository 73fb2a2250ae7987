"""One function per SQL statement that shows or adds up grants; the statements are in sql/."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, NamedTuple

from credit_service.ledger.statement_texts import SQL, text
from credit_service.rules.grant_values import Grant, GrantChange

if TYPE_CHECKING:
    from collections.abc import Collection
    from datetime import datetime
    from uuid import UUID

    import asyncpg
    from asyncpg.pool import PoolConnectionProxy

    _Connection = asyncpg.Connection | PoolConnectionProxy

# The columns of a listed grant, named as in `Grant`.
_LISTED = (
    *("seq", "amount", "remaining", "pinned", "priority", "expire_time", "paid", "series"),
    *("revoked", "open"),
)

# How many grant changes of an entry an answer shows, so that a page of entries has a bound.
CHANGES_MAX = 100

# Credits that lapse at a time.
Expiring = tuple["datetime", int]


class ListedGrants(NamedTuple):
    """Grants of a user.

    Attributes:
        has_account: whether the user has an account.
        due: whether holds or grants have a time that has passed and is not recorded, so that the
            grants are not as they are now.
        grants: the newest first.
    """

    has_account: bool
    due: bool
    grants: list[Grant]


class Pools(NamedTuple):
    """The pools of all accounts, in credits.

    Attributes:
        undated: the pools of the accounts that are not in debt.
        debt: the debt of the others.
        accounts_in_debt: the number of accounts in debt.
    """

    undated: int
    debt: int
    accounts_in_debt: int


class DueChanges(NamedTuple):
    """The changes that settling an account's due holds and grants makes, in credits.

    Attributes:
        ended: the credits that its ending holds held.
        lapsed: the credits that lapse or are taken from revoked grants.
        paid: the debt that grants pay.
        unpinned: the credits of grants that its ending holds set aside.
        closed: the number of grants that spends and holds may no longer draw on.
        expiring: when credits lapse next, and how many.
    """

    ended: int
    lapsed: int
    paid: int
    unpinned: int
    closed: int
    expiring: tuple[Expiring, ...]


class Dated(NamedTuple):
    """The credits of grants that lapse in a month of UTC (YYYY-MM; empty: that never lapse)."""

    month: str
    paid: int
    promotional: int


async def list_grants(
    connection: _Connection, user_id: UUID, *, newest: int, closed: bool, limit: int
) -> ListedGrants:
    """Lists grants with seq <= `newest`, newest first; `closed`: also those with nothing left."""
    rows = await connection.fetch(SQL["list_grants"], user_id, newest, closed, limit)
    grants = [
        Grant(user_id, **dict(zip(_LISTED, row[:-1], strict=True)))
        for row in rows
        if row[0] is not None
    ]
    return ListedGrants(bool(rows), bool(rows and rows[0][-1]), grants)


async def list_grant_changes(
    connection: _Connection, user_id: UUID, seqs: Collection[int]
) -> dict[int, tuple[GrantChange, ...]]:
    """Reads what entries changed in grants, by seq; an entry that changed none is missing.

    Of each entry, one change more is read than answers show.
    """
    changes = defaultdict(list)
    for row in await connection.fetch(SQL["list_grant_changes"], user_id, seqs, CHANGES_MAX + 1):
        changes[row[1]].append(GrantChange._make((*row, None)))
    return {seq: tuple(made) for seq, made in changes.items()}


async def list_expiring(connection: _Connection, user_id: UUID, limit: int) -> list[Expiring]:
    """Adds up what lapses next, by time; `limit` times at most."""
    rows = await connection.fetch(SQL["list_expiring"], user_id, limit)
    return [(row[0], row[1]) for row in rows]


async def settled_accounts(
    connection: _Connection, user_ids: Collection[UUID], time: datetime, limit: int
) -> dict[UUID, DueChanges]:
    """Adds up what is due by a time of these users; of what lapses later, `limit` times at most.

    Users who have neither open holds nor open grants are missing.
    """
    rows = await connection.fetch(SQL["settled_accounts"], user_ids, time, limit)
    return {
        user_id: DueChanges(
            ended, lapsed, paid, unpinned, closed, tuple(zip(times, credits_, strict=True))
        )
        for user_id, ended, lapsed, paid, unpinned, closed, times, credits_ in rows
    }


async def list_expiring_at(
    connection: _Connection, user_id: UUID, seq: int, time: datetime, limit: int
) -> list[Expiring]:
    """Adds up what was to lapse next after a seq and a time; `limit` times at most."""
    rows = await connection.fetch(SQL["list_expiring_at"], user_id, seq, time, limit)
    return [(row[0], row[1]) for row in rows]


async def report_lapsed(
    connection: _Connection,
    start: datetime,
    end: datetime,
    user_id: UUID | None,
    *,
    seconds: float,
) -> dict[str, int]:
    """Adds up what lapsed with start < time <= end, of one user or all, by day of UTC."""
    rows = await connection.fetch(SQL["report_lapsed"], start, end, user_id, timeout=seconds)
    return {row[0]: int(row[1]) for row in rows}


async def report_liability(
    connection: _Connection, time: datetime, *, seconds: float
) -> tuple[list[Dated], Pools]:
    """Adds up what all accounts had at a time: grants by the month of their lapse, and pools."""
    rows = await connection.fetch(text(connection, "report_liability"), time, timeout=seconds)
    *dated, pools = rows
    return [Dated(row[0] or "", row[1], row[2]) for row in dated], Pools(*pools[3:])
