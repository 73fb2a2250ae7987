"""A caller that is cancelled at the moment when calls are sent does not affect the others."""

import asyncio

import pytest
from kit.call_proxy import call_proxy
from kit.waiting import eventually, patience

from credit_service.client import CreditClient


@pytest.fixture
async def proxy(service):
    async with call_proxy(service.target) as running_proxy:
        yield running_proxy


@pytest.mark.parametrize("others", [0, 1, 3])
async def test_a_call_that_is_cancelled_before_it_is_sent_is_not_sent(database, proxy, others):
    user_ids = [await database.user(10) for _ in range(others + 2)]
    problems = []
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _loop, context: problems.append(context))
    options = {"coalesce": True, "deadline_seconds": patience(10)}
    async with CreditClient(proxy.target, **options) as client:
        proxy.flowing.clear()
        first = asyncio.create_task(client.spend_credits(user_ids[0], amount=1))
        await eventually(lambda: proxy.received, every=0.01)
        leaver, *stayers = [
            asyncio.create_task(client.spend_credits(user_id, amount=1)) for user_id in user_ids[1:]
        ]
        # Now each has put its call into the queue, and nothing has been sent.
        await asyncio.sleep(0)
        leaver.cancel()
        proxy.flowing.set()
        await asyncio.gather(first, *stayers)
        with pytest.raises(asyncio.CancelledError):
            await leaver
        assert (await client.get_user_credit(user_ids[1])).balance == 10
    assert not problems
    assert not await database.faults()
