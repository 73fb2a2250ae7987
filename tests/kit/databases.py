"""A database of a test: its users, its faults, its locks."""

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from uuid import UUID, uuid4

import asyncpg
from kit import citus
from kit.waiting import patience

from credit_service.database.distributed_book import is_distributed
from credit_service.database.distribution import BY_REFERENCE, BY_USER
from credit_service.database.shard_map import Shards

# On a cluster a row is locked on a worker.
_ACTIVITY = "citus_stat_activity" if citus.URL in os.environ else "pg_stat_activity"


class IdleConnections:
    """The owner's connections to a database between two uses.

    To connect costs more than most statements of a test, because the server starts a process.
    """

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._idle: list[asyncpg.Connection] = []

    def take(self) -> asyncpg.Connection | None:
        """Returns a connection that works on the running event loop, or None."""
        while self._idle and asyncio.get_running_loop() is self._loop:
            connection = self._idle.pop()
            if not connection.is_closed():
                return connection
        return None

    async def give_back(self, connection: asyncpg.Connection) -> None:
        usable = not (connection.is_closed() or connection.is_in_transaction())
        if usable and asyncio.get_running_loop() is self._loop:
            self._idle.append(connection)
        else:
            await connection.close()

    async def close(self) -> None:
        while self._idle:
            await self._idle.pop().close()


@dataclass(frozen=True)
class Database:
    """A migrated database for one test alone."""

    name: str
    owner_url: str
    service_url: str
    connection: asyncpg.Connection | None = None
    idle: IdleConnections | None = field(default=None, compare=False, repr=False)

    async def connect(self) -> asyncpg.Connection:
        """Connects as the owner."""
        return await asyncpg.connect(self.owner_url)

    @asynccontextmanager
    async def _connected(self) -> AsyncIterator[asyncpg.Connection]:
        if self.connection is not None:
            yield self.connection
            return
        connection = self.idle.take() if self.idle is not None else None
        if connection is None:
            connection = await self.connect()
        try:
            yield connection
        finally:
            if self.idle is not None:
                await self.idle.give_back(connection)
            else:
                await connection.close()

    @asynccontextmanager
    async def kept_open(self) -> AsyncIterator["Database"]:
        """The same database by one connection, for a test that looks at it hundreds of times."""
        async with self._connected() as connection:
            yield replace(self, connection=connection)

    async def execute(self, sql: str, *args: object) -> str:
        async with self._connected() as connection:
            return await connection.execute(sql, *args)

    async def fetch(self, sql: str, *args: object) -> list[asyncpg.Record]:
        async with self._connected() as connection:
            return await connection.fetch(sql, *args)

    async def user(self, credits_: int = 0) -> UUID:
        """Adds a user; if it gets credits, with an account and an entry that are written here."""
        user_id = uuid4()
        async with self._connected() as connection:
            await connection.execute("INSERT INTO auth.users (id) VALUES ($1)", user_id)
            if credits_:
                await _open(connection, user_id, credits_)
        return user_id

    async def users_of_one_shard(self, count: int, credits_: int) -> list[UUID]:
        """Adds users with accounts, whose calls can be in one batch on a distributed book too."""
        async with self._connected() as connection:
            shards = Shards()
            await shards.read(connection)
        shard = shards.map.shard_of(uuid4())
        users: list[UUID] = []
        while len(users) < count:
            user_id = uuid4()
            if shards.map.shard_of(user_id) == shard:
                await self.make_anew(user_id, credits_)
                users.append(user_id)
        return users

    async def make_anew(self, user_id: UUID, credits_: int) -> None:
        """Deletes a user and creates the user again with credits, all in one transaction."""
        async with self._connected() as connection, connection.transaction():
            await connection.execute("DELETE FROM auth.users WHERE id = $1", user_id)
            await connection.execute("INSERT INTO auth.users (id) VALUES ($1)", user_id)
            await _open(connection, user_id, credits_)

    async def faults(self) -> list[str]:
        """Everything in the book that does not add up; every race ends with it."""
        rows = await self._fetch_together(_FAULTS)
        return [f"{row[0]}: {row[1]}" for row in rows]

    async def book(self) -> list[str]:
        """Every row of every table that a call can change; equal books mean no change."""
        return [row[0] for row in await self._fetch_together(_BOOK)]

    async def _fetch_together(self, sql: str) -> list[asyncpg.Record]:
        """Runs a query that joins all tables; on a distributed book, it joins copies of them."""
        async with self._connected() as connection:
            if not await is_distributed(connection):
                return await connection.fetch(sql)
            tables = [name for name in (*BY_USER, *BY_REFERENCE) if name != "auth.users"]
            transaction = connection.transaction()
            await transaction.start()
            try:
                for name in tables:
                    # It hides the table of the same name until the transaction ends.
                    copy = f"CREATE TEMPORARY TABLE {name} AS SELECT * FROM public.{name}"
                    await connection.execute(copy)
                return await connection.fetch(sql)
            finally:
                await transaction.rollback()

    async def waits_for_a_lock(self, transactions: int = 1) -> bool:
        """Whether that many transactions wait for locks that others hold."""
        waiting = await self.fetch(
            f"SELECT FROM {_ACTIVITY}"
            " WHERE datname = current_database() AND wait_event_type = 'Lock'"
        )
        return len(waiting) >= transactions

    @asynccontextmanager
    async def locked(self, *user_ids: UUID) -> AsyncIterator[None]:
        """Holds the locks of these accounts for the length of the block."""
        holder = await self.connect()
        try:
            await holder.execute("BEGIN")
            lock = "SELECT FROM user_credits WHERE user_id = ANY($1) FOR UPDATE"
            await holder.execute(lock, user_ids)
            yield
        finally:
            await holder.close()

    async def wait_longer_for_locks(self) -> None:
        """Gives the service's next connections more time, so that a test can see them wait."""
        for limit in ("lock_timeout", "statement_timeout"):
            await self.execute(
                f"ALTER ROLE credit_service IN DATABASE {self.name}"
                f" SET {limit} = '{patience(20):.0f}s'"
            )


async def _open(connection: asyncpg.Connection, user_id: UUID, credits_: int) -> None:
    async with connection.transaction():
        await connection.execute(
            "INSERT INTO user_credits (user_id, balance, seq, last_updated)"
            " VALUES ($1, $2, 1, now())",
            user_id,
            credits_,
        )
        await connection.execute(
            "INSERT INTO credit_transactions (user_id, seq, type, call, amount, requested_amount,"
            " balance_change, held_change, balance_after, held_after, description, timestamp,"
            " reference, idempotency_key, caller)"
            " VALUES ($1, 1, 'purchase', 'PurchaseCredits', $2, $2, $2, 0, $2, 0, '', now(), '',"
            " 'opened by the test', 'test')",
            user_id,
            credits_,
        )


_FAULTS = """
    WITH book AS (
        SELECT *,
            row_number() OVER account AS place,
            sum(balance_change) OVER account AS running_balance,
            sum(held_change) OVER account AS running_held,
            lag(timestamp) OVER account AS earlier
        FROM credit_transactions
        WINDOW account AS (PARTITION BY user_id ORDER BY seq)
    )
    SELECT user_id, 'seq has a gap' FROM book WHERE place <> seq
    UNION ALL
    SELECT user_id, 'balance_after is not the sum' FROM book WHERE running_balance <> balance_after
    UNION ALL
    SELECT user_id, 'held_after is not the sum' FROM book WHERE running_held <> held_after
    UNION ALL
    SELECT user_id, 'time runs backwards' FROM book WHERE timestamp < earlier
    UNION ALL
    SELECT account.user_id, 'account and book differ' FROM user_credits AS account
    LEFT JOIN LATERAL (
        SELECT count(*) AS entries, coalesce(sum(balance_change), 0) AS balance,
            coalesce(sum(held_change), 0) AS held
        FROM credit_transactions AS entry WHERE entry.user_id = account.user_id
    ) AS summed ON true
    WHERE (account.seq, account.balance, account.held)
        <> (summed.entries, summed.balance, summed.held)
    UNION ALL
    SELECT account.user_id, 'account and holds differ' FROM user_credits AS account
    LEFT JOIN LATERAL (
        SELECT count(*) AS open_holds, coalesce(sum(amount), 0) AS held, min(expires_at) AS next
        FROM credit_holds AS hold
        WHERE hold.user_id = account.user_id AND hold.state = 'held'
    ) AS summed ON true
    WHERE (account.open_holds, account.held) <> (summed.open_holds, summed.held)
        OR coalesce(account.next_hold_expiry > summed.next, summed.next IS NOT NULL)
    UNION ALL
    SELECT spend.user_id, 'refunds exceed the spend or their record'
    FROM credit_transactions AS spend
    INNER JOIN credit_transactions AS refund
        ON spend.user_id = refund.user_id AND spend.seq = refund.related_seq
        AND refund.type = 'refund'
    LEFT JOIN credit_refunds AS record
        ON spend.user_id = record.user_id AND spend.seq = record.spend_seq
    GROUP BY spend.user_id, spend.seq, spend.amount, record.refunded
    HAVING sum(refund.amount) > spend.amount OR sum(refund.amount) IS DISTINCT FROM record.refunded
    UNION ALL
    SELECT entry.user_id, 'purchase and payment differ' FROM credit_transactions AS entry
    LEFT JOIN credit_purchases AS bought USING (payment_ref)
    WHERE entry.payment_ref IS NOT NULL
        AND (entry.user_id, entry.seq, entry.amount)
        IS DISTINCT FROM (bought.user_id, bought.seq, bought.amount)
    UNION ALL
    SELECT record.user_id, 'a reversal belongs to two payments' FROM credit_reversals AS record
    INNER JOIN credit_reversals AS other
        ON record.reversal_ref = other.reversal_ref AND record.payment_ref < other.payment_ref
    UNION ALL
    SELECT kept.user_id, 'a kept key has an entry of its own' FROM credit_kept_keys AS kept
    INNER JOIN credit_transactions AS entry
        ON kept.user_id = entry.user_id AND kept.key = entry.idempotency_key
    UNION ALL
    SELECT kept.user_id, 'a kept key names no entry' FROM credit_kept_keys AS kept
    LEFT JOIN credit_transactions AS entry USING (user_id, seq) WHERE entry.seq IS NULL
    UNION ALL
    SELECT bought.user_id, 'reversals took more or less than their share'
    FROM credit_transactions AS bought
    CROSS JOIN LATERAL (
        SELECT coalesce(-sum(balance_change), 0) AS credits FROM credit_transactions AS entry
        WHERE entry.user_id = bought.user_id AND entry.related_seq = bought.seq
            AND entry.type = 'reversal'
    ) AS taken
    CROSS JOIN LATERAL (
        SELECT sum(reversed_minor) AS money, max(paid_minor) AS paid FROM (
            SELECT *, max(revision) OVER (PARTITION BY reversal_ref) AS last
            FROM credit_reversals AS record WHERE record.payment_ref = bought.payment_ref
        ) AS known WHERE revision = last
    ) AS gone
    CROSS JOIN LATERAL (
        SELECT coalesce(sum(counted), 0) AS credits FROM credit_reversals AS record
        WHERE record.payment_ref = bought.payment_ref
    ) AS counted
    WHERE bought.type = 'purchase' AND taken.credits + counted.credits <> coalesce(
        trunc(bought.amount::numeric * least(gone.money, gone.paid) / gone.paid, 0), 0
    )
"""

_BOOK = """
    SELECT row::text FROM auth.users AS row
    UNION ALL SELECT row::text FROM user_credits AS row
    UNION ALL SELECT row::text FROM credit_transactions AS row
    UNION ALL SELECT row::text FROM credit_refunds AS row
    UNION ALL SELECT row::text FROM credit_purchases AS row
    UNION ALL SELECT row::text FROM credit_holds AS row
    UNION ALL SELECT row::text FROM credit_policy_changes AS row
    UNION ALL SELECT row::text FROM credit_reversals AS row
    UNION ALL SELECT row::text FROM credit_kept_keys AS row
    UNION ALL SELECT row::text FROM credit_grants AS row
    UNION ALL SELECT row::text FROM credit_grant_changes AS row
    UNION ALL SELECT row::text FROM credit_allowances AS row
    UNION ALL SELECT row::text FROM credit_top_ups AS row
    UNION ALL SELECT row::text FROM credit_top_up_counts AS row
    UNION ALL SELECT row::text FROM credit_top_up_changes AS row
    ORDER BY 1
"""


async def add_api_roles(owner_url: str) -> None:
    """Adds the roles of Supabase's data API, as Supabase has them, to the whole cluster.

    A test whose result depends on them calls it first, because any test may add them meanwhile.
    """
    connection = await asyncpg.connect(owner_url)
    try:
        for role in ("anon", "authenticated", "service_role BYPASSRLS"):
            # Two concurrent calls fail in one of two ways.
            with contextlib.suppress(asyncpg.DuplicateObjectError, asyncpg.UniqueViolationError):
                await connection.execute(f"CREATE ROLE {role} NOINHERIT")
    finally:
        await connection.close()
