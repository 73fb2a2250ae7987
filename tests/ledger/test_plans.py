"""What a statement touches in a long book: a handful of pages, however the plan came about."""

import json
import re
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from uuid import UUID, uuid4

import asyncpg
import pytest
from kit.databases import Database
from kit.long_book import write_book
from kit.requests import payment
from kit.services import running, server_settings
from kit.waiting import eventually

from credit_service.ledger import rows, store
from credit_service.rules.grant_values import Grant, GrantChange
from credit_service.rules.model import (
    Account,
    Entry,
    Hold,
    KeptKey,
    Payment,
    Policy,
    PolicyChange,
    Reversal,
)
from credit_service.rules.top_up_values import TopUpRequest

ENTRIES = 100_000
OTHERS = 5_000
# A search by halves in 100,000 entries reads some 70 pages; the whole table has 2,600.
PAGES_MAX = 100
TABLES = (
    "auth.users",
    "user_credits",
    "credit_transactions",
    "credit_refunds",
    "credit_purchases",
    "credit_holds",
    "credit_policy_changes",
    "credit_reversals",
    "credit_kept_keys",
    "credit_grants",
    "credit_grant_changes",
    "credit_allowances",
    "credit_top_ups",
    "credit_top_up_counts",
    "credit_top_up_changes",
    "credit_feed",
    "credit_feed_advances",
)
# These read what they add up, entries of a period or of the accounts that are verified, or, once
# a second, all open holds.
READING_MUCH = (
    "report_usage",
    "report_usage_of_user",
    "report_lapsed",
    "report_liability",
    "find_faults",
    "find_due_users",
    "find_writers",
    "find_feed_holder",
    "list_entries_by_time",
)

# Many accounts of one entry beside the long one, so that no table is small.
CROWD = """
    WITH crowd AS (INSERT INTO auth.users SELECT gen_random_uuid() FROM generate_series(1, {others})
        RETURNING id),
    accounts AS (INSERT INTO user_credits SELECT id, 1, 0, 1, now() FROM crowd RETURNING user_id),
    entries AS (
        INSERT INTO credit_transactions (user_id, seq, type, call, amount, balance_change,
            held_change, balance_after, held_after, description, timestamp, reference, caller,
            idempotency_key)
        SELECT user_id, 1, 'purchase', 'test', 1, 1, 0, 1, 0, '', now(), '', 'test', 'k'
        FROM accounts RETURNING user_id, seq
    ),
    refunds AS (INSERT INTO credit_refunds SELECT user_id, seq, 1, 1 FROM entries),
    kept AS (
        INSERT INTO credit_kept_keys SELECT user_id, 'kept', seq, 'PurchaseCredits' FROM entries
    ),
    grants AS (
        INSERT INTO credit_grants
        SELECT
            user_id, seq, 1, 1, 0, 50, now() + interval '1 hour', NULL, NULL, true, NULL, false,
            true, 0, 0, 0
        FROM entries RETURNING user_id, seq
    ),
    changes AS (
        INSERT INTO credit_grant_changes
        SELECT user_id, seq, 1, seq, NULL, 1, 0, 1, 0, now() + interval '1 hour' FROM grants
    ),
    allowances AS (INSERT INTO credit_allowances SELECT user_id, now() FROM entries),
    top_ups AS (
        INSERT INTO credit_top_ups
        SELECT user_id, 1, 'p', 'open', 'pi_' || user_id, 0, '', '', now(), now(), NULL
        FROM entries
    ),
    top_up_counts AS (INSERT INTO credit_top_up_counts SELECT user_id, 1, 0, NULL, NULL, 0
        FROM entries),
    holds AS (
        INSERT INTO credit_holds (user_id, seq, state, amount, created_at, expires_at, reference)
        SELECT user_id, seq, 'held', 1, now(), now() + interval '1 hour', '' FROM entries
    ),
    reversals AS (
        INSERT INTO credit_reversals
        SELECT 're_' || user_id, 1, 'pi_' || user_id, user_id, NULL, 0, 1, 'eur', 'test', now(), 't'
        FROM entries
    )
    INSERT INTO credit_purchases
    SELECT 'pi_' || user_id, user_id, seq, 1, 1, 'eur', now() FROM entries
"""


def arguments(user_id: UUID, newcomer: UUID, seq: int) -> dict[str, list[object]]:
    """Arguments for every statement, as a batch or a read about this user would give them."""
    now = datetime.now(UTC)
    early = datetime(2026, 1, 1, tzinfo=UTC) + timedelta(seconds=seq // 3)
    entry = Entry(
        user_id=user_id,
        seq=seq + 1,
        type="purchase",
        call="PurchaseCredits",
        amount=5,
        requested_amount=5,
        balance_change=5,
        held_change=0,
        balance_after=5,
        held_after=0,
        floor=None,
        description="it's",
        timestamp=now,
        operation=None,
        quantity=None,
        unit_cost=None,
        price_version=None,
        reference="",
        metadata={"a": "b"},
        related_seq=None,
        idempotency_key="new",
        caller="test",
        payment=Payment("pi_new", 1, "eur"),
    )
    hold = Hold(user_id, seq, "held", 5, 0, now, now, None, None, None, None, "", None, None)
    change = PolicyChange(user_id, 1, now, "test", Policy(frozen=True))
    reversal = Reversal(
        "re_new", 1, "pi_1", user_id, None, 1, 1, "eur", "refund", now, "test", "re_new"
    )
    granted = Grant(user_id, seq, 5, 5, expire_time=now)
    grant_change = GrantChange(user_id, seq, 1, None, 5, 0, 5, 0, now)
    top_up = TopUpRequest(user_id, 1, "p", "open", None, 0, "", "", now, now, None)
    three = [user_id] * 3
    return {
        "add_users": [[uuid4(), user_id]],
        "find_locked": [[user_id, newcomer]],
        "find_users": [[user_id, newcomer, uuid4()]],
        "get_account": [user_id],
        "lock_accounts": [[user_id, newcomer]],
        "insert_accounts": columns(Account(newcomer, 5, 0, 1, now)),
        "update_accounts": [*columns(Account(user_id, 5, 0, seq + 1, now)), [seq]],
        "load_holds": [three, [1, seq // 2, seq]],
        "load_due_holds": [[user_id, newcomer], now, 501],
        "load_next_expiries": [[user_id, newcomer], now],
        "upsert_holds": columns(hold),
        "list_holds": [user_id, seq, None, 50],
        "find_due_users": [5000, [newcomer]],
        "expired_unrecorded_at": [user_id, seq, early],
        "insert_policy_changes": columns(change),
        "insert_kept_keys": columns(KeptKey(user_id, "kept", seq, "ReleaseHold")),
        "changed_accounts": [[user_id, newcomer], [-1, -1], [0, 0], [now, now]],
        "list_known_accounts": [[user_id, newcomer]],
        "list_accounts": [UUID(int=0), 50],
        "find_accounts": [UUID(int=0), False, None, None, None, 50, 10_000],
        "find_faults": [[user_id]],
        "report_usage": [early, now],
        "find_writers": [store.WRITING],
        "read_feed": [1000, [0, 1, 2, 3, 4], 0, user_id, seq - 10, 0, 0, 0, 0],
        "find_feed_end": [],
        "measure_feed": [10_000],
        "find_feed_holder": [],
        "list_entries_by_time": [early, UUID(int=0), 0, now, 1000],
        "report_usage_of_user": [user_id, max(0, seq - 100), seq],
        "load_entries_by_key": [three, ["key 7", f"key {seq // 2}", "never used"], True],
        "load_entries": [three, [1, seq // 2, seq]],
        "load_refunds": [three, [1, 2, seq]],
        "load_purchases": [["pi_1", "pi_2", "pi_3"]],
        "load_reversals": [["re_1", "re_1", "re_2"], [1, 7, 1]],
        "load_returned": [["pi_1", "pi_2"]],
        "insert_reversals": columns(reversal),
        "insert_entries": rows.to_columns([rows.entry_row(entry, 1)]),
        "insert_purchases": [["pi_new"], [user_id], [seq + 1], [5], [1], ["eur"], [now]],
        "upsert_refunds": [[user_id, user_id], [2, 4], [1, 1], [1, 1]],
        "count_entries_before": [user_id, early],
        "list_entries": [user_id, seq, 0, None, None, None, 50, 10_000, None],
        "read_accounts": [[user_id, newcomer]],
        "find_newcomers": [[user_id, newcomer]],
        "upsert_allowances": [[user_id, newcomer], [now, now]],
        "load_due_grants": [[user_id, newcomer], now, 501],
        "settled_at": [user_id, seq - 2, now],
        "settled_accounts": [[user_id, newcomer], now, 3],
        "load_next_lapses": [[user_id, newcomer], now],
        "list_expiring": [user_id, 3],
        "list_expiring_at": [user_id, seq, early, 3],
        "list_grants": [user_id, seq, True, 50],
        "list_grant_changes": [user_id, [1, seq // 2, seq], 101],
        "report_lapsed": [early, now, user_id],
        "report_liability": [early],
        "upsert_grants": columns(granted),
        "insert_grant_changes": [*columns(grant_change), [1]],
        "load_top_ups": [[user_id, newcomer], [user_id], [1], ["pi_1", f"pi_{user_id}"]],
        "upsert_top_ups": columns(top_up),
        "upsert_top_up_counts": columns((user_id, 1, 0, None, None, 0)),
        "insert_top_up_changes": columns((user_id, 1, "turned_on", now, "t", *[None] * 10, 1)),
        "list_open_top_ups": [UUID(int=0), 51],
        "list_top_ups": [user_id, 2**63 - 1, False, 51],
        "load_grants": [
            *([user_id], [1]),
            *([user_id], [1]),
            *([user_id], [1]),
            [user_id],
            *([user_id], [1]),
            *([user_id], ["pro"]),
            *([user_id], [100]),
            now,
        ],
    }


def columns(value: tuple[object, ...]) -> list[object]:
    match value:
        case Account():
            row = rows.account_row(value)
        case PolicyChange():
            row = rows.policy_row(value, 1)
        case Reversal():
            row = rows.reversal_row(value)
        case Grant():
            row = rows.grant_row(value)
        case _:
            row = value
    return [[part] for part in row]


def lookups(user_id: UUID, newcomer: UUID, seq: int) -> Iterator[tuple[str, list[object]]]:
    """The statements that look up a few rows, with their arguments."""
    for name, values in arguments(user_id, newcomer, seq).items():
        if name not in READING_MUCH:
            yield name, values


def literal(value: object, kind: str) -> str:
    if isinstance(value, (list, tuple)):
        return f"ARRAY[{', '.join(literal(item, kind[:-2]) for item in value)}]::{kind}"
    return "NULL" if value is None else "'{}'::{}".format(str(value).replace("'", "''"), kind)


class Session:
    """A connection that keeps every statement prepared, as a lane or the pool of the reads does."""

    def __init__(self, connection: asyncpg.Connection) -> None:
        self._connection = connection
        self._kinds: dict[str, list[str]] = {}

    async def prepare(self) -> None:
        for name, text in store.SQL.items():
            kinds = dict(re.findall(r"\$(\d+)::(\w+(?:\[\])?)", text))
            self._kinds[name] = [kinds[str(place)] for place in range(1, len(kinds) + 1)]
            listed = f"({', '.join(self._kinds[name])})" if self._kinds[name] else ""
            head = f"PREPARE {name} {listed} AS "
            await self._connection.execute(head + text)

    async def plan(self, name: str, values: list[object]) -> dict:
        """Runs a statement, takes it back, and tells what it touched."""
        pairs = zip(values, self._kinds[name], strict=True)
        given = ", ".join(literal(value, kind) for value, kind in pairs)
        given = f"({given})" if given else ""
        transaction = self._connection.transaction()
        await transaction.start()
        try:
            told = await self._connection.fetchval(
                f"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) EXECUTE {name} {given}"
            )
        finally:
            await transaction.rollback()
        return json.loads(told)[0]["Plan"]


@asynccontextmanager
async def session(url: str, **settings: str) -> AsyncIterator[Session]:
    connection = await asyncpg.connect(url, server_settings=settings)
    try:
        made = Session(connection)
        await made.prepare()
        yield made
    finally:
        await connection.close()


def nodes(plan: dict) -> Iterator[dict]:
    yield plan
    for part in plan.get("Plans", ()):
        yield from nodes(part)


def pages_touched(plan: dict) -> int:
    return plan["Shared Hit Blocks"] + plan["Shared Read Blocks"]


def faults(name: str, plan: dict) -> list[str]:
    """What must not be in a plan."""
    found = [
        f"{name} reads all of {node['Relation Name']}"
        for node in nodes(plan)
        # The table of the feed has one row.
        if node["Node Type"] == "Seq Scan" and node["Relation Name"] != "credit_feed"
    ]
    if pages_touched(plan) > PAGES_MAX:
        found.append(f"{name} touches {pages_touched(plan)} pages")
    return found


async def write_granted_book(database: Database, entries: int) -> UUID:
    """A book of so many entries, the first of which made a grant."""
    user_id = await write_book(database, entries)
    await database.execute(
        "INSERT INTO credit_grants (user_id, seq, amount, remaining, pinned, priority, expire_time,"
        f" paid, revoked, open, lapsed, counted, reversed) VALUES ('{user_id}', 1, 1, 1, 0, 50,"
        " now(), true, false, true, 0, 0, 0)"
    )
    return user_id


async def write_long_book(database: Database) -> UUID:
    user_id = await write_granted_book(database, ENTRIES)
    await database.execute(CROWD.format(others=OTHERS))
    return user_id


async def leave_statistics_alone(database: Database) -> None:
    """Keeps autovacuum from looking at the tables before the test says so."""
    for table in TABLES:
        await database.execute(f"ALTER TABLE {table} SET (autovacuum_enabled = off)")


def test_every_statement_has_arguments_here():
    assert arguments(uuid4(), uuid4(), 1).keys() == store.SQL.keys()


async def test_a_generic_plan_searches_indexes_in_a_long_analysed_book(database):
    user_id, newcomer = await write_long_book(database), await database.user()
    await database.execute("VACUUM ANALYZE")
    found = []
    async with session(database.service_url, plan_cache_mode="force_generic_plan") as prepared:
        for name, values in lookups(user_id, newcomer, ENTRIES):
            found += faults(name, await prepared.plan(name, values))
    assert not found, "\n".join(found)


@pytest.mark.parametrize("analysed", [False, True], ids=["never analysed", "analysed while short"])
async def test_a_plan_made_for_a_short_book_does_not_read_a_whole_long_one(database, analysed):
    await leave_statistics_alone(database)
    if analysed:
        await database.execute("VACUUM ANALYZE")
    short, newcomer = await write_granted_book(database, 4), await database.user()
    found = []
    async with session(database.service_url) as prepared:
        for name, values in lookups(short, newcomer, 4):
            # After five runs PostgreSQL may settle on one plan for all that follow.
            for _ in range(7):
                await prepared.plan(name, values)
        long = await write_long_book(database)
        # As autovacuum does within a minute; the plans that were kept must be made anew by it.
        await database.execute("ANALYZE")
        for name, values in lookups(long, newcomer, ENTRIES):
            found += faults(name, await prepared.plan(name, values))
    assert not found, "\n".join(found)


async def test_a_page_and_a_past_balance_cost_the_same_at_100_and_at_100000_entries(database):
    few, many = await write_book(database, 100), await write_long_book(database)
    await database.execute("VACUUM ANALYZE")
    costs = {}
    async with session(database.service_url) as prepared:
        for user_id, entries in ((few, 100), (many, ENTRIES)):
            for name in ("get_account", "list_entries", "count_entries_before", "load_entries"):
                plan = await prepared.plan(name, arguments(user_id, few, entries)[name])
                rows = sum(
                    node["Actual Rows"] * node["Actual Loops"]
                    for node in nodes(plan)
                    if "Relation Name" in node
                )
                costs[name, entries] = (pages_touched(plan), round(rows))
    for (name, entries), (pages, rows) in costs.items():
        assert pages <= PAGES_MAX, (name, entries, costs)
        assert rows <= 200, (name, entries, costs)
    # The 50 entries of a page lie side by side.
    assert costs["list_entries", ENTRIES][0] <= costs["list_entries", 100][0] + 5, costs


async def entries_touched(database: Database, *, still_open: str = "") -> int:
    """Entries read by connections that have ended; waits for all but those of a role to end."""

    async def ended():
        return not await database.fetch(
            "SELECT 1 FROM pg_stat_activity WHERE datname = current_database()"
            " AND pid <> pg_backend_pid() AND usename <> $1",
            still_open,
        )

    await eventually(ended)
    rows = await database.fetch(
        "SELECT seq_tup_read + idx_tup_fetch FROM pg_stat_user_tables"
        " WHERE relname = 'credit_transactions'"
    )
    return rows[0][0]


async def test_a_service_that_saw_the_book_grow_touches_few_entries_in_any_call(database):
    await leave_statistics_alone(database)

    async def every_call(client, user_id, turn):
        """Each statement of lanes and reads, the checks of the foreign keys among them."""
        key = f"turn {turn}"
        await client.purchase_credits(
            user_id, 9, payment=payment(f"pi_{user_id}_{turn}"), idempotency_key=key
        )
        await client.purchase_credits(
            user_id, 9, payment=payment(f"pi_{user_id}_{turn}"), idempotency_key=key + " again"
        )
        spend = (await client.spend_credits(user_id, amount=5, reference=key)).transaction
        await client.refund_credits(user_id, spend.id, amount=1)
        await client.refund_credits(user_id, spend.id, amount=1)
        await client.get_transaction(user_id, idempotency_key=key)
        await client.get_transaction(user_id, transaction_id=spend.id)
        time = spend.timestamp.ToDatetime(UTC)
        await client.get_user_credit(user_id, as_of=time, history_size=10)
        await client.get_user_credit(user_id, history_size=10)
        await anext(client.get_transaction_history(user_id, page_size=10, start_time=time))

    async with running(server_settings(database.service_url, lanes=1, pool_size=1)) as service:
        client = await service.client()
        short = await database.user()
        for turn in range(10):
            await every_call(client, short, turn)
        long = await write_long_book(database)
        # As autovacuum does within a minute; the plans that were kept must be made anew by it.
        await database.execute("ANALYZE")
        before = await entries_touched(database, still_open="credit_service")
        await every_call(client, long, 10)
    # Some 50 a turn; some may have been told before.
    assert 50 < await entries_touched(database) - before < 5_000
