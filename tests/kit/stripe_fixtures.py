"""A fake Stripe that the tests of a module share, and how they reach it.

A module takes what it needs by `fake, reads = stripe_fixtures.fake, stripe_fixtures.reads`.
"""

import pytest
from kit.stripe_fakes import KEY, fake_stripe
from kit.stripe_receiver import receiving

from stripe_bridge.stripe_api import StripeReads, stripe_client


@pytest.fixture(scope="module")
async def fake():
    async with fake_stripe() as running:
        yield running


@pytest.fixture(scope="module")
async def reads(fake):
    async with stripe_client(KEY, address=fake.url, retries=0) as sdk:
        yield StripeReads(sdk)


@pytest.fixture(autouse=True)
async def calm(fake):
    """Sets Stripe as it was at first when a test is over; for a module whose tests break it."""
    yield
    await fake.faults()
    await fake.api_faults()
    await fake.settings(mode="on", clock_offset_seconds=0, clock_skew_seconds=0)


@pytest.fixture
def sdk(fake):
    return fake.sdk()


@pytest.fixture
async def receiver(fake):
    async with receiving(fake, enabled_events=["*"]) as started:
        yield started
