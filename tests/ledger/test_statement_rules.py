"""Rules over the statements, so that the same ones run on a distributed book."""

import asyncio
import re
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from kit.commands import reverse
from kit.paths import ROOT
from kit.services import writer_settings
from kit.statements import arguments

from credit_service.ledger import statement_texts, store
from credit_service.ledger.transactions import Transactions, Way

MIGRATIONS = ROOT / "credit_service/database/migrations"
# Older files were released before the rules; a later file changes what they made.
FIRST_BOUND_MIGRATION = 16


def statements() -> Iterator[tuple[str, str]]:
    for folder in ("ledger", "relay"):
        for file in sorted((ROOT / "credit_service" / folder / "sql").glob("*.sql")):
            yield f"{folder}/{file.name}", re.sub("--.*", "", file.read_text())


def bound_migrations() -> list[Path]:
    return [
        file
        for file in sorted(MIGRATIONS.glob("0*.sql"))
        if int(file.name[:4]) >= FIRST_BOUND_MIGRATION
    ]


def test_no_statement_selects_without_columns():
    assert not [name for name, text in statements() if re.search(r"\bSELECT\s+FROM\b", text)]


def test_a_statement_that_may_do_nothing_on_a_conflict_is_counted_by_its_rows():
    # Citus counts rows that were not written in the tag.
    sources = "".join(
        file.read_text() for file in (ROOT / "credit_service/ledger").glob("*store.py")
    )
    by_tag = set(re.findall(r'expect\(\s*await connection.execute\([^"]*"(\w+)"', sources))
    assert "insert_entries" in by_tag
    for name, text in store.SQL.items():
        if "DO NOTHING" in text:
            assert name not in by_tag, name
            assert "RETURNING" in text or name == "add_users", name  # which is not counted


def test_a_statement_with_a_text_of_its_own_for_a_distributed_book_is_looked_up_by_its_connection():
    marked = {
        name for name in store.SQL if store.SQL[name] != statement_texts.DISTRIBUTED_SQL[name]
    }
    assert "load_entries_by_key" in marked
    for file in (ROOT / "credit_service/ledger").glob("*.py"):
        assert not marked & set(re.findall(r'SQL\["(\w+)"\]', file.read_text())), file


def test_a_recursive_statement_limits_every_table_to_the_same_users_on_a_distributed_book():
    # Citus refuses it unless each table is seen to be of one shard, and an empty list is of none.
    recursive = [
        re.sub("--.*", "", text)
        for text in statement_texts.DISTRIBUTED_SQL.values()
        if "WITH RECURSIVE" in text
    ]
    assert recursive
    for text in recursive:
        tables = re.findall(r"\b(?:FROM|JOIN) (?:user_credits|credit_\w+) AS (\w+)", text)
        limits = re.findall(r"(\w+)\.user_id\s+= (\$\d+::uuid|any\([^)]+\))", text)
        assert sorted(tables) == sorted(table for table, _ in limits)
        lists = {users for _, users in limits}
        assert len(lists) == 1
        given = set(re.findall(r"\$(\d+)::uuid", text))
        assert set(re.findall(r"\$(\d+)", lists.pop())) == given


async def test_a_batch_without_a_key_names_a_user_when_it_asks_for_keys(database):
    # Citus finds the shard by the users, and refuses the statement without one.
    user_id, asked = await database.user(5), []
    with closing(Transactions(writer_settings(database.service_url))) as writer:
        await writer.run([reverse(user_id, "pi_1")], Way(expiries=1))
        (await writer._connected()).add_query_logger(asked.append)
        await writer.run([reverse(user_id, "pi_1")], Way(expiries=1))
        await asyncio.sleep(0)  # the driver reports a statement in the loop's next turn
    assert [query.args[:2] for query in asked if "clock.now" in query.query] == [([user_id], [])]


def test_no_new_migration_adds_two_constraints_in_one_command_or_a_function_in_sql():
    assert bound_migrations()
    for file in bound_migrations():
        text = re.sub("--.*", "", file.read_text())
        for command in re.findall(r"\bALTER TABLE\b[^;]*", text):
            constrains = len(re.findall(r"\bADD CONSTRAINT\b", command))
            assert constrains == 0 or command.count(",\nADD") + constrains == 1, file
        assert not re.search(r"\bLANGUAGE sql\b", text, re.IGNORECASE), file


async def test_no_function_that_reads_tables_is_in_sql(database):
    rows = await database.fetch(
        "SELECT proname, prosrc FROM pg_proc INNER JOIN pg_language ON prolang = pg_language.oid"
        " WHERE lanname = 'sql' AND pronamespace <> 'pg_catalog'::regnamespace"
        " AND proname LIKE 'credit%'"
    )
    assert not [row[0] for row in rows if re.search(r"\bFROM\b", row[1])]


@pytest.mark.parametrize("name", ["insert_accounts", "insert_purchases", "insert_reversals"])
async def test_a_row_that_another_transaction_has_written_is_missing_among_those_returned(
    database, name
):

    user_id, newcomer = await database.user(5), await database.user()
    values = arguments(user_id, newcomer, 1)[name]
    written = await database.fetch(store.SQL[name], *values)
    assert len(written) == 1
    again = await database.fetch(store.SQL[name], *values)
    assert again == []
    with pytest.raises(store.StaleAccountError):
        store.expect_rows(again, 1)
