"""Fills the database as its owner: users with accounts and entries that add up."""

from __future__ import annotations

from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import asyncpg

from benchmark.numbering import USER_ID_SQL
from credit_service.database import migrations

if TYPE_CHECKING:
    from datetime import datetime

BALANCE = 1_000_000_000

_USER = USER_ID_SQL.format("n")

# Users $1 to $1 + $2 - 1 of $3 entries each: a grant, then spends of 1, a microsecond apart.
_USERS = f"""
    INSERT INTO auth.users (id)
    SELECT {_USER} FROM generate_series($1::bigint, $1::bigint + $2::bigint - 1) AS n
"""
_ACCOUNTS = f"""
    INSERT INTO user_credits (user_id, balance, seq, last_updated, tx)
    SELECT {_USER}, {BALANCE} - $3::bigint + 1, $3::bigint, now(), 0
    FROM generate_series($1::bigint, $1::bigint + $2::bigint - 1) AS n
"""
_ENTRIES = f"""
    INSERT INTO credit_transactions (
        user_id, seq, type, call, amount, requested_amount, balance_change, held_change,
        balance_after, held_after, floor, description, timestamp, reference, idempotency_key,
        caller, tx
    )
    SELECT
        {_USER}, place, kind, call, amount, amount, CASE kind WHEN 'spend' THEN -1 ELSE amount END,
        0, {BALANCE} - place + 1, 0, CASE kind WHEN 'spend' THEN 0 END, '',
        now() - interval '1 microsecond' * ($3::bigint - place), '', 'filled:' || place,
        'benchmark', 0
    FROM generate_series($1::bigint, $1::bigint + $2::bigint - 1) AS n
    CROSS JOIN LATERAL (
        SELECT
            place,
            CASE place WHEN 1 THEN 'grant' ELSE 'spend' END AS kind,
            CASE place WHEN 1 THEN 'GrantCredits' ELSE 'SpendCredits' END AS call,
            CASE place WHEN 1 THEN {BALANCE} ELSE 1 END AS amount
        FROM generate_series(1, $3::bigint) AS place
    ) AS entry
"""

# $3 holds for each of these users, all of which expired at the same instant, an hour ago. The
# accounts have one entry.
_HOLD_ENTRIES = f"""
    INSERT INTO credit_transactions (
        user_id, seq, type, call, amount, requested_amount, balance_change, held_change,
        balance_after, held_after, floor, description, timestamp, reference, idempotency_key,
        caller, hold_seq, tx
    )
    SELECT {_USER}, place, 'hold', 'HoldCredits', 1, 1, 0, 1, {BALANCE}, place - 1, 0, '', now(),
        '', 'filled:' || place, 'benchmark', place, 0
    FROM generate_series($1::bigint, $1::bigint + $2::bigint - 1) AS n
    CROSS JOIN generate_series(2, $3::bigint + 1) AS place
"""
_HOLDS = f"""
    INSERT INTO credit_holds (user_id, seq, state, amount, created_at, expires_at, reference)
    SELECT {_USER}, place, 'held', 1, now() - interval '2 hours', now() - interval '1 hour', ''
    FROM generate_series($1::bigint, $1::bigint + $2::bigint - 1) AS n
    CROSS JOIN generate_series(2, $3::bigint + 1) AS place
"""
_HOLDING_ACCOUNTS = f"""
    UPDATE user_credits
    SET
        held = $3::bigint, open_holds = $3::bigint, seq = $3::bigint + 1,
        next_hold_expiry = now() - interval '1 hour'
    WHERE user_id IN (
        SELECT {_USER} FROM generate_series($1::bigint, $1::bigint + $2::bigint - 1) AS n
    )
"""

# $3 grants for each of these users, of one entry each, all of which expire at $4.
_GRANT_CREDITS = 1_000_000
_GRANT_ENTRIES = f"""
    INSERT INTO credit_transactions (
        user_id, seq, type, call, amount, requested_amount, balance_change, held_change,
        balance_after, held_after, description, timestamp, reference, idempotency_key, caller, tx
    )
    SELECT {_USER}, place, 'grant', 'GrantCredits', {_GRANT_CREDITS}, {_GRANT_CREDITS},
        {_GRANT_CREDITS}, 0, {BALANCE} + {_GRANT_CREDITS} * (place - 1), 0, '', now(), '',
        'filled:' || place, 'benchmark', 0
    FROM generate_series($1::bigint, $1::bigint + $2::bigint - 1) AS n
    CROSS JOIN generate_series(2, $3::bigint + 1) AS place
"""
_GRANTS = f"""
    INSERT INTO credit_grants (
        user_id, seq, amount, remaining, pinned, priority, expire_time, asked_time, paid, revoked,
        open, lapsed, counted, reversed
    )
    SELECT {_USER}, place, {_GRANT_CREDITS}, {_GRANT_CREDITS}, 0, 50, $4::timestamptz,
        $4::timestamptz, FALSE, FALSE, TRUE, 0, 0, 0
    FROM generate_series($1::bigint, $1::bigint + $2::bigint - 1) AS n
    CROSS JOIN generate_series(2, $3::bigint + 1) AS place
"""
_GRANT_CHANGES = f"""
    INSERT INTO credit_grant_changes (
        user_id, seq, step, grant_seq, remaining_change, pinned_change, remaining_after,
        pinned_after, expire_after
    )
    SELECT {_USER}, place, 1, place, {_GRANT_CREDITS}, 0, {_GRANT_CREDITS}, 0, $4::timestamptz
    FROM generate_series($1::bigint, $1::bigint + $2::bigint - 1) AS n
    CROSS JOIN generate_series(2, $3::bigint + 1) AS place
"""
_GRANTED_ACCOUNTS = f"""
    UPDATE user_credits
    SET
        balance = balance + {_GRANT_CREDITS} * $3::bigint, seq = $3::bigint + 1,
        in_grants = {_GRANT_CREDITS} * $3::bigint, open_grants = $3::bigint,
        grants_made = $3::bigint, next_lapse = $4::timestamptz
    WHERE user_id IN (
        SELECT {_USER} FROM generate_series($1::bigint, $1::bigint + $2::bigint - 1) AS n
    )
"""

_LAPSES = f"""
    SELECT entry.timestamp, count(*)
    FROM credit_grant_changes AS change
    INNER JOIN credit_transactions AS entry USING (user_id, seq)
    WHERE change.lapsed_at IS NOT NULL AND change.user_id IN (
        SELECT {_USER} FROM generate_series($1::bigint, $1::bigint + $2::bigint - 1) AS n
    )
    GROUP BY entry.timestamp
"""

_EXPIRIES = f"""
    SELECT timestamp, count(*) FROM credit_transactions
    WHERE type = 'expire' AND user_id IN (
        SELECT {_USER} FROM generate_series($1::bigint, $1::bigint + $2::bigint - 1) AS n
    )
    GROUP BY timestamp
"""

# Commits are durable only if all of these are on.
DURABILITY = ("fsync", "synchronous_commit", "full_page_writes")


def database_url(url: str, name: str) -> str:
    """Returns the URL of another database of the same server."""
    return urlsplit(url)._replace(path=f"/{name}").geturl()


async def create_database(owner_url: str, name: str) -> None:
    """Makes an empty database."""
    connection = await asyncpg.connect(owner_url)
    try:
        await connection.execute(f"CREATE DATABASE {name}")
    finally:
        await connection.close()


async def migrate(owner_url: str) -> None:
    """Brings a database to the newest version, for the role of the embedded server's service."""
    await migrations.migrate(owner_url, "credit_service", lambda _line: None)


async def settings(owner_url: str) -> dict[str, str]:
    """Reads the server's version and the settings that decide whether a commit is durable."""
    connection = await asyncpg.connect(owner_url)
    try:
        return {
            name: await connection.fetchval("SELECT current_setting($1)", name)
            for name in ("server_version", *DURABILITY, "shared_buffers", "max_wal_size")
        }
    finally:
        await connection.close()


async def fill(owner_url: str, first_user: int, users: int, entries: int = 1) -> None:
    """Writes users with this number of entries each."""
    connection = await asyncpg.connect(owner_url)
    try:
        async with connection.transaction():
            # Foreign keys would be checked row by row, from a queue that is kept in memory.
            await connection.execute("SET LOCAL session_replication_role = replica")
            await connection.execute(_USERS, first_user, users)
            await connection.execute(_ACCOUNTS, first_user, users, entries)
            await connection.execute(_ENTRIES, first_user, users, entries)
    finally:
        await connection.close()


async def settle(owner_url: str) -> None:
    """Does the server's pending work now, so that it does not disturb the measurements."""
    connection = await asyncpg.connect(owner_url)
    try:
        await connection.execute("VACUUM ANALYZE")
        await connection.execute("CHECKPOINT")
    finally:
        await connection.close()


async def transactions(owner_url: str) -> int:
    """Counts the transactions that have written something since the server was created."""
    connection = await asyncpg.connect(owner_url)
    try:
        count: str = await connection.fetchval(
            "SELECT pg_snapshot_xmax(pg_current_snapshot())::text"
        )
        return int(count)
    finally:
        await connection.close()


async def forget_readers(owner_url: str) -> None:
    """Makes the relay start from the beginning again."""
    connection = await asyncpg.connect(owner_url)
    try:
        await connection.execute("TRUNCATE credit_relay_readers, credit_parked_events")
    finally:
        await connection.close()


async def expire_holds(owner_url: str, first_user: int, users: int, each: int = 1) -> None:
    """Gives each of these users, of one entry each, this number of holds whose time has passed."""
    connection = await asyncpg.connect(owner_url)
    try:
        async with connection.transaction():
            # Foreign keys would be checked row by row, from a queue that is kept in memory.
            await connection.execute("SET LOCAL session_replication_role = replica")
            for statement in (_HOLD_ENTRIES, _HOLDS, _HOLDING_ACCOUNTS):
                await connection.execute(statement, first_user, users, each)
    finally:
        await connection.close()


async def give_grants(
    owner_url: str, first_user: int, users: int, each: int, expire_time: datetime
) -> None:
    """Gives each of these users, of one entry each, this number of grants with the same expiry."""
    connection = await asyncpg.connect(owner_url)
    try:
        async with connection.transaction():
            await connection.execute("SET LOCAL session_replication_role = replica")
            await connection.execute(_GRANT_ENTRIES, first_user, users, each)
            for statement in (_GRANTS, _GRANT_CHANGES, _GRANTED_ACCOUNTS):
                await connection.execute(statement, first_user, users, each, expire_time)
    finally:
        await connection.close()


async def lapses(owner_url: str, first_user: int, users: int) -> dict[datetime, int]:
    """Reads when grants of these users were recorded as lapsed, and how many at each time."""
    connection = await asyncpg.connect(owner_url)
    try:
        rows = await connection.fetch(_LAPSES, first_user, users)
        return {row[0]: row[1] for row in rows}
    finally:
        await connection.close()


async def expiries(owner_url: str, first_user: int, users: int) -> dict[datetime, int]:
    """Reads when holds of these users were recorded as expired, and how many at each time."""
    connection = await asyncpg.connect(owner_url)
    try:
        rows = await connection.fetch(_EXPIRIES, first_user, users)
        return {row[0]: row[1] for row in rows}
    finally:
        await connection.close()
