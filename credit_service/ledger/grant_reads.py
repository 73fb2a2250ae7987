"""Reads of grants for answers: lists, what lapses next, and what is owed to all users."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from credit_service.errors import InvalidRequest, UserNotFound
from credit_service.ledger import grant_listing, store
from credit_service.ledger.present_accounts import EXPIRING_MAX
from credit_service.ledger.read_connections import repeated
from credit_service.rules.model import Usage

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from contextlib import AbstractAsyncContextManager
    from datetime import datetime
    from uuid import UUID

    from asyncpg.pool import PoolConnectionProxy

    from credit_service.ledger.grant_listing import Dated, Expiring, Pools
    from credit_service.ledger.read_connections import ReadPool
    from credit_service.rules.grant_values import Grant
    from credit_service.rules.model import Account, Entry

_SEQ_MAX = 2**63 - 1


class GrantPage(NamedTuple):
    """A page of grants, newest first.

    Attributes:
        onward: the seq to go on from; None when there are no more.
        due: whether holds or grants of the account have a time that has passed and is not recorded
            yet. Then these are not the grants as they are now.
    """

    grants: list[Grant]
    onward: int | None
    due: bool


class GrantReads:
    """Reads grants; one statement, or one snapshot, per answer."""

    def __init__(
        self,
        pool: ReadPool,
        report: Callable[[], AbstractAsyncContextManager[PoolConnectionProxy]],
        report_seconds: float,
    ) -> None:
        """Takes its connections.

        Args:
            pool: connections for the lists.
            report: lends a connection for a report when it is its turn.
            report_seconds: how long a report may take.
        """
        self._pool = pool
        self._report = report
        self._report_seconds = report_seconds

    @repeated
    async def page(
        self, user_id: UUID, *, closed: bool, newest: int | None, page_size: int
    ) -> GrantPage:
        """Reads a page of grants.

        Args:
            user_id: whose.
            closed: also those with nothing left.
            newest: start at this seq and go down; None: at the newest.
            page_size: how many at most.

        Raises:
            UserNotFound: the user is not in the user table.
            LedgerUnavailable: the database is away.
        """
        async with self._pool.lend() as connection:
            listed = await grant_listing.list_grants(
                connection,
                user_id,
                newest=_SEQ_MAX if newest is None else newest,
                closed=closed,
                limit=page_size + 1,
            )
            if not listed.has_account and not await store.find_users(connection, [user_id]):
                raise UserNotFound(str(user_id))
        onward = listed.grants[page_size].seq if len(listed.grants) > page_size else None
        return GrantPage(listed.grants[:page_size], onward, listed.due)

    @repeated
    async def liability(self, time: datetime | None) -> tuple[list[Dated], Pools]:
        """Adds up what all accounts have, at a time or now.

        Returns:
            The credits that lapse, by month, and the pools.

        Raises:
            InvalidRequest: the time is still to come.
            LedgerUnavailable: the database is away, or the report takes longer than a minute.
        """
        async with self._report() as connection:
            now = await connection.fetchval("SELECT now()")
            if time is not None and time > now:
                raise InvalidRequest("as_of", f"is still to come; it is {now.isoformat()} now.")
            return await grant_listing.report_liability(
                connection, time or now, seconds=self._report_seconds
            )


async def with_changes(
    connection: PoolConnectionProxy, user_id: UUID, entries: Sequence[Entry]
) -> list[Entry]:
    """Reads the grant changes of a user's entries, and returns the entries with them."""
    if not entries:
        return []
    seqs = [entry.seq for entry in entries]
    changes = await grant_listing.list_grant_changes(connection, user_id, seqs)
    return [entry._replace(grant_changes=changes.get(entry.seq, ())) for entry in entries]


async def expiring(connection: PoolConnectionProxy, account: Account) -> list[Expiring]:
    """Reads when credits of an account lapse next, and how many."""
    if account.open_grants == 0:
        return []
    return await grant_listing.list_expiring(connection, account.user_id, EXPIRING_MAX)


async def with_lapsed(
    connection: PoolConnectionProxy,
    lines: Sequence[Usage],
    start: datetime,
    end: datetime,
    user_id: UUID | None,
    *,
    seconds: float,
) -> list[Usage]:
    """Adds the credits that lapsed in a time, of one user or all, to the lines of its report."""
    lapsed = await grant_listing.report_lapsed(connection, start, end, user_id, seconds=seconds)
    by_place = {(line.day, line.operation): line for line in lines}
    for day, credits_lapsed in lapsed.items():
        line = by_place.get((day, ""), Usage(day, "", 0, 0, 0, 0, 0, 0))
        by_place[day, ""] = line._replace(lapsed=credits_lapsed)
    return [by_place[place] for place in sorted(by_place)]
