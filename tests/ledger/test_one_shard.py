"""The statements of a distributed book, on tables partitioned by user: each is of one shard."""

import json
import re
from uuid import uuid4

import pytest
from kit.statements import arguments, literal, nodes

from credit_service.database import distribution
from credit_service.ledger.statement_texts import DISTRIBUTED_SQL

PARTITIONS = 8
BY_USER = (
    "user_credits",
    "credit_transactions",
    "credit_refunds",
    "credit_holds",
    "credit_kept_keys",
    "credit_policy_changes",
    "credit_grants",
    "credit_grant_changes",
    "credit_allowances",
    "credit_top_ups",
    "credit_top_up_counts",
    "credit_top_up_changes",
)
# `distribute` replaces it: between two users the credited payment decides.
KEYS_WITHOUT_USER = {"one_top_up_per_payment"}
# The statements that look at all shards, by the reason why they may; a cluster's tests run them.
ON_ALL_SHARDS = {
    "a payment or a user may be on any shard": {"load_top_ups", "find_newcomers"},
    "accounts of many users are read together": {"list_known_accounts", "settled_accounts"},
    "lists, reports and the verification are about all users": {
        *("find_accounts", "find_due_users", "find_faults", "list_accounts"),
        *("list_entries_by_time", "list_open_top_ups", "report_lapsed", "report_liability"),
        "report_usage",
    },
    "a distributed book has no feed": {
        *("find_feed_end", "find_feed_holder", "find_writers", "measure_feed", "read_feed"),
    },
    "these tables are split by payment, or not at all": {
        *("add_users", "find_users", "insert_purchases", "insert_reversals", "load_purchases"),
        *("load_returned", "load_reversals"),
    },
}


async def keys_of(connection, table):
    return await connection.fetch(
        "SELECT conname, pg_get_constraintdef(oid) FROM pg_constraint"
        " WHERE conrelid = $1::text::regclass AND contype IN ('p', 'u')",
        table,
    )


async def partition_by_user(connection):
    for table in BY_USER:
        keys = await keys_of(connection, table)
        await connection.execute(f"ALTER TABLE {table} RENAME TO whole_{table}")
        await connection.execute(
            f"CREATE TABLE {table} (LIKE whole_{table} INCLUDING GENERATED INCLUDING DEFAULTS)"
            " PARTITION BY HASH (user_id)"
        )
        for part in range(PARTITIONS):
            await connection.execute(
                f"CREATE TABLE {table}_{part} PARTITION OF {table}"
                f" FOR VALUES WITH (MODULUS {PARTITIONS}, REMAINDER {part})"
            )
        for name, definition in keys:
            if name not in KEYS_WITHOUT_USER:
                # PostgreSQL refuses one that does not contain the user.
                await connection.execute(f"ALTER TABLE {table} ADD {definition}")


def shards_scanned(plan):
    found = set()
    for node in nodes(plan):
        name = node.get("Relation Name", "")
        if "Scan" in node["Node Type"] and (part := re.fullmatch(r"\w+_(\d+)", name)):
            found.add(part[1])
    return found


@pytest.fixture
async def partitioned(database):
    connection = await database.connect()
    try:
        await partition_by_user(connection)
        yield connection
    finally:
        await connection.close()


async def shards_of(connection, name, user_id):
    """The partitions that a statement about this user looks at."""
    text = DISTRIBUTED_SQL[name]
    values = arguments(user_id, user_id, 3)[name]
    kinds = dict(re.findall(r"\$(\d+)::(\w+(?:\[\])?)", text))
    for place in range(len(values), 0, -1):
        value = literal(values[place - 1], kinds[str(place)])
        text = re.sub(rf"\${place}(?:::\w+(?:\[\])?)?", lambda _, value=value: value, text)
    plan = json.loads(await connection.fetchval(f"EXPLAIN (FORMAT JSON) {text}"))[0]["Plan"]
    return shards_scanned(plan)


async def test_every_statement_about_a_user_is_of_one_shard(partitioned):
    user_id = uuid4()
    known = arguments(user_id, user_id, 3).keys() & DISTRIBUTED_SQL.keys()
    found = {
        name: await shards_of(partitioned, name, user_id)
        for name in known - set().union(*ON_ALL_SHARDS.values())
    }
    assert {"lock_accounts", "insert_entries", "load_grants", "changed_accounts"} <= found.keys()
    assert {name: shards for name, shards in found.items() if len(shards) > 1} == {}
    assert len(set.union(*found.values())) == 1


async def test_unique_keys_contain_the_user(partitioned):
    for table in BY_USER:
        keys = [definition for _, definition in await keys_of(partitioned, table)]
        assert keys, table
        assert [key for key in keys if not re.search(r"[( ]user_id[,)]", key)] == [], table


def test_the_tables_here_are_those_that_are_split_by_user():
    named = {name for name, column in distribution.BY_USER.items() if column == "user_id"}
    # The relay, which makes alerts, does not run on a distributed book.
    alerts = {name for name in named if "alert" in name}
    assert named - alerts == set(BY_USER)
