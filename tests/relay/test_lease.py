"""The lease: one process sends, another takes over, and the first can then write nothing more."""

import asyncio
from contextlib import asynccontextmanager

import pytest
from kit.waiting import eventually, patience

from credit_service.database.postgres import Address
from credit_service.ledger.read_connections import ReadPool
from credit_service.relay import store
from credit_service.relay.lease import Lease, LeaseLostError, Reader
from credit_service.rules.feed_values import BEGINNING, Place


@asynccontextmanager
async def pool_of(database):
    pool = ReadPool(Address(database.service_url), 2)
    await pool.open()
    try:
        yield pool
    finally:
        await pool.close()


@pytest.fixture
async def pool(database):
    async with pool_of(database) as made:
        yield made


async def test_of_many_simultaneous_requests_one_gets_the_lease(database):
    async with pool_of(database) as one, pool_of(database) as two:
        found = await asyncio.gather(*(Lease.take(pool, "x") for pool in (one, two) * 10))
    assert sum(lease is not None for lease in found) == 1


async def test_a_lease_that_is_returned_is_free_at_once(pool):
    first = await Lease.take(pool, "first")
    assert await Lease.take(pool, "second") is None
    await first.give_back()
    second = await Lease.take(pool, "second")
    assert second.fence > first.fence
    async with pool.lend() as connection:
        holder = await store.show_lease(connection)
    assert (holder.name, holder.fence) == ("second", second.fence)
    assert holder.seconds > 0


async def test_a_lease_that_is_renewed_outlives_its_length(pool):
    lease = await Lease.take(pool, "first", patience(1))
    keeping = asyncio.create_task(lease.keep())
    await asyncio.sleep(patience(1.5))
    assert not keeping.done()
    assert await Lease.take(pool, "second") is None
    keeping.cancel()
    await asyncio.wait({keeping})


async def test_a_lease_that_runs_out_is_taken_over_and_the_old_holder_is_stopped(pool):
    first = await Lease.take(pool, "first", 0.2)

    async def taken():
        return await Lease.take(pool, "second")

    second = await eventually(taken)
    assert second.fence == first.fence + 1
    with pytest.raises(LeaseLostError):
        await first.keep()


async def test_a_lease_is_given_up_before_it_runs_out_while_the_database_is_away(pool):
    lease = await Lease.take(pool, "first", patience(1))
    await pool.close()
    with pytest.raises(LeaseLostError):
        await lease.keep()


async def test_a_reader_keeps_its_cursor_and_never_goes_back(pool):
    reader = await Reader.claim(pool, "webhook/a", 1, BEGINNING)
    assert reader.place == BEGINNING
    async with reader.writing() as connection:
        await reader.move(connection, Place(7, number=3))
    async with reader.writing() as connection:
        await reader.move(connection, Place(7, number=2))
    assert reader.place == Place(7, number=3)
    again = await Reader.claim(pool, "webhook/a", 2, Place(100))
    assert again.place == Place(7, number=3)


async def test_after_a_takeover_the_old_process_writes_nothing_more(pool):
    old = await Reader.claim(pool, "webhook/a", 1, BEGINNING)
    new = await Reader.claim(pool, "webhook/a", 2, BEGINNING)
    with pytest.raises(LeaseLostError):
        async with old.writing() as connection:
            await old.move(connection, Place(9))
    with pytest.raises(LeaseLostError):
        await Reader.claim(pool, "webhook/a", 1, BEGINNING)
    assert (await Reader.claim(pool, "webhook/a", 2, BEGINNING)).place == BEGINNING
    async with new.writing() as connection:
        await new.move(connection, Place(1))


async def test_writes_with_a_cursor_are_committed_together_with_it_or_not_at_all(pool):
    reader = await Reader.claim(pool, "webhook/a", 1, BEGINNING)

    async def fail():
        async with reader.writing() as connection:
            await reader.move(connection, Place(9))
            raise RuntimeError

    with pytest.raises(RuntimeError):
        await fail()
    assert (await Reader.claim(pool, "webhook/a", 1, BEGINNING)).place == BEGINNING
