"""The feed: everything that happened to all accounts, in one order, read in pages.

The order is that of the numbers of transactions, which are given out before transactions end. So a
page ends at the boundary: below it, all transactions had ended when the page was read. Nothing is
skipped and nothing is read before it is committed, and writers wait for no reader. A transaction
that stays open anywhere on the database server keeps the boundary where it is.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, NamedTuple
from uuid import UUID

import orjson

from credit_service.errors import FeedNotOffered
from credit_service.ledger.read_connections import repeated
from credit_service.ledger.rows import POLICY_COLUMNS, to_entry, to_policy
from credit_service.ledger.statement_texts import SQL, of_distributed_book
from credit_service.rules.feed_values import (
    KIND_ADVANCED,
    KIND_ALERT,
    KIND_ENTRY,
    KIND_POLICY,
    KIND_TOP_UP,
    Advanced,
    Alert,
    Place,
)
from credit_service.rules.model import Entry, EntryType, PolicyChange
from credit_service.rules.top_up_values import TopUpChange, TopUpRequest

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping

    import asyncpg

    from credit_service.ledger.read_connections import ReadPool

Value = Entry | PolicyChange | TopUpChange | Alert | Advanced

PAGE_LIMIT_MAX = 1000

# In the order of the arguments of the statement.
KINDS = (KIND_ENTRY, KIND_POLICY, KIND_TOP_UP, KIND_ALERT, KIND_ADVANCED)

# A number beyond those of all items of a user and tx.
_NO_MORE = 2**63 - 1

_LAST_USER = UUID(int=2**128 - 1)

# The columns before those of an entry: feed_id, boundary, passed, tx, kind, other.
_HEAD = 6


class Item(NamedTuple):
    """Something that happened, and its place in the feed."""

    place: Place
    value: Value


class Page(NamedTuple):
    """A part of the feed.

    Attributes:
        items: in the order of the feed.
        place: where to go on: the place of the last item that was looked at.
        caught_up: whether there was nothing more to read when the page was read.
        feed_id: names the feed; a copy of the database has the same.
        boundary: items with this tx or a higher one could not be read yet.
        standing: whether nothing can be read until the owner has run `credit-service feed advance`.
    """

    items: list[Item]
    place: Place
    caught_up: bool
    feed_id: UUID
    boundary: int
    standing: bool


class Feed:
    """Reads the feed, for any number of readers."""

    def __init__(self, pool: ReadPool) -> None:
        """Takes the connections; a page holds one only while it is read."""
        self._pool = pool

    @repeated
    async def page(
        self,
        after: Place,
        limit: int,
        *,
        kinds: Collection[int] = KINDS,
        types: Collection[EntryType] | None = None,
    ) -> Page:
        """Reads what follows a place.

        Args:
            after: the place; BEGINNING for everything.
            limit: how many items to look at, at most 1,000.
            kinds: only items of these kinds.
            types: of the entries, only those of these types; None: all.

        Returns:
            A page, which may be empty though there is more, if no item was of the types.

        Raises:
            FeedNotOffered: the book is distributed.
            LedgerUnavailable: the database is away.
        """
        limit = min(limit, PAGE_LIMIT_MAX)
        starts = [_start(after, kind) for kind in KINDS]
        async with self._pool.lend() as connection:
            if of_distributed_book(connection):
                raise FeedNotOffered
            rows = await connection.fetch(
                SQL["read_feed"], limit, list(kinds), after.tx, after.user_id, *starts
            )
        feed_id, boundary, passed = rows[0][:3]
        if rows[0]["tx"] is None:
            return Page([], after, not passed, feed_id, boundary, passed != 0)
        wanted = None if types is None else frozenset(types)
        items = [
            Item(_place(row), _VALUES[row[4]](row))
            for row in rows
            if wanted is None or row[4] != KIND_ENTRY or row["type"] in wanted
        ]
        return Page(items, _place(rows[-1]), len(rows) < limit, feed_id, boundary, standing=False)

    @repeated
    async def end(self) -> Place:
        """Finds the place after everything that can be read by now.

        Raises:
            LedgerUnavailable: the database is away.
        """
        async with self._pool.lend() as connection:
            boundary = await connection.fetchval(SQL["find_feed_end"])
        return Place(boundary - 1, _LAST_USER, KIND_ADVANCED, _NO_MORE)


def _start(after: Place, kind: int) -> int:
    """The number after which the items of a kind follow a place, of the same user and tx."""
    if kind < after.kind:
        return _NO_MORE
    return after.number if kind == after.kind else -1


def _place(row: asyncpg.Record) -> Place:
    return Place(row[3], row[6], row[4], row[7])


def _entry(row: asyncpg.Record) -> Entry:
    return to_entry(row[_HEAD:])


def _policy_change(row: asyncpg.Record) -> PolicyChange:
    columns = orjson.loads(row[5])
    return PolicyChange(
        row[6],
        columns["change"],
        _time(columns["changed_at"]),
        columns["caller"],
        to_policy([columns[name] for name in POLICY_COLUMNS]),
    )


def _top_up_change(row: asyncpg.Record) -> TopUpChange:
    columns = orjson.loads(row[5])
    time, request = _time(columns["changed_at"]), None
    if columns["number"] is not None:
        request = TopUpRequest(
            user_id=row[6],
            number=columns["number"],
            pack=columns["pack"],
            state=columns["state"],
            payment_ref=columns["payment_ref"],
            tries=columns["tries"],
            reason=columns["reason"],
            link=columns["link"],
            created_at=_time(columns["created_at"]),
            changed_at=time,
            seq=columns["seq"],
        )
    kind, caller = columns["kind"], columns["caller"]
    return TopUpChange(row[6], columns["change"], kind, time, caller, columns["off"], request)


def _alert(row: asyncpg.Record) -> Alert:
    columns = orjson.loads(row[5])
    return Alert(
        row[6], columns["alert"], columns["type"], _time(columns["alerted_at"]), columns["data"]
    )


def _advanced(row: asyncpg.Record) -> Advanced:
    columns = orjson.loads(row[5])
    return Advanced(columns["number"], _time(columns["advanced_at"]), columns["reason"])


def _time(text: str) -> datetime:
    return datetime.fromisoformat(text).astimezone(UTC)


# By kind, how an item is made of its row.
_VALUES: Mapping[int, Callable[[asyncpg.Record], Value]] = {
    KIND_ENTRY: _entry,
    KIND_POLICY: _policy_change,
    KIND_TOP_UP: _top_up_change,
    KIND_ALERT: _alert,
    KIND_ADVANCED: _advanced,
}
