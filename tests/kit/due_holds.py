"""Holds whose time has passed and whose expiry is not recorded yet."""

from kit.waiting import eventually

_DUE = """
    WITH users AS (
        INSERT INTO auth.users (id) SELECT gen_random_uuid() FROM generate_series(1, $1)
        RETURNING id
    ),
    accounts AS (
        INSERT INTO user_credits
            (user_id, balance, held, seq, last_updated, open_holds, next_hold_expiry)
        SELECT
            id, 10 * $2, 10 * $2, 1 + $2, now() - interval '1 hour', $2,
            now() - interval '2 minutes'
        FROM users
        RETURNING user_id
    ),
    made AS (
        SELECT user_id, place FROM accounts, generate_series(1, $2::bigint + 1) AS place
    ),
    entries AS (
        INSERT INTO credit_transactions (user_id, seq, type, call, amount, balance_change,
            held_change, balance_after, held_after, floor, description, timestamp, reference,
            idempotency_key, caller, hold_seq)
        SELECT
            user_id, place,
            CASE place WHEN 1 THEN 'purchase' ELSE 'hold' END,
            'test',
            CASE place WHEN 1 THEN 10 * $2 ELSE 10 END,
            CASE place WHEN 1 THEN 10 * $2 ELSE 0 END,
            CASE place WHEN 1 THEN 0 ELSE 10 END,
            10 * $2, 10 * (place - 1), 0, '', now() - interval '1 hour', '', place::text, 'test',
            CASE WHEN place > 1 THEN place END
        FROM made
    ),
    holds AS (
        INSERT INTO credit_holds (user_id, seq, state, amount, created_at, expires_at, reference)
        SELECT user_id, place, 'held', 10, now() - interval '1 hour',
            now() - interval '1 minute' - place * interval '1 millisecond', ''
        FROM made WHERE place > 1
    )
    SELECT user_id FROM accounts ORDER BY user_id
"""


async def add_due(database, users=1, each=1):
    """Adds users with holds of 10 credits whose time has passed, unrecorded; returns the users."""
    rows = await database.fetch(_DUE, users, each)
    return [row[0] for row in rows]


async def states(database):
    """The number of holds in each state, and the number of entries of expiry."""
    rows = await database.fetch("SELECT state, count(*) FROM credit_holds GROUP BY state")
    entries = await database.fetch("SELECT count(*) FROM credit_transactions WHERE type = 'expire'")
    return dict(rows), entries[0][0]


async def all_are_recorded(database, count):
    async with database.kept_open() as kept:

        async def recorded():
            return (await states(kept))[0] == {"expired": count}

        await eventually(recorded, seconds=60)
        assert await states(kept) == ({"expired": count}, count)
        assert not await kept.faults()
