"""Reading from Stripe and its failures, with Stripe's own SDK and a fake Stripe."""

import pytest
from kit.programs import free_port
from kit.stripe_fakes import KEY

from stripe_bridge.stripe_api import (
    StripeAway,
    StripeMissing,
    StripeReads,
    StripeRefuses,
    stripe_client,
)


async def test_a_refused_key_is_an_error_of_the_configuration_and_is_not_shown(fake):
    async with stripe_client("sk_wrong_secret", address=fake.url) as sdk:
        reads = StripeReads(sdk)
        with pytest.raises(StripeRefuses) as refused:
            await reads.read("pi_1")
        assert "401" in str(refused.value)
        assert "sk_" not in str(refused.value)
        with pytest.raises(StripeRefuses):
            _ = [each async for each in reads.refunds()]


async def test_stripe_that_cannot_be_reached_is_away():
    async with stripe_client(KEY, address=f"http://127.0.0.1:{free_port()}", retries=0) as sdk:
        with pytest.raises(StripeAway):
            await StripeReads(sdk).read("pi_1")


async def test_an_object_that_stripe_does_not_know_is_missing_and_needs_a_person(reads):
    with pytest.raises(StripeMissing) as missing:
        await reads.read("ch_gone")
    assert "ch_gone" in missing.value.detail


async def test_lists_are_read_to_their_end(fake, reads):
    paid = await fake.purchase(amount=1000)
    await fake.batch(*[("refund", {"payment": paid, "amount": 1})] * 101)
    found = [each["amount"] async for each in reads.refunds(payment_intent=paid)]
    assert found == [1] * 101
