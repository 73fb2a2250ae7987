"""Lanes of a distributed book: calls that share a transaction or a lane, and an old map."""

import asyncio
from collections import defaultdict
from contextlib import closing

import pytest
from kit.commands import answers, ask, kinds, lanes, purchase, spend, submit, transactions, written
from kit.fault_proxy import COMMIT, Kind
from kit.services import writer_settings
from kit.shard_catalog import HALVES, QUARTERS, lay_out, refuse_several_shards, user_on
from kit.waiting import eventually

from credit_service.database.postgres import Address
from credit_service.errors import LedgerUnavailable
from credit_service.ledger.lanes import Lanes
from credit_service.ledger.read_connections import ReadPool
from credit_service.ledger.shard_following import follow_shards
from credit_service.ledger.transactions import CommitLostError, Transactions, Way
from credit_service.rules.model import Outcome


async def users_of_all_shards(database, each=3):
    return [
        await user_on(database, QUARTERS, shard)
        for _ in range(each)
        for shard in range(len(QUARTERS.starts))
    ]


async def knowing(url):
    """An address whose map has been read."""
    address = Address(url)
    await (await address.connect()).close()
    return address


async def test_a_transaction_has_users_of_one_shard_only(database):
    await lay_out(database, QUARTERS)
    users = await users_of_all_shards(database)
    address = await knowing(database.service_url)
    async with lanes(database.service_url, address=address) as writers:
        given = await ask(writers, *(spend(user_id) for user_id in users for _ in range(3)))
    assert set(kinds(given)) == {Outcome}
    shards = defaultdict(set)
    for user_id, transaction in await database.fetch(
        "SELECT user_id, xmin::text FROM credit_transactions WHERE type = 'spend'"
    ):
        shards[transaction].add(QUARTERS.shard_of(user_id))
    assert {len(found) for found in shards.values()} == {1}
    assert len(shards) == len(QUARTERS.starts)
    assert not await database.faults()


async def test_users_of_other_nodes_are_served_while_a_node_is_silent(database, proxy):
    await lay_out(database, QUARTERS)
    here, neighbour, other = [await user_on(database, QUARTERS, shard) for shard in (0, 2, 1)]
    address = await knowing(proxy.url)
    silent = proxy.on(COMMIT, Kind.HOLD)
    async with lanes(proxy.url, address=address) as writers:
        waiting = submit(writers, spend(here))
        await silent.met.wait()
        waiting += submit(writers, spend(neighbour))
        assert kinds(await ask(writers, spend(other))) == [Outcome]
        assert not any(answer.done() for answer in waiting)
        silent.release()
        assert kinds(await answers(waiting)) == [Outcome, Outcome]


async def test_a_locked_row_of_one_node_makes_no_call_of_another_wait(database):
    await lay_out(database, QUARTERS)
    locked, other = [await user_on(database, QUARTERS, shard) for shard in (0, 1)]
    address = await knowing(database.service_url)
    async with database.locked(locked, other), lanes(address.url, address=address) as writers:
        await ask(writers, spend(locked))
        assert writers.of(locked) is not writers.of(other)
        usual = writers.of(other)
        await ask(writers, spend(other))
        assert len({writers.of(locked), writers.of(other), usual}) == 3


async def test_calls_that_name_a_payment_have_a_lane_of_their_own(database, proxy):
    await lay_out(database, QUARTERS)
    user_id = await user_on(database, QUARTERS, 0)
    neighbour = await user_on(database, QUARTERS, 0)
    address = await knowing(proxy.url)
    slow = proxy.on(COMMIT, Kind.HOLD)
    async with lanes(proxy.url, address=address) as writers:
        waiting = submit(writers, purchase(user_id, ref="pi_1"))
        await slow.met.wait()
        given = await ask(writers, spend(neighbour), purchase(neighbour))
        assert kinds(given) == [Outcome, Outcome]
        assert not waiting[0].done()
        slow.release()
        assert kinds(await answers(waiting)) == [Outcome]


async def test_a_contended_user_s_payments_hold_up_no_other_payments(database):
    await lay_out(database, QUARTERS)
    locked, other = [await user_on(database, QUARTERS, 0) for _ in range(2)]
    address = await knowing(database.service_url)
    async with database.locked(locked), lanes(address.url, address=address) as writers:
        await ask(writers, spend(locked))
        node = writers._nodes[0]
        assert node.of_payments(locked) is node.of(locked)
        assert node.of_payments(other) is not node.of(locked)
        given = await ask(writers, purchase(locked, ref="pi_1"), purchase(other, ref="pi_2"))
    assert kinds(given) == [LedgerUnavailable, Outcome]


async def test_no_lane_of_payments_is_made_while_the_lanes_close(database):
    await lay_out(database, QUARTERS)
    user_id = await user_on(database, QUARTERS, 0)
    writers = Lanes(writer_settings(database.service_url))
    await ask(writers, spend(user_id))
    await writers.close()
    with pytest.raises(LedgerUnavailable):
        submit(writers, purchase(user_id, ref="pi_1"))
    assert not [task for task in asyncio.all_tasks() if task.get_name().startswith("lane")]


async def test_on_one_database_a_payment_shares_the_transaction_of_other_calls(database):
    users = [await database.user(10) for _ in range(3)]
    async with lanes(database.service_url) as writers:
        given = await ask(writers, purchase(users[0], ref="pi_1"), *map(spend, users))
    assert set(kinds(given)) == {Outcome}
    assert await transactions(database) == 1


async def test_the_lanes_of_a_node_that_the_map_shows_later_are_closed_too(database):
    await lay_out(database, QUARTERS)
    user_id = await user_on(database, QUARTERS, 1)
    writers = Lanes(writer_settings(database.service_url))
    # It knows of other nodes only after a connection has read the map.
    await ask(writers, spend(await user_on(database, QUARTERS, 0)))
    waiting = submit(writers, *(spend(user_id) for _ in range(5)))
    await writers.close()
    assert kinds(await answers(waiting)) == [Outcome] * 5
    assert not [task for task in asyncio.all_tasks() if task.get_name().startswith("lane")]


@pytest.mark.parametrize("known", [HALVES, None], ids=["after a split", "after distribute"])
async def test_a_batch_that_an_old_map_put_together_is_divided_by_the_new_one(database, known):
    users = await users_of_all_shards(database)
    if known:
        await lay_out(database, known)
    address = await knowing(database.service_url)
    assert address.shards.map.is_distributed == bool(known)
    await lay_out(database, QUARTERS)
    await refuse_several_shards(database)
    async with lanes(database.service_url, address=address) as writers:
        assert set(kinds(await ask(writers, *map(spend, users)))) == {Outcome}
        assert address.shards.map == QUARTERS
        # From now on everything follows the new map.
        before = await transactions(database)
        assert set(kinds(await ask(writers, *map(spend, users)))) == {Outcome}
        assert await transactions(database) == before + len(QUARTERS.starts)
    assert not await database.faults()


async def test_the_map_is_read_again_and_again(database):
    address = Address(database.service_url)
    pool = ReadPool(address, 1)
    await pool.open()
    following = asyncio.create_task(follow_shards(pool, address.shards, every_seconds=0.01))
    try:
        for layout in (HALVES, QUARTERS, HALVES):
            await lay_out(database, layout)
            await eventually(lambda layout=layout: address.shards.map == layout)
        # While the catalog is wrong, the last map stays, and reading goes on.
        await database.execute("DELETE FROM pg_dist_placement WHERE shardid = 1")
        await asyncio.sleep(0.05)
        assert address.shards.map == HALVES
        await lay_out(database, QUARTERS)
        await eventually(lambda: address.shards.map == QUARTERS)
    finally:
        following.cancel()
        await pool.close()


async def test_a_commit_that_a_worker_has_not_answered_is_lost_although_citus_says_commit(database):
    await lay_out(database, QUARTERS)
    user_id = await user_on(database, QUARTERS, 1)
    await database.execute(
        "CREATE FUNCTION warn() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
        " RAISE WARNING 'failed to commit transaction on worker:5432'; RETURN NULL; END $$;"
        " CREATE CONSTRAINT TRIGGER warn AFTER INSERT ON credit_transactions"
        " DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION warn()"
    )
    address, command = await knowing(database.service_url), spend(user_id)
    with closing(Transactions(writer_settings(database.service_url, address=address))) as writer:
        with pytest.raises(CommitLostError) as lost:
            await writer.run([command], Way(expiries=1))
        # This time it was committed, as the key shows.
        again = await writer.run([command], Way(expiries=1, lost=lost.value.entries))
    assert [answer.replayed for answer in again] == [False]
    assert await written(database, command) == 1
