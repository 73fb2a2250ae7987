"""Requests for top-ups of users with saved cards, and rounds of bridges that charge them."""

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import UUID, uuid4

import stripe
from kit.bridges import bridge_settings, running_bridge
from kit.databases import Database
from kit.services import running, server_settings
from kit.stripe_fakes import KEY, FakeStripe, Program, bridge_process, fake_stripe

from credit_service.client import CreditClient
from credit_service.v1 import credit_service_pb2 as pb
from stripe_bridge import server
from stripe_bridge.catalog import Catalog, Policy
from stripe_bridge.reconcile import reconcile
from stripe_bridge.settle import Settler
from stripe_bridge.stripe_api import StripeReads, stripe_client
from stripe_bridge.top_up_payments import TopUpPayments, Wanted
from stripe_bridge.top_ups import TopUps, Worked

BELOW, CREDITS, AMOUNT = 50, 100, 900


def pack_with(*, credits_: int = CREDITS, amount_minor: int = AMOUNT) -> str:
    """A catalogue with the pack that the policies of the tests name."""
    return f"""
[[pack]]
id = "starter"
name = "{credits_} credits"
credits = {credits_}
price = "price_starter"
amount_minor = {amount_minor}
currency = "eur"
"""


POLICY = Policy(catalog=Catalog.parse(pack_with()))
RETURN_URL = "https://app.example.com/credits"
DECLINING = "pm_card_chargeCustomerFail"
ASKING = "pm_card_authenticationRequired"


@asynccontextmanager
async def top_up_stage(database: Database) -> AsyncIterator["TopUpStage"]:
    """Runs a service and a fake Stripe that sells the pack, for the length of the block."""
    async with (
        fake_stripe() as fake,
        running(server_settings(database.service_url)) as service,
    ):
        await fake.price(AMOUNT, id="price_starter", currency="eur")
        yield TopUpStage(database, service.target, await service.client(), fake, fake.sdk())


@dataclass
class TopUpStage:
    """A service and a fake Stripe; a test makes users, spends, and lets bridges work."""

    database: Database
    target: str
    client: CreditClient
    fake: FakeStripe
    sdk: stripe.StripeClient

    async def user(self, card: str | None = "pm_card_visa", *, per_month: int = 100) -> UUID:
        """A user with 100 credits, a top-up policy and, unless `card` is None, a saved card."""
        user_id = await self.database.user(100)
        if card is not None:
            await self.save_card(user_id, card)
        await self.client.set_account_policy(
            user_id, top_up=pb.TopUp(below=BELOW, pack="starter", charges_per_month=per_month)
        )
        return user_id

    async def customer(self, user_id: UUID) -> str:
        """The customer of a user at Stripe, made if there is none."""
        query = f"metadata['credit_user_id']:'{user_id}'"
        found = await self.sdk.v1.customers.search_async({"query": query})
        if found.data:
            return found.data[0].id
        metadata = {"credit_user_id": str(user_id)}
        return (await self.fake.do("customer", metadata=metadata))["id"]

    async def save_card(self, user_id: UUID, card: str = "pm_card_visa") -> str:
        customer = await self.customer(user_id)
        return (await self.fake.do("card", customer=customer, test_card=card))["id"]

    async def asked(self, user_id: UUID, amount: int = 60) -> pb.TopUpRequest:
        """Spends enough to cause a request for a top-up; returns the request."""
        await self.client.spend_credits(user_id, amount=amount, idempotency_key=uuid4().hex)
        return await self.request(user_id)

    async def reconcile(self) -> None:
        """Credits the payments that no webhook has reported."""
        reads = StripeReads(self.sdk)
        since = datetime.now(UTC) - timedelta(days=35)
        found = await reconcile(
            reads,
            Settler(reads, self.client, POLICY),
            since=since,
            disputes_since=since,
            progress=lambda _name, _found: None,
        )
        assert not found.conflicts

    async def requests(self, user_id: UUID) -> list[pb.TopUpRequest]:
        """The requests of a user, newest first."""
        return [each async for each in self.client.list_top_ups(user_id, open_only=False)]

    async def request(self, user_id: UUID) -> pb.TopUpRequest:
        return (await self.requests(user_id))[0]

    async def balance(self, user_id: UUID) -> int:
        return (await self.client.get_user_credit(user_id)).balance

    async def intents(self, top_up_id: str) -> list[dict]:
        """The payment intents of a request, as Stripe shows them."""
        listed = await self.sdk.v1.payment_intents.list_async({"limit": 100})
        return [
            each.to_dict()
            async for each in listed.auto_paging_iter()
            if each.to_dict()["metadata"].get("credit_top_up") == top_up_id
        ]

    async def sessions(self, top_up_id: str) -> list[dict]:
        """The links to pay of a request, newest first."""
        listed = await self.sdk.v1.checkout.sessions.list_async({"limit": 100})
        return [
            each.to_dict()
            async for each in listed.auto_paging_iter()
            if each.to_dict()["metadata"].get("credit_top_up") == top_up_id
        ]

    async def paid(self, top_up_id: str) -> list[int]:
        """The amounts that the customer was charged for a request, by its intents and its links."""
        intents = await self.intents(top_up_id)
        linked = [each["payment_intent"] for each in await self.sessions(top_up_id)]
        for intent_id in filter(None, linked):
            intents.append((await self.sdk.v1.payment_intents.retrieve_async(intent_id)).to_dict())
        return [each["amount_received"] for each in intents if each["status"] == "succeeded"]

    @asynccontextmanager
    async def bridge(self, policy: Policy = POLICY, *, retry_after: timedelta = timedelta(hours=1)):
        """The part of a bridge that charges top-ups."""
        settings = server.TopUpSettings(
            pause_seconds=0.01, retry_after=retry_after, return_url=RETURN_URL
        )
        async with stripe_client(KEY, address=self.fake.url, retries=0) as client:
            yield server.top_ups(settings, client, self.client, policy)

    @asynccontextmanager
    async def payments(self):
        """The payments of a bridge, for a test that does some of the bridge's steps by hand."""
        async with stripe_client(KEY, address=self.fake.url, retries=0) as client:
            yield TopUpPayments(client, return_url=RETURN_URL)

    @asynccontextmanager
    async def charging(self):
        """A whole bridge that charges top-ups."""
        top_ups = server.TopUpSettings(
            pause_seconds=0.05, retry_after=timedelta(hours=1), return_url=RETURN_URL
        )
        settings = bridge_settings(
            self.target, stripe_address=self.fake.url, policy=POLICY, top_ups=top_ups
        )
        async with running_bridge(settings) as bridge:
            yield bridge

    def wanted(self, top_up: pb.TopUpRequest, *, age: timedelta = timedelta(0)) -> Wanted:
        """A request as the bridge sees it, as if it were older by `age`."""
        created = top_up.create_time.ToDatetime(UTC) - age
        return Wanted(top_up.id, UUID(top_up.user_id), created)

    async def round(self, user_id: UUID, bridge: TopUps) -> Worked | None:
        """Lets a bridge work off the open requests; returns what it did for the user."""
        done = [each async for each in bridge.round()]
        return next((each for each in done if each.top_up.user_id == str(user_id)), None)


@contextmanager
def charging_bridge(
    stage: TopUpStage, catalog: Path, *, port: int = 0, **settings: str
) -> Iterator[Program]:
    """Runs a bridge in a separate process that charges top-ups, and retries at once if they fail.

    Yields:
        The process, which listens.
    """
    catalog.write_text(pack_with())
    charging = {
        "catalog": str(catalog),
        "top_up_seconds": "0.02",
        "top_up_retry_hours": "0",
        "top_up_return_url": RETURN_URL,
        "log_level": "error",
        **settings,
    }
    with bridge_process(stage.fake.url, stage.target, port=port, **charging) as process:
        process.wait_until_listening()
        yield process
