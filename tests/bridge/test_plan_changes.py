"""Changes of plan within a month: the new plan's credits, and those that the old one gives back."""

import itertools
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import pytest
from kit.databases import Database
from kit.settlers import balance, events_about, refuse
from kit.stripe_fakes import FakeStripe

from credit_service.client import CreditClient
from stripe_bridge.catalog import Catalog, Listed, Policy
from stripe_bridge.reconcile import reconcile
from stripe_bridge.settle import Settler
from stripe_bridge.stripe_api import StripeReads

pytestmark = pytest.mark.shared

VERSIONS = ("2022-08-01", "2024-10-28.acacia", "2026-10-28.endive")


def first_line(invoice):
    return invoice["lines"]["data"][0]


@dataclass
class Shop:
    """Sells a basic month of 100 credits for 1,000, a big one of 1,000 for 10,000, and seats."""

    fake: FakeStripe
    reads: StripeReads
    client: CreditClient
    database: Database
    basic: str
    big: str
    seat: str
    pack: str

    @property
    def policy(self):
        credits_ = {self.basic: Listed(100), self.big: Listed(1_000), self.pack: Listed(70)}
        return Policy(catalog=Catalog(by_price=credits_))

    @property
    def settler(self):
        return Settler(self.reads, self.client, self.policy)

    async def begun(self, price, **fields):
        """A user with a subscription; returns both and the first invoice."""
        user = await self.database.user()
        metadata = {"credit_user_id": str(user)}
        invoice = await self.fake.do("subscribe", price=price, metadata=metadata, **fields)
        return user, first_line(invoice)["subscription"], invoice

    async def change(self, subscription, price, left=100, **fields):
        """Changes the plan with `left` percent of the month left; returns the invoice."""
        return await self.fake.do(
            "change_plan", subscription=subscription, price=price, left=left, **fields
        )

    async def settle(self, *invoices):
        """Settles the events of invoices; returns the outcome of each."""
        events = await self.events(*invoices)
        return [(await self.settler.listed_event(event)).outcome for event in events]

    async def events(self, *invoices):
        return await events_about(self.fake, self.reads, *(each["id"] for each in invoices))

    async def balance(self, user):
        return await balance(self.client, user)

    async def entries(self, user):
        rows = await self.database.fetch(
            "SELECT balance_change FROM credit_transactions WHERE user_id = $1 ORDER BY seq", user
        )
        return [row[0] for row in rows]

    async def reconcile(self):
        since = datetime.now(UTC) - timedelta(days=1)
        return await reconcile(
            self.reads,
            self.settler,
            since=since,
            disputes_since=since,
            progress=lambda _name, _summary: None,
        )


@pytest.fixture
async def shop(fake, reads, client, database):
    monthly = {"recurring": {"interval": "month", "interval_count": 1}}
    prices = [(await fake.price(cost, **monthly))["id"] for cost in (1_000, 10_000, 5_000)]
    pack = (await fake.price(700))["id"]
    yield Shop(fake, reads, client, database, *prices, pack)
    await fake.settings(api_version="2026-10-28.endive")
    assert not await database.faults()


@pytest.mark.parametrize("version", VERSIONS)
async def test_an_upgrade_gives_the_rest_of_the_new_month_and_takes_the_rest_of_the_old(
    shop, version
):
    await shop.fake.settings(api_version=version)
    user, subscription, first = await shop.begun(shop.basic)
    up = await shop.change(subscription, shop.big, left=40)
    assert up["amount_paid"] == 3_600
    assert await shop.settle(first, up, up) == ["committed"] * 2 + ["replayed"]
    assert await shop.entries(user) == [100, 400, -40]


async def test_up_spend_down_and_up_again_gains_no_credits(shop):
    user, subscription, first = await shop.begun(shop.basic)
    up = await shop.change(subscription, shop.big)
    await shop.settle(first, up)
    assert await shop.balance(user) == 1_000
    await shop.client.spend_credits(user, amount=1_000, idempotency_key="all")
    down = await shop.change(subscription, shop.basic)
    assert (down["amount_due"], down["total"]) == (0, -9_000)
    await shop.settle(down)
    assert await shop.balance(user) == -900
    again = await shop.change(subscription, shop.big)
    assert (again["amount_paid"], again["total"]) == (0, 9_000)
    await shop.settle(again)
    assert await shop.balance(user) == 0


async def test_twenty_changes_in_a_month_never_give_more_than_the_paid_time(shop):
    user, subscription, first = await shop.begun(shop.basic)
    await shop.settle(first)
    most = 100
    plans = itertools.cycle([(shop.big, 1_000), (shop.basic, 100)])
    per_month = 100
    for count, left in enumerate(range(97, 0, -5), start=1):
        price, credits_ = next(plans)
        most += (credits_ - per_month) * left / 100
        per_month = credits_
        await shop.settle(await shop.change(subscription, price, left=left))
        # A reversal takes whole credits, so it may leave a fraction of one.
        assert most - count <= await shop.balance(user) <= most + count


@pytest.mark.parametrize("version", VERSIONS)
async def test_changes_end_in_one_balance_in_every_order_and_version(shop, version):
    await shop.fake.settings(api_version=version)
    user, subscription, first = await shop.begun(shop.basic)
    invoices = [first]
    for left, price in ((80, shop.big), (60, shop.basic), (30, shop.big)):
        invoices.append(await shop.change(subscription, price, left=left))
    invoices.append(await shop.fake.do("renew", subscription=subscription))
    events = await shop.events(*invoices)
    for event in itertools.chain(reversed(events), events):
        assert (await shop.settler.listed_event(event)).outcome != "conflict"
    kept = 100 * 20 // 100 + 200 + 100 * 30 // 100 + 300
    assert await shop.balance(user) == kept + 1_000
    assert (await shop.reconcile()).repaired == 0


async def test_reconcile_finds_changes_without_events(shop):
    user, subscription, first = await shop.begun(shop.basic)
    up = await shop.change(subscription, shop.big, left=50)
    down = await shop.change(subscription, shop.basic, left=25)
    unresolved = {each.id for each in (await shop.reconcile()).unresolved}
    assert not unresolved & {first["id"], up["id"], down["id"]}
    assert await shop.balance(user) == 50 + 250 + 25
    assert (await shop.reconcile()).repaired == 0


@pytest.mark.parametrize("unattributed", [False, True])
async def test_changes_that_are_billed_with_the_next_month_count_once(shop, unattributed):
    user, subscription, first = await shop.begun(shop.basic)
    await shop.change(subscription, shop.big, left=60, bill="later")
    # The part that was never billed is billed and given back on one invoice.
    await shop.change(subscription, shop.basic, left=30, bill="later", unattributed=unattributed)
    month = await shop.fake.do("renew", subscription=subscription)
    await shop.settle(month, first, month)
    assert await shop.balance(user) == 40 + 300 + 30 + 100


async def test_other_lines_of_the_credited_invoice_do_not_change_the_credits_given_back(shop):
    more = [{"price": shop.seat, "quantity": 3}, {"price": shop.pack, "item": True}]
    user, subscription, first = await shop.begun(shop.basic, more=more)
    up = await shop.change(subscription, shop.big, left=50)
    await shop.settle(first, up)
    assert await shop.balance(user) == 170 - 50 + 500


async def test_a_change_to_a_plan_without_credits_only_gives_back(shop):
    user, subscription, first = await shop.begun(shop.big)
    down = await shop.change(subscription, shop.seat, left=50)
    assert await shop.settle(down, first) == ["committed", "replayed"]
    assert await shop.balance(user) == 500


async def test_seats_of_a_plan_give_and_take_their_credits(shop):
    user, subscription, first = await shop.begun(shop.basic, quantity=2)
    more = await shop.change(subscription, shop.basic, quantity=5, left=50)
    await shop.settle(first, more)
    assert await shop.balance(user) == 100 + 250
    fewer = await shop.change(subscription, shop.basic, quantity=1, left=10)
    await shop.settle(fewer)
    assert await shop.balance(user) == 100 + 200 + 10


async def test_a_credit_line_that_names_nothing_waits_for_a_person_and_the_rest_is_given(shop):
    user, subscription, first = await shop.begun(shop.basic)
    up = await shop.change(subscription, shop.big, left=50, unattributed=True)
    await shop.settle(first)
    (event,) = await shop.events(up)
    assert await refuse(shop.settler.listed_event(event)) == "credit_unattributed"
    assert await shop.balance(user) == 600
    found = [(each.id, each.reason) for each in (await shop.reconcile()).unresolved]
    assert (up["id"], "credit_unattributed") in found


async def test_a_part_given_back_of_an_unpaid_invoice_waits_until_it_is_paid(shop):
    user, subscription, first = await shop.begun(shop.basic)
    up = await shop.change(subscription, shop.big, left=50, status="open")
    down = await shop.change(subscription, shop.basic, left=50)
    await shop.settle(first)
    (event,) = await shop.events(down)
    assert await refuse(shop.settler.listed_event(event)) == "credited_invoice_unpaid"
    paid = {"status": "paid", "amount_paid": up["amount_due"]}
    await shop.fake.do("edit", id=up["id"], fields=paid)
    await shop.settler.listed_event(event)
    await shop.settler.replay(up["id"])
    assert await shop.balance(user) == 50 + 50
    await shop.settler.replay(up["id"])
    assert await shop.balance(user) == 50 + 50


async def test_a_part_given_back_of_a_void_invoice_takes_nothing(shop):
    user, subscription, first = await shop.begun(shop.basic)
    up = await shop.change(subscription, shop.big, left=50, status="void")
    down = await shop.change(subscription, shop.basic, left=50)
    await shop.settle(first, down)
    assert up["status"] == "void"
    assert await shop.balance(user) == 150


async def test_refunds_of_all_the_money_take_all_the_credits_of_a_changed_plan(shop):
    user, subscription, first = await shop.begun(shop.basic)
    up = await shop.change(subscription, shop.big, left=50)
    await shop.settle(first, up)
    refunds = [await shop.fake.refund(each["id"]) for each in (up, first)]
    for refund in itertools.chain(refunds, reversed(refunds)):
        await shop.settler.reversals.refund(refund)
    assert await shop.balance(user) == 0


async def test_a_refund_takes_its_share_beside_the_part_given_back(shop):
    user, subscription, first = await shop.begun(shop.basic)
    up = await shop.change(subscription, shop.big, left=50)
    await shop.settle(first, up)
    half = await shop.fake.refund(up["id"], amount=up["amount_paid"] // 2)
    await shop.settler.reversals.refund(half)
    assert await shop.balance(user) == 50 + 250
    down = await shop.change(subscription, shop.basic, left=25)
    await shop.settle(down)
    assert await shop.balance(user) == 50 + 25


async def test_a_month_that_the_customers_balance_pays_gives_its_credits(shop):
    user, subscription, first = await shop.begun(shop.big)
    down = await shop.change(subscription, shop.basic, left=50)
    months = [await shop.fake.do("renew", subscription=subscription) for _ in range(5)]
    assert [each["amount_paid"] for each in months] == [0, 0, 0, 0, 500]
    await shop.settle(first, down, *months)
    assert await shop.balance(user) == 500 + 50 + 5 * 100
    # The balance paid the other half of the month.
    await shop.settler.reversals.refund(await shop.fake.refund(months[-1]["id"]))
    assert await shop.balance(user) == 500 + 50 + 5 * 100 - 50


async def test_a_trial_gives_nothing_back(shop):
    user = await shop.database.user()
    metadata = {"credit_user_id": str(user)}
    trial = await shop.fake.invoice([{"price": shop.basic, "amount": 0}], metadata=metadata)
    assert await shop.settle(trial) == ["nothing"]
    lines = [
        {
            "price": shop.basic,
            "amount": -1,
            "proration": True,
            "item": True,
            "credits": {"invoice": trial["id"], "id": first_line(trial)["id"]},
        }
    ]
    change = await shop.fake.invoice(lines, metadata=metadata, billing_reason="subscription_update")
    assert await shop.settle(change) == ["nothing"]
    assert await shop.entries(user) == []


async def test_taxes_change_no_share(shop):
    user = await shop.database.user()
    metadata = {"credit_user_id": str(user)}
    first = await shop.fake.invoice([{"price": shop.big, "tax": 1_900}], metadata=metadata)
    credit = {
        "price": shop.big,
        "amount": -5_000,
        "tax": -950,
        "proration": True,
        "item": True,
        "credits": {"invoice": first["id"], "id": first_line(first)["id"]},
    }
    update = {"billing_reason": "subscription_update", "metadata": metadata}
    change = await shop.fake.invoice([credit, {"price": shop.basic, "tax": 190}], **update)
    await shop.settle(first, change)
    assert await shop.entries(user) == [1_000, 100, -500]
    await shop.settler.reversals.refund(await shop.fake.refund(first["id"], amount=1_190))
    assert await shop.balance(user) == 1_000 + 100 - 500 - 100


async def test_a_change_whose_billing_reason_is_not_allowed_gives_nothing_and_calls_a_person(
    shop,
):
    user, subscription, first = await shop.begun(shop.basic)
    up = await shop.change(subscription, shop.big, left=50)
    reasons = frozenset({"subscription_create", "subscription_cycle"})
    catalog = shop.policy.catalog
    settler = Settler(
        shop.reads, shop.client, Policy(catalog=catalog, invoice_billing_reasons=reasons)
    )
    for event in await shop.events(first, up):
        settled = await settler.listed_event(event)
    assert settled.alerts
    # The part given back is taken nevertheless.
    assert await shop.entries(user) == [100, -50]


async def test_a_dry_run_reports_a_change_and_writes_nothing(shop):
    user, subscription, _ = await shop.begun(shop.basic)
    up = await shop.change(subscription, shop.big, left=50)
    checking = Settler(shop.reads, shop.client, shop.policy, validate_only=True)
    (event,) = await shop.events(up)
    assert (await checking.listed_event(event)).outcome == "committed"
    assert await shop.entries(user) == []
