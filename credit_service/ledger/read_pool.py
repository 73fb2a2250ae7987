"""Connections for the reads, lent by a pool of their own, and only to a book that is no old one."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from credit_service.database.postgres import (
    ACQUIRE_TIMEOUT_SECONDS,
    spoils_connection,
    unreachable,
)
from credit_service.errors import LedgerUnavailable

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from asyncpg.pool import PoolConnectionProxy

    from credit_service.database.postgres import Address


class ReadPool:
    """Lends connections to a server that can be written, because a standby's book may be old.

    A connection is refused when it is made to another server. A server becomes a standby by a
    restart, which ends its connections, but a pooler may lead one that is open to another server,
    and an administrator may make a server read-only: `check` finds that.
    """

    def __init__(self, address: Address, size: int) -> None:
        """Connects to nothing as yet.

        Args:
            address: the database, as the service's role.
            size: connections at most.
        """
        self._pool = address.pool(size)
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
        """
        if not self._writable:
            raise LedgerUnavailable
        async with self._lend() as connection:
            yield connection

    @asynccontextmanager
    async def snapshot(self) -> AsyncIterator[PoolConnectionProxy]:
        """Lends a connection on which all statements of the block see the same moment.

        It costs two round trips, so an answer that needs one statement only does without.

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
                    if spoils_connection(fault):
                        connection.terminate()
                    raise
        except Exception as fault:
            if unreachable(fault):
                raise LedgerUnavailable from fault
            raise
