"""Reads of present accounts: calls that arrive while a read is running share the next one."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, TypeVar

import asyncpg

from credit_service.errors import LedgerUnavailable, UserNotFound
from credit_service.ledger import store
from credit_service.ledger.present_accounts import is_simple, read_present
from credit_service.ledger.read_connections import repeated

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping
    from datetime import datetime
    from uuid import UUID

    from asyncpg.pool import PoolConnectionProxy

    from credit_service.ledger.read_connections import ReadPool
    from credit_service.rules.model import Account
    from credit_service.rules.terms import Terms

Asked = TypeVar("Asked")

# No account has this seq, so each counts as changed. The rest makes the columns of what was seen.
NEVER_SEEN = (-1, 0, None)

# How many accounts a statement reads; each may have thousands of due holds to add up.
_ACCOUNTS_AT_ONCE = 500

# The maximum number of turns of the event loop that a statement waits, so that all calls on their
# way can join it. Without calls a turn takes microseconds.
_GATHERING_TURNS_MAX = 8


async def changed_accounts(
    connection: PoolConnectionProxy, seen: list[tuple[UUID, int, int, datetime | None]]
) -> list[Account]:
    """Reads accounts that differ from what was seen of them, however many there are.

    Args:
        connection: to the database, outside a transaction.
        seen: user, seq, number of policy changes and time of the last change of each account.

    Returns:
        Those that differ, as `store.changed_accounts` reads them.

    Raises:
        asyncpg.PostgresError, OSError: as the driver raises them.
    """
    return await _in_parts(store.changed_accounts, connection, seen)


async def settle_those_with_grants(
    connection: PoolConnectionProxy, accounts: dict[UUID, Account], terms: Terms
) -> None:
    """Reads again the accounts that are not simple, each in one snapshot.

    Args:
        connection: to the database, outside a transaction.
        accounts: by user, as they were read; those are replaced.
        terms: with the configured allowance.
    """
    asked = [user_id for user_id, account in accounts.items() if not is_simple(account, terms)]

    async def read(connection: PoolConnectionProxy, user_ids: list[UUID]) -> list[Account]:
        async with connection.transaction(isolation="repeatable_read", readonly=True):
            return await read_present(connection, user_ids, terms)

    if asked:
        for account in await _in_parts(read, connection, asked):
            accounts[account.user_id] = account


async def _in_parts(
    read: Callable[[PoolConnectionProxy, list[Asked]], Awaitable[list[Account]]],
    connection: PoolConnectionProxy,
    asked: list[Asked],
) -> list[Account]:
    """Reads with as few statements as their time limit allows."""
    if len(asked) <= _ACCOUNTS_AT_ONCE:
        try:
            return await read(connection, asked)
        except asyncpg.QueryCanceledError:
            # It took too long; each half may not.
            if len(asked) <= 1:
                raise
    middle = len(asked) // 2
    return [
        *await _in_parts(read, connection, asked[:middle]),
        *await _in_parts(read, connection, asked[middle:]),
    ]


class AccountReads:
    """Reads accounts of each node apart, so that one that is away fails no read of the others."""

    def __init__(self, pool: ReadPool, terms: Terms) -> None:
        """Takes what it works with.

        Args:
            pool: lends connections.
            terms: with the configured allowance.
        """
        self._pool = pool
        self._terms = terms
        self._nodes = [_NodeReads(pool, terms)]

    def read(self, user_id: UUID) -> asyncio.Future[Account]:
        """Asks for an account.

        Returns:
            A future of the account. It raises UserNotFound if the user is unknown, and
            LedgerUnavailable if the database is away.
        """
        node = self._pool.shards.map.node_of_user(user_id)
        while node >= len(self._nodes):
            self._nodes.append(_NodeReads(self._pool, self._terms))
        return self._nodes[node].read(user_id)

    async def changes(
        self, seen: Mapping[UUID, Account | None], take: Callable[[Account], None]
    ) -> None:
        """Reads those accounts that differ from what was seen of them, of all nodes at once.

        Those of a node that is away are left out.

        Args:
            seen: by user; None: never seen.
            take: gets each of the accounts as soon as their node has answered.

        Raises:
            LedgerUnavailable: the database is away.
        """
        shards = self._pool.shards.map
        asked: dict[int, list[tuple[UUID, int, int, datetime | None]]] = {}
        for user_id, account in seen.items():
            asked.setdefault(shards.node_of_user(user_id), []).append(
                (user_id, *NEVER_SEEN)
                if account is None
                else (user_id, account.seq, account.policy_changes, account.last_updated)
            )

        async def read(part: list[tuple[UUID, int, int, datetime | None]]) -> None:
            for account in await self._changed(part):
                take(account)

        if len(asked) == 1:
            await read(*asked.values())
            return
        ends = await asyncio.gather(*map(read, asked.values()), return_exceptions=True)
        faults = [end for end in ends if end is not None]
        away = [fault for fault in faults if isinstance(fault, LedgerUnavailable)]
        for fault in faults:
            if len(away) == len(asked) or fault not in away:
                raise fault

    @repeated
    async def _changed(self, asked: list[tuple[UUID, int, int, datetime | None]]) -> list[Account]:
        async with self._pool.lend() as connection:
            changed = {each.user_id: each for each in await changed_accounts(connection, asked)}
            await settle_those_with_grants(connection, changed, self._terms)
            return list(changed.values())


class _NodeReads:
    """Reads accounts with one statement at a time, for all calls that wait.

    A call that finds no statement running is served at once. The statement for a call begins after
    the call came, so it shows every write that was answered before. It waits for calls that arrive
    in the same few turns of the event loop: a statement costs as much as a dozen of its accounts.
    """

    def __init__(self, pool: ReadPool, terms: Terms) -> None:
        self._pool = pool
        self._terms = terms
        self._asked: list[tuple[UUID, asyncio.Future[Account]]] = []
        self._task: asyncio.Task[None] | None = None

    def read(self, user_id: UUID) -> asyncio.Future[Account]:
        answer: asyncio.Future[Account] = asyncio.get_running_loop().create_future()
        self._asked.append((user_id, answer))
        if self._task is None:
            self._task = asyncio.create_task(self._read_on())
        return answer

    async def _read_on(self) -> None:
        while self._asked:
            await self._gather()
            asked, self._asked = self._asked, []
            try:
                accounts = await self._fetch({user_id for user_id, _ in asked})
            except Exception as error:
                if isinstance(error, LedgerUnavailable):
                    # Otherwise later calls wait as long again for the same answer.
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

    async def _gather(self) -> None:
        """Waits for as long as each turn of the event loop brings further calls."""
        gathered = 0
        for _ in range(_GATHERING_TURNS_MAX):
            if len(self._asked) == gathered:
                return
            gathered = len(self._asked)
            await asyncio.sleep(0)

    @repeated
    async def _fetch(self, user_ids: set[UUID]) -> dict[UUID, Account]:
        async with self._pool.lend() as connection:
            found = await changed_accounts(
                connection, [(user_id, *NEVER_SEEN) for user_id in user_ids]
            )
            accounts = {account.user_id: account for account in found}
            if without_account := user_ids - accounts.keys():
                # User and account in one statement. Between two, a user could be deleted and
                # created again, and the answer would show an account that never existed.
                known = await _in_parts(
                    store.list_known_accounts, connection, list(without_account)
                )
                accounts.update((account.user_id, account) for account in known)
            await settle_those_with_grants(connection, accounts, self._terms)
            return accounts


def _settle(answer: asyncio.Future[Account], user_id: UUID, account: Account | None) -> None:
    if account is None:
        answer.set_exception(UserNotFound(str(user_id)))
    else:
        answer.set_result(account)
