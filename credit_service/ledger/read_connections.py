"""Connections for the reads: a pool of their own, only to a server that can be written."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager, suppress
from functools import wraps
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

import asyncpg

from credit_service.database import statements
from credit_service.database.postgres import (
    ACQUIRE_TIMEOUT_SECONDS,
    spoils_connection,
    unreachable,
)
from credit_service.errors import LedgerUnavailable

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine

    from asyncpg.pool import PoolConnectionProxy

    from credit_service.database.postgres import Address

_P = ParamSpec("_P")
_T = TypeVar("_T")

# Errors that mean that a prepared statement must be prepared again.
_OUTDATED = (
    *statements.LOST,
    asyncpg.InvalidCachedStatementError,
    asyncpg.OutdatedSchemaCacheError,
)


# How long a connection is kept at hand between two reads. Taking one from asyncpg's pool and giving
# it back costs the processor more than a statement does.
_KEPT_SECONDS = 1.0


class StatementOutdatedError(Exception):
    """A prepared statement must be prepared again; the read can be made again at once."""


def repeated(read: Callable[_P, Awaitable[_T]]) -> Callable[_P, Coroutine[Any, Any, _T]]:
    """Makes a read once more if it met an outdated statement.

    Raises:
        LedgerUnavailable: it met one again.
    """

    @wraps(read)
    async def twice(*args: _P.args, **kwargs: _P.kwargs) -> _T:
        with suppress(StatementOutdatedError):
            return await read(*args, **kwargs)
        try:
            return await read(*args, **kwargs)
        except StatementOutdatedError as fault:
            raise LedgerUnavailable from fault

    return twice


class ReadPool:
    """Lends connections to a server that can be written: a standby may lack the last writes.

    A new connection to any other server is refused. An open connection can still end up on one:
    through a pooler, or if an administrator makes the server read-only. `check` notices that.

    A connection whose block ended well is kept at hand for the next one, unless another read waits
    for it. Once a second all that are at hand go back to asyncpg's pool, which closes idle ones.
    """

    def __init__(self, address: Address, size: int) -> None:
        """Connects to nothing yet.

        Args:
            address: the database, as the service's role.
            size: connections at most.
        """
        self.shards = address.shards
        self._pool = address.pool(size)
        self._statements = address.statements
        self._writable = True
        self._at_hand: list[PoolConnectionProxy] = []
        self._return: asyncio.TimerHandle | None = None
        self._returning: asyncio.Task[None] | None = None
        self._waiting = 0
        self.count = self._pool.get_size

    async def open(self) -> None:
        """Prepares the pool; its connections are made when they are needed."""
        await self._pool

    def idle(self) -> int:
        """Counts the connections that are not lent."""
        return self._pool.get_idle_size() + len(self._at_hand)

    async def close(self) -> None:
        """Drops all connections."""
        if self._return is not None:
            self._return.cancel()
        self._pool.terminate()

    @asynccontextmanager
    async def lend(self) -> AsyncIterator[PoolConnectionProxy]:
        """Lends a connection for the length of the block.

        Raises:
            LedgerUnavailable: there is none within a second, the database is away, or the last
                server that was checked cannot be written.
            StatementOutdatedError: the read can be made again; `repeated` does it.
        """
        if not self._writable:
            raise LedgerUnavailable
        async with self._lend() as connection:
            yield connection

    @asynccontextmanager
    async def snapshot(self) -> AsyncIterator[PoolConnectionProxy]:
        """Lends a connection on which all statements of the block see the same moment.

        It costs two round trips, so a read of one statement uses `lend`.

        Raises:
            LedgerUnavailable: as `lend` raises it.
        """
        async with (
            self.lend() as connection,
            connection.transaction(isolation="repeatable_read", readonly=True),
        ):
            try:
                yield connection
            except Exception as fault:
                # On a silent or broken line a ROLLBACK would only wait for its own time limit.
                if spoils_connection(fault):
                    connection.terminate()
                raise

    @repeated
    async def check(self) -> bool:
        """Asks whether the server can be written; while it cannot, nothing is lent."""
        try:
            async with self._lend() as connection:
                read_only = await connection.fetchval("SHOW transaction_read_only")
        except LedgerUnavailable:
            return False
        self._writable = bool(read_only == "off")
        if not self._writable:
            await self._expire()
        return self._writable

    @asynccontextmanager
    async def _lend(self) -> AsyncIterator[PoolConnectionProxy]:
        try:
            connection = await self._take()
            try:
                yield connection
            except BaseException as fault:
                # A cancelled statement may be under way; asyncpg's pool waits until it has ended.
                if spoils_connection(fault) or isinstance(fault, statements.LOST):
                    connection.terminate()
                await self._pool.release(connection)
                raise
            await self._give_back(connection)
        except _OUTDATED as fault:
            if self._statements.notice(fault):
                await self._expire()
            raise StatementOutdatedError from fault
        except Exception as fault:
            if unreachable(fault):
                raise LedgerUnavailable from fault
            raise

    async def _take(self) -> PoolConnectionProxy:
        while self._at_hand:
            connection = self._at_hand.pop()
            if _is_open(connection):
                return connection
        self._waiting += 1
        try:
            return await self._pool.acquire(timeout=ACQUIRE_TIMEOUT_SECONDS)
        finally:
            self._waiting -= 1

    async def _give_back(self, connection: PoolConnectionProxy) -> None:
        if self._waiting or connection.is_in_transaction():
            await self._pool.release(connection)
            return
        self._at_hand.append(connection)
        if self._return is None:
            self._return = asyncio.get_running_loop().call_later(_KEPT_SECONDS, self._return_all)

    def _return_all(self) -> None:
        self._return = None
        self._returning = asyncio.create_task(self._release_all())

    async def _release_all(self) -> None:
        connections, self._at_hand = self._at_hand, []
        for connection in connections:
            if _is_open(connection):
                await self._pool.release(connection)

    async def _expire(self) -> None:
        await self._pool.expire_connections()
        await self._release_all()


def _is_open(connection: PoolConnectionProxy) -> bool:
    """Tells whether a connection at hand is still open; one that is not goes back to the pool."""
    # asyncpg's pool takes back one whose end it notices. Then the proxy can no longer be used.
    with suppress(asyncpg.InterfaceError):
        if not connection.is_closed():
            return True
        connection.terminate()
    return False
