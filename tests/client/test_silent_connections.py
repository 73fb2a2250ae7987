"""A connection that has gone silent, without an end, is given up after 15 seconds."""

import asyncio

import pytest
from kit.silent_proxy import silent_proxy
from kit.waiting import eventually, patience

from credit_service.client import CreditClient

# Longer than 15 seconds, and shorter than the 89 that gRPC takes by default.
DEADLINE_SECONDS = 60


@pytest.fixture
async def silenced(service):
    async with silent_proxy(service.port) as proxy:
        yield proxy


async def test_a_call_on_a_silent_connection_is_made_again_on_another(database, silenced):
    user_id = await database.user(10)
    async with CreditClient(silenced.target, deadline_seconds=DEADLINE_SECONDS) as client:
        await client.list_prices()
        silenced.go_silent()
        spent = await client.spend_credits(user_id, amount=1, idempotency_key="k")
        assert spent.credit.balance == 9
        assert silenced.given_up == 1
    assert not await database.faults()


# gRPC sends a ping with the first answers, so a connection must have been quiet for a while to show
# that it keeps sending them.
QUIET_SECONDS = 40


@pytest.mark.long
async def test_a_silent_connection_is_given_up_while_no_call_runs(silenced):
    async with CreditClient(silenced.target) as client:
        await client.list_prices()
        await asyncio.sleep(QUIET_SECONDS)
        silenced.go_silent()
        await eventually(lambda: silenced.given_up, seconds=15)
        assert len((await client.list_prices()).prices) == 2


@pytest.mark.long
async def test_a_watcher_notices_the_silence_of_a_connection_that_was_quiet_for_long(
    database, silenced, client
):
    """A watcher sends nothing, and gRPC by itself sends only two pings while nothing is sent."""
    user_id = await database.user(10)
    async with CreditClient(silenced.target) as watching:
        changes = watching.watch_user_credit(user_id)
        assert (await anext(changes)).balance == 10
        await asyncio.sleep(QUIET_SECONDS)
        silenced.go_silent()
        await client.spend_credits(user_id, amount=1)
        async with asyncio.timeout(patience(15)):
            assert (await anext(changes)).balance == 9
        await changes.aclose()
