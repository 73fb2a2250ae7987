"""Distributes the book over the nodes of a Citus cluster: which table goes where, and the move.

A table is split into shards by the user, so that all of a user is on one node and a batch of one
shard is an ordinary transaction there. Payments and reversals are split by their own references,
because two users must never be credited for the same payment. docs/scale-out.md says when this is
worth it, and what it costs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import asyncpg

from credit_service.database import migrations
from credit_service.database.distributed_book import NOT_OFFERED
from credit_service.database.postgres import Address, unreachable

if TYPE_CHECKING:
    from collections.abc import Mapping
# The tables of which each row belongs to a user, and the column that says to which. Their shards
# are colocated: those of the same users are always on the same node.
BY_USER: Mapping[str, str] = {
    "auth.users": "id",
    "user_credits": "user_id",
    "credit_transactions": "user_id",
    "credit_refunds": "user_id",
    "credit_holds": "user_id",
    "credit_policy_changes": "user_id",
    "credit_kept_keys": "user_id",
    "credit_grants": "user_id",
    "credit_grant_changes": "user_id",
    "credit_allowances": "user_id",
    "credit_top_ups": "user_id",
    "credit_top_up_counts": "user_id",
    "credit_top_up_changes": "user_id",
    "credit_alerts": "user_id",
    "credit_alert_states": "user_id",
    "credit_expiring_alerts": "user_id",
}

# The tables that keep a reference from being used twice, by any user. None is colocated with
# another.
BY_REFERENCE: Mapping[str, str] = {
    "credit_purchases": "payment_ref",
    "credit_reversals": "reversal_ref",
}

# Copied whole to every node, because statements and triggers on the shards read it.
EVERYWHERE = frozenset({"credit_feed"})

# Left on the coordinator: the record of migrations, and the tables of the feed and the relay, which
# a distributed book does not offer.
ON_THE_COORDINATOR = frozenset(
    {
        "credit_migrations",
        "credit_feed_advances",
        "credit_relay_lease",
        "credit_relay_readers",
        "credit_parked_events",
    }
)

# A unique key of a distributed table must contain the column that the table is split by. Each of
# these replaces, by its name, a key that does not.
_UNIQUE_KEYS: Mapping[str, tuple[str, str]] = {
    # The same, because opens_ref is null or equals reversal_ref.
    "one_payment_per_reversal": ("credit_reversals", "UNIQUE (reversal_ref, opens_ref)"),
    # Between two users the credited payment decides, in credit_purchases.
    "one_top_up_per_payment": ("credit_top_ups", "UNIQUE (user_id, payment_ref)"),
}

_DATABASE_SETTINGS = {
    # The triggers that keep the book append-only are on every shard.
    "citus.enable_unsafe_triggers": "on",
}

ROLE_SETTINGS = {
    # Otherwise the driver's look-up of types takes two seconds, because Citus hides shards by
    # rewriting each query of the catalogue.
    "citus.show_shards_for_app_name_prefixes": "*",
    # Lets SET LOCAL lock_timeout reach the shards.
    "citus.propagate_set_commands": "local",
    # Citus finds the shards of a statement by its values, so each execution needs a plan.
    "plan_cache_mode": "auto",
}

# The oldest release of Citus that may be used; the one that was verified is in docs/scale-out.md.
_CITUS_MIN = 13

_CITUS = "SELECT extversion FROM pg_extension WHERE extname = 'citus'"

_OTHERS_TABLES = """
    SELECT relation.oid::regclass::text
    FROM pg_class AS relation
    WHERE
        relation.oid = ANY($1::text[]::regclass[])
        AND NOT pg_has_role(current_user, relation.relowner, 'USAGE')
    ORDER BY 1
"""

# Sessions of the service, such as those of a pooler; not those by which nodes talk to each other.
_SESSIONS = """
    SELECT count(*)
    FROM pg_stat_activity
    WHERE
        datname = current_database()
        AND usename = $1
        AND backend_type = 'client backend'
        AND NOT starts_with(application_name, 'citus_')
        AND pid <> pg_backend_pid()
"""

_SIZES = """
    SELECT relation::text, pg_size_pretty(pg_total_relation_size(relation))
    FROM unnest($1::text[]::regclass[]) AS relation
"""

# Tables without a placement: those that are named like ours, and those that refer to ours.
_UNKNOWN = """
    SELECT relation.oid::regclass::text
    FROM pg_class AS relation
    WHERE
        relation.relkind IN ('r', 'p')
        AND NOT relation.oid::regclass::text = ANY($1::text[])
        AND NOT relation_is_a_known_shard(relation.oid)
        AND (
            (
                starts_with(relation.relname, 'credit_')
                AND relation.relnamespace = (
                    SELECT home.relnamespace FROM pg_class AS home
                    WHERE home.oid = to_regclass('credit_migrations')
                )
            )
            OR EXISTS (
                SELECT 1 FROM pg_constraint AS reference
                WHERE reference.conrelid = relation.oid AND reference.contype = 'f'
                AND reference.confrelid::regclass::text = ANY($1::text[])
            )
        )
    ORDER BY 1
"""

_PLACED = """
    SELECT
        logicalrelid::regclass::text,
        CASE partmethod
            WHEN 'h' THEN column_to_column_name(logicalrelid, partkey)
        END,
        colocationid
    FROM pg_dist_partition
"""

_REFERENCES = """
    SELECT conrelid::regclass::text, quote_ident(conname), pg_get_constraintdef(oid)
    FROM pg_constraint
    WHERE
        contype = 'f'
        AND (
            conrelid::regclass::text = ANY($1::text[])
            OR confrelid::regclass::text = ANY($1::text[])
        )
    ORDER BY 1, 2
"""

_UNIQUE_KEY = """
    SELECT pg_get_constraintdef(oid) FROM pg_constraint
    WHERE conrelid = $1::text::regclass AND conname = $2
"""

_LEFT_BEHIND = """
    SELECT logicalrelid::regclass::text FROM pg_dist_partition
    WHERE partmethod = 'h' AND pg_relation_size(logicalrelid) > 0
    AND logicalrelid::regclass::text = ANY($1::text[])
"""

_Say = Callable[[str], None]


class DistributionError(Exception):
    """The book cannot be distributed; the message says what to do."""


async def distribute(
    owner_url: str, service_role: str, say: _Say, *, dry_run: bool = False
) -> None:
    """Distributes every table that is not distributed yet, new books and existing ones alike.

    All tables move in one transaction, so a run that is killed has changed nothing in the book, and
    the next one starts over. Running it once more changes nothing.

    Args:
        owner_url: the coordinator's database, as the owner of the tables.
        service_role: the role the service connects as; may be the owner's own.
        say: called with one line for each step.
        dry_run: whether to say only what would be done, after the same checks.

    Raises:
        DistributionError: this is not the coordinator of a cluster, migrations are missing, the
            service is connected, another role owns the tables, or a table has no known placement.
        MigrationError: a migration was edited, or the role is missing.
    """
    connection = await Address(owner_url).connect(command_seconds=None, reads_shards=False)
    try:
        await connection.execute(migrations.SESSION)
        await _require_cluster(connection, say)
        await _require_migrated(connection)
        apart = await migrations.role_apart(connection, service_role)
        async with migrations.lock(connection, say):
            await _require_known_tables(connection)
            new = await _unplaced(connection)
            if new:
                await _require_quiet(connection, service_role)
            if dry_run:
                _say_plan(new, await _sizes(connection, new), say)
                return
            await _apply_settings(connection, service_role, say)
            if new:
                await _place_all(connection, new, apart, say)
            await _remove_what_stayed(connection, say)
        say(f"{len(new)} tables distributed" if new else "all tables were distributed already")
        for missing in NOT_OFFERED:
            say(f"a distributed book does not offer {missing}")
    finally:
        await connection.close()


async def _place_all(connection: asyncpg.Connection, new: list[str], apart: str, say: _Say) -> None:
    try:
        async with connection.transaction(isolation="read_committed"):
            await _place(connection, new, say)
            await migrations.set_rights(connection, apart)
    except asyncpg.PostgresError as error:
        if unreachable(error):
            raise
        said = (error.args[0], error.detail, error.hint)
        text = " ".join(f"{part.rstrip('.')}." for part in said if part)
        raise DistributionError(
            f"the book cannot be distributed and nothing has changed: {text}"
        ) from error


async def _require_cluster(connection: asyncpg.Connection, say: _Say) -> None:
    version = await connection.fetchval(_CITUS)
    if version is None:
        raise DistributionError(
            "the database has no Citus: preload it on every node (shared_preload_libraries ="
            " 'citus'), create the database and the extension there, and add the workers to the"
            " coordinator with citus_add_node"
        )
    if int(version.partition(".")[0]) < _CITUS_MIN:
        raise DistributionError(
            f"Citus {version} is too old: update every node to Citus {_CITUS_MIN} or later, then"
            " run ALTER EXTENSION citus UPDATE"
        )
    if await connection.fetchval("SELECT groupid FROM pg_dist_local_group") != 0:
        raise DistributionError("this is a worker: connect to the coordinator")
    nodes = await connection.fetch(
        "SELECT nodename, nodeport FROM pg_dist_node"
        " WHERE isactive AND shouldhaveshards AND noderole = 'primary'"
        " ORDER BY nodeid"
    )
    if not nodes:
        raise DistributionError(
            "no node may hold shards: add workers to the coordinator with citus_add_node"
        )
    names = ", ".join(f"{name}:{port}" for name, port in nodes)
    release = await connection.fetchval("SELECT split_part(citus_version(), ' on ', 1)")
    say(f"{release}, shards go to {names}")


async def _require_migrated(connection: asyncpg.Connection) -> None:
    missing = await migrations.pending(connection)
    if missing:
        raise DistributionError(
            f"the database lacks the migrations {', '.join(missing)}; run `credit-service migrate`"
        )


async def _require_known_tables(connection: asyncpg.Connection) -> None:
    known = [*BY_USER, *BY_REFERENCE, *EVERYWHERE, *ON_THE_COORDINATOR]
    unknown = [row[0] for row in await connection.fetch(_UNKNOWN, known)]
    if unknown:
        raise DistributionError(
            f"no placement is known for {', '.join(unknown)}: use the release that made these"
            " tables, or drop their foreign keys to the book and name them differently"
        )


async def _require_quiet(connection: asyncpg.Connection, service_role: str) -> None:
    """Refuses while the service is connected: its calls would wait until all tables have moved."""
    others = [row[0] for row in await connection.fetch(_OTHERS_TABLES, [*BY_USER, *BY_REFERENCE])]
    if others:
        raise DistributionError(
            f"{len(others)} tables of the book belong to another role, {others[0]} among them: set"
            " CREDIT_MIGRATE_URL to connect as their owner, or as a superuser"
        )
    sessions = await connection.fetchval(_SESSIONS, service_role)
    if sessions:
        raise DistributionError(
            f"the database is in use: {sessions} sessions of {service_role} are connected; stop the"
            " service, and a pooler before it, and run this again"
        )


async def _apply_settings(connection: asyncpg.Connection, service_role: str, say: _Say) -> None:
    database = await connection.fetchval("SELECT quote_ident(current_database())")
    role = await connection.fetchval("SELECT quote_ident($1)", service_role)
    targets = (
        (f"DATABASE {database}", _DATABASE_SETTINGS),
        (f"ROLE {role} IN DATABASE {database}", ROLE_SETTINGS),
    )
    for target, settings in targets:
        for name, value in settings.items():
            # This session needs some of them at once.
            await connection.execute("SELECT set_config($1, $2, false)", name, value)
            command = f"ALTER {target} SET {name} = '{value}'"
            try:
                await connection.execute(command)
            except asyncpg.InsufficientPrivilegeError:
                say(f"this role may not change it: let an administrator run {command}")
            else:
                say(f"{target.lower()}: {name} = {value}")


async def _unplaced(connection: asyncpg.Connection) -> list[str]:
    """The tables that are not distributed yet, in the order in which they are to be."""
    placed = {name: (key, group) for name, key, group in await connection.fetch(_PLACED)}
    for name, key in (*BY_USER.items(), *BY_REFERENCE.items()):
        if name in placed and placed[name][0] != key:
            raise DistributionError(
                f"{name} is distributed by {placed[name][0]} and must be by {key}:"
                f" run SELECT undistribute_table('{name}') first"
            )
    return [name for name in (*EVERYWHERE, *BY_USER, *BY_REFERENCE) if name not in placed]


async def _sizes(connection: asyncpg.Connection, names: list[str]) -> dict[str, str]:
    return dict(tuple(row) for row in await connection.fetch(_SIZES, names))


def _say_plan(new: list[str], sizes: Mapping[str, str], say: _Say) -> None:
    keys = {**BY_USER, **BY_REFERENCE}
    for name in new:
        done = f"split by {keys[name]}" if name in keys else "copied to every node"
        say(f"{name}: would be {done}, {sizes[name]}")
    say(f"{len(new)} tables would be distributed; nothing has changed")


async def _place(connection: asyncpg.Connection, new: list[str], say: _Say) -> None:
    sizes = await _sizes(connection, new)
    # Otherwise a foreign key to a table that is everywhere cannot be made in this transaction.
    await connection.execute("SET LOCAL citus.multi_shard_modify_mode = 'sequential'")
    # So that no batch gets in between, and no waiting lane keeps the others from their locks.
    await connection.execute(f"LOCK TABLE {', '.join(new)} IN ACCESS EXCLUSIVE MODE")
    # A foreign key needs tables that are both distributed already, so the keys come last.
    references = await connection.fetch(_REFERENCES, new)
    for table, name, _ in references:
        await connection.execute(f"ALTER TABLE {table} DROP CONSTRAINT {name}")
    for name, (table, definition) in _UNIQUE_KEYS.items():
        if await connection.fetchval(_UNIQUE_KEY, table, name) not in (None, definition):
            say(f"{table}: {name} becomes {definition}")
            await connection.execute(f"ALTER TABLE {table} DROP CONSTRAINT {name}")
            await connection.execute(f"ALTER TABLE {table} ADD CONSTRAINT {name} {definition}")
    for name in EVERYWHERE:
        if name in new:
            say(f"{name}: copied to every node, {sizes[name]}")
            await connection.execute("SELECT create_reference_table($1::text::regclass)", name)
    first = next(iter(BY_USER))
    for name, key in BY_USER.items():
        if name in new:
            with_ = "none" if name == first else first
            say(f"{name}: split by {key}, {sizes[name]}")
            await _split(connection, name, key, with_)
    for name, key in BY_REFERENCE.items():
        if name in new:
            say(f"{name}: split by {key}, {sizes[name]}")
            await _split(connection, name, key, "none")
    for table, name, definition in references:
        await connection.execute(f"ALTER TABLE {table} ADD CONSTRAINT {name} {definition}")
    say(f"{len(references)} foreign keys restored")


async def _split(connection: asyncpg.Connection, name: str, key: str, with_: str) -> None:
    await connection.execute(
        "SELECT create_distributed_table($1::text::regclass, $2::text, colocate_with => $3::text)",
        name,
        key,
        with_,
    )


async def _remove_what_stayed(connection: asyncpg.Connection, say: _Say) -> None:
    """Removes the rows that Citus has copied to the shards and left, unseen, on the coordinator."""
    left = await connection.fetch(_LEFT_BEHIND, [*BY_USER, *BY_REFERENCE])
    if not left:
        return
    names = ", ".join(row[0] for row in left)
    try:
        async with connection.transaction():
            # Otherwise the triggers that keep the book from being truncated refuse this.
            await connection.execute("SET LOCAL session_replication_role = replica")
            for (name,) in left:
                await connection.execute(
                    "SELECT truncate_local_data_after_distributing_table($1::text::regclass)", name
                )
    except asyncpg.InsufficientPrivilegeError:
        say(
            f"the coordinator keeps an unused copy of {names}: run this again as a superuser to"
            " free its room"
        )
    else:
        say(f"removed the unused copy of {names} from the coordinator")
