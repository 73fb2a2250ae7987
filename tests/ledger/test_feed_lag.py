"""How far the feed is behind, and what holds it up: metrics and the log."""

from contextlib import asynccontextmanager

from kit.commands import ask, lanes, spend
from kit.waiting import eventually
from prometheus_client import REGISTRY
from structlog.testing import capture_logs

from credit_service.database.postgres import Address
from credit_service.ledger import feed_lag
from credit_service.ledger.feed_lag import FeedLag
from credit_service.ledger.read_connections import ReadPool


@asynccontextmanager
async def measuring(url):
    pool = ReadPool(Address(url), 1)
    await pool.open()
    try:
        yield FeedLag(pool)
    finally:
        await pool.close()


def metric(name):
    return REGISTRY.get_sample_value(f"credit_feed_{name}")


async def test_entries_that_wait_for_an_open_transaction_are_counted_and_it_is_named(
    make_database, monkeypatch
):
    monkeypatch.setattr(feed_lag, "LATE_SECONDS", -1.0)
    database, elsewhere = await make_database(), await make_database()
    user_id = await database.user(10)
    holder = await elsewhere.connect()
    await holder.execute("BEGIN")
    await holder.execute("SELECT pg_current_xact_id()")
    async with (
        lanes(database.service_url) as clerk,
        measuring(database.service_url) as lag,
    ):
        await ask(clerk, spend(user_id), spend(user_id))

        async def named():
            with capture_logs() as lines:
                await FeedLag(lag._pool).measure()
            return [line for line in lines if line.get("pid") == holder.get_server_pid()]

        # An older transaction may be that of another test.
        [line] = await eventually(named)
        assert line["database"] == elsewhere.name
        assert line["event"] == "the feed waits for a transaction that is still open"
        assert metric("waiting_entries") == 2
        assert metric("lag_seconds") > 0
        assert metric("standing") == 0
        await holder.execute("COMMIT")

        async def caught_up():
            await lag.measure()
            return metric("waiting_entries") == 0

        await eventually(caught_up)
    await holder.close()


async def test_a_stopped_feed_is_logged_once_a_minute_and_once_when_it_goes_on(database):
    user_id = await database.user(10)
    async with lanes(database.service_url) as clerk, measuring(database.service_url) as lag:
        await database.execute("UPDATE credit_feed SET system_identifier = 7")
        await ask(clerk, spend(user_id))
        with capture_logs() as lines:
            await lag.measure()
            await lag.measure()
        [line] = lines
        assert "credit-service feed advance" in line["event"]
        assert metric("standing") == 1
        assert metric("waiting_entries") == 1
        await database.execute(
            "UPDATE credit_feed SET feed_offset = base, system_identifier ="
            " server_system_identifier FROM credit_feed_numbers AS numbers"
        )
        with capture_logs() as lines:
            await eventually(lambda: goes_on(lag))
        assert [line["event"] for line in lines if line["log_level"] == "info"] == [
            "the feed goes on"
        ]
        assert metric("standing") == 0


async def goes_on(lag):
    await lag.measure()
    return metric("waiting_entries") == 0
