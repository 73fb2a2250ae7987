"""Prepared statements behind a pooler that hands each transaction to any of its server connections.

A statement is prepared on one server connection. Behind such a pooler the next transaction may be
on another one, where the statement is unknown, unless the pooler prepares it there too (PgBouncer
does from 1.21 on, with `max_prepared_statements`).
"""

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING

import asyncpg
import structlog

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from asyncpg.pool import PoolConnectionProxy

    from credit_service.database.shard_map import Shards

_log = structlog.get_logger()

# Faults of a connection that the pooler has moved to another server connection.
LOST = (asyncpg.InvalidSQLStatementNameError, asyncpg.DuplicatePreparedStatementError)

_ADVICE = (
    "a pooler loses prepared statements, so none are kept from now on: set CREDIT_STATEMENT_CACHE=0"
    " (or, for PgBouncer 1.21 and later, its max_prepared_statements)"
)

# How many connections a probe opens, so that the pooler cannot give it the same server again.
_OTHERS = 3
_PROBE_SECONDS = 2.0

_BACKEND = "SELECT pg_backend_pid()"


class StatementCache:
    """How many prepared statements a new connection keeps; none once some were lost."""

    def __init__(self, size: int) -> None:
        self.size = size

    def notice(self, fault: BaseException) -> bool:
        """Tells whether a fault says that a pooler loses statements; if so, none are kept any more.

        The call that met it did nothing, so it can be made again on a new connection.
        """
        if not isinstance(fault, LOST):
            return False
        self.give_up(str(fault))
        return True

    def give_up(self, problem: str) -> None:
        """Keeps no statements from now on, and logs that once."""
        if self.size > 0:
            self.size = 0
            _log.warning(_ADVICE, problem=problem)


async def fetch_by_values(
    connection: asyncpg.Connection | PoolConnectionProxy, statement: str, *values: object
) -> list[asyncpg.Record]:
    """Fetches by a plan for these values, where they decide which index is right.

    The service's role keeps one plan per statement, whatever its values.
    """
    async with connection.transaction():
        await connection.execute("SET LOCAL plan_cache_mode = force_custom_plan")
        return await connection.fetch(statement, *values)


class Connection(asyncpg.Connection):
    """A connection whose prepared statements have names that no other process uses.

    The driver numbers them from one in every process. Behind a pooler one process could then run
    the statement that another has prepared under the same number.

    Attributes:
        shards: where the users of the book are.
    """

    __slots__ = ("shards",)

    shards: Shards

    _process = os.urandom(6).hex()

    def _get_unique_id(self, prefix: str) -> str:
        name: str = super()._get_unique_id(prefix)  # type: ignore[misc]  # not in the stubs
        return f"{name}_{self._process}"

    @property
    def is_distributed(self) -> bool:
        """Whether the book is distributed, so that a statement must name its shard."""
        return self.shards.map.is_distributed


async def loses_statements(connect: Callable[[], Awaitable[asyncpg.Connection]]) -> bool:
    """Finds out whether a pooler loses prepared statements.

    Args:
        connect: opens a connection that keeps statements.

    Returns:
        True if it does. False if it does not, or if that could not be found out, for example
        because others use all of the pooler's server connections.

    Raises:
        Exception: as the driver raises it.
    """
    opened: list[asyncpg.Connection] = []

    async def another() -> asyncpg.Connection:
        opened.append(await connect())
        return opened[-1]

    try:
        async with asyncio.timeout(_PROBE_SECONDS):
            asking = await another()
            server = await asking.fetchval(_BACKEND)
            if server == asking.get_server_pid():
                # PostgreSQL itself, not a pooler, gave this process id at the start.
                return False
            for _ in range(_OTHERS):
                other = await another()
                await other.execute("BEGIN")
                # While its transaction is open, a pooler lends this server connection to no other.
                if await other.fetchval(_BACKEND) == server:
                    break
            # The connection has prepared this statement and executes it by its name.
            await asking.fetchval(_BACKEND)
    except LOST:
        return True
    except TimeoutError:
        return False
    finally:
        for connection in opened:
            connection.terminate()
    return False
