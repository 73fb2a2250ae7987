"""How the service connects to PostgreSQL: time limits, the pool of the reads, what protects it.

The limits form a ladder, each shorter than the next: waiting for a lock, a statement, a command of
the driver, the caller's deadline. The first two are settings of the service's database role, for a
transaction pooler drops what a connection asks for at its start.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import asyncpg

if TYPE_CHECKING:
    from collections.abc import Mapping

# Settings of the service's role, in milliseconds. `migrate` sets them, the start verifies them.
ROLE_LIMITS_MS: Mapping[str, int] = {
    "lock_timeout": 500,
    "statement_timeout": 2_000,
    "idle_in_transaction_session_timeout": 5_000,
    "client_connection_check_interval": 1_000,
}

# Ways to join and read that no statement of lanes and reads wants, off for the service's role. Each
# finds its few rows by an index; but a plan is kept, and one that was made while the book was short
# would read all of a longer one until autovacuum has looked at it again.
ROLE_PLANS_OFF = ("enable_seqscan", "enable_hashjoin", "enable_mergejoin")

# What reports and verification, which read much, say before they begin.
ALL_PLANS = "; ".join(f"SET LOCAL {name} = on" for name in ROLE_PLANS_OFF)

COMMAND_TIMEOUT_SECONDS = 3
CONNECT_TIMEOUT_SECONDS = 2
ACQUIRE_TIMEOUT_SECONDS = 1

UNREACHABLE: tuple[type[Exception], ...] = (
    OSError,
    TimeoutError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,
    asyncpg.PostgresConnectionError,
    asyncpg.OperatorInterventionError,
    asyncpg.InsufficientResourcesError,
    asyncpg.ReadOnlySQLTransactionError,
    asyncpg.InvalidAuthorizationSpecificationError,
    asyncpg.InvalidCatalogNameError,
    asyncpg.ObjectNotInPrerequisiteStateError,  # the database takes no connections at the moment
)


def unreachable(fault: Exception) -> bool:
    """Tells whether the database is away, or the way to it, so that nothing is known of a call.

    The driver's own refusal of a value is an InterfaceError too, and is none of these.
    """
    return isinstance(fault, UNREACHABLE) and not (
        isinstance(fault, ValueError) and not isinstance(fault, asyncpg.ClientConfigurationError)
    )


@dataclass(frozen=True, slots=True)
class Address:
    """A database to connect to.

    Attributes:
        url: as libpq takes it, for the service's role.
        statement_cache_size: prepared statements kept per connection; 0 behind a transaction
            pooler that does not track them.
    """

    url: str
    statement_cache_size: int = 100

    async def connect(self) -> asyncpg.Connection:
        """Opens a connection of its own, for a lane or the command line.

        Raises:
            UNREACHABLE: no connection within two seconds.
        """
        return await asyncpg.connect(
            self.url,
            timeout=CONNECT_TIMEOUT_SECONDS,
            command_timeout=COMMAND_TIMEOUT_SECONDS,
            statement_cache_size=self.statement_cache_size,
        )

    def pool(self, size: int) -> asyncpg.Pool:
        """Makes the pool of the reads, not yet opened; it holds at most `size` connections."""
        return asyncpg.create_pool(
            self.url,
            min_size=0,
            max_size=size,
            timeout=CONNECT_TIMEOUT_SECONDS,
            command_timeout=COMMAND_TIMEOUT_SECONDS,
            statement_cache_size=self.statement_cache_size,
            reset=_keep,
        )


async def _keep(_connection: asyncpg.Connection) -> None:
    """Spares a round trip per release: no reader ever sets anything on its connection."""


async def missing_protection(connection: asyncpg.Connection) -> list[str]:
    """Names, a sentence each, the protections that this connection's role lacks."""
    missing = []
    if await connection.fetchval(
        "SELECT has_any_column_privilege('credit_transactions', 'UPDATE')"
        " OR has_table_privilege('credit_transactions', 'DELETE, TRUNCATE')"
    ):
        missing.append(
            "the service's database role may change entries: give it a role of its own and migrate"
            " with CREDIT_MIGRATE_URL"
        )
    rows = await connection.fetch("SELECT name, setting::bigint FROM pg_settings WHERE unit = 'ms'")
    in_force = {row[0]: row[1] for row in rows}
    loose = [name for name, limit in ROLE_LIMITS_MS.items() if not 0 < in_force[name] <= limit]
    if loose:
        missing.append(
            f"the service's database role has no or too long a {', '.join(loose)}:"
            " `credit-service migrate` with CREDIT_MIGRATE_URL sets them"
        )
    slow = [
        name
        for name in ROLE_PLANS_OFF
        if await connection.fetchval("SELECT current_setting($1)", name) == "on"
    ]
    if slow:
        missing.append(
            f"the service's database role has {', '.join(slow)} on, so that a plan from when the"
            " book was short may slow down a long one: `credit-service migrate` with"
            " CREDIT_MIGRATE_URL turns them off"
        )
    return missing
