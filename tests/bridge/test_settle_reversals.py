"""The effect of refunds and disputes on the book, with the service and a fake Stripe."""

import asyncio
import itertools

import pytest
from kit.settlers import POLICY, balance, events_about, refuse, requests

from stripe_bridge.catalog import Catalog, Listed, Policy
from stripe_bridge.settle import Settler
from stripe_bridge.webhook_answers import of_settled

pytestmark = pytest.mark.shared


async def test_partial_refunds_take_their_share_in_every_order_and_repetition(
    fake, reads, settler, database, client
):
    for version in ("2022-08-01", "2024-10-28.acacia", "2026-10-28.endive"):
        await fake.settings(api_version=version)
        user = await database.user()
        paid = await fake.purchase(user, credits_=1000, amount=300)
        refunds = [await fake.refund(paid, amount=100) for _ in range(3)]
        ids = [each["id"] for each in refunds]
        events = await events_about(fake, reads, refunds[0]["charge"], *ids)
        assert {each["type"] for each in events} == {"refund.created", "charge.refunded"}
        taken = []
        for event in [*reversed(events), *events]:
            await settler.listed_event(event)
            taken.append(1000 - await balance(client, user))
        assert taken == sorted(taken)
        assert taken[-1] == 1000
        await fake.change_refund(ids[1], "failed")
        for event in await events_about(fake, reads, ids[1]):
            await settler.listed_event(event)
        assert await balance(client, user) == 334
    assert not await database.faults()


async def test_a_refund_of_an_unknown_purchase_makes_it_first(fake, settler, database, client):
    user = await database.user()
    paid = await fake.purchase(user, credits_=100, amount=900)
    refund = await fake.refund(paid, amount=300)
    settled = await settler.event("refund.created", refund)
    assert settled.outcome == "committed"
    assert settled.refs == (f"stripe:{paid}", f"stripe:{refund['id']}")
    assert await balance(client, user) == 67
    assert (await settler.replay(paid)).outcome == "replayed"
    assert await balance(client, user) == 67


async def test_refunds_and_purchase_at_the_same_instant_end_in_one_balance(
    fake, reads, settler, database, client
):
    users = [await database.user() for _ in range(4)]
    events = []
    for user in users:
        paid = await fake.purchase(user, credits_=100, amount=900)
        refunds = [await fake.refund(paid, amount=300) for _ in range(2)]
        charge = refunds[0]["charge"]
        events += await events_about(fake, reads, paid, charge, *(each["id"] for each in refunds))
    await asyncio.gather(*(settler.listed_event(each) for each in [*events, *events]))
    assert [await balance(client, user) for user in users] == [34] * 4
    assert not await database.faults()


async def test_a_refund_of_a_known_purchase_reads_only_its_charge(fake, settler, database):
    paid = await fake.purchase(await database.user())
    await settler.replay(paid)
    refund = await fake.refund(paid)
    before = await requests(fake)
    assert (await settler.event("refund.created", refund)).outcome == "committed"
    assert await requests(fake) == before + 1


async def test_a_failed_refund_gives_back_for_any_status(fake, settler, database, client):
    user = await database.user()
    refund = await fake.refund(await fake.purchase(user))
    assert refund["status"] == "succeeded"
    for kind, left in (("refund.created", 0), ("refund.failed", 100), ("refund.created", 100)):
        await settler.event(kind, refund)
        assert await balance(client, user) == left


async def test_a_refund_that_names_no_charge_is_found_by_its_payment(
    fake, settler, database, client
):
    user = await database.user()
    refund = await fake.refund(await fake.purchase(user), amount=450)
    assert (await settler.reversals.refund({**refund, "charge": None})).outcome == "committed"
    assert await balance(client, user) == 50
    lost = {**refund, "charge": None, "payment_intent": None}
    assert (await settler.reversals.refund(lost)).reason == "not_ours"


async def test_a_refund_of_a_payment_that_is_not_ours_writes_nothing(fake, settler, database):
    paid = await fake.purchase()
    refund, book = await fake.refund(paid, amount=100), await database.book()
    dispute = await fake.dispute(paid)
    charge = await fake.do("object", id=refund["charge"])
    for settling in (
        settler.event("refund.created", refund),
        settler.event("charge.refunded", charge),
        settler.event("charge.dispute.created", dispute),
        settler.replay(paid),
    ):
        settled = await settling
        assert (settled.outcome, settled.reason) == ("nothing", "not_ours")
    assert await database.book() == book


async def test_a_refund_of_a_subscription_reverses_the_invoice(fake, reads, database, client):
    price = await fake.price(recurring={"interval": "month"})
    selling = Settler(reads, client, Policy(catalog=Catalog(by_price={price["id"]: Listed(50)})))
    no_longer_selling = Settler(reads, client, POLICY)
    for version, known in itertools.product(("2023-10-16", "2026-10-28.endive"), (True, False)):
        await fake.settings(api_version=version)
        user = await database.user()
        lines = [{"price": price["id"], "quantity": 2}]
        invoice = await fake.invoice(lines, metadata={"credit_user_id": str(user)})
        if known:
            (event,) = await events_about(fake, reads, invoice["id"])
            assert (await selling.listed_event(event)).outcome == "committed"
        settler = no_longer_selling if known else selling
        refund = await fake.refund(invoice["id"], amount=450)
        for event in await events_about(fake, reads, refund["id"], refund["charge"]):
            settled = await settler.listed_event(event)
            assert settled.refs == (f"stripe:{invoice['id']}", f"stripe:{refund['id']}")
        assert await balance(client, user) == 75


async def test_events_of_a_dispute_take_and_give_back_once_in_any_order(
    fake, reads, settler, database, client
):
    user = await database.user()
    paid = await fake.purchase(user)
    dispute = await fake.dispute(paid, withdraw=False)
    assert (await settler.reversals.dispute(dispute)).reason == "inquiry"
    await fake.do("withdraw", id=dispute["id"])
    taken = await fake.do("object", id=dispute["id"])
    assert (await settler.event("charge.dispute.created", taken)).outcome == "committed"
    assert await balance(client, user) == 0
    await fake.win(dispute["id"])
    events = await events_about(fake, reads, dispute["id"])
    for event in [*reversed(events), *events]:
        await settler.listed_event(event)
    assert await balance(client, user) == 100


async def test_a_dispute_in_another_currency_takes_the_whole_and_calls_a_person(
    fake, settler, client, database
):
    user = await database.user()
    dispute = await fake.dispute(await fake.purchase(user), amount=300)
    settled = await settler.reversals.dispute({**dispute, "currency": "usd"})
    assert (settled.outcome, settled.reason) == ("committed", "reversal_in_other_currency")
    assert await balance(client, user) == 0
    assert of_settled(settled).alerts
    again = await settler.reversals.dispute({**dispute, "currency": "usd"})
    assert (again.outcome, of_settled(again).alerts) == ("replayed", False)


async def test_a_dispute_without_its_transactions_is_read_and_refused_if_stripe_lacks_them(
    fake, settler, database, client
):
    user = await database.user()
    dispute = await fake.dispute(await fake.purchase(user))
    cut = {**dispute, "balance_transactions": None}
    assert (await settler.reversals.dispute(cut)).outcome == "committed"
    assert await balance(client, user) == 0
    await fake.do("edit", id=dispute["id"], fields={"balance_transactions": None})
    assert await refuse(settler.reversals.dispute(cut)) == "object_incomplete"


async def test_one_refund_that_cannot_be_settled_does_not_stop_the_others(
    fake, settler, database, client
):
    user = await database.user()
    paid = await fake.purchase(user)
    refunds = [await fake.refund(paid, amount=90) for _ in range(3)]
    await fake.do("edit", id=refunds[1]["id"], fields={"currency": "usd"})
    charge = await fake.do("object", id=refunds[0]["charge"])
    assert await refuse(settler.event("charge.refunded", charge)) == "currency_mismatch"
    assert await balance(client, user) == 80
    await fake.do("edit", id=refunds[1]["id"], fields={"currency": "eur"})
    assert (await settler.event("charge.refunded", charge)).outcome == "committed"
    assert await balance(client, user) == 70


async def test_the_current_charge_at_stripe_decides_and_not_the_charge_of_an_old_event(
    fake, settler, database, client
):
    user = await database.user()
    refund = await fake.refund(await fake.purchase(user), amount=450)
    charge = await fake.do("object", id=refund["charge"])
    then = {**charge, "currency": "usd", "amount": 9000}
    refund_then = {**refund, "currency": "usd", "amount": 4500}
    refunds = {"object": "list", "data": [refund_then], "has_more": False}
    for kind, old in (
        ("refund.created", {**refund, "charge": then}),
        ("refund.updated", {**refund_then, "charge": then}),
        ("charge.refunded", {**then, "refunds": refunds}),
    ):
        settled = await settler.event(kind, old)
        assert settled.reason == "reversal"
        assert await balance(client, user) == 50
    dispute = await fake.dispute(refund["charge"], amount=450)
    settled = await settler.event("charge.dispute.created", {**dispute, "charge": then})
    assert settled.reason == "reversal"
    assert await balance(client, user) == 0
