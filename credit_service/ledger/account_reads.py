"""Reads of present accounts: calls that arrive while a read is running share the next one."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import asyncpg

from credit_service.errors import LedgerUnavailable, UserNotFound
from credit_service.ledger import store
from credit_service.rules.model import Account

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractAsyncContextManager
    from uuid import UUID

    from asyncpg.pool import PoolConnectionProxy

# What no account was ever seen with, so that each counts as changed.
_NEVER_SEEN = (-1, -1)


# How many accounts a statement reads; each may have thousands of due holds to add up.
_ACCOUNTS_AT_ONCE = 500


async def changed_accounts(
    connection: PoolConnectionProxy, seen: list[tuple[UUID, int, int]]
) -> list[Account]:
    """Reads accounts that are not as they were seen, however many there are.

    Args:
        connection: to the database, outside a transaction.
        seen: user, seq and number of policy changes of each account.

    Returns:
        Those that differ, as `store.changed_accounts` reads them.

    Raises:
        asyncpg.PostgresError, OSError: as the driver raises them.
    """
    if len(seen) <= _ACCOUNTS_AT_ONCE:
        try:
            return await store.changed_accounts(connection, seen)
        except asyncpg.QueryCanceledError:
            # It took too long, as half of it may not.
            if len(seen) <= 1:
                raise
    middle = len(seen) // 2
    return [
        *await changed_accounts(connection, seen[:middle]),
        *await changed_accounts(connection, seen[middle:]),
    ]


class AccountReads:
    """Reads accounts with one statement at a time, for all that wait; a lone call waits for none.

    A read begins after it was asked for, so it shows every write answered before.
    """

    def __init__(
        self, reading: Callable[[], AbstractAsyncContextManager[PoolConnectionProxy]]
    ) -> None:
        """Takes what lends a connection; it raises LedgerUnavailable where there is none."""
        self._reading = reading
        self._asked: list[tuple[UUID, asyncio.Future[Account]]] = []
        self._task: asyncio.Task[None] | None = None

    def read(self, user_id: UUID) -> asyncio.Future[Account]:
        """Asks for an account.

        Returns:
            A future of the account. It raises UserNotFound where the user is unknown, and
            LedgerUnavailable where the database is away.
        """
        answer: asyncio.Future[Account] = asyncio.get_running_loop().create_future()
        self._asked.append((user_id, answer))
        if self._task is None:
            self._task = asyncio.create_task(self._read_on())
        return answer

    async def _read_on(self) -> None:
        while self._asked:
            asked, self._asked = self._asked, []
            try:
                accounts = await self._fetch({user_id for user_id, _ in asked})
            except Exception as error:
                if isinstance(error, LedgerUnavailable):
                    # Those who asked meanwhile would find the same, after waiting as long again.
                    asked += self._asked
                    self._asked = []
                for _, answer in asked:
                    if not answer.done():
                        answer.set_exception(error)
            else:
                for user_id, answer in asked:
                    if not answer.done():
                        _settle(answer, user_id, accounts.get(user_id))
        self._task = None

    async def _fetch(self, user_ids: set[UUID]) -> dict[UUID, Account]:
        async with self._reading() as connection:
            found = await changed_accounts(
                connection, [(user_id, *_NEVER_SEEN) for user_id in user_ids]
            )
            accounts = {account.user_id: account for account in found}
            without_account = user_ids - accounts.keys()
            if without_account:
                known = await store.find_users(connection, without_account)
                accounts.update((user_id, Account(user_id)) for user_id in known)
            return accounts


def _settle(answer: asyncio.Future[Account], user_id: UUID, account: Account | None) -> None:
    if account is None:
        answer.set_exception(UserNotFound(str(user_id)))
    else:
        answer.set_result(account)
