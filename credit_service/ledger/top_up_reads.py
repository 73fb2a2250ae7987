"""Reads of top-ups for answers: requests, and the top-up state of an account."""

from __future__ import annotations

from typing import TYPE_CHECKING

from credit_service.errors import UserNotFound
from credit_service.ledger import store, top_up_store
from credit_service.ledger.read_connections import repeated
from credit_service.rules import top_ups
from credit_service.rules.top_up_values import TopUpCounts

if TYPE_CHECKING:
    from datetime import datetime
    from uuid import UUID

    from asyncpg.pool import PoolConnectionProxy

    from credit_service.ledger.read_connections import ReadPool
    from credit_service.rules.model import Account
    from credit_service.rules.top_up_values import TopUpRequest

_NUMBER_MAX = 2**63 - 1


class TopUpReads:
    """Reads requests for top-ups; one statement per answer."""

    def __init__(self, pool: ReadPool) -> None:
        """Takes its connections."""
        self._pool = pool

    @repeated
    async def open_page(
        self, first: UUID, page_size: int
    ) -> tuple[list[TopUpRequest], UUID | None]:
        """Reads a page of the open requests of all accounts, in the order of their users.

        Args:
            first: the user to begin with.
            page_size: how many at most.

        Returns:
            The requests, and the user to go on from; None when there are no more.

        Raises:
            LedgerUnavailable: the database is away.
        """
        async with self._pool.lend() as connection:
            found = await top_up_store.list_open_top_ups(connection, first, page_size + 1)
        onward = found[page_size].user_id if len(found) > page_size else None
        return found[:page_size], onward

    @repeated
    async def page(
        self, user_id: UUID, *, open_only: bool, newest: int | None, page_size: int
    ) -> tuple[list[TopUpRequest], int | None]:
        """Reads a page of the requests of a user, newest first.

        Args:
            user_id: whose.
            open_only: only the open one.
            newest: start at this number and go down; None: at the newest.
            page_size: how many at most.

        Returns:
            The requests, and the number to go on from; None when there are no more.

        Raises:
            UserNotFound: the user is not in the user table.
            LedgerUnavailable: the database is away.
        """
        async with self._pool.lend() as connection:
            found = await top_up_store.list_top_ups(
                connection,
                user_id,
                newest=_NUMBER_MAX if newest is None else newest,
                open_only=open_only,
                limit=page_size + 1,
            )
            if not found and not await store.find_users(connection, [user_id]):
                raise UserNotFound(str(user_id))
        onward = found[page_size].number if len(found) > page_size else None
        return found[:page_size], onward


def has_top_ups(account: Account) -> bool:
    """Whether an account has or had a top-up policy, as far as its row says."""
    return account.policy.top_up is not None or account.top_up_changes > 0


async def read_status(
    connection: PoolConnectionProxy, account: Account, now: datetime
) -> top_ups.TopUpStatus | None:
    """Reads the top-up state of an account; None where it has and had no top-ups."""
    if not has_top_ups(account):
        return None
    if account.top_up_changes == 0:
        return top_ups.status(account, TopUpCounts(), None, now)
    loaded = await top_up_store.load_top_ups(connection, [account.user_id])
    counts = loaded.counts.get(account.user_id, TopUpCounts())
    return top_ups.status(account, counts, next(iter(loaded.requests), None), now)
