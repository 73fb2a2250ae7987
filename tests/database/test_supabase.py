"""A database as Supabase makes it: a user table of another owner, a data API, limited rights.

The roles, rights and default privileges are those of Supabase's own set-up: `postgres` there is not
a superuser and may not grant the use of the schema `auth` to any role, and auth.users has row-level
security without any policy.
"""

import contextlib
import itertools
import os
import re
from dataclasses import replace
from urllib.parse import urlsplit

import asyncpg
import pytest
from kit.databases import add_api_roles
from kit.programs import process
from kit.refusals import refused
from kit.requests import payment
from kit.services import running, server_settings

from credit_service.client import CreditClient
from credit_service.database import migrations
from credit_service.database.postgres import ROLE_PLANS_OFF, Address, missing_protection
from credit_service.errors import UserDeleted, UserNotFound
from credit_service.ledger.store import SQL
from credit_service.runtime.start_errors import StartRefusedError

AUTH_ADMIN, OWNER = "supabase_auth_admin", "supabase_postgres"
# These read all rows that they add up or export or, once a second, all open holds.
ADDING_UP = (
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
)
OUTSIDERS = ("anon", "authenticated", "service_role")
BOOKS = (
    "user_credits",
    "credit_transactions",
    "credit_refunds",
    "credit_purchases",
    "credit_migrations",
    "credit_holds",
    "credit_policy_changes",
    "credit_reversals",
    "credit_kept_keys",
    "credit_grants",
    "credit_grant_changes",
    "credit_allowances",
    "credit_relay_lease",
    "credit_relay_readers",
    "credit_parked_events",
    "credit_alerts",
    "credit_top_ups",
    "credit_top_up_counts",
    "credit_top_up_changes",
    "credit_alert_states",
    "credit_expiring_alerts",
    "credit_feed",
    "credit_feed_advances",
)

SUPABASE = f"""
    ALTER DATABASE {{name}} OWNER TO {OWNER};
    GRANT USAGE ON SCHEMA public TO anon, authenticated, service_role;
    ALTER DEFAULT PRIVILEGES FOR ROLE {OWNER} IN SCHEMA public
    GRANT ALL ON TABLES TO anon, authenticated, service_role;
    ALTER DEFAULT PRIVILEGES FOR ROLE {OWNER} IN SCHEMA public
    GRANT ALL ON FUNCTIONS TO anon, authenticated, service_role;
    ALTER DEFAULT PRIVILEGES FOR ROLE {OWNER} IN SCHEMA public
    GRANT ALL ON SEQUENCES TO anon, authenticated, service_role;
    CREATE SCHEMA auth;
    GRANT USAGE ON SCHEMA auth TO anon, authenticated, service_role;
    GRANT ALL ON SCHEMA auth TO {AUTH_ADMIN}, {OWNER};
    CREATE TABLE auth.users (
        instance_id uuid,
        id uuid NOT NULL UNIQUE,
        email varchar(255) UNIQUE,
        encrypted_password varchar(255),
        raw_user_meta_data jsonb,
        created_at timestamptz,
        CONSTRAINT users_pkey PRIMARY KEY (id)
    );
    COMMENT ON TABLE auth.users IS 'Auth: Stores user login data within a secure schema.';
    ALTER TABLE auth.users OWNER TO {AUTH_ADMIN};
    ALTER TABLE auth.users ENABLE ROW LEVEL SECURITY;
    GRANT ALL ON auth.users TO {OWNER}
"""

_numbers = itertools.count()


def as_role(url, role):
    parts = urlsplit(url)
    return parts._replace(netloc=f"{role}@").geturl()


async def add_role(connection, role):
    with contextlib.suppress(asyncpg.DuplicateObjectError, asyncpg.UniqueViolationError):
        await connection.execute(f"CREATE ROLE {role}")


@pytest.fixture
async def supabase(make_database):
    """Such a database, migrated by its owner, with a role of its own for the service."""
    database = await make_database(empty=True)
    await add_api_roles(database.owner_url)
    superuser = await database.connect()
    await add_role(superuser, f"{AUTH_ADMIN} LOGIN NOINHERIT CREATEROLE")
    await add_role(superuser, f"{OWNER} LOGIN CREATEDB CREATEROLE REPLICATION BYPASSRLS")
    await superuser.execute(SUPABASE.format(name=database.name))
    await superuser.close()
    service_role = f"credits_{os.getpid()}_{next(_numbers)}"
    made = replace(
        database,
        owner_url=as_role(database.owner_url, OWNER),
        service_url=as_role(database.service_url, service_role),
    )
    await made.execute(f"CREATE ROLE {service_role} LOGIN")
    before = await user_table(made)
    await migrate(made)
    assert await user_table(made) == before
    return made


async def migrate(database):
    lines = []
    role = urlsplit(database.service_url).username
    await migrations.migrate(database.owner_url, role, lines.append)
    assert not [line for line in lines if line.startswith("database:")]
    return lines


async def user_table(database):
    """The user table: its columns, owner, rights, comment, policies and added triggers."""
    rows = await database.fetch(
        "SELECT relowner::regrole::text, relacl::text, relrowsecurity,"
        " obj_description(pg_class.oid, 'pg_class'),"
        " (SELECT array_agg((attname, atttypid, attnotnull)::text ORDER BY attnum)"
        "  FROM pg_attribute WHERE attrelid = pg_class.oid),"
        " (SELECT count(*) FROM pg_policy WHERE polrelid = pg_class.oid),"
        " (SELECT count(*) FROM pg_trigger WHERE tgrelid = pg_class.oid AND NOT tgisinternal),"
        " (SELECT nspacl::text FROM pg_namespace WHERE nspname = 'auth')"
        " FROM pg_class WHERE oid = 'auth.users'::regclass"
    )
    return tuple(rows[0])


async def connect_as(database, outsider):
    """Connects as one of the data API's roles, which cannot log in by themselves."""
    connection = await asyncpg.connect(as_role(database.owner_url, "postgres"))
    await connection.execute(f"SET ROLE {outsider}")
    return connection


async def sign_up(database):
    """Adds a user as Supabase's own service does."""
    connection = await asyncpg.connect(as_role(database.owner_url, AUTH_ADMIN))
    await connection.execute("SET search_path = auth")
    user_id = await connection.fetchval(
        "INSERT INTO users (id, email) VALUES (gen_random_uuid(), gen_random_uuid()) RETURNING id"
    )
    await connection.close()
    return user_id


async def test_the_service_works_from_end_to_end(supabase):
    user_id = await sign_up(supabase)
    with process("serve", CREDIT_DATABASE_URL=supabase.service_url) as served:
        port = served.wait_until_listening()
        assert "protection missing" not in served.output
        async with CreditClient(f"127.0.0.1:{port}") as client:
            assert (await client.get_user_credit(user_id)).balance == 0
            await client.purchase_credits(user_id, 100, payment=payment("pi_1"))
            spent = await client.spend_credits(user_id, operation="stem_separation")
            await client.refund_credits(user_id, spent.transaction.id, amount=4)
            assert (await client.get_user_credit(user_id, history_size=9)).balance == 94
            history = [entry.seq async for entry in client.get_transaction_history(user_id)]
            assert history == [3, 2, 1]
            connection = await asyncpg.connect(as_role(supabase.owner_url, AUTH_ADMIN))
            await connection.execute("DELETE FROM auth.users WHERE id = $1", user_id)
            await connection.close()
            with pytest.raises(UserNotFound):
                await client.get_user_credit(user_id)
            with pytest.raises(UserDeleted):
                await client.purchase_credits(user_id, 100, payment=payment("pi_1"))
    assert await supabase.faults() == []


async def test_a_user_who_never_signed_up_is_not_found(supabase):
    stranger = "00000000-0000-4000-8000-000000000001"
    async with running(server_settings(supabase.service_url)) as service:
        client = await service.client()
        for call in (
            client.get_user_credit(stranger),
            client.purchase_credits(stranger, 5, payment=payment()),
            client.spend_credits(stranger, amount=5),
        ):
            with pytest.raises(UserNotFound) as refusal:
                await call
            assert refused(refusal.value).reason == "USER_NOT_FOUND"
    assert await supabase.fetch("SELECT FROM user_credits") == []
    assert await supabase.fetch("SELECT FROM auth.users") == []


async def test_the_service_refuses_to_add_users_to_a_table_of_another_owner(supabase):
    with pytest.raises(StartRefusedError, match="CREDIT_USERS=existing"):
        async with running(server_settings(supabase.service_url, adds_users=True)):
            pass


@pytest.mark.parametrize("outsider", OUTSIDERS)
async def test_the_data_api_reads_and_writes_nothing(supabase, outsider):
    user_id = await sign_up(supabase)
    async with running(server_settings(supabase.service_url)) as service:
        await (await service.client()).purchase_credits(user_id, 100, payment=payment())
    before = await supabase.book()
    connection = await connect_as(supabase, outsider)
    for table in BOOKS:
        for statement in (
            f"SELECT FROM {table}",
            f"INSERT INTO {table} DEFAULT VALUES",
            f"DELETE FROM {table}",
        ):
            with pytest.raises(asyncpg.InsufficientPrivilegeError):
                await connection.execute(statement)
    for statement in (
        "UPDATE user_credits SET balance = 1000000",
        "UPDATE credit_transactions SET amount = 1",
        "UPDATE credit_purchases SET amount = 1",
        "TRUNCATE credit_purchases",
        "SELECT credit_users('{}')",
    ):
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await connection.execute(statement)
    await connection.close()
    assert await supabase.book() == before


async def test_the_data_api_holds_no_right_on_any_column_and_finds_no_function(supabase):
    rows = await supabase.fetch(
        "SELECT rolname, relname FROM pg_class, pg_roles"
        " WHERE relnamespace = 'public'::regnamespace AND relkind IN ('r', 'v', 'm', 'S')"
        " AND rolname = ANY($1) AND ("
        "  has_table_privilege(rolname, pg_class.oid, 'SELECT, INSERT, UPDATE, DELETE, TRUNCATE,"
        " REFERENCES, TRIGGER')"
        "  OR has_any_column_privilege(rolname, pg_class.oid, 'SELECT, INSERT, UPDATE'))",
        OUTSIDERS,
    )
    assert rows == []
    functions = await supabase.fetch(
        "SELECT rolname, proname FROM pg_proc, pg_roles"
        " WHERE pronamespace = 'public'::regnamespace AND rolname = ANY($1)"
        # A trigger function cannot be called, and the API does not show it.
        " AND prorettype <> 'trigger'::regtype"
        " AND has_function_privilege(rolname, pg_proc.oid, 'EXECUTE')",
        OUTSIDERS,
    )
    assert functions == []


async def test_rights_given_to_the_data_api_later_meet_row_level_security(supabase):
    user_id = await sign_up(supabase)
    async with running(server_settings(supabase.service_url)) as service:
        await (await service.client()).purchase_credits(user_id, 100, payment=payment())
    await supabase.execute("GRANT ALL ON ALL TABLES IN SCHEMA public TO anon, authenticated")
    for outsider in ("anon", "authenticated"):
        connection = await connect_as(supabase, outsider)
        for table in BOOKS:
            assert await connection.fetch(f"SELECT FROM {table}") == []
        assert await connection.execute("UPDATE user_credits SET balance = 7") == "UPDATE 0"
        with pytest.raises(asyncpg.InsufficientPrivilegeError, match="row-level security"):
            await connection.execute(
                "INSERT INTO credit_purchases VALUES ('pi_x', $1, 1, 1, 1, 'eur', now())", user_id
            )
        await connection.close()
    await migrate(supabase)
    rights = await supabase.fetch("SELECT has_table_privilege('anon', 'user_credits', 'SELECT')")
    assert not rights[0][0]


async def test_the_service_lacks_no_protection(supabase):
    connection = await Address(supabase.service_url).connect()
    assert await missing_protection(connection) == []
    secured = await connection.fetch(
        "SELECT relname FROM pg_class WHERE relrowsecurity"
        " AND relnamespace = 'public'::regnamespace"
    )
    assert {row[0] for row in secured} == set(BOOKS)
    with pytest.raises(asyncpg.InsufficientPrivilegeError):
        await connection.fetch("SELECT email FROM auth.users")
    await connection.close()


async def test_a_second_role_may_serve_beside_the_first(supabase):
    user_id = await sign_up(supabase)
    second_role = f"credits_{os.getpid()}_{next(_numbers)}"
    await supabase.execute(f"CREATE ROLE {second_role} LOGIN")
    second = replace(supabase, service_url=as_role(supabase.service_url, second_role))
    await migrate(second)
    for number, database in enumerate((supabase, second), 1):
        async with running(server_settings(database.service_url)) as service:
            client = await service.client()
            bought = await client.purchase_credits(user_id, 10, payment=payment(f"pi_{number}"))
            assert bought.credit.balance == number * 10


async def test_the_owner_may_serve_too_where_there_is_no_other_role(supabase):
    user_id = await sign_up(supabase)
    owner_only = replace(supabase, service_url=supabase.owner_url)
    await migrate(owner_only)
    async with running(server_settings(owner_only.service_url)) as service:
        client = await service.client()
        bought = await client.purchase_credits(user_id, 10, payment=payment())
        assert bought.credit.balance == 10


async def generic_plans(url):
    """The plan of each statement with its parameters unknown, as a lane uses it."""
    connection = await Address(url).connect()
    await connection.execute("SET plan_cache_mode = force_generic_plan")
    for name in ROLE_PLANS_OFF:
        await connection.execute(f"SET {name} = off")
    plans = {}
    for name, sql in SQL.items():
        if name == "add_users":  # never runs against a user table of another owner
            continue
        await connection.execute(f"PREPARE {name} AS {sql}")
        count = max(
            (int(number) for number in re.findall(r"\$(\d+)", re.sub("--.*", "", sql))), default=0
        )
        nulls = f"({', '.join(['NULL'] * count)})" if count else ""
        rows = await connection.fetch(f"EXPLAIN (COSTS OFF) EXECUTE {name} {nulls}")
        plans[name] = "\n".join(row[0] for row in rows)
    await connection.close()
    return plans


async def test_row_level_security_changes_no_plan(supabase):
    superuser = await asyncpg.connect(as_role(supabase.owner_url, "postgres"))
    await superuser.execute(
        "INSERT INTO auth.users (id) SELECT gen_random_uuid() FROM generate_series(1, 20000);"
        "INSERT INTO user_credits SELECT id, 3, 0, 3, now() FROM auth.users;"
        "INSERT INTO credit_transactions (user_id, seq, type, call, amount, balance_change,"
        " held_change, balance_after, held_after, description, timestamp, reference,"
        " idempotency_key, caller)"
        " SELECT id, n, 'purchase', 'PurchaseCredits', 1, 1, 0, n, 0, '', now(), '', n::text, ''"
        " FROM auth.users, generate_series(1, 3) AS n;"
        "INSERT INTO credit_refunds SELECT user_id, seq, 1, 1 FROM credit_transactions;"
        "INSERT INTO credit_purchases SELECT user_id::text || seq, user_id, seq, 1, 1, 'eur', now()"
        " FROM credit_transactions;"
        "INSERT INTO credit_holds (user_id, seq, state, amount, created_at, expires_at, reference)"
        " SELECT user_id, seq, 'held', 1, now(), now(), '' FROM credit_transactions;"
        "ANALYZE"
    )
    await superuser.close()
    secured = await generic_plans(supabase.service_url)
    assert secured == await generic_plans(supabase.owner_url)
    for name, plan in secured.items():
        if name in ADDING_UP:
            continue
        assert "Seq Scan" not in plan, name
        # Entries are looked up by place or key, never among all entries of a user.
        for condition in re.findall(r"one_entry_per_\w+.*\n\s*Index Cond: (.*)", plan):
            assert re.search("seq|idempotency_key", condition), plan
    assert "one_entry_per_place" in secured["list_entries"]
    assert "one_entry_per_place" in secured["count_entries_before"]
