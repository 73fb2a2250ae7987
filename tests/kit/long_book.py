"""Books of many entries, written at once by the owner of the tables."""

from uuid import UUID

from kit.databases import Database

# $2 entries: a purchase of 2 in the odd places, a spend of 1 in the even ones, and in place
# 3 the refund of the spend in place 2. $3 neighbours have the same time, as the entries of a batch
# have; the times are a second apart. Every 100th entry has the reference `hundredth`.
_ENTRIES = """
    INSERT INTO credit_transactions (
        user_id, seq, type, call, amount, requested_amount, balance_change, held_change,
        balance_after, held_after, floor, description, timestamp, reference, related_seq,
        idempotency_key, caller, tx
    )
    SELECT
        $1::uuid, n, type, 'test', abs(change), abs(change), change, 0,
        sum(change) OVER (ORDER BY n), 0, CASE WHEN type = 'spend' THEN 0 END, 'entry ' || n,
        timestamptz '2026-01-01 00:00:00+00' + interval '1 second' * ((n - 1) / $3::bigint),
        CASE WHEN n % 100 = 0 THEN 'hundredth' ELSE '' END, CASE WHEN n = 3 THEN 2 END,
        'key ' || n, 'test', (SELECT tx FROM user_credits WHERE user_id = $1)
    FROM (
        SELECT
            n,
            CASE WHEN n = 3 THEN 1 WHEN n % 2 = 0 THEN -1 ELSE 2 END AS change,
            CASE WHEN n = 3 THEN 'refund' WHEN n % 2 = 0 THEN 'spend' ELSE 'purchase' END AS type
        FROM generate_series(1, $2::bigint) AS n
    ) AS numbered
"""

_ACCOUNT = """
    UPDATE user_credits AS account
    SET seq = newest.seq, balance = newest.balance_after, last_updated = newest.timestamp
    FROM credit_transactions AS newest
    WHERE newest.user_id = $1 AND newest.seq = $2 AND account.user_id = $1
"""


async def write_book(database: Database, entries: int, *, same_time: int = 1) -> UUID:
    """Gives a new user a book of `entries` (3 or more); each `same_time` of them share a time."""
    user_id = await database.user()
    connection = await database.connect()
    try:
        async with connection.transaction():
            await connection.execute(
                "INSERT INTO user_credits (user_id, last_updated) VALUES ($1, now())", user_id
            )
            # Triggers and foreign keys would look up the same account once for each entry.
            await connection.execute("SET LOCAL session_replication_role = replica")
            await connection.execute(_ENTRIES, user_id, entries, same_time)
            await connection.execute("SET LOCAL session_replication_role = origin")
            await connection.execute(_ACCOUNT, user_id, entries)
            await connection.execute(
                "INSERT INTO credit_refunds (user_id, spend_seq, spent, refunded)"
                " VALUES ($1, 2, 1, 1)",
                user_id,
            )
    finally:
        await connection.close()
    return user_id
