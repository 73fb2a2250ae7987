"""The rules a second time: rows written by hand as the owner, each against one constraint."""

from contextlib import asynccontextmanager

import asyncpg
import pytest
from kit.ledger_rows import (
    ACCOUNT,
    ADVANCE,
    ALERT,
    ALERT_STATE,
    ALLOWED,
    ALLOWED_UNTIL,
    BOUGHT,
    CHANGE,
    DATED,
    EXPIRING,
    FEED,
    GRANT_CHANGE,
    HOLD,
    KEPT,
    LEASE,
    NEIGHBOUR,
    NOTHING_WAITS,
    OPEN_TOP_UP,
    PARKED,
    PURCHASE,
    READER,
    REFUNDED,
    REVERSED,
    SPEND,
    STRANGER,
    TOP_UP,
    TOP_UP_CHANGE,
    TOP_UP_COUNTS,
    TURNED_ON,
    USER,
)
from kit.refused_rows import REFUSED


def insertion(table, row):
    places = ", ".join(f"${number}" for number in range(1, len(row) + 1))
    return f"INSERT INTO {table} ({', '.join(row)}) VALUES ({places})", *row.values()


@pytest.fixture
async def connection(database):
    """The owner's, on a book with two accounts, two entries and a row in every other table."""
    connection = await database.connect()
    await connection.execute(
        "INSERT INTO auth.users (id) VALUES ($1), ($2), ($3)", USER, STRANGER, NEIGHBOUR
    )
    hundred = {"seq": 1, "idempotency_key": "first", "amount": 100, "balance_change": 100}
    thirty = {"seq": 2, "idempotency_key": "second", "amount": 30, "balance_change": -30}
    for table, row in (
        ("user_credits", ACCOUNT | {"user_id": USER, "balance": 70, "seq": 2}),
        ("user_credits", ACCOUNT | {"user_id": NEIGHBOUR}),
        ("credit_transactions", PURCHASE | hundred | {"balance_after": 100}),
        ("credit_transactions", SPEND | thirty | {"balance_after": 70}),
        ("credit_refunds", REFUNDED | {"spend_seq": 1}),
        ("credit_purchases", BOUGHT | {"payment_ref": "pi_0"}),
        ("credit_holds", HOLD | {"seq": 1}),
        ("credit_policy_changes", CHANGE | {"change": 1}),
        ("credit_reversals", REVERSED | {"reversal_ref": "re_1", "opens_ref": "re_1"}),
        ("credit_kept_keys", KEPT | {"key": "first"}),
        ("credit_grants", DATED | {"seq": 1}),
        ("credit_grant_changes", GRANT_CHANGE | {"seq": 1}),
        ("credit_allowances", ALLOWED_UNTIL | {"user_id": USER}),
        ("credit_relay_readers", READER | {"reader": "webhook/known"}),
        ("credit_parked_events", PARKED | {"endpoint": "known"}),
        ("credit_alerts", ALERT | {"alert": 1}),
        ("credit_alert_states", ALERT_STATE),
        ("credit_expiring_alerts", EXPIRING),
        ("credit_feed_advances", ADVANCE | {"number": 1, "tx": 1}),
        ("credit_top_ups", OPEN_TOP_UP),
        ("credit_top_up_counts", TOP_UP_COUNTS | {"user_id": USER}),
        ("credit_top_up_changes", TOP_UP_CHANGE | {"change": 1}),
    ):
        await connection.execute(*insertion(table, row))
    yield connection
    await connection.close()


@asynccontextmanager
async def rolled_back(connection):
    transaction = connection.transaction()
    await transaction.start()
    try:
        yield
    finally:
        await transaction.rollback()


async def violated(connection, statement, *values):
    """The table and the constraint that a statement violates; None if it succeeds."""
    async with rolled_back(connection):
        try:
            await connection.execute(statement, *values)
        except asyncpg.IntegrityConstraintViolationError as violation:
            return violation.table_name, violation.constraint_name
    return None


async def test_a_row_within_the_rules_is_accepted(connection):
    for table, row in ALLOWED:
        assert await violated(connection, *insertion(table, row)) is None, row


async def test_a_row_against_a_rule_violates_that_constraint_and_no_other(connection):
    for table, constraint, row in REFUSED:
        met = await violated(connection, *insertion(table, row))
        assert met == (table, constraint), row
        async with rolled_back(connection):
            await connection.execute(f"ALTER TABLE {table} DROP CONSTRAINT {constraint} CASCADE")
            assert await violated(connection, *insertion(table, row)) is None, row


UPDATES = [
    ("balance_in_range", "UPDATE user_credits SET balance = 1000000000000001"),
    ("held_not_negative", "UPDATE user_credits SET held = -1, open_holds = 1"),
    ("seq_not_negative", "UPDATE user_credits SET seq = -1"),
    ("refunds_within_spend", "UPDATE credit_refunds SET refunded = refunded + 1"),
    ("account_belongs_to_a_user", "UPDATE auth.users SET id = gen_random_uuid()"),
]


async def test_an_update_is_checked_by_the_constraints_too(connection):
    for constraint, statement in UPDATES:
        _, met = await violated(connection, statement)
        assert met == constraint


async def test_every_constraint_of_the_book_has_a_row_against_it(connection):
    rows = await connection.fetch(
        "SELECT conrelid::regclass::text, conname::text FROM pg_constraint"
        " INNER JOIN pg_class ON pg_class.oid = conrelid"
        " WHERE relnamespace = 'public'::regnamespace AND relname <> 'credit_migrations'"
        " AND contype <> 'n'"
    )
    assert {tuple(row) for row in rows} == {(table, name) for table, name, _ in REFUSED}


async def test_every_unique_index_is_a_constraint(connection):
    rows = await connection.fetch(
        "SELECT indexrelid::regclass::text FROM pg_index"
        " INNER JOIN pg_class ON pg_class.oid = indrelid"
        " WHERE relnamespace = 'public'::regnamespace AND indisunique"
        " AND NOT EXISTS (SELECT FROM pg_constraint WHERE conindid = indexrelid)"
    )
    assert rows == []


NEEDED = [
    (table, column)
    for table, row in (
        ("user_credits", ACCOUNT),
        ("credit_transactions", {**PURCHASE, "idempotency_key": None}),
        ("credit_refunds", REFUNDED),
        ("credit_purchases", BOUGHT),
        ("credit_holds", HOLD),
        ("credit_policy_changes", CHANGE),
        ("credit_reversals", REVERSED),
        ("credit_kept_keys", KEPT),
        ("credit_grants", DATED | {"expire_time": None}),
        ("credit_grant_changes", GRANT_CHANGE | {"expire_after": None}),
        ("credit_allowances", ALLOWED_UNTIL),
        ("credit_relay_lease", LEASE),
        ("credit_relay_readers", READER),
        ("credit_parked_events", PARKED),
        ("credit_alerts", ALERT),
        ("credit_alert_states", NOTHING_WAITS),
        ("credit_expiring_alerts", EXPIRING),
        ("credit_feed", FEED),
        ("credit_feed_advances", ADVANCE),
        ("credit_top_ups", TOP_UP),
        ("credit_top_up_counts", TOP_UP_COUNTS),
        ("credit_top_up_changes", TURNED_ON),
    )
    for column, value in row.items()
    if value is not None
]


async def test_exactly_these_columns_are_required(connection):
    rows = await connection.fetch(
        "SELECT attrelid::regclass::text, attname::text FROM pg_attribute"
        " INNER JOIN pg_class ON pg_class.oid = attrelid"
        " WHERE relnamespace = 'public'::regnamespace AND relkind = 'r' AND attnum > 0"
        " AND relname <> 'credit_migrations' AND attnotnull AND attgenerated = ''"
    )
    assert {tuple(row) for row in rows} == set(NEEDED)
