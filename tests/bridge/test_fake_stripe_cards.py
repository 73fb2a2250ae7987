"""Saved cards and payment intents of the fake Stripe, against Stripe's own SDK."""

from uuid import uuid4

import pytest
import stripe
from kit.stripe_fakes import bought

pytestmark = pytest.mark.usefixtures("calm")

DECLINING = "pm_card_chargeCustomerFail"
ASKING = "pm_card_authenticationRequired"
OFF_SESSION = {"off_session": True}
A_DAY = 86400


async def intent_with(fake, sdk, test_card="pm_card_visa", **fields):
    """A customer with this card, and an intent that is not confirmed."""
    customer = (await fake.do("customer"))["id"]
    card = await sdk.v1.payment_methods.attach_async(test_card, {"customer": customer})
    made = await sdk.v1.payment_intents.create_async(
        {"amount": 900, "currency": "eur", "customer": customer, **fields}
    )
    return made.id, card.id


async def test_a_saved_card_is_charged_when_the_intent_is_confirmed(fake, sdk):
    intent, card = await intent_with(fake, sdk, metadata={"order": "7"})
    waiting = await sdk.v1.payment_intents.retrieve_async(intent)
    assert (waiting.status, waiting.amount_received) == ("requires_payment_method", 0)
    paid = await sdk.v1.payment_intents.confirm_async(
        intent, {**OFF_SESSION, "payment_method": card}
    )
    assert (paid.status, paid.amount_received, paid.payment_method) == ("succeeded", 900, card)
    charge = await sdk.v1.charges.retrieve_async(paid.latest_charge)
    assert (charge.paid, charge.metadata["order"]) == (True, "7")


async def test_cards_of_a_customer_are_listed_newest_first_and_no_longer_after_they_are_detached(
    fake, sdk
):
    customer = (await fake.do("customer"))["id"]
    methods = sdk.v1.payment_methods
    first, second = [
        (await methods.attach_async("pm_card_visa", {"customer": customer})).id for _ in range(2)
    ]
    asked = {"customer": customer, "type": "card"}
    assert [each.id for each in (await methods.list_async(asked)).data] == [second, first]
    await methods.detach_async(second)
    assert [each.id for each in (await methods.list_async(asked)).data] == [first]


async def test_a_session_for_later_use_saves_the_card_with_the_customer(fake, sdk):
    customer = (await fake.do("customer"))["id"]
    wanted = {"mode": "payment", "customer": customer, **bought(uuid4(), 100, 900)}
    wanted["payment_intent_data"]["setup_future_usage"] = "off_session"
    session = await sdk.v1.checkout.sessions.create_async(wanted)
    await fake.pay_session(session.id)
    saved = await sdk.v1.payment_methods.list_async({"customer": customer, "type": "card"})
    assert len(saved.data) == 1


@pytest.mark.parametrize(
    ("test_card", "code", "decline_code"),
    [
        (DECLINING, "card_declined", "generic_decline"),
        (ASKING, "authentication_required", "authentication_required"),
        (
            "pm_card_authenticationRequiredChargeDeclinedInsufficientFunds",
            "card_declined",
            "insufficient_funds",
        ),
    ],
)
async def test_a_decline_is_a_card_error_and_the_intent_waits_for_a_payment_method(
    fake, sdk, test_card, code, decline_code
):
    intent, card = await intent_with(fake, sdk, test_card)
    with pytest.raises(stripe.CardError) as declined:
        await sdk.v1.payment_intents.confirm_async(intent, {**OFF_SESSION, "payment_method": card})
    error = declined.value
    assert (error.http_status, error.code) == (402, code)
    assert error.error.decline_code == decline_code
    left = await sdk.v1.payment_intents.retrieve_async(intent)
    assert (left.status, left.payment_method) == ("requires_payment_method", None)
    assert left.last_payment_error.code == code


async def test_a_customer_who_is_present_is_asked_to_authenticate(fake, sdk):
    intent, card = await intent_with(fake, sdk, ASKING)
    asked = await sdk.v1.payment_intents.confirm_async(intent, {"payment_method": card})
    assert asked.status == "requires_action"


async def test_an_intent_is_paid_or_cancelled_once(fake, sdk):
    confirm = sdk.v1.payment_intents.confirm_async
    cancel = sdk.v1.payment_intents.cancel_async
    intent, card = await intent_with(fake, sdk)
    await confirm(intent, {"payment_method": card})
    for again in (confirm, cancel):
        with pytest.raises(stripe.InvalidRequestError) as refused:
            await again(intent)
        assert refused.value.code == "payment_intent_unexpected_state"
        assert refused.value.error.payment_intent.status == "succeeded"
    intent, card = await intent_with(fake, sdk)
    assert (await cancel(intent)).status == "canceled"
    with pytest.raises(stripe.InvalidRequestError) as refused:
        await confirm(intent, {"payment_method": card})
    assert refused.value.error.payment_intent.status == "canceled"


async def test_a_key_replays_a_decline_until_it_is_forgotten_after_a_day(fake, sdk):
    intent, card = await intent_with(fake, sdk, DECLINING)
    wanted, key = {**OFF_SESSION, "payment_method": card}, {"idempotency_key": uuid4().hex}

    async def confirmed():
        return await sdk.v1.payment_intents.confirm_async(intent, wanted, key)

    with pytest.raises(stripe.CardError):
        await confirmed()
    await fake.do("change_card", id=card, like="pm_card_visa")
    with pytest.raises(stripe.CardError):
        await confirmed()
    assert (await sdk.v1.payment_intents.retrieve_async(intent)).amount_received == 0
    await fake.settings(clock_offset_seconds=A_DAY)
    assert (await confirmed()).status == "succeeded"


async def test_a_search_finds_an_intent_by_its_metadata_after_a_while(fake, sdk):
    await fake.settings(search_lag_seconds=60)
    mark = uuid4().hex
    intent, _ = await intent_with(fake, sdk, metadata={"mark": mark})
    asked = {"query": f"metadata['mark']:'{mark}'"}
    assert (await sdk.v1.payment_intents.search_async(asked)).data == []
    await fake.settings(clock_offset_seconds=61)
    assert [each.id for each in (await sdk.v1.payment_intents.search_async(asked)).data] == [intent]
