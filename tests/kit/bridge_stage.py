"""Stripe, the bridge, the credit service and its database, put together as in production.

The tests of a module share a stage, and each makes its own users and payments.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from uuid import UUID

import grpc
import httpx
from kit.bridges import Bridge, bridge_settings, running_bridge
from kit.databases import Database
from kit.services import Service
from kit.stripe_fakes import SECRET, FakeStripe
from kit.waiting import eventually
from prometheus_client import REGISTRY

from credit_service.client import CreditClient
from stripe_bridge.catalog import Catalog, Listed, Policy
from stripe_bridge.server import CreditService
from stripe_bridge.settle import EVENT_TYPES, Settler
from stripe_bridge.stripe_api import STRIPE_VERSION, StripeReads

STARTER, MONTHLY = "price_starter", "price_monthly"
POLICY = Policy(catalog=Catalog(by_price={STARTER: Listed(100), MONTHLY: Listed(30)}))


@dataclass
class Stage:
    """All the parts. Stripe loses its events until `delivering`, and a test posts them itself."""

    database: Database
    service: Service
    client: CreditClient
    fake: FakeStripe
    api: httpx.AsyncClient
    reads: StripeReads
    bridge: Bridge
    endpoint: str

    async def user(self, credits_: int = 0) -> UUID:
        return await self.database.user(credits_)

    async def users(self, count: int) -> list[UUID]:
        async with self.database.kept_open() as database:
            return [await database.user() for _ in range(count)]

    async def balance(self, user_id: UUID) -> int:
        return (await self.client.get_user_credit(user_id)).balance

    async def entries(self, user_id: UUID) -> list[int]:
        """The change of balance of each entry of the account, oldest first."""
        rows = await self.database.fetch(
            "SELECT balance_change FROM credit_transactions WHERE user_id = $1 ORDER BY seq",
            user_id,
        )
        return [row[0] for row in rows]

    async def events(self, *ids: str) -> list[dict]:
        """The events about these objects that the bridge subscribes to, oldest first."""
        listed = [each for id_ in ids for each in await self.fake.events(object=id_)]
        return [await self.event(each["id"]) for each in listed if each["type"] in EVENT_TYPES]

    async def event(self, id_: str) -> dict:
        """An event as Stripe's API shows it."""
        return (await self.api.get(f"/v1/events/{id_}")).json()

    async def tell(self, *events: dict, bridge: Bridge | None = None) -> list[tuple[int, str]]:
        """Posts events, one after the other; returns status and reason of each answer."""
        answers = []
        for event in events:
            answer = await (bridge or self.bridge).deliver(event)
            said = answer.json()
            answers.append((answer.status_code, (said.get("error") or said)["reason"]))
        return answers

    async def bought(self, user_id: UUID, credits_: int = 100, amount: int = 900) -> str:
        """Sells credits and delivers the events; returns the id of the payment intent."""
        paid = await self.fake.purchase(user_id, credits_, amount)
        answers = await self.tell(*await self.events(paid))
        assert answers == [(200, "purchase")]
        return paid

    async def refused_once(self) -> None:
        """Waits until the service has given up waiting for a lock; the bridge then retries."""
        labels = {
            "method": "PurchaseCredits",
            "code": "UNAVAILABLE",
            "reason": "LEDGER_UNAVAILABLE",
        }

        def refusals() -> float:
            return REGISTRY.get_sample_value("credit_calls_total", labels) or 0

        before = refusals()
        await eventually(lambda: refusals() > before)

    async def delivering(self, **pace: object) -> None:
        """From now on Stripe delivers its events."""
        await self.fake.settings(mode="on", **pace)

    async def statuses(self, about: str) -> list[int | None]:
        """The answers to the deliveries about an object or of an event."""
        return [each["status"] for each in await self.fake.deliveries(object=about)]

    @asynccontextmanager
    async def delivering_to(self, url: str, **pace: object) -> AsyncIterator[None]:
        """Stripe delivers to another address for the length of the block."""
        await self.fake.do("endpoint", id=self.endpoint, url=f"{url}/stripe/webhooks")
        await self.delivering(**pace)
        try:
            yield
        finally:
            await self.calm()

    @asynccontextmanager
    async def another_bridge(self, target: str = "", **changes: object) -> AsyncIterator[Bridge]:
        """Runs one more bridge with other settings; `target` is its credit service."""
        settings = bridge_settings(
            target or self.service.target,
            **{"stripe_address": self.fake.url, "policy": POLICY, **changes},
        )
        async with running_bridge(settings) as bridge:
            yield bridge

    def settler(self, policy: Policy = POLICY) -> Settler:
        return Settler(self.reads, self.client, policy)

    async def calm(self) -> None:
        """Puts Stripe back into its first state."""
        url = f"{self.bridge.http.base_url}/stripe/webhooks"
        await self.fake.do("endpoint", id=self.endpoint, url=url, secrets=[SECRET])
        await self.fake.settings(
            mode="lose",
            api_version=STRIPE_VERSION,
            clock_offset_seconds=0,
            clock_skew_seconds=0,
            retry_seconds=0.05,
            retry_cap_seconds=1.0,
            attempts=1000,
        )
        await self.fake.faults()
        await self.fake.api_faults()


@dataclass(frozen=True, slots=True, kw_only=True)
class Hasty(CreditService):
    """A credit service that gets little time to answer."""

    token: str | None = None
    credentials: grpc.ChannelCredentials | None = None
    deadline_seconds: float = 0.5

    def client(self) -> CreditClient:
        return CreditClient(self.target, deadline_seconds=self.deadline_seconds)


class Line:
    """A line to the credit service that passes calls on and can keep the answers."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._answering = asyncio.Event()
        self._answering.set()
        self._tasks: set[asyncio.Task[None]] = set()
        self.target = ""

    def keep_answers(self) -> None:
        self._answering.clear()

    def pass_answers(self) -> None:
        self._answering.set()

    def accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(self._join(reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _join(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there_reader, there = await asyncio.open_connection("127.0.0.1", self._port)
        try:
            back = asyncio.create_task(self._carry(there_reader, writer, self._answering))
            try:
                await self._carry(reader, there)
            finally:
                back.cancel()
                await asyncio.wait({back})
        finally:
            there.transport.abort()
            writer.transport.abort()

    async def _carry(
        self,
        source: asyncio.StreamReader,
        target: asyncio.StreamWriter,
        gate: asyncio.Event | None = None,
    ) -> None:
        with contextlib.suppress(OSError):
            while chunk := await source.read(1 << 16):
                if gate is not None:
                    await gate.wait()
                target.write(chunk)
                await target.drain()

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


@asynccontextmanager
async def line_to(port: int) -> AsyncIterator[Line]:
    """Runs a line to a port of this machine for the length of the block."""
    line = Line(port)
    listener = await asyncio.start_server(line.accept, "127.0.0.1", 0)
    line.target = f"127.0.0.1:{listener.sockets[0].getsockname()[1]}"
    try:
        yield line
    finally:
        listener.close()
        await line.close()


def counted(name: str, **labels: str) -> float:
    """Reads one of the bridge's counters."""
    return REGISTRY.get_sample_value(f"stripe_bridge_{name}_total", labels) or 0
