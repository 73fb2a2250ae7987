"""A fake Stripe alone, a bridge alone, and the stage with both and the service.

The tests of a module share them, and each makes its own users and payments.
"""

import pytest
from kit.bridge_stage import MONTHLY, POLICY, STARTER, Stage
from kit.bridges import NOWHERE, bridge_settings, running_bridge
from kit.http_clients import http_client
from kit.services import running, server_settings
from kit.settlers import POLICY as EMPTY_CATALOGUE
from kit.stripe_fakes import KEY, fake_stripe
from kit.stripe_receiver import receiving

from stripe_bridge.settle import Settler
from stripe_bridge.stripe_api import StripeReads, stripe_client


@pytest.fixture(scope="module")
async def fake():
    async with fake_stripe() as running_one:
        yield running_one


@pytest.fixture(scope="module")
async def reads(fake):
    async with stripe_client(KEY, address=fake.url, retries=0) as sdk:
        yield StripeReads(sdk)


@pytest.fixture
async def calm(fake):
    """Puts Stripe back into its first state after each test, for a module whose tests break it."""
    yield
    await fake.faults()
    await fake.api_faults()
    await fake.settings(
        mode="on", clock_offset_seconds=0, clock_skew_seconds=0, search_lag_seconds=0
    )


@pytest.fixture
def sdk(fake):
    return fake.sdk()


@pytest.fixture
async def receiver(fake):
    async with receiving(fake, enabled_events=["*"]) as started:
        yield started


@pytest.fixture
def settler(reads, client):
    return Settler(reads, client, EMPTY_CATALOGUE)


@pytest.fixture(scope="module")
async def alone():
    """A bridge without a Stripe and without a service."""
    async with running_bridge(bridge_settings(NOWHERE)) as running_one:
        yield running_one


@pytest.fixture(scope="module")
async def shared_stage(make_shared_database):
    database = await make_shared_database()
    async with (
        fake_stripe() as fake,
        running(server_settings(database.service_url)) as service,
        stripe_client(KEY, address=fake.url, retries=0) as sdk,
        http_client(base_url=fake.url, headers={"Authorization": f"Bearer {KEY}"}) as api,
        running_bridge(
            bridge_settings(service.target, stripe_address=fake.url, policy=POLICY)
        ) as bridge,
    ):
        client, reads = await service.client(), StripeReads(sdk)
        endpoint = await fake.deliver_to(f"http://127.0.0.1:{bridge.port}/stripe/webhooks")
        stage = Stage(database, service, client, fake, api, reads, bridge, endpoint["id"])
        await fake.price(900, id=STARTER)
        await fake.price(2900, id=MONTHLY, recurring={"interval": "month"})
        await stage.calm()
        yield stage


@pytest.fixture
async def stage(shared_stage):
    """The whole stage; after the test, Stripe is calm again."""
    yield shared_stage
    await shared_stage.calm()
