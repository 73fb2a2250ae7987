"""Live balances: a snapshot first, then every newest state, and an end with its reason."""

import contextlib
from dataclasses import replace
from uuid import uuid4

import pytest
from kit.gateways import bearer, gateway_settings, problem, running_gateway, unix_time
from kit.programs import free_port
from kit.services import running, server_settings
from kit.waiting import eventually, patience

from credit_service.gateway import Limits, Rate

pytestmark = pytest.mark.shared

LIMITS = Limits(link_seconds=0.2, streams_opened=Rate(1000, 1000))


@pytest.fixture
async def gateway(service):
    # The service must not seem away here, even on a slow machine.
    limits = replace(LIMITS, link_seconds=patience(10))
    async with running_gateway(gateway_settings(service.target, limits=limits)) as gateway:
        yield gateway


async def test_a_page_is_sent_a_snapshot_and_then_every_change(database, client, gateway):
    user_id = await database.user(100)
    async with gateway.page(user_id) as page:
        await page.shows(100)
        assert page.events[0] == ("account", (await gateway.get(user_id, "/account")).json())
        await client.spend_credits(user_id, amount=30)
        await page.shows(70)
        await client.hold_credits(user_id, amount=20)
        await eventually(lambda: page.all("account")[-1]["held"] == 20)
        await client.set_account_policy(user_id, frozen=True)
        await eventually(lambda: page.all("account")[-1]["frozen"])
    seqs = [account["seq"] for account in page.all("account")]
    assert seqs == sorted(seqs)


async def test_all_pages_of_a_user_share_one_watch_and_no_other_user_gets_its_events(
    database, client, gateway
):
    user_id, other = await database.user(100), await database.user(55)
    async with (
        gateway.page(user_id) as first,
        gateway.page(user_id) as second,
        gateway.page(other) as third,
    ):
        await first.shows(100)
        await second.shows(100)
        await third.shows(55)
        await client.spend_credits(user_id, amount=1)
        await first.shows(99)
        await second.shows(99)
    assert {account["balance"] for account in third.all("account")} == {55}


async def test_the_seventh_page_replaces_the_oldest(database, client, gateway):
    user_id = await database.user(100)
    async with (
        gateway.page(user_id) as oldest,
        gateway.page(user_id) as next_one,
        gateway.page(user_id),
        gateway.page(user_id),
        gateway.page(user_id),
        gateway.page(user_id),
        gateway.page(user_id) as newest,
    ):
        assert await oldest.ends() == "replaced"
        await newest.shows(100)
        await client.spend_credits(user_id, amount=1)
        await newest.shows(99)
        await next_one.shows(99)
        assert not next_one.closed


async def test_a_stream_ends_before_its_token_does(database, gateway):
    user_id = await database.user(100)
    # The stream ends 5 s before its token, even if opening it takes part of that time.
    async with gateway.page(user_id, expires_at=unix_time(5 + patience(0.5))) as page:
        assert await page.ends() == "token_expiring"
    expired = await gateway.http.get("/account/stream", headers=bearer(user_id, unix_time(-1)))
    assert problem(expired) == (401, "UNAUTHENTICATED")


async def test_a_quiet_stream_has_heartbeats(service, database):
    settings = gateway_settings(service.target, limits=replace(LIMITS, heartbeat_seconds=0.05))
    user_id = await database.user(100)
    async with running_gateway(settings) as gateway, gateway.page(user_id) as page:
        await eventually(lambda: page.heartbeats >= 3)
        await page.shows(100)


async def test_a_stream_ends_by_age(service, database):
    settings = gateway_settings(service.target, limits=replace(LIMITS, stream_seconds=0.5))
    user_id = await database.user(100)
    async with running_gateway(settings) as gateway, gateway.page(user_id) as page:
        assert await page.ends() == "max_age"


async def test_an_unknown_user_sees_the_first_purchase(make_database):
    database = await make_database()
    limits = replace(LIMITS, link_seconds=patience(10))
    async with (
        running(server_settings(database.service_url, adds_users=True)) as service,
        running_gateway(gateway_settings(service.target, limits=limits)) as gateway,
    ):
        user_id = uuid4()
        async with gateway.page(user_id) as page:
            await page.shows(0)
            await (await service.client()).grant_credits(user_id, 40, reason="welcome")
            await page.shows(40)
        assert not page.all("link")


async def test_pages_are_sent_that_the_service_is_away_and_back(database, client):
    user_id = await database.user(100)
    target = f"127.0.0.1:{free_port()}"
    settings = server_settings(database.service_url, drain_seconds=0.1)
    settings = replace(settings, listen=target)
    async with running(settings):
        gateway_running = running_gateway(gateway_settings(target, limits=LIMITS))
        gateway = await gateway_running.__aenter__()
        page_open = gateway.page(user_id)
        page = await page_open.__aenter__()
        await page.shows(100)
    # On a busy machine it may also have been shown as away before its first answer.
    await eventually(lambda: page.all("link") and not page.all("link")[-1]["up"])
    away = page.all("link")[-1]
    assert away["as_of"].endswith("Z")
    async with gateway.page(user_id) as late:
        # A page opened now is sent the last known state, and that it may be old.
        assert await late.hears("link") == away
        await late.shows(100)
        await client.spend_credits(user_id, amount=1)
        async with running(settings):
            await eventually(lambda: page.all("link")[-1]["up"])
            await page.shows(99)
            await late.shows(99)
            assert not page.closed
            await page_open.__aexit__(None, None, None)
            await gateway_running.__aexit__(None, None, None)


async def test_a_page_opened_while_the_service_is_away_is_sent_that(database):
    user_id = await database.user(100)
    target = f"127.0.0.1:{free_port()}"
    async with (
        running_gateway(gateway_settings(target, limits=LIMITS)) as gateway,
        gateway.page(user_id) as page,
    ):
        assert await page.hears("link") == {"up": False, "as_of": None}
        assert not page.all("account")
        async with running(replace(server_settings(database.service_url), listen=target)):
            await page.shows(100)
            assert page.all("link")[-1]["up"] is True


async def test_a_stopping_gateway_ends_a_hundred_streams_with_a_reason(database, service):
    users = [await database.user(10) for _ in range(25)]
    settings = gateway_settings(service.target, limits=LIMITS)
    async with running_gateway(settings) as gateway, contextlib.AsyncExitStack() as stack:
        pages = [await stack.enter_async_context(gateway.page(user_id)) for user_id in users * 4]
        for page in pages:
            await page.shows(10)
        gateway.stop.set()
        assert {await page.ends() for page in pages} == {"stopping"}
        await gateway.task
