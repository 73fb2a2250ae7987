"""Connections for reads: idle ones are used again, and broken ones are not."""

import asyncio

import asyncpg
import pytest
from kit.waiting import eventually

from credit_service.database.postgres import Address
from credit_service.errors import LedgerUnavailable
from credit_service.ledger.read_connections import ReadPool, StatementOutdatedError


@pytest.fixture
async def pool(database):
    """A pool of one connection."""
    pool = ReadPool(Address(database.service_url), 1)
    await pool.open()
    yield pool
    await pool.close()


async def backend(pool):
    async with pool.lend() as connection:
        return await connection.fetchval("SELECT pg_backend_pid()")


async def test_a_connection_is_lent_again_and_counts_as_idle_meanwhile(pool):
    first = await backend(pool)
    assert (pool.count(), pool.idle()) == (1, 1)
    async with pool.lend() as connection:
        assert await connection.fetchval("SELECT pg_backend_pid()") == first
        assert (pool.count(), pool.idle()) == (1, 0)


async def test_a_reader_that_waits_gets_the_connection_before_later_ones(pool):
    served = []

    async def read(name):
        async with pool.lend():
            served.append(name)

    async with pool.lend():
        waiting = asyncio.create_task(read("waiting"))
        await eventually(lambda: pool._waiting)
    await asyncio.gather(waiting, read("later"))
    assert served == ["waiting", "later"]


async def test_a_connection_that_broke_while_idle_is_replaced(pool, database):
    broken = await backend(pool)
    owner = await database.connect()
    try:
        assert await owner.fetchval("SELECT pg_terminate_backend($1)", broken)
    finally:
        await owner.close()

    async def replaced():
        try:
            return await backend(pool) != broken
        except LedgerUnavailable:
            # The pool had not seen the end yet.
            return False

    await eventually(replaced, every=0.01)
    assert pool.count() == 1


async def test_a_connection_is_lent_only_after_the_statement_of_a_caller_who_left_has_ended(pool):
    async def read():
        async with pool.lend() as connection:
            await connection.execute("SELECT pg_sleep(60)")

    reading = asyncio.create_task(read())
    await eventually(lambda: pool.count() == 1 and pool.idle() == 0)
    reading.cancel()
    await asyncio.wait([reading])
    assert await backend(pool)


async def test_a_block_that_leaves_a_transaction_open_gives_back_a_clean_connection(pool):
    async with pool.lend() as connection:
        await connection.execute("BEGIN")
    async with pool.lend() as connection:
        assert not connection.is_in_transaction()


async def test_nothing_is_lent_from_a_server_that_became_read_only(pool, database):
    first = await backend(pool)
    async with pool.lend() as connection:
        # Like a pooler that now leads to a standby.
        await connection.execute("SET default_transaction_read_only = on")
    assert not await pool.check()
    with pytest.raises(LedgerUnavailable):
        await backend(pool)
    assert await pool.check()
    assert await backend(pool) != first


async def test_a_closed_pool_lends_nothing(pool):
    await backend(pool)
    await pool.close()
    with pytest.raises((LedgerUnavailable, StatementOutdatedError, asyncpg.InterfaceError)):
        await backend(pool)
