"""Many top-ups while bridges are killed, answers are lost and customers pay by hand."""

import asyncio
import random
import signal
from collections import Counter
from contextlib import ExitStack, suppress

import pytest
import stripe
from kit.extent import extent
from kit.programs import free_port
from kit.top_up_stage import AMOUNT, ASKING, DECLINING, charging_bridge
from kit.waiting import eventually

from credit_service.v1 import credit_service_pb2 as pb

OPEN = pb.TOP_UP_STATE_OPEN
USERS = extent(16, 200)
ROUNDS = extent(3, 6)
CARDS = ("pm_card_visa",) * 6 + (DECLINING, DECLINING, ASKING, None)
KEYS_KEPT = 86400

FAULTS = (
    {"kind": "lost_answer", "share": 0.1},
    {"kind": "status", "status": 500, "share": 0.05},
    {"kind": "status", "status": 429, "share": 0.03},
    {"kind": "status", "status": 409, "method": "POST", "share": 0.03},
    {"kind": "cut", "share": 0.05},
    {"kind": "late_answer", "share": 0.05, "seconds": 0.5},
)


class Storm:
    """Two bridges, their faults, and the actions of customers meanwhile."""

    def __init__(self, stage, directory, lots):
        self.stage = stage
        self.lots = lots
        self._catalog = directory / "packs.toml"
        self._ports = [free_port(), free_port()]
        self._processes = [None, None]
        self._stack = ExitStack()
        self.kills = 0
        self.rages = False
        self.acts = False

    async def start(self, which):
        def started():
            # Long enough for some customers to pay by their links before these are closed.
            pause = {"top_up_retry_hours": "0.0003"}
            made = charging_bridge(self.stage, self._catalog, port=self._ports[which], **pause)
            self._processes[which] = self._stack.enter_context(made)

        await asyncio.to_thread(started)

    async def open(self):
        await asyncio.gather(self.start(0), self.start(1))
        await self.stage.fake.deliver_to(f"http://127.0.0.1:{self._ports[0]}/stripe/webhooks")

    async def close(self):
        await asyncio.to_thread(self._stack.close)

    async def kill(self, which):
        self._processes[which].signal(signal.SIGKILL)
        await asyncio.to_thread(self._processes[which].wait)
        self.kills += 1

    async def killing(self):
        """Kills one of the bridges again and again."""
        while self.rages:
            await asyncio.sleep(self.lots.uniform(0.1, 0.8))
            which = self.lots.randrange(2)
            await self.kill(which)
            await self.start(which)

    async def customers(self, users):
        """Customers pay by their links, and banks decline and accept."""
        while self.acts:
            # The faults also strike the test's requests, and a link may expire at this moment.
            with suppress(stripe.StripeError, AssertionError):
                await self._act(self.lots.choice(users))
            await asyncio.sleep(0.005)

    async def _act(self, user):
        request = await self.stage.request(user)
        if request.state == OPEN and request.link and self.lots.random() < 0.3:
            await self.stage.fake.pay_session(request.link.rpartition("/")[2])
        elif self.lots.random() < 0.05:
            await self.stage.save_card(user)

    async def blow(self, users, seconds):
        """For a while all faults strike together; then both bridges close every request."""
        self.rages = self.acts = True
        await self.stage.fake.api_faults(*FAULTS)
        killing = asyncio.create_task(self.killing())
        acting = asyncio.create_task(self.customers(users))
        await asyncio.wait({killing}, timeout=seconds)
        self.rages = False
        await killing
        await self.stage.fake.api_faults()
        await eventually(self._all_are_closed)
        self.acts = False
        await acting

    async def _all_are_closed(self):
        return not [each async for each in self.stage.client.list_top_ups()]


@pytest.fixture
async def storm(stage, tmp_path):
    seed = random.randrange(10**9)
    print(f"seed {seed}")
    made = Storm(stage, tmp_path, random.Random(seed))
    await made.open()
    await stage.fake.faults(duplicate=0.1, delay=0.2, reorder=0.3, lose=0.1, cut_answer=0.05)
    yield made
    await stage.fake.faults()
    await made.close()


async def spend(stage, user):
    """Sets the policy again, so that top-up is on, and spends down to 40 credits.

    Some need more than one pack, so that a second charge for their request would not be refused.
    """
    below = 50 if user.int % 3 == 0 else 1000
    top_up = pb.TopUp(below=below, pack="starter", charges_per_month=1000)
    await stage.client.set_account_policy(user, top_up=top_up)
    left = await stage.balance(user) - 40
    amount = left if left > 0 else 1
    await stage.client.spend_credits(user, amount=amount, idempotency_key=str(random.random()))


async def payments_by_request(stage):
    """The number of payments of each request, by its intents and by its links."""
    paid, linked = Counter(), {}
    sessions = await stage.sdk.v1.checkout.sessions.list_async({"limit": 100})
    async for session in sessions.auto_paging_iter():
        linked[session.payment_intent] = session.to_dict()["metadata"].get("credit_top_up")
    intents = await stage.sdk.v1.payment_intents.list_async({"limit": 100})
    money = 0
    async for intent in intents.auto_paging_iter():
        if intent.status == "succeeded":
            request = intent.to_dict()["metadata"].get("credit_top_up") or linked[intent.id]
            paid[request] += 1
            money += intent.amount_received
    return paid, money


@pytest.mark.timeout(900)
async def test_no_request_is_paid_twice_despite_kills_and_losses(stage, storm):
    database, lots = stage.database, storm.lots
    users = [await stage.user(lots.choice(CARDS), per_month=1000) for _ in range(USERS)]
    for turn in range(ROUNDS):
        # In every second turn Stripe has forgotten all keys.
        await stage.fake.settings(clock_offset_seconds=(turn // 2) * (KEYS_KEPT + 60))
        await asyncio.gather(*(spend(stage, user) for user in users))
        await storm.blow(users, seconds=extent(3, 15))
    await stage.fake.idle(60)
    await stage.reconcile()
    requests = [each for user in users for each in await stage.requests(user)]
    paid, money = await payments_by_request(stage)
    states = Counter(pb.TopUpState.Name(each.state) for each in requests)
    print(f"{len(requests)} requests, {storm.kills} kills, {states}, {sum(paid.values())} paid")
    assert len(requests) >= extent(40, 1000)
    assert set(paid.values()) == {1}
    assert paid.keys() <= {each.id for each in requests}
    for each in requests:
        if each.state == pb.TOP_UP_STATE_SUCCEEDED:
            assert paid[each.id] == 1
    bought = await database.fetch("SELECT payment_ref FROM credit_purchases")
    assert money == AMOUNT * len(bought)
    assert not await database.faults()
