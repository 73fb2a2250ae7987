"""Invoices paid by several payments or outside of Stripe, and their reversals."""

import itertools
from dataclasses import dataclass

import pytest
from kit.settlers import POLICY, balance, events_about, refuse
from kit.stripe_fakes import FakeStripe

from credit_service.client import CreditClient
from stripe_bridge.catalog import Catalog, Listed, Policy
from stripe_bridge.settle import Settler
from stripe_bridge.stripe_api import StripeReads

pytestmark = pytest.mark.shared


@dataclass(frozen=True)
class Shop:
    """Sells a month of 500 credits for 10,000 usd."""

    fake: FakeStripe
    reads: StripeReads
    client: CreditClient
    price: str

    @property
    def settler(self):
        return Settler(
            self.reads, self.client, Policy(catalog=Catalog(by_price={self.price: Listed(500)}))
        )

    async def invoiced(self, user, *payments):
        """Makes an invoice paid in these parts; returns it and the payment intents of the parts."""
        invoice = await self.fake.invoice(
            [{"price": self.price}],
            metadata={"credit_user_id": str(user)},
            payments=list(payments),
        )
        paid = await self.payments(invoice["id"])
        return invoice, [each["payment"].get("payment_intent") for each in paid]

    async def payments(self, invoice_id):
        paid = [each async for each in self.reads.payments_of_invoice(invoice_id)]
        return paid[::-1]

    async def events(self, *ids):
        """The events about these objects, oldest first."""
        return await events_about(self.fake, self.reads, *ids)

    async def balance(self, user):
        return await balance(self.client, user)


@pytest.fixture
async def shop(fake, reads, client):
    price = await fake.price(10_000, currency="usd", recurring={"interval": "month"})
    yield Shop(fake, reads, client, price["id"])
    await fake.settings(api_version="2026-10-28.endive")


IN_TWO = ({"amount": 1_000}, {"amount": 9_000})


async def test_each_of_several_payments_takes_its_share_of_the_invoice(shop, database):
    for known in (True, False):
        user = await database.user()
        invoice, (first, second) = await shop.invoiced(user, *IN_TWO)
        if known:
            (paid,) = await shop.events(invoice["id"])
            assert (await shop.settler.listed_event(paid)).outcome == "committed"
        small = await shop.fake.refund(first)
        assert (await shop.settler.reversals.refund(small)).outcome == "committed"
        assert await shop.balance(user) == 450
        failed = await shop.fake.change_refund(small["id"], "failed")
        await shop.settler.reversals.refund(failed)
        assert await shop.balance(user) == 500
        settled = await shop.settler.reversals.refund(await shop.fake.refund(second))
        assert (settled.outcome, settled.alerts) == ("committed", False)
        assert await shop.balance(user) == 50
        settled = await shop.settler.reversals.refund(await shop.fake.refund(first))
        assert settled.outcome == "committed"
        assert await shop.balance(user) == 0
    assert not await database.faults()


async def test_refunds_of_several_payments_end_in_one_balance_in_every_order_and_version(
    shop, database
):
    for version in ("2023-10-16", "2024-10-28.acacia", "2026-10-28.endive"):
        await shop.fake.settings(api_version=version)
        user = await database.user()
        invoice, intents = await shop.invoiced(user, *IN_TWO)
        refunds = [await shop.fake.refund(intent, amount=500) for intent in intents]
        about = [id_ for each in refunds for id_ in (each["id"], each["charge"])]
        events = await shop.events(invoice["id"], *about)
        for event in itertools.chain(reversed(events), events):
            assert (await shop.settler.listed_event(event)).outcome != "conflict"
        assert await shop.balance(user) == 450


async def test_a_dispute_of_one_of_several_payments_takes_its_share_of_the_invoice(shop, database):
    user = await database.user()
    _, (_, second) = await shop.invoiced(user, *IN_TWO)
    dispute = await shop.fake.dispute(second, amount=4_500)
    await shop.settler.reversals.dispute(dispute)
    assert await shop.balance(user) == 275
    await shop.settler.reversals.dispute(await shop.fake.win(dispute["id"]))
    assert await shop.balance(user) == 500


async def test_a_part_payment_given_back_before_the_invoice_is_paid_is_reversed_with_the_purchase(
    shop, database
):
    for give_back, left in (("refund", 475), ("dispute", 450), ("failed refund", 500)):
        user = await database.user()
        invoice = await shop.fake.invoice(
            [{"price": shop.price}],
            metadata={"credit_user_id": str(user)},
            status="open",
            payments=[{"amount": 1_000}, {"amount": 2_000}],
        )
        intents = [each["payment"]["payment_intent"] for each in await shop.payments(invoice["id"])]
        if give_back == "dispute":
            made = await shop.fake.dispute(intents[0])
        else:
            made = await shop.fake.refund(intents[0], amount=500)
        early = [*await shop.events(*intents), *await shop.events(made["id"])]
        if give_back == "failed refund":
            await shop.fake.change_refund(made["id"], "failed")
        assert {(await shop.settler.listed_event(each)).outcome for each in early} == {"nothing"}
        await shop.fake.do("pay_invoice", id=invoice["id"])
        (paid,) = await shop.events(invoice["id"])
        for outcome in ("committed", "replayed"):
            assert (await shop.settler.listed_event(paid)).outcome == outcome
            assert await shop.balance(user) == left
    assert not await database.faults()


async def test_money_paid_outside_of_stripe_counts_as_paid_and_a_refund_takes_only_its_share(
    shop, database
):
    user = await database.user()
    parts = {"amount": 4_000}, {"amount": 6_000, "off_stripe": True}
    invoice, (intent, none) = await shop.invoiced(user, *parts)
    assert none is None
    (paid,) = await shop.events(invoice["id"])
    assert (await shop.settler.listed_event(paid)).outcome == "committed"
    assert await shop.balance(user) == 500
    await shop.settler.reversals.refund(await shop.fake.refund(intent))
    assert await shop.balance(user) == 300


async def test_an_invoice_that_was_paid_outside_of_stripe_gives_nothing_in_any_version(
    shop, database
):
    for version in ("2023-10-16", "2025-03-31.basil", "2026-10-28.endive"):
        await shop.fake.settings(api_version=version)
        user = await database.user()
        invoice, _ = await shop.invoiced(user, {"amount": 10_000, "off_stripe": True})
        (event,) = await shop.events(invoice["id"])
        assert "amount_paid_off_stripe" not in event["data"]["object"]
        for settling in (shop.settler.listed_event(event), shop.settler.replay(invoice["id"])):
            settled = await settling
            assert (settled.outcome, settled.reason) == ("nothing", "out_of_band")
        assert await shop.balance(user) == 0


async def test_a_payment_of_several_invoices_waits_for_a_person(shop, database):
    user = await database.user()
    invoice, (intent,) = await shop.invoiced(user, {"amount": 10_000})
    other, _ = await shop.invoiced(user, {"amount": 10_000})
    await shop.settler.replay(invoice["id"])
    (paid,) = await shop.payments(other["id"])
    of_both = {"payment": {"type": "payment_intent", "payment_intent": intent}}
    await shop.fake.do("edit", id=paid["id"], fields=of_both)
    refund = await shop.fake.refund(intent)
    assert await refuse(shop.settler.reversals.refund(refund)) == "several_invoices"
    assert await shop.balance(user) == 500


async def test_the_invoice_of_a_charge_without_an_intent_is_found_by_an_old_event(shop, database):
    user = await database.user()
    invoice, _ = await shop.invoiced(user, *IN_TWO)
    await shop.settler.replay(invoice["id"])
    *_, paid = await shop.payments(invoice["id"])
    charge_id = (await shop.reads.read(paid["payment"]["payment_intent"]))["latest_charge"]
    of_charge = {"payment": {"type": "charge", "charge": charge_id}}
    await shop.fake.do("edit", id=paid["id"], fields=of_charge)
    refund = await shop.fake.refund(charge_id, amount=4_500)
    await shop.fake.do("edit", id=charge_id, fields={"payment_intent": None})
    old = {**await shop.reads.read(charge_id), "invoice": invoice["id"]}
    selling_no_more = Settler(shop.reads, shop.client, POLICY)
    assert (await selling_no_more.reversals.charge(old)).outcome == "committed"
    assert await shop.balance(user) == 275
    assert (await shop.settler.reversals.refund(refund)).reason == "not_ours"
