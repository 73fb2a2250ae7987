"""One function per SQL statement about top-ups; the statements are in sql/."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from credit_service.ledger.rows import to_columns
from credit_service.ledger.statement_texts import SQL, text
from credit_service.ledger.store import expect
from credit_service.rules.top_up_values import TopUpCounts, TopUpRequest

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping
    from uuid import UUID

    import asyncpg
    from asyncpg.pool import PoolConnectionProxy

    from credit_service.rules.top_up_values import TopUpChange
    from credit_service.rules.user_state import UserState

    _Connection = asyncpg.Connection | PoolConnectionProxy

_COUNTS = len(TopUpCounts._fields)


class LoadedTopUps(NamedTuple):
    """The counts of accounts, by user, and requests; a request may occur twice."""

    counts: dict[UUID, TopUpCounts]
    requests: list[TopUpRequest]


async def load_top_ups(
    connection: _Connection,
    user_ids: Collection[UUID],
    numbers: Collection[tuple[UUID, int]] = (),
    payment_refs: Collection[str] = (),
) -> LoadedTopUps:
    """Reads the counts and open requests of accounts, and requests by their number and payment."""
    pairs = to_columns(numbers) if numbers else [(), ()]
    rows = await connection.fetch(SQL["load_top_ups"], user_ids, *pairs, payment_refs)
    return LoadedTopUps(
        {row[0]: TopUpCounts(*row[1 : 1 + _COUNTS]) for row in rows if row[0] is not None},
        [TopUpRequest(*row[1 + _COUNTS :]) for row in rows if row[1 + _COUNTS] is not None],
    )


async def write_top_ups(
    connection: _Connection, users: Iterable[UserState], txs: Mapping[UUID, int]
) -> None:
    """Writes what a batch changed in the top-ups of users: counts, requests and the changes.

    Args:
        connection: in the batch's transaction, in which the accounts are written.
        users: the users of the batch.
        txs: the place in the feed that the batch gives each user.

    Raises:
        asyncpg.UniqueViolationError: another transaction has noted one of the payments.
        StaleAccountError: the database took another number of rows.
    """
    changed = [user for user in users if user.top_ups.changes]
    counts = [(user.account.user_id, *user.top_ups.counts) for user in changed]
    changes = [change for user in changed for change in user.top_ups.changes]
    # Each request as its last change left it.
    requests = {
        (change.user_id, change.request.number): change.request
        for change in changes
        if change.request is not None
    }
    rows = [(*_change_row(change), txs[change.user_id]) for change in changes]
    columns = to_columns(counts)
    expect(
        await connection.execute(text(connection, "upsert_top_up_counts"), *columns), len(counts)
    )
    if requests:
        columns = to_columns(requests.values())
        expect(
            await connection.execute(text(connection, "upsert_top_ups"), *columns), len(requests)
        )
    columns = to_columns(rows)
    expect(await connection.execute(text(connection, "insert_top_up_changes"), *columns), len(rows))


async def list_open_top_ups(connection: _Connection, first: UUID, limit: int) -> list[TopUpRequest]:
    """Lists the open requests of all accounts in the order of their users, from one of them on."""
    rows = await connection.fetch(SQL["list_open_top_ups"], first, limit)
    return [TopUpRequest(*row) for row in rows]


async def list_top_ups(
    connection: _Connection, user_id: UUID, *, newest: int, open_only: bool, limit: int
) -> list[TopUpRequest]:
    """Lists the requests of a user with number <= `newest`, newest first."""
    rows = await connection.fetch(SQL["list_top_ups"], user_id, newest, open_only, limit)
    return [TopUpRequest(*row) for row in rows]


def _change_row(change: TopUpChange) -> tuple[object, ...]:
    """The row of a change, but for its place in the feed."""
    made = change.request
    request: tuple[object, ...] = (None,) * 9
    if made is not None:
        request = (*made[1:9], made.seq)
    return (*change[:-1], *request)
