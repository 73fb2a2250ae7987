"""Which shard a user is on: PostgreSQL's own hash, computed here."""

from uuid import UUID, uuid4

import asyncpg
import pytest
from kit.shard_catalog import HALVES, QUARTERS, lay_out

from credit_service.database import shard_map
from credit_service.database.postgres import Absence, Address, absence
from credit_service.database.shard_map import ShardMapError, Shards, hash_of

RAISE = "DO $$ BEGIN RAISE EXCEPTION '{}' USING ERRCODE = 'XX000'; END $$"


async def test_the_hash_of_a_user_is_that_of_postgresql_for_100000_users(database):
    ids = [UUID(int=0), UUID(int=2**128 - 1), *(uuid4() for _ in range(100_000))]
    rows = await database.fetch(
        "SELECT uuid_hash(asked.id) FROM unnest($1::uuid[]) AS asked (id)", ids
    )
    assert [row[0] for row in rows] == [hash_of(user_id) for user_id in ids]


def test_a_shard_has_the_hashes_from_its_start_to_the_next_one():
    ids = [uuid4() for _ in range(1000)]
    shards = {QUARTERS.shard_of(user_id) for user_id in ids}
    assert shards == {0, 1, 2, 3}
    ends = (*QUARTERS.starts[1:], 2**31)
    for user_id in ids:
        shard = QUARTERS.shard_of(user_id)
        assert QUARTERS.starts[shard] <= hash_of(user_id) < ends[shard]
        assert QUARTERS.node_of(shard) == shard % 2


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
    assert shards.map.node_count == 1


async def test_the_first_connection_reads_the_map_and_all_connections_follow_it(database):
    await lay_out(database, HALVES)
    address = Address(database.service_url)
    first = await address.connect()
    try:
        assert address.shards.map == HALVES
        assert address.shards.map.node_count == 2
        assert first.is_distributed
        await lay_out(database, QUARTERS)
        second = await address.connect()
        await second.close()
        assert address.shards.map == HALVES  # not read again by each connection
        assert await address.shards.read(first)
        assert address.shards.map == QUARTERS
        await database.execute("DELETE FROM pg_dist_shard")
        await address.shards.read(first)
        assert not first.is_distributed
    finally:
        await first.close()


async def test_a_connection_that_is_not_about_users_reads_no_map(database):
    await lay_out(database, HALVES)
    address = Address(database.service_url)
    await (await address.connect(reads_shards=False)).close()
    assert not address.shards.known


@pytest.mark.parametrize("shard", [0, 1, 3])
async def test_a_map_with_a_gap_is_refused(database, shard):
    await lay_out(database, QUARTERS)
    await database.execute("DELETE FROM pg_dist_shard WHERE shardid = $1", shard)
    with pytest.raises(ShardMapError, match="leave out the hash"):
        await Address(database.service_url).connect()


async def test_a_server_that_computes_other_hashes_is_refused(database, monkeypatch):
    await lay_out(database, QUARTERS)
    monkeypatch.setattr(shard_map, "hash_of", lambda user_id: hash_of(user_id) ^ 1)
    with pytest.raises(ShardMapError, match="other hashes"):
        await Address(database.service_url).connect()


@pytest.mark.parametrize(
    ("said", "why"),
    [
        ("failure on connection marked as essential: there:5432", Absence.BUSY),
        ("postmaster was shut down, exiting", Absence.ELSEWHERE),
        ("could not find valid entry for shard 102067", Absence.BUSY),
        ("cache lookup failed", None),
    ],
)
async def test_an_internal_error_of_a_cluster_that_lost_a_node_or_a_shard_is_an_absence(
    database, said, why
):
    with pytest.raises(asyncpg.InternalServerError) as fault:
        await database.execute(RAISE.format(said))
    assert absence(fault.value) is why
