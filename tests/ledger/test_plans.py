"""A statement reads a handful of pages of a long book, however its plan was made."""

from collections.abc import Iterator
from datetime import UTC
from uuid import UUID, uuid4

import pytest
from kit.databases import Database
from kit.long_book import write_book
from kit.requests import payment
from kit.services import running, server_settings
from kit.statements import arguments, nodes, pages_touched, session
from kit.waiting import eventually

from credit_service.database.postgres import Address
from credit_service.ledger import store
from credit_service.ledger.store import SQL
from credit_service.relay import parked_store
from credit_service.rules.feed_values import BEGINNING

ENTRIES = 100_000
OTHERS = 5_000
FEW_USERS_ENTRIES = 10_000
# A search by halves in 100,000 entries reads some 70 pages; the whole table has 2,600.
PAGES_MAX = 100
JIT_ABOVE_COST = 100_000  # PostgreSQL's default
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
# These read all rows that they add up: entries of a period or of the verified accounts, all open
# holds once a second, or a bounded number of entries that the feed cannot show yet.
READING_MUCH = (
    "report_usage",
    "report_usage_of_user",
    "report_lapsed",
    "report_liability",
    "find_faults",
    "list_payments",
    "find_due_users",
    "find_writers",
    "find_feed_holder",
    "list_entries_by_time",
    "measure_feed",
)

# Many accounts of one entry beside the long one, so that no table is small.
CROWD = """
    WITH crowd AS (INSERT INTO auth.users SELECT gen_random_uuid() FROM generate_series(1, {others})
        RETURNING id),
    accounts AS (
        INSERT INTO user_credits (user_id, balance, held, seq, last_updated, tx)
        SELECT id, 1, 0, 1, now(), base + pg_current_xact_id()::text::bigint
        FROM crowd, credit_feed_numbers RETURNING user_id, tx
    ),
    entries AS (
        INSERT INTO credit_transactions (user_id, seq, type, call, amount, balance_change,
            held_change, balance_after, held_after, description, timestamp, reference, caller,
            idempotency_key, tx)
        SELECT user_id, 1, 'purchase', 'test', 1, 1, 0, 1, 0, '', now(), '', 'test', 'k', tx
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


def lookups(user_id: UUID, newcomer: UUID, seq: int) -> Iterator[tuple[str, list[object]]]:
    """The statements that look up a few rows, with their arguments."""
    for name, values in arguments(user_id, newcomer, seq).items():
        if name not in READING_MUCH:
            yield name, values


def faults(name: str, plan: dict) -> list[str]:
    """The parts of a plan that it must not have."""
    found = [
        f"{name} reads all of {node['Relation Name']}"
        for node in nodes(plan)
        if node["Node Type"] == "Seq Scan"
    ]
    if pages_touched(plan) > PAGES_MAX:
        found.append(f"{name} touches {pages_touched(plan)} pages")
    return found


async def write_granted_book(database: Database, entries: int) -> UUID:
    """Writes a book of `entries` entries; the first made a grant."""
    user_id = await write_book(database, entries)
    await database.execute(
        "INSERT INTO credit_grants (user_id, seq, amount, remaining, pinned, priority, expire_time,"
        f" paid, revoked, open, lapsed, counted, reversed) VALUES ('{user_id}', 1, 1, 1, 0, 50,"
        " now(), true, false, true, 0, 0, 0)"
    )
    return user_id


async def write_long_book(database: Database) -> UUID:
    user_id = await write_granted_book(database, ENTRIES)
    async with database.kept_open() as kept, kept.connection.transaction():
        # The rows are sound; checking all their foreign keys takes as long as writing them.
        await kept.execute("SET LOCAL session_replication_role = replica")
        await kept.execute(CROWD.format(others=OTHERS))
    return user_id


async def leave_statistics_alone(database: Database) -> None:
    """Keeps autovacuum from analysing the tables before the test does."""
    for table in TABLES:
        await database.execute(f"ALTER TABLE {table} SET (autovacuum_enabled = off)")


def test_every_statement_has_arguments_here():
    assert arguments(uuid4(), uuid4(), 1).keys() == store.SQL.keys()


@pytest.fixture(scope="module")
async def analysed(make_shared_database) -> tuple[Database, UUID, UUID]:
    """A database of one long and one short book, analysed, and the users of both."""
    database = await make_shared_database()
    short, long = await write_book(database, 100), await write_long_book(database)
    await database.execute("VACUUM ANALYZE")
    return database, short, long


async def test_a_generic_plan_searches_indexes_in_a_long_analysed_book(analysed):
    database, _, user_id = analysed
    newcomer = await database.user()
    found = []
    async with session(database.service_url, plan_cache_mode="force_generic_plan") as prepared:
        for name, values in lookups(user_id, newcomer, ENTRIES):
            found += faults(name, await prepared.plan(name, values))
    assert not found, "\n".join(found)


async def test_a_book_of_few_users_is_searched_by_index_too(database):
    # Where half of all entries are one user's, and lie between those of another, a search for the
    # newest looks as expensive as reading all of them by another index.
    users = [await write_granted_book(database, FEW_USERS_ENTRIES) for _ in range(2)]
    for statement in (
        "CREATE INDEX alternately ON credit_transactions (seq)",
        "CLUSTER credit_transactions USING alternately",
        "DROP INDEX alternately",
        "ANALYZE",
    ):
        await database.execute(statement)
    found = []
    async with session(database.service_url) as prepared:
        for name, values in lookups(users[0], await database.user(), FEW_USERS_ENTRIES):
            found += faults(name, await prepared.plan(name, values))
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    "while_short", [False, True], ids=["never analysed", "analysed while short"]
)
async def test_a_plan_made_for_a_short_book_does_not_read_a_whole_long_one(database, while_short):
    await leave_statistics_alone(database)
    if while_short:
        await database.execute("VACUUM ANALYZE")
    short, newcomer = await write_granted_book(database, 4), await database.user()
    found = []
    async with session(database.service_url) as prepared:
        for name, values in lookups(short, newcomer, 4):
            # After five runs PostgreSQL may settle on one plan for all that follow.
            for _ in range(7):
                await prepared.plan(name, values)
        long = await write_long_book(database)
        # Like autovacuum within a minute; it must cause the kept plans to be made again.
        await database.execute("ANALYZE")
        for name, values in lookups(long, newcomer, ENTRIES):
            found += faults(name, await prepared.plan(name, values))
    assert not found, "\n".join(found)


async def test_the_statements_of_a_small_batch_are_not_planned_each_time(database):
    connection = await Address(database.service_url).connect()
    for _ in range(3):
        await store.lock_accounts(connection, [await database.user()])
        await store.load_entries_by_key(connection, [uuid4()], ["key"], writes=True)
    planned = await connection.fetchval("SELECT sum(custom_plans) FROM pg_prepared_statements")
    await connection.close()
    assert planned == 0


async def test_entries_related_to_one_are_found_by_their_index(analysed):
    database, _, many = analysed
    related = [many, ENTRIES, 0, None, None, 7, 50, 10_000, None]
    async with session(database.service_url, plan_cache_mode="force_custom_plan") as prepared:
        plan = await prepared.plan("list_entries", related)
        assert "entries_by_what_they_settle" in {node.get("Index Name") for node in nodes(plan)}
    connection = await Address(database.service_url).connect()
    for related_seq in (7, None):
        await store.list_entries(
            connection, many, newest=ENTRIES, related_seq=related_seq, limit=50, looks_at=10_000
        )
    assert await plans_made(connection, SQL["list_entries"]) == (1, 1)
    await connection.close()


async def test_dead_events_are_listed_by_a_plan_for_the_dead(database):
    connection = await Address(database.service_url).connect()
    for dead in (True, False):
        await parked_store.list_parked(connection, "one", dead=dead, after=BEGINNING, limit=10)
    assert await plans_made(connection, parked_store.SQL["list_parked"]) == (2, 0)
    await connection.close()


async def plans_made(connection, statement):
    """How many plans for values were made of a statement, and how often the kept one was used."""
    [counts] = await connection.fetch(
        "SELECT custom_plans, generic_plans FROM pg_prepared_statements WHERE statement = $1",
        statement,
    )
    return tuple(counts)


async def test_no_statement_looks_dear_enough_to_be_compiled(database):
    # PostgreSQL with JIT compiles a statement whose estimated cost is above jit_above_cost, which
    # takes a hundred times as long as to run it. Before release 18, a single scan of a table costs
    # 10^10 while enable_seqscan is off, as it is for the service's role.
    await leave_statistics_alone(database)
    user_id, newcomer = await write_granted_book(database, 4), await database.user()
    settings = {"plan_cache_mode": "force_generic_plan"}
    async with session(database.service_url, **settings) as prepared:
        for name, values in lookups(user_id, newcomer, 4):
            assert (await prepared.plan(name, values))["Total Cost"] < JIT_ABOVE_COST, name


async def test_a_page_and_a_past_balance_cost_the_same_at_100_and_at_100000_entries(analysed):
    database, few, many = analysed
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
        # Like autovacuum within a minute; it must cause the kept plans to be made again.
        await database.execute("ANALYZE")
        before = await entries_touched(database, still_open="credit_service")
        await every_call(client, long, 10)
    # Some 50 a turn; some may have been reported before.
    assert 50 < await entries_touched(database) - before < 5_000
