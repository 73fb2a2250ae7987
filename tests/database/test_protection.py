"""What the database itself refuses: to the service's role, to the owner, and after a deletion."""

import asyncpg
import pytest
from kit.requests import payment
from kit.services import running, server_settings

from credit_service.database import migrations
from credit_service.database.postgres import (
    ROLE_LIMITS_MS,
    ROLE_PLANS_KEPT,
    ROLE_PLANS_OFF,
    Address,
    missing_protection,
)
from credit_service.errors import UserDeleted
from credit_service.v1 import credit_service_pb2 as pb

GRANT = """
    WITH granted AS (
        INSERT INTO credit_grants (
            user_id, seq, amount, remaining, pinned, priority, expire_time, paid, revoked, open,
            lapsed, counted, reversed
        )
        SELECT user_id, 1, 100, 0, 0, 50, now(), true, false, false, 0, 0, 0
        FROM user_credits
        RETURNING user_id
    ),
    changed AS (
        INSERT INTO credit_grant_changes (
            user_id, seq, step, grant_seq, remaining_change, pinned_change, remaining_after,
            pinned_after
        )
        SELECT user_id, 1, 1, 1, 0, 0, 0, 0 FROM granted
    )
    INSERT INTO credit_allowances (user_id, until) SELECT user_id, now() FROM granted
"""


@pytest.fixture
async def book(database, client):
    """A database with a row in each table; the grant is written by hand."""
    user_id = await database.user()
    await client.purchase_credits(user_id, 100, payment=payment("pi_book"))
    spent = await client.spend_credits(user_id, amount=30)
    await client.refund_credits(user_id, spent.transaction.id, amount=10)
    await client.purchase_credits(user_id, 100, payment=payment("pi_book"))
    await database.execute(GRANT)
    policy = pb.TopUp(below=200, pack="hundred", charges_per_month=1)
    await client.set_account_policy(user_id, top_up=policy)
    await client.spend_credits(user_id, amount=1)
    return database


FORBIDDEN_TO_THE_SERVICE = [
    "UPDATE credit_transactions SET amount = amount",
    "UPDATE credit_transactions SET description = ''",
    "DELETE FROM credit_transactions",
    "TRUNCATE credit_transactions CASCADE",
    "UPDATE credit_purchases SET amount = amount",
    "DELETE FROM credit_purchases",
    "TRUNCATE credit_purchases",
    "DELETE FROM credit_refunds",
    "TRUNCATE credit_refunds",
    "UPDATE credit_kept_keys SET seq = seq",
    "DELETE FROM credit_kept_keys",
    "TRUNCATE credit_kept_keys",
    "DELETE FROM credit_grants",
    "TRUNCATE credit_grants CASCADE",
    "UPDATE credit_grant_changes SET remaining_change = remaining_change",
    "DELETE FROM credit_grant_changes",
    "TRUNCATE credit_grant_changes",
    "DELETE FROM credit_allowances",
    "TRUNCATE credit_allowances",
    "DELETE FROM credit_top_ups",
    "TRUNCATE credit_top_ups",
    "DELETE FROM credit_top_up_counts",
    "TRUNCATE credit_top_up_counts",
    "UPDATE credit_top_up_changes SET caller = caller",
    "DELETE FROM credit_top_up_changes",
    "TRUNCATE credit_top_up_changes",
    "DELETE FROM user_credits",
    "TRUNCATE user_credits CASCADE",
    "INSERT INTO credit_migrations VALUES (9, 'x', 'x')",
    "UPDATE credit_migrations SET checksum = ''",
    "DELETE FROM credit_migrations",
    "DELETE FROM auth.users",
    "UPDATE auth.users SET created_at = now()",
    "SELECT created_at FROM auth.users",
    "DROP TABLE credit_transactions CASCADE",
    "DROP FUNCTION credit_users",
    "DROP FUNCTION refuse_to_change_the_book CASCADE",
    "DROP TRIGGER entries_never_change ON credit_transactions",
    "ALTER TABLE credit_transactions DISABLE TRIGGER ALL",
    "ALTER TABLE credit_transactions DROP CONSTRAINT spend_keeps_the_floor",
    "ALTER TABLE user_credits ADD note text",
    "ALTER TABLE user_credits DISABLE ROW LEVEL SECURITY",
    "ALTER TABLE credit_purchases OWNER TO credit_service",
    "CREATE INDEX ON credit_transactions (timestamp)",
    "CREATE RULE mine AS ON INSERT TO credit_transactions DO INSTEAD NOTHING",
    "CREATE TABLE mine (id bigint)",
    "CREATE SCHEMA mine",
    "SET session_replication_role = replica",
    "SET ROLE postgres",
]


async def refused(connection, statement):
    try:
        await connection.execute(statement)
    except asyncpg.InsufficientPrivilegeError:
        return True
    return False


async def test_the_services_role_can_change_no_entry_and_no_table(book):
    before = await book.book()
    connection = await Address(book.service_url).connect()
    for statement in FORBIDDEN_TO_THE_SERVICE:
        assert await refused(connection, statement), statement
    await connection.close()
    assert await book.book() == before


UPSERT = """
    INSERT INTO credit_purchases SELECT * FROM credit_purchases
    ON CONFLICT (payment_ref) DO UPDATE SET amount = 1
"""

MERGE = """
    MERGE INTO credit_transactions AS entry USING user_credits AS account
    ON entry.user_id = account.user_id WHEN MATCHED THEN DELETE
"""

# Each with the table that refuses it.
FORBIDDEN_TO_THE_OWNER = {
    "UPDATE credit_transactions SET description = 'other'": "credit_transactions",
    "UPDATE credit_transactions SET seq = seq + 10": "credit_transactions",
    "DELETE FROM credit_transactions": "credit_transactions",
    "TRUNCATE credit_transactions CASCADE": "credit_transactions",
    "DELETE FROM user_credits": "user_credits",
    "TRUNCATE user_credits CASCADE": "user_credits",
    "DELETE FROM credit_refunds": "credit_refunds",
    "TRUNCATE credit_refunds": "credit_refunds",
    "UPDATE credit_purchases SET amount = 1": "credit_purchases",
    "DELETE FROM credit_purchases": "credit_purchases",
    "TRUNCATE credit_purchases": "credit_purchases",
    "UPDATE credit_kept_keys SET seq = 2": "credit_kept_keys",
    "DELETE FROM credit_kept_keys": "credit_kept_keys",
    "TRUNCATE credit_kept_keys": "credit_kept_keys",
    "DELETE FROM credit_grants": "credit_grants",
    "TRUNCATE credit_grants CASCADE": "credit_grants",
    "UPDATE credit_grant_changes SET step = 2": "credit_grant_changes",
    "DELETE FROM credit_grant_changes": "credit_grant_changes",
    "TRUNCATE credit_grant_changes": "credit_grant_changes",
    "DELETE FROM credit_allowances": "credit_allowances",
    "TRUNCATE credit_allowances": "credit_allowances",
    "DELETE FROM credit_top_ups": "credit_top_ups",
    "TRUNCATE credit_top_ups": "credit_top_ups",
    "DELETE FROM credit_top_up_counts": "credit_top_up_counts",
    "TRUNCATE credit_top_up_counts": "credit_top_up_counts",
    "UPDATE credit_top_up_changes SET caller = ''": "credit_top_up_changes",
    "DELETE FROM credit_top_up_changes": "credit_top_up_changes",
    "TRUNCATE credit_top_up_changes": "credit_top_up_changes",
    "TRUNCATE auth.users CASCADE": "user_credits",
    # Not only the plain forms of a change reach the triggers.
    UPSERT: "credit_purchases",
    MERGE: "credit_transactions",
}


async def test_the_owner_cannot_change_what_was_written(book):
    before = await book.book()
    for statement, table in FORBIDDEN_TO_THE_OWNER.items():
        with pytest.raises(asyncpg.RestrictViolationError) as refusal:
            await book.execute(statement)
        assert f"of {table} is not allowed: the book is append-only" in str(refusal.value)
        assert await book.book() == before, statement


async def test_deleting_a_user_deletes_everything_but_the_payment(database, service, client):
    user_id, other = await database.user(), await database.user(5)
    await client.purchase_credits(user_id, 100, payment=payment("pi_gone"))
    spent = await client.spend_credits(user_id, amount=30)
    await client.refund_credits(user_id, spent.transaction.id, amount=10)
    purchases = await database.fetch("SELECT * FROM credit_purchases")
    await database.execute("DELETE FROM auth.users WHERE id = $1", user_id)
    for table in ("user_credits", "credit_transactions", "credit_refunds"):
        rows = await database.fetch(f"SELECT DISTINCT user_id FROM {table}")
        assert [row[0] for row in rows] == ([] if table == "credit_refunds" else [other])
    assert await database.fetch("SELECT * FROM credit_purchases") == purchases

    async def pays_again(paying_client):
        for key in ("again", "and again"):
            with pytest.raises(UserDeleted):
                await paying_client.purchase_credits(
                    user_id, 100, payment=payment("pi_gone"), idempotency_key=key
                )
        with pytest.raises(UserDeleted):
            await paying_client.purchase_credits(other, 100, payment=payment("pi_gone"))

    await pays_again(client)
    await database.execute("INSERT INTO auth.users (id) VALUES ($1)", user_id)
    await pays_again(client)
    bought = await client.purchase_credits(user_id, 7, payment=payment("pi_new"))
    assert (bought.credit.balance, bought.transaction.seq) == (7, 1)
    await pays_again(client)
    async with running(server_settings(database.service_url)) as restarted:
        await pays_again(await restarted.client())
    assert (await client.get_user_credit(user_id)).balance == 7
    assert await database.faults() == []


async def test_a_user_with_a_long_history_is_deleted_in_one_pass_over_it(database):
    user_id = await database.user(1)
    await database.execute(
        "INSERT INTO credit_transactions (user_id, seq, type, call, amount, balance_change,"
        " held_change, balance_after, held_after, description, timestamp, reference,"
        " idempotency_key, caller)"
        " SELECT $1, n, 'purchase', 'PurchaseCredits', 1, 1, 0, n, 0, '', now(), '', n::text, ''"
        " FROM generate_series(2, 5000) AS n",
        user_id,
    )
    connection = await database.connect()
    await connection.execute("DELETE FROM auth.users WHERE id = $1", user_id)
    await connection.execute("SELECT pg_stat_force_next_flush()")
    read = await connection.fetchval(
        "SELECT sum(idx_tup_read) FROM pg_stat_user_indexes WHERE relname = 'credit_transactions'"
    )
    await connection.close()
    assert read < 10 * 5000


async def test_the_limits_of_the_services_role_are_set_and_hold_on_its_connections(make_database):
    database = await make_database(empty=True)
    await migrations.migrate(database.owner_url, "credit_service", print)
    rows = await database.fetch(
        "SELECT unnest(setconfig) FROM pg_db_role_setting"
        " WHERE setdatabase = (SELECT oid FROM pg_database WHERE datname = current_database())"
        " AND setrole = 'credit_service'::regrole"
    )
    limits = {f"{name}={ms}ms" for name, ms in ROLE_LIMITS_MS.items()}
    plans = {f"{name}=off" for name in ROLE_PLANS_OFF} | {f"plan_cache_mode={ROLE_PLANS_KEPT}"}
    assert {row[0] for row in rows} == limits | plans
    connection = await Address(database.service_url).connect()
    for name, limit_ms in ROLE_LIMITS_MS.items():
        in_force = await connection.fetchval(
            "SELECT setting::int FROM pg_settings WHERE name = $1", name
        )
        assert in_force == limit_ms
    assert await missing_protection(connection) == []
    await connection.execute("SET lock_timeout = 0; SET statement_timeout = '1h'")
    (told,) = await missing_protection(connection)
    assert told == (
        "the service's database role has no or too long a lock_timeout, statement_timeout:"
        " `credit-service migrate` with CREDIT_MIGRATE_URL sets them"
    )
    await connection.close()


async def test_one_role_for_both_works_and_its_missing_protection_is_named(make_database):
    database = await make_database(empty=True)
    told = []
    await migrations.migrate(database.owner_url, "postgres", told.append)
    assert not any("may read and add entries" in line for line in told)
    connection = await Address(database.owner_url).connect()
    may_change, limits, plans, kept_plans = await missing_protection(connection)
    assert may_change == (
        "the service's database role may change entries: give it a role of its own and migrate with"
        " CREDIT_MIGRATE_URL"
    )
    assert limits == (
        f"the service's database role has no or too long a {', '.join(ROLE_LIMITS_MS)}:"
        " `credit-service migrate` with CREDIT_MIGRATE_URL sets them"
    )
    assert plans.startswith(f"the service's database role has {', '.join(ROLE_PLANS_OFF)} on")
    assert kept_plans.startswith("the service's database role has plan_cache_mode = auto")
    await connection.close()
    user_id = await database.user()
    async with running(server_settings(database.owner_url, adds_users=True)) as service:
        client = await service.client()
        await client.purchase_credits(user_id, 10, payment=payment())
        assert (await client.spend_credits(user_id, amount=3)).credit.balance == 7
    with pytest.raises(asyncpg.RestrictViolationError):
        await database.execute("DELETE FROM credit_transactions")


@pytest.mark.parametrize("right", ["UPDATE", "UPDATE (description)", "DELETE", "TRUNCATE"])
async def test_a_right_given_to_the_services_role_by_hand_is_named(database, right):
    await database.execute(f"GRANT {right} ON credit_transactions TO credit_service")
    connection = await Address(database.service_url).connect()
    told = await missing_protection(connection)
    assert [sentence.partition(":")[0] for sentence in told] == [
        "the service's database role may change entries"
    ]
    await connection.close()
    await migrations.migrate(database.owner_url, "credit_service", print)
    connection = await Address(database.service_url).connect()
    assert await missing_protection(connection) == []
    await connection.close()
