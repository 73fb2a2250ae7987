"""The two given tables, with data, before the migrations adopt them."""

from datetime import UTC, datetime
from uuid import uuid4

from credit_service.database import migrations

# The two given tables, with nothing added.
GIVEN = """
    CREATE SCHEMA auth;
    CREATE TABLE auth.users (id uuid PRIMARY KEY, email text);
    CREATE TABLE user_credits (
        user_id UUID PRIMARY KEY REFERENCES auth.users(id) ON DELETE CASCADE,
        balance INTEGER DEFAULT 0,
        last_updated TIMESTAMP
    );
    CREATE TABLE credit_transactions (
        id TEXT PRIMARY KEY,
        user_id UUID REFERENCES auth.users(id) ON DELETE CASCADE,
        type TEXT CHECK (type IN ('purchase','spend','refund')),
        amount INTEGER,
        description TEXT,
        timestamp TIMESTAMP
    );
    CREATE INDEX credit_transactions_by_user ON credit_transactions (user_id);
"""

OPENING = "Opening entry: the balance taken over less the history taken over"


def at(minute):
    """A time of the given tables, which have no time zone."""
    return datetime(2024, 5, 1, 12, minute)  # noqa: DTZ001


def shown(time):
    return time.replace(tzinfo=UTC)


class Given:
    """A database with the given tables, before it is adopted."""

    def __init__(self, database):
        self.database = database

    async def user(self, balance=None, history=(), *, updated=None, account=True):
        """Adds a user with rows of (id, type, amount, description, timestamp)."""
        user_id = uuid4()
        connection = await self.database.connect()
        await connection.execute("INSERT INTO auth.users (id) VALUES ($1)", user_id)
        if account:
            await connection.execute(
                "INSERT INTO user_credits VALUES ($1, $2, $3)", user_id, balance, updated
            )
        await connection.executemany(
            "INSERT INTO credit_transactions (user_id, id, type, amount, description, timestamp)"
            " VALUES ($1, $2, $3, $4, $5, $6)",
            [(user_id, *row) for row in history],
        )
        await connection.close()
        return user_id

    async def adopt(self):
        await migrations.migrate(self.database.owner_url, "credit_service", print)
        assert await self.database.faults() == []

    async def book(self, user_id):
        """The adopted entries as (seq, type, change, balance after, description, time, key)."""
        rows = await self.database.fetch(
            "SELECT seq, type, balance_change, balance_after, description, timestamp,"
            " idempotency_key FROM credit_transactions WHERE user_id = $1 ORDER BY seq",
            user_id,
        )
        return [tuple(row) for row in rows]

    async def account(self, user_id):
        rows = await self.database.fetch(
            "SELECT balance, held, seq, last_updated FROM user_credits WHERE user_id = $1", user_id
        )
        return tuple(rows[0]) if rows else None
