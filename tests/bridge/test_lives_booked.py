"""Credits with an expiry in the ledger: packs that lapse, and plans with a carry-over and a cap."""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import pytest
from kit.databases import Database
from kit.settlers import balance, events_about
from kit.stripe_fakes import FakeStripe

from credit_service.client import CreditClient
from stripe_bridge.catalog import Catalog, Listed, Policy, Validity
from stripe_bridge.metadata import frozen_metadata
from stripe_bridge.settle import Settler
from stripe_bridge.stripe_api import StripeReads


@dataclass
class Shop:
    """Sells a pack whose credits last a year, and months of 100 and 1,000 credits."""

    fake: FakeStripe
    reads: StripeReads
    client: CreditClient
    database: Database
    pack: str
    small: str
    large: str

    def settler(self, validity):
        """A settler for plans whose credits have this lifetime."""
        catalog = Catalog(
            by_price={
                self.pack: Listed(70, Validity(timedelta(days=365))),
                self.small: Listed(100, validity),
                self.large: Listed(1_000, validity),
            }
        )
        return Settler(self.reads, self.client, Policy(catalog=catalog))

    async def begun(self, price):
        """A user with a subscription; returns both and the first invoice."""
        user = await self.database.user()
        metadata = {"credit_user_id": str(user)}
        invoice = await self.fake.do("subscribe", price=price, metadata=metadata)
        return user, invoice["lines"]["data"][0]["subscription"], invoice

    async def settle(self, settler, *invoices):
        for event in await events_about(self.fake, self.reads, *(each["id"] for each in invoices)):
            assert (await settler.listed_event(event)).outcome == "committed"

    async def grants(self, user):
        """The rest of each open grant of a user, the oldest first, and the time when it lapses."""
        found = [each async for each in self.client.list_grants(user)]
        return [
            (each.remaining, each.expire_time.ToDatetime(UTC))
            for each in sorted(found, key=lambda each: each.expire_time.ToSeconds())
        ]


@pytest.fixture
async def shop(fake, reads, client, database):
    pack = (await fake.price(700))["id"]
    monthly = {"recurring": {"interval": "month", "interval_count": 1}}
    plans = [(await fake.price(cost, **monthly))["id"] for cost in (1_000, 10_000)]
    yield Shop(fake, reads, client, database, pack, *plans)
    assert not await database.faults()


def end_of(invoice):
    """The end of the period of an invoice's last line."""
    return datetime.fromtimestamp(invoice["lines"]["data"][-1]["period"]["end"], UTC)


async def test_a_pack_s_credits_last_for_its_time_from_the_purchase_on(shop):
    settler = shop.settler(Validity())
    before = datetime.now(UTC)
    frozen = frozen_metadata(await shop.database.user(), 70, timedelta(days=365))
    listed = {"credit_user_id": str(await shop.database.user())}
    for metadata in (frozen, listed):
        intent = await shop.fake.purchase(
            line_items=[{"price": shop.pack, "quantity": 1}],
            metadata=metadata,
            payment_intent_data={"metadata": metadata},
        )
        await settler.replay(intent)
        ((left, lapses),) = await shop.grants(metadata["credit_user_id"])
        assert left == 70
        assert before < lapses - timedelta(days=365) < datetime.now(UTC) + timedelta(minutes=1)


async def test_a_month_of_a_plan_lapses_with_it_and_a_second_event_changes_nothing(shop):
    settler = shop.settler(Validity(by_period=True))
    user, subscription, first = await shop.begun(shop.small)
    second = await shop.fake.do("renew", subscription=subscription)
    await shop.settle(settler, first, second)
    months = [(100, end_of(first)), (100, end_of(second))]
    assert await shop.grants(user) == months
    assert (await settler.replay(first["id"])).outcome == "replayed"
    assert await shop.grants(user) == months


async def test_a_renewal_keeps_credits_of_earlier_months_up_to_the_cap(shop):
    settler = shop.settler(Validity(by_period=True, carry_over=2, cap=130))
    user, subscription, first = await shop.begun(shop.small)
    await shop.settle(settler, first)
    for left in ([100, 100], [30, 100, 100], [30, 100, 100]):
        month = await shop.fake.do("renew", subscription=subscription)
        await shop.settle(settler, month)
        assert [each for each, _ in await shop.grants(user)] == left
    assert await balance(shop.client, user) == 230


async def test_with_a_cap_of_zero_a_month_s_credits_last_until_the_next_one_is_paid(shop):
    settler = shop.settler(Validity(by_period=True, carry_over=1, cap=0))
    user, subscription, first = await shop.begun(shop.small)
    await shop.settle(settler, first)
    await shop.client.spend_credits(user, amount=30, idempotency_key="work")
    assert await balance(shop.client, user) == 70
    month = await shop.fake.do("renew", subscription=subscription)
    await shop.settle(settler, month)
    assert await balance(shop.client, user) == 100


async def test_a_change_of_plan_makes_nothing_lapse_and_up_and_down_gains_nothing(shop):
    settler = shop.settler(Validity(by_period=True, carry_over=1, cap=0))
    user, subscription, first = await shop.begun(shop.small)
    await shop.settle(settler, first)
    change = {"subscription": subscription, "left": 100}
    up = await shop.fake.do("change_plan", price=shop.large, **change)
    await shop.settle(settler, up)
    assert await balance(shop.client, user) == 1_000
    await shop.client.spend_credits(user, amount=1_000, idempotency_key="all")
    for price, left in ((shop.small, -900), (shop.large, 0)):
        await shop.settle(settler, await shop.fake.do("change_plan", price=price, **change))
        assert await balance(shop.client, user) == left
