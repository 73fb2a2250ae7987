"""Shards of a Citus cluster that move and split under load, while the service has an old map."""

import pytest
from kit.citus import needs_citus
from kit.services import running, server_settings
from kit.storm import Storm

pytestmark = needs_citus

SHARDS = """
    SELECT shard.shardid, node.nodeid, node.nodename, node.nodeport,
        shard.shardminvalue::bigint AS first, shard.shardmaxvalue::bigint AS last
    FROM pg_dist_shard AS shard
    INNER JOIN pg_dist_placement USING (shardid)
    INNER JOIN pg_dist_node AS node USING (groupid)
    WHERE shard.logicalrelid = 'user_credits'::regclass
    ORDER BY first
"""
ANSWERED = {"OK", "FAILED_PRECONDITION"}
AWAY = {"UNAVAILABLE", "DEADLINE_EXCEEDED"}

NODES = "SELECT nodeid, nodename, nodeport FROM pg_dist_node WHERE shouldhaveshards ORDER BY nodeid"


async def move(database, shard, transfer):
    """Moves a shard, and those of the other tables with it, to the other node."""
    [here] = [row for row in await database.fetch(SHARDS) if row["shardid"] == shard]
    [there] = [row for row in await database.fetch(NODES) if row["nodeid"] != here["nodeid"]]
    await database.execute(
        f"SELECT citus_move_shard_placement({shard}, {here['nodeid']}, {there['nodeid']},"
        f" '{transfer}')"
    )


async def split(database, shard):
    """Splits a shard, and those of the other tables with it, in two on both nodes."""
    [here] = [row for row in await database.fetch(SHARDS) if row["shardid"] == shard]
    middle = (here["first"] + here["last"]) // 2
    places = [row["nodeid"] for row in await database.fetch(NODES)][:2]
    await database.execute(
        f"SELECT citus_split_shard_by_split_points({shard}, ARRAY['{middle}'], ARRAY{places},"
        " 'block_writes')"
    )


@pytest.mark.timeout(300)
@pytest.mark.parametrize("transfer", ["block_writes", "force_logical"])
async def test_shards_that_move_under_load_lose_and_double_nothing(database, transfer):
    users = [await database.user(500) for _ in range(24)]
    async with running(server_settings(database.service_url)) as service:
        shards = service.settings.writers.address.shards
        before = shards.map
        moved = (await database.fetch(SHARDS))[0]["shardid"]
        async with Storm([service.target], users, callers=24, seed=11) as storm:
            await storm.more(100)
            for _ in ("there", "back"):
                await move(database, moved, transfer)
                await storm.more(100)
        assert shards.map == before  # the map was old for the whole time of the move
        await storm.settle()
        assert storm.codes.keys() <= ANSWERED | AWAY
    await storm.check(database)


@pytest.mark.timeout(300)
async def test_shards_that_split_under_load_lose_and_double_nothing(database):
    users = [await database.user(500) for _ in range(24)]
    async with running(server_settings(database.service_url)) as service:
        shards = service.settings.writers.address.shards
        before = shards.map
        async with Storm([service.target], users, callers=24, seed=12) as storm:
            await storm.more(100)
            for row in (await database.fetch(SHARDS))[:3]:
                await split(database, row["shardid"])
            await storm.more(200)
            # No minute has passed: the map was read because a batch was refused.
            assert len(shards.map.starts) > len(before.starts)
        await storm.settle()
        assert storm.codes.keys() <= ANSWERED | AWAY
    await storm.check(database)
