"""Connections for the reads: a pool of their own, only to a server that can be written."""

from __future__ import annotations

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

# What a prepared statement raises that must be prepared again.
_OUTDATED = (
    *statements.LOST,
    asyncpg.InvalidCachedStatementError,
    asyncpg.OutdatedSchemaCacheError,
)


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

    A new connection to any other server is refused. An open connection can still come to lead to
    one: through a pooler, or if an administrator makes the server read-only. `check` notices that.
    """

    def __init__(self, address: Address, size: int) -> None:
        """Connects to nothing as yet.

        Args:
            address: the database, as the service's role.
            size: connections at most.
        """
        self._pool = address.pool(size)
        self._statements = address.statements
        self._writable = True
        self.count, self.idle = self._pool.get_size, self._pool.get_idle_size

    async def open(self) -> None:
        """Prepares the pool; its connections are made when they are needed."""
        await self._pool

    async def close(self) -> None:
        """Drops all connections."""
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
            await self._pool.expire_connections()
        return self._writable

    @asynccontextmanager
    async def _lend(self) -> AsyncIterator[PoolConnectionProxy]:
        try:
            async with self._pool.acquire(timeout=ACQUIRE_TIMEOUT_SECONDS) as connection:
                try:
                    yield connection
                except Exception as fault:
                    if spoils_connection(fault) or isinstance(fault, statements.LOST):
                        connection.terminate()
                    raise
        except _OUTDATED as fault:
            if self._statements.notice(fault):
                await self._pool.expire_connections()
            raise StatementOutdatedError from fault
        except Exception as fault:
            if unreachable(fault):
                raise LedgerUnavailable from fault
            raise
