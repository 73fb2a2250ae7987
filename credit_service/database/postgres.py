"""How the service connects to PostgreSQL: time limits, the right server, missing protection.

The limits form a ladder, each shorter than the next: waiting for a lock, a statement, a command of
the driver, the caller's deadline. The first two are settings of the service's database role,
because a transaction pooler drops what a connection asks for at its start.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from enum import Enum
from ssl import SSLCertVerificationError
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, urlencode, urlsplit

import asyncpg

from credit_service.database.shard_map import Shards
from credit_service.database.statements import Connection, StatementCache

if TYPE_CHECKING:
    from collections.abc import Coroutine, Mapping

# Settings of the service's role, in milliseconds. `migrate` sets them, the start verifies them.
ROLE_LIMITS_MS: Mapping[str, int] = {
    "lock_timeout": 500,
    "statement_timeout": 2_000,
    "idle_in_transaction_session_timeout": 5_000,
    "client_connection_check_interval": 1_000,
}

# Ways to join and read that are off for the service's role, because every statement of lanes and
# reads finds its few rows by an index. PostgreSQL keeps plans: one made while a table was short
# would go on reading all of it until autovacuum analyses the table again. JIT compilation is off
# too, because it takes longer than any of our statements.
ROLE_PLANS_OFF = ("enable_seqscan", "enable_hashjoin", "enable_mergejoin", "jit")

# With them off, the values of a statement do not change its plan. By default PostgreSQL still plans
# the statements of a small batch each time, which takes longer than running them.
ROLE_PLANS_KEPT = "force_generic_plan"

# Reports and verification execute this first, because they read many rows.
ALL_PLANS = "; ".join(
    [f"SET LOCAL {name} = on" for name in ROLE_PLANS_OFF] + ["SET LOCAL plan_cache_mode = auto"]
)

# Citus finds the shards of a statement by its values, so there each execution needs a plan.
PLANS_BY_VALUE = "SELECT EXISTS (SELECT FROM pg_extension WHERE extname = 'citus')"

COMMAND_TIMEOUT_SECONDS = 3
CONNECT_TIMEOUT_SECONDS = 2
ACQUIRE_TIMEOUT_SECONDS = 1


class NotWritableError(ConnectionError):
    """The server answers, but as a standby or read-only, so it may lack the last writes."""

    def __init__(self) -> None:
        super().__init__("the server is a standby or read-only")


class Absence(Enum):
    """Why the database does not serve us; the outcome of the call is then unknown."""

    ELSEWHERE = "another server, or this one later: the connection is dropped"
    BUSY = "this server, a little later: the connection stays"
    REFUSED = "not before the address or the server is changed: the connection is dropped"


# The absence that each SQLSTATE means or, where the state is not listed, its class.
_ABSENCES: Mapping[str, Absence] = {
    "08": Absence.ELSEWHERE,  # the connection is broken
    "0A000": Absence.ELSEWHERE,  # "cannot set transaction read-write mode during recovery"
    "25006": Absence.ELSEWHERE,  # read-only: a standby, or default_transaction_read_only
    "25P03": Absence.ELSEWHERE,  # the transaction was idle for too long and so was the connection
    "25P04": Absence.ELSEWHERE,  # transaction_timeout, likewise
    "28": Absence.REFUSED,  # no such role, a wrong password, no rule for us in pg_hba.conf
    "3D000": Absence.REFUSED,  # no such database
    "53": Absence.BUSY,  # too many connections, no memory, no room on the disk
    "55000": Absence.ELSEWHERE,  # the database takes no connections at the moment
    "57": Absence.ELSEWHERE,  # starting up, shutting down, crashed, dropped
    "57014": Absence.BUSY,  # a statement took longer than its time limit
}


# Texts of Citus under the SQLSTATE of an internal error: it has lost a worker, is killed while it
# waits for one, or has planned a statement for a shard that was split meanwhile.
_ABSENCES_OF_CITUS: Mapping[str, Absence] = {
    "failure on connection marked as essential": Absence.BUSY,
    "postmaster was shut down": Absence.ELSEWHERE,
    "could not find valid entry for shard": Absence.BUSY,
}

# Exceptions of the driver and the network when they cannot go on.
_BROKEN = (OSError, TimeoutError, asyncpg.InterfaceError, asyncpg.InternalClientError)


def absence(fault: BaseException) -> Absence | None:
    """Classifies a fault.

    Args:
        fault: as the driver or the network raised it.

    Returns:
        Why the database does not serve us; None where it does and refused only this statement. A
        value that the driver itself refuses is such a case.
    """
    if isinstance(fault, asyncpg.PostgresError):
        # The same state as a standby's, but here DDL has outdated a plan of this server.
        if isinstance(fault, asyncpg.InvalidCachedStatementError):
            return None
        state = fault.sqlstate or ""
        if state == "XX000":
            said = str(fault)
            return next(
                (why for text, why in _ABSENCES_OF_CITUS.items() if said.startswith(text)), None
            )
        return _ABSENCES.get(state) or _ABSENCES.get(state[:2])
    if isinstance(fault, (asyncpg.ClientConfigurationError, SSLCertVerificationError)):
        return Absence.REFUSED
    if isinstance(fault, asyncpg.InterfaceError) and isinstance(fault, ValueError):
        return None
    return Absence.ELSEWHERE if isinstance(fault, _BROKEN) else None


def unreachable(fault: BaseException) -> bool:
    """Tells whether the database does not serve us, so that the outcome of a call is unknown."""
    return absence(fault) is not None


def spoils_connection(fault: BaseException) -> bool:
    """Tells whether the connection that raised this is to be dropped and made again."""
    return absence(fault) in (Absence.ELSEWHERE, Absence.REFUSED)


@dataclass(frozen=True, slots=True)
class Address:
    """A database to connect to.

    Attributes:
        url: as libpq takes it, for the service's role; it may name several hosts.
        statement_cache_size: prepared statements kept per connection; 0 behind a transaction
            pooler that does not track them.
        statements: how many prepared statements are kept at present.
        shards: where the users of a distributed book are.
    """

    url: str
    statement_cache_size: int = 100
    statements: StatementCache = field(init=False, compare=False)
    shards: Shards = field(init=False, compare=False, default_factory=Shards)

    def __post_init__(self) -> None:
        object.__setattr__(self, "statements", StatementCache(self.statement_cache_size))

    async def connect(
        self,
        *,
        writable: bool = True,
        command_seconds: float | None = COMMAND_TIMEOUT_SECONDS,
        reads_shards: bool = True,
    ) -> asyncpg.Connection:
        """Opens a connection of its own, for a lane or the command line.

        Several hosts are tried at once, because a silent one would use up the time.

        Args:
            writable: whether to refuse a server that is a standby or read-only.
            command_seconds: how long a command may take; None: any time.
            reads_shards: whether to read where the users are, unless that is known.

        Raises:
            NotWritableError: every server that answers is a standby or read-only.
            ShardMapError: the accounts are distributed in a way that this program does not know.
            Exception: no connection within two seconds; `absence` says why.
        """
        wanted = "read-write" if writable else "any"
        attempts = [self._connect(url, wanted, command_seconds) for url in _split_hosts(self.url)]
        connection = await (attempts[0] if len(attempts) == 1 else _first(attempts))
        if reads_shards and not self.shards.known:
            try:
                await self.shards.read(connection)
            except BaseException:
                connection.terminate()
                raise
        return connection

    async def role(self) -> str:
        """Asks for the role that the URL connects as; raises as `connect` does."""
        connection = await self.connect(reads_shards=False)
        try:
            role: str = await connection.fetchval("SELECT current_user")
        finally:
            await connection.close()
        return role

    def pool(self, size: int) -> asyncpg.Pool:
        """Makes the pool of the reads, not yet opened; it holds at most `size` connections."""

        async def connect(*_arguments: object, **_options: object) -> asyncpg.Connection:
            return await self.connect()

        return asyncpg.create_pool(min_size=0, max_size=size, connect=connect, reset=_keep)

    async def _connect(
        self, url: str, wanted: str, command_seconds: float | None
    ) -> asyncpg.Connection:
        while True:
            kept = self.statements.size
            connection = await self._connect_keeping(kept, url, wanted, command_seconds)
            # A pooler may have been noticed meanwhile.
            if kept == self.statements.size:
                return connection
            connection.terminate()

    async def _connect_keeping(
        self, kept: int, url: str, wanted: str, command_seconds: float | None
    ) -> asyncpg.Connection:
        try:
            connection: Connection = await asyncpg.connect(  # type: ignore[call-overload]
                url,
                timeout=CONNECT_TIMEOUT_SECONDS,
                command_timeout=command_seconds,
                statement_cache_size=kept,
                connection_class=Connection,
                target_session_attrs=wanted,  # the stubs do not know that it may be a string
            )
        except asyncpg.TargetServerAttributeNotMatched:
            raise NotWritableError from None
        except ValueError as error:
            if isinstance(error, (asyncpg.InterfaceError, OSError)):
                raise
            raise asyncpg.ClientConfigurationError(str(error)) from error
        connection.shards = self.shards
        return connection


def _split_hosts(url: str) -> list[str]:
    """Makes a URL of each host of one; libpq lets a URL name several, with commas between them."""
    parts = urlsplit(url)
    user, at, hosts = parts.netloc.rpartition("@")
    if "," in hosts:
        return [parts._replace(netloc=f"{user}{at}{host}").geturl() for host in hosts.split(",")]
    query = dict(parse_qsl(parts.query))
    named = query.get("host", "").split(",")
    if len(named) == 1:
        return [url]
    ports = query.get("port", "").split(",")
    if len(ports) == 1:
        ports *= len(named)
    if len(ports) != len(named):
        raise asyncpg.ClientConfigurationError(f"{len(named)} hosts but {len(ports)} ports")
    queries = [
        query | {"host": host} | ({"port": port} if port else {})
        for host, port in zip(named, ports, strict=True)
    ]
    return [parts._replace(query=urlencode(each)).geturl() for each in queries]


async def _first(attempts: list[Coroutine[Any, Any, asyncpg.Connection]]) -> asyncpg.Connection:
    """Returns the first connection of several attempts and gives up the others."""
    tasks = [asyncio.create_task(attempt) for attempt in attempts]
    chosen = None
    try:
        pending = set(tasks)
        while pending and chosen is None:
            done, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
            chosen = next((task for task in done if task.exception() is None), None)
        if chosen is not None:
            return chosen.result()
        faults = [fault for task in tasks if (fault := task.exception()) is not None]
        # A refusal by one host does not count while another is only away.
        raise min(faults, key=lambda fault: absence(fault) is Absence.REFUSED)
    finally:
        for task in tasks:
            task.cancel()
        for task in tasks:
            if task is not chosen:
                task.add_done_callback(_drop)


def _drop(attempt: asyncio.Task[asyncpg.Connection]) -> None:
    """Ends a connection that came too late."""
    if not attempt.cancelled() and attempt.exception() is None:
        attempt.result().terminate()


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
    kept = await connection.fetchval("SELECT current_setting('plan_cache_mode')")
    if kept != ROLE_PLANS_KEPT and not await connection.fetchval(PLANS_BY_VALUE):
        missing.append(
            f"the service's database role has plan_cache_mode = {kept}, so that PostgreSQL plans"
            " the same statements again and again: `credit-service migrate` with"
            f" CREDIT_MIGRATE_URL sets it to {ROLE_PLANS_KEPT}"
        )
    return missing
