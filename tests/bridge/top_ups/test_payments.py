"""Payment intents of top-ups at Stripe: found again after any loss, paid once, links closed."""

import asyncio
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from uuid import uuid4

import pytest
from kit.bridges import PACKS
from kit.stripe_fakes import KEY

from stripe_bridge.catalog import Catalog
from stripe_bridge.customers import find_or_make_customer
from stripe_bridge.stripe_api import StripeAway, StripeMissing, StripeRefuses, stripe_client
from stripe_bridge.top_up_payments import Declined, StateChanged, TopUpPayments, Wanted
from stripe_bridge.top_up_rules import Link

pytestmark = pytest.mark.usefixtures("calm")

PACK = Catalog.parse(PACKS).pack("starter")
DECLINING = "pm_card_chargeCustomerFail"
ASKING = "pm_card_authenticationRequired"
A_DAY = 86400
RETURN = "https://app.example.com/credits"


@pytest.fixture(scope="module")
async def prices(fake):
    await fake.price(900, id="price_starter", currency="eur")


@pytest.fixture
async def client(fake, prices):
    async with stripe_client(KEY, address=fake.url, retries=0) as opened:
        yield opened


@pytest.fixture
def payments(client):
    return TopUpPayments(client, return_url=RETURN)


def wanted(**changes):
    return replace(Wanted(uuid4().hex, uuid4(), datetime.now(UTC)), **changes)


async def with_card(client, top_up, test_card="pm_card_visa"):
    customer = await find_or_make_customer(client, top_up.user_id)
    return (await client.v1.payment_methods.attach_async(test_card, {"customer": customer})).id


async def intents_of(client, top_up):
    listed = await client.v1.payment_intents.list_async({"limit": 100})
    return [
        each.id
        async for each in listed.auto_paging_iter()
        if each.to_dict()["metadata"].get("credit_top_up") == top_up.id
    ]


async def test_the_intent_carries_the_pack_and_waits(client, payments):
    top_up = wanted()
    intent = await payments.read(await payments.find_or_make(top_up, PACK))
    assert intent["status"] == "requires_payment_method"
    assert (intent["amount"], intent["currency"]) == (900, "eur")
    assert intent["metadata"] == {
        "credit_user_id": str(top_up.user_id),
        "credits": "100",
        "credits_v": "1",
        "credit_top_up": top_up.id,
    }
    customer = await client.v1.customers.retrieve_async(intent["customer"])
    assert customer.metadata["credit_user_id"] == str(top_up.user_id)


async def test_bridges_at_the_same_time_find_one_intent_and_one_customer(client, payments):
    top_up = wanted()
    made = await asyncio.gather(*(payments.find_or_make(top_up, PACK) for _ in range(8)))
    assert len(set(made)) == 1
    assert await intents_of(client, top_up) == [made[0]]


async def test_an_intent_is_found_after_its_key_is_forgotten(fake, client, payments):
    top_up = wanted()
    made = await payments.find_or_make(top_up, PACK)
    await fake.settings(clock_offset_seconds=A_DAY + 60, search_lag_seconds=60)
    older = replace(top_up, created=top_up.created - timedelta(seconds=A_DAY + 60))
    assert await payments.find_or_make(older, PACK) == made
    assert await intents_of(client, top_up) == [made]


async def test_an_intent_that_no_search_shows_yet_is_found_by_its_key(fake, client, payments):
    await fake.settings(search_lag_seconds=3600)
    # Requested long ago while no bridge ran.
    top_up = wanted(created=datetime.now(UTC) - timedelta(days=3))
    made = await payments.find_or_make(top_up, PACK)
    assert await payments.find_or_make(top_up, PACK) == made
    assert await intents_of(client, top_up) == [made]


async def test_a_lost_answer_leads_to_the_same_intent(fake, client, payments):
    top_up = wanted()
    await fake.api_faults(
        {"kind": "lost_answer", "method": "POST", "path": "payment_intents", "count": 1}
    )
    with pytest.raises(StripeAway):
        await payments.find_or_make(top_up, PACK)
    made = await payments.find_or_make(top_up, PACK)
    assert await intents_of(client, top_up) == [made]


async def test_a_pack_with_another_price_meanwhile_keeps_the_intent_and_its_amount(
    fake, client, payments
):
    top_up = wanted()
    made = await payments.find_or_make(top_up, PACK)
    dearer = replace(PACK, amount_minor=1200)
    await fake.settings(search_lag_seconds=3600)
    with pytest.raises(StripeAway):
        await payments.find_or_make(top_up, dearer)
    await fake.settings(search_lag_seconds=0)
    assert await payments.find_or_make(top_up, dearer) == made
    assert (await payments.read(made))["amount"] == 900


async def test_a_confirmed_intent_is_paid_once_under_any_key(client, payments):
    top_up = wanted()
    card = await with_card(client, top_up)
    intent = await payments.read(await payments.find_or_make(top_up, PACK))
    paid = await payments.confirm(intent, card, key=f"{top_up.id}:1")
    assert (paid["status"], paid["amount_received"]) == ("succeeded", 900)
    assert await payments.confirm(intent, card, key=f"{top_up.id}:1") == paid
    with pytest.raises(StateChanged):
        await payments.confirm(intent, card, key=f"{top_up.id}:2")
    with pytest.raises(StateChanged):
        await payments.cancel(intent["id"])
    charges = await client.v1.charges.list_async({"payment_intent": intent["id"]})
    assert len(charges.data) == 1


@pytest.mark.parametrize(
    ("test_card", "reason"),
    [
        (DECLINING, "generic_decline"),
        (ASKING, "authentication_required"),
        ("pm_fake_asksOffSession", "authentication_required"),
        ("pm_card_authenticationRequiredChargeDeclinedInsufficientFunds", "insufficient_funds"),
    ],
)
async def test_a_decline_has_its_reason_and_the_next_try_another_key(
    fake, client, payments, test_card, reason
):
    top_up = wanted()
    card = await with_card(client, top_up, test_card)
    made = await payments.find_or_make(top_up, PACK)
    for _ in range(2):
        with pytest.raises(Declined) as declined:
            await payments.confirm(await payments.read(made), card, key=f"{top_up.id}:1")
        assert declined.value.reason == reason
    await fake.do("change_card", id=card, like="pm_card_visa")
    paid = await payments.confirm(await payments.read(made), card, key=f"{top_up.id}:2")
    assert paid["status"] == "succeeded"


async def test_a_try_whose_decline_was_lost_is_not_repeated_with_a_newer_card(client, payments):
    top_up = wanted()
    declining = await with_card(client, top_up, DECLINING)
    made = await payments.find_or_make(top_up, PACK)
    with pytest.raises(Declined):
        await payments.confirm(await payments.read(made), declining, key=f"{top_up.id}:1")
    newer = await with_card(client, top_up)
    with pytest.raises(Declined) as declined:
        await payments.confirm(await payments.read(made), newer, key=f"{top_up.id}:1")
    assert declined.value.reason == "generic_decline"


async def test_the_card_is_the_default_one_or_else_the_newest(fake, client, payments):
    top_up = wanted()
    intent = await payments.read(await payments.find_or_make(top_up, PACK))
    assert await payments.card_of(intent) is None
    first, newest = await with_card(client, top_up), await with_card(client, top_up)
    assert await payments.card_of(intent) == newest
    default = {"invoice_settings": {"default_payment_method": first}}
    await fake.do("edit", id=intent["customer"], fields=default)
    assert await payments.card_of(intent) == first
    await client.v1.payment_methods.detach_async(first)
    assert await payments.card_of(intent) == newest
    await fake.do("edit", id=intent["customer"], fields={"deleted": True})
    assert await payments.card_of(intent) is None


async def test_a_card_of_another_customer_is_never_charged(client, payments):
    top_up, other = wanted(), wanted()
    strange = await with_card(client, other)
    intent = await payments.read(await payments.find_or_make(top_up, PACK))
    with pytest.raises(StripeRefuses):
        await payments.confirm(intent, strange, key=f"{top_up.id}:1")


async def test_a_link_sells_the_pack_saves_the_card_and_is_recorded_at_the_intent(
    fake, client, payments
):
    top_up = wanted()
    made = await payments.find_or_make(top_up, PACK)
    assert await payments.links(await payments.read(made)) is Link.CLOSED
    url = await payments.open_link(top_up, PACK, await payments.read(made))
    intent = await payments.read(made)
    assert await payments.links(intent) is Link.OPEN
    [session] = [
        each
        async for each in (await client.v1.checkout.sessions.list_async()).auto_paging_iter()
        if each.url == url
    ]
    assert session.metadata["credit_top_up"] == top_up.id
    await fake.pay_session(session.id)
    assert await payments.links(intent) is Link.PAID
    await payments.close_links(intent)
    assert await payments.links(intent) is Link.PAID
    assert await payments.card_of(intent) is not None


async def test_every_link_that_bridges_have_opened_is_closed(client, payments):
    top_up = wanted()
    made = await payments.find_or_make(top_up, PACK)
    intent = await payments.read(made)
    await asyncio.gather(*(payments.open_link(top_up, PACK, intent) for _ in range(3)))
    recorded = await payments.read(made)
    assert await payments.links(recorded) is Link.OPEN
    await payments.close_links(recorded)
    assert await payments.links(recorded) is Link.CLOSED
    sessions = await client.v1.checkout.sessions.list_async({"limit": 100})
    states = [
        each.status
        async for each in sessions.auto_paging_iter()
        if each.to_dict()["metadata"].get("credit_top_up") == top_up.id
    ]
    assert states == ["expired"] * 3


async def test_an_amount_that_stripe_refuses_is_a_failure_with_that_reason(fake, payments):
    await fake.api_faults(
        {"path": "payment_intents", "method": "POST", "status": 400, "code": "amount_too_small"}
    )
    with pytest.raises(Declined) as declined:
        await payments.find_or_make(wanted(), PACK)
    assert declined.value.reason == "amount_too_small"


async def test_an_intent_that_stripe_does_not_know_is_missing(payments):
    with pytest.raises(StripeMissing):
        await payments.cancel("pi_unknown")
