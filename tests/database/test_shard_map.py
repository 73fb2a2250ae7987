"""Which shard a user is on: PostgreSQL's own hash, computed here."""

from uuid import UUID, uuid4

import asyncpg

from credit_service.database.shard_map import ShardMap, Shards, hash_of

SPLIT = ShardMap(starts=(-(2**31), -(2**30), 0, 2**30), nodes=(1, 2, 1, 2))


async def test_the_hash_of_a_user_is_that_of_postgresql_for_100000_users(database):
    ids = [UUID(int=0), UUID(int=2**128 - 1), *(uuid4() for _ in range(100_000))]
    rows = await database.fetch(
        "SELECT uuid_hash(asked.id) FROM unnest($1::uuid[]) AS asked (id)", ids
    )
    assert [row[0] for row in rows] == [hash_of(user_id) for user_id in ids]


def test_a_shard_has_the_hashes_from_its_start_to_the_next_one():
    ids = [uuid4() for _ in range(1000)]
    shards = {SPLIT.shard_of(user_id) for user_id in ids}
    assert shards == {0, 1, 2, 3}
    ends = (*SPLIT.starts[1:], 2**31)
    for user_id in ids:
        shard = SPLIT.shard_of(user_id)
        assert SPLIT.starts[shard] <= hash_of(user_id) < ends[shard]
        assert SPLIT.node_of(shard) == (1, 2)[shard % 2]


async def test_a_single_database_is_one_shard_on_one_node(database):
    shards = Shards()
    connection = await asyncpg.connect(database.service_url)
    try:
        assert not await shards.read(connection)
    finally:
        await connection.close()
    assert not shards.map.is_distributed
    assert {shards.map.shard_of(uuid4()) for _ in range(100)} == {0}
    assert shards.map.node_of(0) == 0
