"""The statements of a distributed book, on its tables partitioned by user: each is of one shard."""

import json
import re
from uuid import uuid4

import pytest
from kit.statements import arguments, literal, nodes

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
# What a batch or a read of one account executes on these tables.
OF_ONE_SHARD = (
    "get_account",
    "lock_accounts",
    "read_accounts",
    "changed_accounts",
    "load_entries_by_key",
    "load_entries",
    "load_refunds",
    "load_holds",
    "load_due_holds",
    "load_due_grants",
    "load_next_expiries",
    "load_next_lapses",
    "load_grants",
    "list_entries",
    "count_entries_before",
    "list_holds",
    "update_accounts",
    "move_accounts",
    "insert_entries",
    "insert_grant_changes",
    "insert_kept_keys",
    "insert_policy_changes",
    "insert_top_up_changes",
    "upsert_grants",
    "upsert_holds",
    "upsert_refunds",
    "upsert_top_up_counts",
    "upsert_top_ups",
)


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


async def test_every_statement_about_a_user_is_of_one_shard(partitioned):
    user_id = uuid4()
    found = {}
    for name in OF_ONE_SHARD:
        text = DISTRIBUTED_SQL[name]
        values = arguments(user_id, user_id, 3)[name]
        kinds = dict(re.findall(r"\$(\d+)::(\w+(?:\[\])?)", text))
        for place in range(len(values), 0, -1):
            value = literal(values[place - 1], kinds[str(place)])
            text = re.sub(rf"\${place}(?:::\w+(?:\[\])?)?", lambda _, value=value: value, text)
        plan = json.loads(await partitioned.fetchval(f"EXPLAIN (FORMAT JSON) {text}"))[0]["Plan"]
        found[name] = shards_scanned(plan)
    assert {name: shards for name, shards in found.items() if len(shards) > 1} == {}
    assert len(set.union(*found.values())) == 1
