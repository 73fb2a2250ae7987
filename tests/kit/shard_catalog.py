"""The part of Citus's catalogue that the service reads, as tables of an ordinary PostgreSQL.

It says where users are; the tables stay in one piece. So a test without a cluster sees how the
service uses a map. The tests on a real cluster show that Citus has these tables.
"""

from uuid import UUID, uuid4

from credit_service.database.shard_map import ShardMap

QUARTERS = ShardMap(starts=(-(2**31), -(2**30), 0, 2**30), nodes=(0, 1, 0, 1))
HALVES = ShardMap(starts=(-(2**31), 0), nodes=(0, 1))

_TABLES = """
    SET allow_system_table_mods = on;
    CREATE TABLE IF NOT EXISTS pg_catalog.pg_dist_partition (
        logicalrelid regclass, partmethod "char", partkey text, colocationid int
    );
    CREATE TABLE IF NOT EXISTS pg_catalog.pg_dist_shard (
        logicalrelid regclass, shardid bigint, shardminvalue text, shardmaxvalue text
    );
    CREATE TABLE IF NOT EXISTS pg_catalog.pg_dist_placement (
        shardid bigint, shardstate int, groupid int
    );
    GRANT SELECT ON pg_catalog.pg_dist_partition, pg_catalog.pg_dist_shard,
        pg_catalog.pg_dist_placement TO PUBLIC;
    TRUNCATE pg_catalog.pg_dist_partition, pg_catalog.pg_dist_shard, pg_catalog.pg_dist_placement;
    INSERT INTO pg_catalog.pg_dist_partition VALUES ('user_credits', 'h', NULL, 1);
    RESET allow_system_table_mods
"""

# Like Citus, which refuses to lock rows on several shards.
_REFUSE = """
    CREATE FUNCTION refuse_several_shards() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        IF 1 < (
            SELECT count(DISTINCT shard.shardid) FROM written
            INNER JOIN pg_dist_shard AS shard ON uuid_hash(written.user_id)
                BETWEEN shard.shardminvalue::int AND shard.shardmaxvalue::int
        ) THEN
            RAISE EXCEPTION 'could not run distributed query' USING ERRCODE = '0A000';
        END IF;
        RETURN NULL;
    END $$;
    CREATE TRIGGER refuse_several_shards AFTER INSERT ON credit_transactions
    REFERENCING NEW TABLE AS written FOR EACH STATEMENT EXECUTE FUNCTION refuse_several_shards()
"""


async def lay_out(database, layout, *, groups=(3, 7)):
    """Writes to the catalogue where the users are; Citus may number nodes in any way."""
    ends = (*layout.starts[1:], 2**31)
    connection = await database.connect()
    try:
        async with connection.transaction():
            await connection.execute(_TABLES)
            for number, (start, end) in enumerate(zip(layout.starts, ends, strict=True)):
                await connection.execute(
                    "INSERT INTO pg_dist_shard VALUES ('user_credits', $1, $2, $3)",
                    number,
                    str(start),
                    str(end - 1),
                )
                await connection.execute(
                    "INSERT INTO pg_dist_placement VALUES ($1, 1, $2)",
                    number,
                    groups[layout.node_of(number)],
                )
    finally:
        await connection.close()


async def refuse_several_shards(database):
    """Makes the database refuse a statement that writes entries of users on several shards."""
    await database.execute(_REFUSE)


async def user_on(database, layout, shard, credits_=100) -> UUID:
    """Adds a user whose id belongs to this shard."""
    while layout.shard_of(user_id := uuid4()) != shard:
        pass
    await database.make_anew(user_id, credits_)
    return user_id
