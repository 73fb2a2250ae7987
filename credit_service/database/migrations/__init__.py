"""Migrates a database to the newest version by numbered SQL files, each applied once, in order.

Each file runs in a transaction of its own, together with the row that records it and the rights to
the objects that it made, under a lock that ends at the latest with the connection. So two runs at
the same time apply each file once, and a run that is killed leaves only complete steps. A file is
never edited after its release; an edited file is refused.

A file that builds indexes CONCURRENTLY, so that writers go on meanwhile, cannot run in a
transaction. Its statements run one by one under the same lock, and the file is recorded after the
last one. So they must be such that they can be run again.

On a distributed book a line is replaced by what follows `-- distributed: ` in it. There a file that
makes a table distributes it, with create_distributed_table, before it adds the foreign keys of the
table, each by an ALTER TABLE of its own.
"""

from __future__ import annotations

import asyncio
import hashlib
import re
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from importlib import resources
from typing import TYPE_CHECKING

import asyncpg

from credit_service.database.distributed_book import (
    distributed_text,
    is_distributed,
    unplaced_references,
)
from credit_service.database.postgres import (
    PLANS_BY_VALUE,
    ROLE_LIMITS_MS,
    ROLE_PLANS_KEPT,
    ROLE_PLANS_OFF,
    Address,
    unreachable,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

# A number that no other program in the database uses: "credit" in ASCII.
_LOCK = 0x637265646974

# A large ledger takes long to migrate, so statements have no limit. Waiting for a lock has one,
# because all other sessions queue behind the waiting one; after longer than any transaction of the
# service lasts, it is better to give up and be run again. The interval lets a killed run release
# its locks before its statement ends.
SESSION = """
    SET client_min_messages = warning;
    SET statement_timeout = 0;
    SET lock_timeout = '5s';
    SET client_connection_check_interval = '1s'
"""

_CREATE_RECORD = """
    CREATE TABLE credit_migrations (
        version bigint PRIMARY KEY,
        name text NOT NULL,
        checksum text NOT NULL,
        applied_at timestamptz NOT NULL DEFAULT now()
    )
"""


class MigrationError(Exception):
    """The database and the migration files do not match; the message says what to do."""


@dataclass(frozen=True, slots=True)
class Migration:
    """One numbered file.

    Attributes:
        check: SQL that raises where the data cannot be migrated; it runs before `sql` and is not
            part of the checksum, so that it can be added to a released file.
    """

    version: int
    name: str
    sql: str
    check: str = ""

    @property
    def concurrent(self) -> bool:
        """Whether its statements run one by one, outside a transaction."""
        return "CONCURRENTLY" in self.sql

    @property
    def checksum(self) -> str:
        """Distinguishes an edited file from the one that was applied."""
        return hashlib.sha256(self.sql.encode()).hexdigest()


def migrations() -> list[Migration]:
    """Reads the migration files, in order."""
    files = {
        file.name.removesuffix(".sql"): file.read_text()
        for file in resources.files(__name__).iterdir()
        if file.name.endswith(".sql")
    }
    found = [
        Migration(int(name[:4]), name, sql, files.get(f"check_{name}", ""))
        for name, sql in files.items()
        if name[:4].isdigit()
    ]
    return sorted(found, key=lambda migration: migration.version)


async def pending(connection: asyncpg.Connection) -> list[str]:
    """Names the migrations that the database still lacks.

    A database may be newer than this code: migrations only add, so that replicas of two versions
    can run side by side.

    Raises:
        MigrationError: a file was edited after it was applied.
    """
    known = migrations()
    applied = await _applied(connection)
    _require_unedited(known, applied)
    return [migration.name for migration in known if migration.version not in applied]


async def migrate(
    owner_url: str,
    service_role: str,
    say: Callable[[str], None],
    files: list[Migration] | None = None,
) -> None:
    """Applies the missing migrations, then gives the service's role its rights and time limits.

    Args:
        owner_url: a connection as the owner of the tables; not through a transaction pooler.
        service_role: the role the service connects as; may be the owner's own.
        say: is called with one line for each step.
        files: the migrations, where they are not the package's own.

    Raises:
        MigrationError: the files and the database do not match, or the role is missing.
    """
    connection = await Address(owner_url).connect(command_seconds=None, reads_shards=False)
    connection.add_log_listener(lambda _, message: say(f"database: {message.message}"))
    try:
        await connection.execute(SESSION)
        known = migrations() if files is None else files
        apart = await role_apart(connection, service_role)
        fresh = 0
        for migration in known:
            fresh += await _apply(connection, migration, known, apart, say)
        say(f"{fresh} migrations applied, the database is at {known[-1].name}")
        await _grant(connection, apart, say)
    finally:
        await connection.close()


async def role_apart(connection: asyncpg.Connection, service_role: str) -> str:
    """Returns the service's role where it is another than the owner's, else an empty text."""
    if not await connection.fetchval("SELECT 1 FROM pg_roles WHERE rolname = $1", service_role):
        raise MigrationError(
            f"the database has no role {service_role}; create it with"
            f" CREATE ROLE {service_role} LOGIN PASSWORD '...' and migrate again"
        )
    owner = await connection.fetchval("SELECT current_user")
    return service_role if service_role != owner else ""


async def _apply(
    connection: asyncpg.Connection,
    migration: Migration,
    known: list[Migration],
    apart: str,
    say: Callable[[str], None],
) -> bool:
    async with lock(connection, say):
        if migration.concurrent:
            async with _step(connection, migration.name):
                if not await _is_missing(connection, migration, known):
                    return False
            say(f"applying {migration.name}")
            await _build(connection, migration)
        async with _step(connection, migration.name):
            if not await _is_missing(connection, migration, known):
                return False
            if not migration.concurrent:
                say(f"applying {migration.name}")
                if migration.check:
                    await connection.execute(migration.check)
                await _execute(connection, migration)
            await connection.execute(
                "INSERT INTO credit_migrations (version, name, checksum) VALUES ($1, $2, $3)",
                migration.version,
                migration.name,
                migration.checksum,
            )
            await set_rights(connection, apart)
    return True


async def _build(connection: asyncpg.Connection, migration: Migration) -> None:
    with _explained(migration.name, "cannot be applied; migrate again"):
        # An index waits for transactions that began before it, and keeps nothing waiting.
        await connection.execute("SET lock_timeout = 0")
        for statement in _statements(migration.sql):
            await connection.execute(statement)
        await connection.execute(SESSION)


async def _execute(connection: asyncpg.Connection, migration: Migration) -> None:
    if not await is_distributed(connection):
        await connection.execute(migration.sql)
        return
    # Otherwise a table that is made and distributed here cannot get its foreign keys here too.
    await connection.execute("SET LOCAL citus.multi_shard_modify_mode = 'sequential'")
    # Citus sends the shards the whole text of a command, with all statements that are in it.
    for statement in _statements(distributed_text(migration.sql)):
        await connection.execute(statement)
    left = await unplaced_references(connection)
    if left:
        raise MigrationError(
            f"{migration.name} cannot be applied to a distributed book and has changed nothing:"
            f" {', '.join(left)} would refer to distributed tables and is not distributed itself"
        )


def _statements(sql: str) -> Iterator[str]:
    """Divides a file into its statements; one that has a body in $$ stays whole."""
    statement = ""
    for part in sql.split(";\n"):
        statement += part
        if statement.count("$$") % 2:
            statement += ";\n"
            continue
        if re.sub("--.*", "", statement).strip():
            yield statement
        statement = ""


async def _is_missing(
    connection: asyncpg.Connection, migration: Migration, known: list[Migration]
) -> bool:
    if await connection.fetchval("SELECT to_regclass('credit_migrations')") is None:
        await connection.execute(_CREATE_RECORD)
    applied = await _applied(connection)
    _require_unedited(known, applied)
    return migration.version not in applied


async def _grant(connection: asyncpg.Connection, apart: str, say: Callable[[str], None]) -> None:
    async with lock(connection, say), _step(connection, "grants.sql"):
        await set_rights(connection, apart)
        # A ledger that was adopted just now has no statistics yet and would get poor plans.
        if await connection.fetchval("SELECT 1 FROM user_credits LIMIT 1"):
            await connection.execute("ANALYZE user_credits, credit_transactions")
        if apart:
            await _limit(connection, apart, say)
    if apart:
        say(f"{apart} may read and add entries, and change none")


@asynccontextmanager
async def _step(connection: asyncpg.Connection, name: str) -> AsyncIterator[None]:
    """Runs the block in one transaction; explains its failure."""
    with _explained(name, "cannot be applied and has changed nothing"):
        async with connection.transaction(isolation="read_committed"):
            yield


@contextmanager
def _explained(name: str, outcome: str) -> Iterator[None]:
    try:
        yield
    except asyncpg.PostgresError as error:
        if unreachable(error):
            raise
        hint = error.hint
        if isinstance(error, asyncpg.InsufficientPrivilegeError):
            hint = "Migrate as a role that may create and own the tables, by CREDIT_MIGRATE_URL"
        said = (error.args[0], error.detail, hint)
        text = " ".join(f"{part.rstrip('.')}." for part in said if part)
        raise MigrationError(f"{name} {outcome}: {text}") from error


@asynccontextmanager
async def lock(connection: asyncpg.Connection, say: Callable[[str], None]) -> AsyncIterator[None]:
    """Runs the block under the migration lock."""
    # Polled, and outside a transaction, because a snapshot, which a waiting statement or an open
    # transaction may hold, keeps the migration that runs from building its indexes.
    announced = False
    while not await connection.fetchval("SELECT pg_try_advisory_lock($1)", _LOCK):
        if not announced:
            say("waiting for another migration to end")
            announced = True
        await asyncio.sleep(0.1)
    try:
        yield
    finally:
        if not connection.is_closed():
            await connection.execute(f"SELECT pg_advisory_unlock({_LOCK})")


async def _applied(connection: asyncpg.Connection) -> dict[int, str]:
    if await connection.fetchval("SELECT to_regclass('credit_migrations')") is None:
        return {}
    rows = await connection.fetch("SELECT version, checksum FROM credit_migrations")
    return {row["version"]: row["checksum"] for row in rows}


def _require_unedited(known: list[Migration], applied: dict[int, str]) -> None:
    for migration in known:
        if applied.get(migration.version, migration.checksum) != migration.checksum:
            raise MigrationError(
                f"{migration.name} was edited after it was applied to this database; restore the"
                " file as released and put the change into a new migration"
            )


async def set_rights(connection: asyncpg.Connection, apart: str) -> None:
    """Gives the service's role its rights to the tables that exist; runs in a transaction.

    Args:
        connection: as the owner of the tables.
        apart: the service's role; empty where the service connects as the owner.
    """
    await connection.execute("SELECT set_config('credit_service.role', $1, true)", apart)
    await connection.execute((resources.files(__name__) / "grants.sql").read_text())


async def _limit(
    connection: asyncpg.Connection, service_role: str, say: Callable[[str], None]
) -> None:
    database = await connection.fetchval("SELECT quote_ident(current_database())")
    role = await connection.fetchval("SELECT quote_ident($1)", service_role)
    try:
        async with connection.transaction():
            by_value = await connection.fetchval(PLANS_BY_VALUE)
            settings = {
                **{name: f"{limit_ms}ms" for name, limit_ms in ROLE_LIMITS_MS.items()},
                **dict.fromkeys(ROLE_PLANS_OFF, "off"),
                "plan_cache_mode": "auto" if by_value else ROLE_PLANS_KEPT,
            }
            for name, value in settings.items():
                await connection.execute(
                    f"ALTER ROLE {role} IN DATABASE {database} SET {name} = '{value}'"
                )
    except asyncpg.InsufficientPrivilegeError:
        say(f"this role may not alter {service_role}; let an administrator give it its settings")
