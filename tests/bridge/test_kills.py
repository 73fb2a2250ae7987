"""Bridge, service, database and fake Stripe as separate processes, each killed in turn."""

import asyncio
import random
import shutil
import signal
import tempfile
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path

import pytest
from kit.clusters import Cluster
from kit.extent import extent
from kit.http_clients import http_client
from kit.programs import free_port, process
from kit.stripe_fakes import (
    FakeStripe,
    bought,
    bridge_process,
    fake_stripe_process,
)
from kit.stripe_lives import booked
from kit.waiting import eventually, patience
from model.stripe import Payment

from credit_service.database import migrations

VICTIMS = ("bridge", "service", "database", "stripe")
CREDITS, AMOUNT = 100, 900


class Town:
    """The four processes, each at an address that it keeps after a restart."""

    def __init__(self, directory):
        self.cluster = Cluster(directory)
        self.fake = None
        self._kept = directory / "stripe"
        self._ports = {name: free_port() for name in ("stripe", "service", "bridge")}
        self._processes = {}
        self._stack = ExitStack()

    async def start(self, name):
        await asyncio.to_thread(self._start, name)

    def _start(self, name):
        match name:
            case "database":
                self.cluster.start()
            case "service":
                url = self.cluster.database.service_url
                listen = self._address("service")
                made = process("serve", CREDIT_DATABASE_URL=url, CREDIT_LISTEN=listen)
                self._begun(name, self._stack.enter_context(made)).wait_until_listening()
            case "bridge":
                stripe = f"http://{self._address('stripe')}"
                made = bridge_process(stripe, self._address("service"), port=self._ports[name])
                self._begun(name, self._stack.enter_context(made)).wait_until_listening()
            case "stripe":
                arguments = ("--port", str(self._ports[name]), "--keep", str(self._kept))
                made = fake_stripe_process(*arguments)
                self._stack.callback(made.close)
                self._begun(name, made).wait_for("fake stripe on")

    def _begun(self, name, made):
        self._processes[name] = made
        return made

    def _address(self, name):
        return f"127.0.0.1:{self._ports[name]}"

    async def kill(self, name):
        if name == "database":
            await asyncio.to_thread(self.cluster.kill)
            return
        self._processes[name].signal(signal.SIGKILL)
        await asyncio.to_thread(self._processes[name].wait)

    @asynccontextmanager
    async def opened(self):
        """Starts all of them, and ends all of them."""
        try:
            await asyncio.gather(self.start("database"), self.start("stripe"))
            url = self.cluster.database.owner_url
            await migrations.migrate(url, "credit_service", lambda _line: None)
            await asyncio.gather(self.start("service"), self.start("bridge"))
            address = f"http://{self._address('stripe')}"
            async with http_client(base_url=address, timeout=patience(30)) as http:
                self.fake = FakeStripe(address, self._processes["stripe"], http)
                await self.fake.deliver_to(f"http://{self._address('bridge')}/stripe/webhooks")
                yield self
        finally:
            for each in self._processes.values():
                each.signal(signal.SIGKILL)
            await asyncio.to_thread(self._stack.close)
            await asyncio.to_thread(self.cluster.stop)


@pytest.fixture
def directory():
    made = Path(tempfile.mkdtemp(prefix="credit-town-"))
    made.chmod(0o755)  # if root runs this, the database runs as `nobody`
    yield made
    shutil.rmtree(made)


@pytest.fixture
async def town(directory):
    async with Town(directory).opened() as opened:
        yield opened


async def sell(fake, users, refunded=()):
    """Sells to each of the users and refunds a third of earlier payments, all at once."""
    made = await fake.batch(
        *(("purchase", bought(user, CREDITS, AMOUNT)) for user in users),
        *(
            ("refund", {"payment": each.ref.removeprefix("stripe:"), "amount": AMOUNT // 3})
            for each in refunded
        ),
    )
    for each, refund in zip(refunded, made[len(users) :], strict=True):
        each.refunds[refund["id"]] = AMOUNT // 3
    refs = [f"stripe:{each['payment_intent']}" for each in made[: len(users)]]
    return [
        Payment(ref, user, CREDITS, AMOUNT, paid=True)
        for ref, user in zip(refs, users, strict=True)
    ]


def should_be(payments):
    return {each.ref: each.credits_left for each in payments}


async def test_every_payment_is_credited_once_if_any_process_is_killed_during_deliveries(town):
    database, payments = town.cluster.database, []
    free, stuck = await database.user(1), await database.user(1)
    for victim in VICTIMS:
        done = len(await booked(database))
        async with database.locked(stuck):
            payments += await sell(town.fake, [free, stuck] * 6, payments[-8:-4])

            # Calls on the locked account are then in flight.
            async def in_the_middle(done=done):
                return len(await booked(database)) > done

            await eventually(in_the_middle)
            await town.kill(victim)
        await town.start(victim)
        await town.fake.idle()
        assert await booked(database) == should_be(payments), victim
    assert not await database.faults()


@pytest.mark.long
@pytest.mark.timeout(600)
async def test_every_payment_is_credited_once_despite_repeated_kills_at_random_moments(town):
    database, payments, lots = town.cluster.database, [], random.Random()
    users = [await database.user(1) for _ in range(6)]
    await town.fake.faults(delay=1.0, delay_seconds=1.0, duplicate=0.2, reorder=0.5)
    for _ in range(extent(2, 4)):
        for victim in lots.sample(VICTIMS, len(VICTIMS)):
            unrefunded = [each for each in payments if not each.refunds]
            refunded = lots.sample(unrefunded, min(5, len(unrefunded)))
            buyers = [lots.choice(users) for _ in range(20)]
            payments += await sell(town.fake, buyers, refunded)
            await asyncio.sleep(lots.uniform(0, 1.2))
            await town.kill(victim)
            # Sometimes longer than any caller waits for an answer.
            await asyncio.sleep(lots.choice([0, 0, 1, 9]))
            await town.start(victim)
        await town.fake.idle(60)
        assert await booked(database) == should_be(payments)
    assert not await database.faults()
