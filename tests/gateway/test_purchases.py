"""Buying through the gateway, the bridge and the fake Stripe, all on real sockets."""

import asyncio
import gc
import hashlib
from contextlib import asynccontextmanager
from dataclasses import dataclass
from uuid import uuid4

import pytest
from kit.bridges import bridge_settings, running_bridge
from kit.databases import Database
from kit.gateways import Gateway, bearer, gateway_settings, problem, running_gateway
from kit.programs import free_port
from kit.services import running, server_settings
from kit.stripe_fakes import fake_stripe
from kit.waiting import eventually, patience

from credit_service.client import CreditClient
from credit_service.gateway import Bridge, Problem, bridge

TOKEN = "a token of the gateway"
SUCCESS = "https://app.example.com/paid?checkout={CHECKOUT_SESSION_ID}"
CANCEL = "https://app.example.com/credits"


@dataclass
class Shop:
    database: Database
    target: str
    client: CreditClient
    fake: object
    bridge_url: str
    gateway: Gateway

    async def opens(self, user_id, key=None, /, **order):
        return await self.gateway.post(
            user_id,
            "/checkouts",
            {"pack": "starter", **order},
            Idempotency_Key=key or uuid4().hex,
        )

    async def becomes(self, user_id, checkout_id, state, path=""):
        """Waits for a state; the bridge reads Stripe again only after two seconds."""

        async def reached():
            address = f"/checkouts/{checkout_id}{path}"
            answer = await (
                self.gateway.post(user_id, address, {})
                if path
                else self.gateway.get(user_id, address)
            )
            assert answer.status_code in {200, 429, 503}, answer.text
            return answer.json() if answer.json().get("state") == state else None

        return await eventually(reached, every=0.25)


def bridge_of(shop_url, fake_url, **changes):
    host = fake_url.removeprefix("http://")
    options = {
        "token": TOKEN,
        "success_url": SUCCESS,
        "cancel_url": CANCEL,
        "portal_return_url": CANCEL,
        "checkout_hosts": (host,),
        "portal_hosts": (host,),
        **changes,
    }
    return Bridge(shop_url, **options)


@pytest.fixture(scope="module", autouse=True)
def patient():
    """Lets the gateway wait for the bridge on a slow machine too."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bridge, "_SECONDS", patience(9))
        yield


@pytest.fixture(scope="module")
async def shop(make_shared_database):
    database = await make_shared_database()
    async with (
        fake_stripe() as fake,
        running(server_settings(database.service_url, adds_users=True)) as service,
        running_bridge(
            bridge_settings(
                service.target,
                stripe_address=fake.url,
                checkout_token_sha256=hashlib.sha256(TOKEN.encode()).hexdigest(),
            )
        ) as selling,
    ):
        await fake.settings(mode="lose")  # the webhook never comes
        await fake.price(900, id="price_starter", currency="eur")
        url = f"http://127.0.0.1:{selling.port}"
        settings = gateway_settings(service.target, bridge=bridge_of(url, fake.url))
        async with running_gateway(settings) as gateway:
            yield Shop(database, service.target, await service.client(), fake, url, gateway)


@asynccontextmanager
async def another_gateway(shop, **changes):
    settings = gateway_settings(
        shop.target, bridge=bridge_of(changes.pop("url", shop.bridge_url), shop.fake.url, **changes)
    )
    async with running_gateway(settings) as gateway:
        yield gateway


async def test_a_listing_that_failed_is_freed_without_the_garbage_collector():
    bridge = Bridge(
        f"http://127.0.0.1:{free_port()}", token="t", success_url="http://s", cancel_url="http://c"
    )
    gc.collect()
    gc.disable()
    try:
        for _ in range(20):
            with pytest.raises(Problem):
                await bridge.packs()
        await bridge.aclose()
        await eventually(lambda: not [e for e in gc.get_objects() if isinstance(e, Problem)])
    finally:
        gc.enable()


async def test_a_first_purchase_arrives_on_the_page_although_the_webhook_is_lost(shop):
    user_id = uuid4()
    starter, studio = (await shop.gateway.get(user_id, "/packs")).json()["items"]
    assert starter == {
        "id": "starter",
        "name": "100 credits",
        "credits": 100,
        "amount_minor": 900,
        "currency": "eur",
        "valid_for_seconds": None,
    }
    assert (studio["id"], studio["valid_for_seconds"]) == ("studio", 365 * 86_400)
    async with shop.gateway.page(user_id) as page:
        await page.shows(0)
        opened = await shop.opens(user_id)
        assert opened.status_code == 201
        checkout = opened.json()
        assert checkout["url"].startswith(shop.fake.url)
        session = await shop.fake.do("object", id=checkout["id"])
        assert (session["success_url"], session["cancel_url"]) == (SUCCESS, CANCEL)
        looked = await shop.gateway.get(user_id, f"/checkouts/{checkout['id']}")
        assert looked.json() == {"id": checkout["id"], "state": "open", "credits": None}
        await shop.fake.pay_session(checkout["id"])
        await shop.becomes(user_id, checkout["id"], "processing")
        credited = await shop.becomes(user_id, checkout["id"], "credited", "/refresh")
        assert credited["credits"] == 100
        await page.shows(100)


async def test_clicks_in_one_tick_are_one_checkout_and_too_many_are_refused(shop):
    user_id, key = uuid4(), uuid4().hex
    opened = await asyncio.gather(*(shop.opens(user_id, key) for _ in range(60)))
    taken = [answer for answer in opened if answer.status_code == 201]
    refused = [answer for answer in opened if answer.status_code != 201]
    assert len(taken) >= 20
    assert len({answer.json()["id"] for answer in taken}) == 1
    # Beyond a user's burst; another user has a separate bucket.
    assert {problem(answer) for answer in refused} == {(429, "TOO_MANY_REQUESTS")}
    assert all(int(answer.headers["retry-after"]) >= 1 for answer in refused)
    assert (await shop.opens(uuid4(), key)).status_code == 201


async def test_a_key_belongs_to_one_order(shop):
    user_id, key = uuid4(), uuid4().hex
    assert (await shop.opens(user_id, key)).status_code == 201
    assert problem(await shop.opens(user_id, key, quantity=2)) == (409, "IDEMPOTENCY_KEY_REUSED")


async def test_another_users_checkout_is_unknown(shop):
    user_id, other = uuid4(), uuid4()
    checkout = (await shop.opens(user_id)).json()["id"]
    await shop.fake.pay_session(checkout)
    for checkout_id in (checkout, f"cs_test_{uuid4().hex}", "cs_short", "pi_1234567890", "..%2F.."):
        answer = await shop.gateway.get(other, f"/checkouts/{checkout_id}")
        assert answer.status_code == 404
        answer = await shop.gateway.post(other, f"/checkouts/{checkout_id}/refresh", {})
        assert answer.status_code == 404


async def test_the_user_is_never_taken_from_the_request(shop):
    user_id, other = uuid4(), uuid4()
    answer = await shop.opens(user_id, user_id=str(other))
    assert problem(answer) == (400, "INVALID_REQUEST")
    assert answer.json()["field"] == "user_id"
    checkout = (await shop.opens(other)).json()["id"]
    answer = await shop.gateway.get(user_id, f"/checkouts/{checkout}?user_id={other}")
    assert problem(answer) == (400, "INVALID_REQUEST")
    answer = await shop.gateway.post(
        user_id, f"/checkouts/{checkout}/refresh", {"user_id": str(other)}
    )
    assert problem(answer) == (400, "INVALID_REQUEST")


async def test_a_checkout_that_saves_the_card_leaves_it_with_the_users_customer(shop):
    user_id, key = uuid4(), uuid4().hex
    made = (await shop.opens(user_id, key, save_card=True)).json()
    assert (await shop.opens(user_id, key, save_card=True)).json() == made
    assert problem(await shop.opens(user_id, key)) == (409, "IDEMPOTENCY_KEY_REUSED")
    await shop.fake.pay_session(made["id"])
    customer = (await shop.fake.do("object", id=made["id"]))["customer"]
    assert (await shop.fake.do("object", id=customer))["metadata"] == {
        "credit_user_id": str(user_id)
    }
    methods = shop.fake.sdk().v1.payment_methods
    assert len((await methods.list_async({"customer": customer, "type": "card"})).data) == 1
    for unsaved in ({}, {"save_card": False}):
        opened = (await shop.opens(uuid4(), **unsaved)).json()
        assert (await shop.fake.do("object", id=opened["id"]))["customer"] is None


@pytest.mark.parametrize(
    ("order", "key", "status", "reason"),
    [
        ({"pack": "starter"}, None, 400, "INVALID_REQUEST"),
        ({"pack": "starter"}, "with space", 400, "INVALID_REQUEST"),
        ({"pack": "starter"}, "x" * 129, 400, "INVALID_REQUEST"),
        ({"pack": "none"}, "k", 404, "UNKNOWN_PACK"),
        ({"pack": ""}, "k", 400, "INVALID_REQUEST"),
        ({}, "k", 400, "INVALID_REQUEST"),
        ({"pack": "starter", "quantity": 0}, "k", 400, "INVALID_REQUEST"),
        ({"pack": "starter", "quantity": True}, "k", 400, "INVALID_REQUEST"),
        ({"pack": "starter", "quantity": 10**7}, "k", 400, "INVALID_REQUEST"),
        ({"pack": "starter", "save_card": "true"}, "k", 400, "INVALID_REQUEST"),
        ({"pack": "starter", "save_card": None}, "k", 400, "INVALID_REQUEST"),
        ({"pack": "starter", "success_url": "https://evil"}, "k", 400, "INVALID_REQUEST"),
        ([], "k", 400, "INVALID_REQUEST"),
    ],
)
async def test_a_malformed_order_is_refused(shop, order, key, status, reason):
    headers = {} if key is None else {"Idempotency-Key": key}
    answer = await shop.gateway.post(uuid4(), "/checkouts", order, **headers)
    assert problem(answer) == (status, reason)


async def test_the_portal_opens_for_a_user_who_is_a_customer(shop):
    user_id = uuid4()
    assert problem(await shop.gateway.post(user_id, "/portal", {})) == (404, "NO_CUSTOMER")
    await shop.fake.do("customer", metadata={"credit_user_id": str(user_id)})
    answer = await shop.gateway.post(user_id, "/portal", {})
    assert answer.json()["url"].startswith(f"{shop.fake.url}/_fake/portal/")
    without_body = await shop.gateway.http.post("/portal", headers=bearer(user_id))
    assert without_body.status_code == 200


async def test_the_configuration_shows_what_is_offered(shop):
    answer = await shop.gateway.http.get("/config")
    assert answer.json() == {
        "checkout_hosts": [shop.fake.url.removeprefix("http://")],
        "portal_hosts": [shop.fake.url.removeprefix("http://")],
        "features": {"checkout": True, "portal": True},
    }
    async with running_gateway(gateway_settings(shop.target)) as gateway:
        assert (await gateway.http.get("/config")).json() == {
            "checkout_hosts": [],
            "portal_hosts": [],
            "features": {"checkout": False, "portal": False},
        }
        assert problem(await gateway.get(uuid4(), "/packs")) == (404, "NOT_SOLD_HERE")


async def test_a_bridge_that_is_away_or_refuses_the_gateway_is_503(shop):
    async with another_gateway(shop, url="http://127.0.0.1:9") as gateway:
        answer = await gateway.get(uuid4(), "/packs")
        assert problem(answer) == (503, "BRIDGE_UNAVAILABLE")
        assert answer.headers["retry-after"]
    async with another_gateway(shop, token="an old token") as gateway:
        answer = await gateway.post(uuid4(), "/checkouts", {"pack": "starter"}, Idempotency_Key="k")
        assert problem(answer) == (503, "MISCONFIGURED")


async def test_no_buyer_is_sent_to_a_host_that_is_not_configured(shop):
    async with another_gateway(shop, checkout_hosts=("checkout.stripe.com",)) as gateway:
        answer = await gateway.post(uuid4(), "/checkouts", {"pack": "starter"}, Idempotency_Key="k")
        assert problem(answer) == (503, "MISCONFIGURED")
