"""A bridge that charges top-ups is killed at each request that changes something at Stripe."""

import asyncio
import signal
from contextlib import ExitStack

import pytest
from kit.extent import extent
from kit.top_up_stage import AMOUNT, CREDITS, DECLINING, charging_bridge
from kit.waiting import eventually

from credit_service.v1 import credit_service_pb2 as pb

OPEN, SUCCEEDED = pb.TOP_UP_STATE_OPEN, pb.TOP_UP_STATE_SUCCEEDED

# Before Stripe carries out the request, and after.
MOMENTS = ("hang", "late_answer")

# The requests: intent made, confirmed.
PAID = [(moment, place) for moment in MOMENTS for place in range(2)]

# Intent made, confirmed, link made, link recorded; then twice: link closed, confirmed, link made,
# link recorded; and cancelled.
DECLINED = [(moment, place) for moment in MOMENTS for place in range(13)]


class Bridge:
    """The process of a bridge, which is killed and started again."""

    def __init__(self, stage, catalog):
        self._stage = stage
        self._catalog = catalog
        self._stack = ExitStack()
        self._process = None

    async def start(self):
        def started():
            self._process = self._stack.enter_context(charging_bridge(self._stage, self._catalog))

        await asyncio.to_thread(started)

    async def kill_at(self, fault):
        """Kills it after a request has met the fault."""
        name = f"api_{fault['kind']}"
        before = (await self._stage.fake.counts())["faults"].get(name, 0)
        await self._stage.fake.api_faults({**fault, "method": "POST", "count": 1, "seconds": 30})

        async def struck():
            return (await self._stage.fake.counts())["faults"].get(name, 0) > before

        return struck

    async def kill(self):
        self._process.signal(signal.SIGKILL)
        await asyncio.to_thread(self._process.wait)
        await self._stage.fake.api_faults()

    async def close(self):
        await asyncio.to_thread(self._stack.close)


@pytest.fixture
async def process(stage, tmp_path):
    made = Bridge(stage, tmp_path / "packs.toml")
    await made.start()
    yield made
    await made.close()


async def killed(stage, process, user, moment, place):
    """Lets the user need a top-up, and kills the bridge in the middle; returns the request."""
    struck = await process.kill_at({"kind": moment, "skip": place})
    asked = await stage.asked(user)
    await eventually(struck)
    await process.kill()
    return asked


async def closed(stage, user):
    async def is_closed():
        return (await stage.request(user)).state != OPEN

    await eventually(is_closed)
    return await stage.request(user)


@pytest.mark.timeout(300)
async def test_killed_at_any_moment_of_a_charge_the_customer_pays_once(stage, process):
    for moment, place in PAID:
        user = await stage.user()
        asked = await killed(stage, process, user, moment, place)
        await process.start()
        assert (await closed(stage, user)).state == SUCCEEDED, (moment, place)
        assert await stage.paid(asked.id) == [AMOUNT], (moment, place)
        assert len(await stage.intents(asked.id)) == 1, (moment, place)
        assert await stage.balance(user) == 40 + CREDITS, (moment, place)


@pytest.mark.timeout(600)
@pytest.mark.parametrize("then", ["nothing", "another card", "pays by the link"])
async def test_killed_at_any_moment_of_a_decline_the_customer_pays_once_at_most(
    stage, process, then
):
    for moment, place in extent(DECLINED[2::9], DECLINED):
        user = await stage.user(DECLINING)
        asked = await killed(stage, process, user, moment, place)
        if then == "another card":
            await stage.save_card(user)
        if then == "pays by the link":
            # Only by a link that the customer was given.
            link = (await stage.request(user)).link
            for session in await stage.sessions(asked.id):
                if session["url"] == link and session["status"] == "open":
                    await stage.fake.pay_session(session["id"])
        await process.start()
        done = await closed(stage, user)
        await stage.reconcile()
        paid = await stage.paid(asked.id)
        assert len(paid) <= 1, (moment, place)
        assert await stage.balance(user) == 40 + CREDITS * len(paid), (moment, place)
        if then == "nothing":
            assert (done.state, paid) == (pb.TOP_UP_STATE_FAILED, []), (moment, place)
        for intent in await stage.intents(asked.id):
            assert intent["status"] in ("succeeded", "canceled"), (moment, place)
