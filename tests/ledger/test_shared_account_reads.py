"""Reads of accounts share statements: what they show, and which may disturb which."""

import asyncio
import re
from uuid import uuid4

import grpc
import pytest
from kit.commands import LATER, grant, lanes, reading, spend, submit
from kit.fault_proxy import Kind
from kit.rule_tables import TERMS
from kit.services import running, server_settings
from kit.shard_catalog import QUARTERS, lay_out, user_on
from kit.waiting import patience

from credit_service.database.postgres import Address
from credit_service.errors import LedgerUnavailable, UserNotFound
from credit_service.ledger import store
from credit_service.ledger.read_connections import ReadPool
from credit_service.ledger.reads import Reads
from credit_service.v1 import credit_service_pb2 as pb
from credit_service.v1 import credit_service_pb2_grpc as pb_grpc

READ = "^" + re.escape(store.SQL["changed_accounts"].splitlines()[0])


@pytest.fixture
async def client(proxy):
    async with running(server_settings(proxy.url)) as service:
        yield await service.client(deadline_seconds=patience(20))


async def held_up(client, proxy, user_id):
    """A read that hangs in the database, and a count of those that follow it."""
    held, following = proxy.on(READ, Kind.HOLD), proxy.on(READ, Kind.HOLD, nth=10**9)
    first = asyncio.create_task(client.get_user_credit(user_id))
    await held.met.wait()
    return first, held, following


async def arrived(client):
    """Returns when the server has received the calls that were begun before."""
    await asyncio.sleep(0)
    await client.list_prices()


async def changes(reads, users):
    """The changed accounts among those of `users`, none of which was seen before."""
    changed = []
    await reads.changes(dict.fromkeys(users), changed.append)
    return [account.user_id for account in changed]


async def test_users_of_other_nodes_are_read_while_a_node_is_silent(proxy, database):
    await lay_out(database, QUARTERS)
    here, neighbour, other = [await user_on(database, QUARTERS, shard) for shard in (0, 2, 1)]
    silent = proxy.on(READ, Kind.HOLD)
    async with reading(proxy.url) as reads:
        await reads.now()  # the first connection reads the map
        waiting = [reads.account(here)]
        await silent.met.wait()
        waiting.append(reads.account(neighbour))
        assert (await reads.account(other)).user_id == other
        assert not any(answer.done() for answer in waiting)
        silent.release()
        assert [each.user_id for each in await asyncio.gather(*waiting)] == [here, neighbour]


async def test_a_node_that_is_away_leaves_the_changes_of_other_nodes(proxy, database):
    await lay_out(database, QUARTERS)
    users = [await user_on(database, QUARTERS, shard) for shard in (0, 1)]
    async with reading(proxy.url) as reads:
        await reads.now()
        proxy.on(READ, Kind.CUT_BEFORE)
        assert len(await changes(reads, users)) == 1
        assert set(await changes(reads, users)) == set(users)
        proxy.on(READ, Kind.CUT_BEFORE, times=2)
        with pytest.raises(LedgerUnavailable):
            await changes(reads, users)


async def test_changes_of_other_nodes_are_reported_while_a_node_is_silent(proxy, database):
    await lay_out(database, QUARTERS)
    users = [await user_on(database, QUARTERS, shard) for shard in (0, 1)]
    told = asyncio.Queue()
    async with reading(proxy.url) as reads:
        await reads.now()
        silent = proxy.on(READ, Kind.HOLD)
        reading_on = asyncio.create_task(reads.changes(dict.fromkeys(users), told.put_nowait))
        await silent.met.wait()
        async with asyncio.timeout(patience(2)):
            first = await told.get()
        assert not reading_on.done()
        silent.release()
        await reading_on
        assert {first.user_id, told.get_nowait().user_id} == set(users)


async def test_a_failure_on_one_node_loses_no_changes_of_another(proxy, database):
    await lay_out(database, QUARTERS)
    users = [await user_on(database, QUARTERS, shard) for shard in (0, 1)]
    told = []

    def take(account):
        told.append(account.user_id)
        if len(told) == 1:
            raise ValueError

    async with reading(proxy.url) as reads:
        await reads.now()
        with pytest.raises(ValueError):
            await reads.changes(dict.fromkeys(users), take)
    assert set(told) == set(users)


async def test_reads_that_are_asked_for_during_a_read_share_the_next_one(proxy, database):
    users = [await database.user(credits_) for credits_ in range(1, 6)]
    held, statements = proxy.on(READ, Kind.HOLD), proxy.on(READ, Kind.HOLD, nth=10**9)
    async with reading(proxy.url) as reads:
        first = reads.account(users[0])
        await held.met.wait()
        asked = [reads.account(users[n % 5]) for n in range(20)]
        held.release()
        assert (await first).balance == 1
        assert [account.balance for account in await asyncio.gather(*asked)] == [1, 2, 3, 4, 5] * 4
    assert statements.seen == 2


async def test_a_read_shows_writes_committed_before_the_request(client, proxy, database):
    user_id = await database.user(10)
    first, held, _ = await held_up(client, proxy, user_id)
    async with lanes(database.service_url) as clerk:
        await asyncio.gather(*submit(clerk, spend(user_id, 4)))
    after = asyncio.create_task(client.get_user_credit(user_id))
    await arrived(client)
    held.release()
    await first
    assert (await after).balance == 6


async def test_an_unknown_user_spoils_no_other_read(client, proxy, database):
    user_id, without_account = await database.user(10), await database.user(0)
    first, held, _ = await held_up(client, proxy, user_id)
    asked = [
        asyncio.create_task(client.get_user_credit(each))
        for each in (uuid4(), without_account, user_id)
    ]
    await arrived(client)
    held.release()
    await first
    unknown, empty, known = await asyncio.gather(*asked, return_exceptions=True)
    assert isinstance(unknown, UserNotFound)
    assert (empty.balance, known.balance) == (0, 10)


async def test_a_caller_who_goes_away_ends_no_other_read(client, proxy, database):
    user_id = await database.user(10)
    first, held, _ = await held_up(client, proxy, user_id)
    gone, stays = (asyncio.create_task(client.get_user_credit(user_id)) for _ in range(2))
    await arrived(client)
    first.cancel()
    gone.cancel()
    await asyncio.wait({first, gone})
    held.release()
    assert (await stays).balance == 10
    assert (await client.get_user_credit(user_id)).balance == 10


async def test_a_caller_who_waits_for_a_read_that_fails_gets_the_failure_at_once(proxy, database):
    request = pb.GetUserCreditRequest(user_id=str(await database.user(10)))
    never_again = (("grpc.enable_retries", 0),)
    async with (
        running(server_settings(proxy.url)) as service,
        grpc.aio.insecure_channel(service.target, never_again) as channel,
    ):
        stub = pb_grpc.CreditServiceStub(channel)
        held, reads = proxy.on(READ, Kind.HOLD), proxy.on(READ, Kind.HOLD, nth=10**9)
        first = asyncio.ensure_future(stub.GetUserCredit(request))
        await held.met.wait()
        second = asyncio.ensure_future(stub.GetUserCredit(request))
        await stub.ListPrices(pb.ListPricesRequest())
        proxy.cut_all()
        answers = await asyncio.gather(first, second, return_exceptions=True)
        assert [answer.code().name for answer in answers] == ["UNAVAILABLE", "UNAVAILABLE"]
        assert reads.seen == 1
        proxy.forget()
        assert (await stub.GetUserCredit(request)).credit.balance == 10


@pytest.mark.parametrize("with_grants", [False, True], ids=["pools", "grants"])
async def test_accounts_that_take_longer_than_a_statement_may_are_read_in_smaller_parts(
    database, with_grants
):
    users = [await database.user(number) for number in range(1, 101)]
    if with_grants:
        async with lanes(database.service_url) as clerk:
            await asyncio.gather(*submit(clerk, *(grant(user, life=LATER) for user in users)))
    await database.execute(
        "CREATE FUNCTION dawdle(uuid) RETURNS boolean LANGUAGE plpgsql AS"
        " $$ BEGIN PERFORM pg_sleep(0.005); RETURN true; END $$"
    )
    await database.execute(
        f"ALTER ROLE credit_service IN DATABASE {database.name} SET statement_timeout = '300ms'"
    )
    await database.execute("CREATE POLICY slow ON user_credits USING (dawdle(user_id))")
    await database.execute("ALTER TABLE user_credits ENABLE ROW LEVEL SECURITY")
    pool = ReadPool(Address(database.service_url), 4)
    await pool.open()
    try:
        reads = Reads(pool, pool, TERMS)
        accounts = await asyncio.gather(*(reads.account(user_id) for user_id in users))
        assert [account.balance for account in accounts] == [
            number + with_grants for number in range(1, 101)
        ]
        assert set(await changes(reads, users)) == set(users)
    finally:
        await pool.close()
