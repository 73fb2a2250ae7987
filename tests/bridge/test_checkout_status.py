"""The state of a checkout, requested by the page to which the buyer returns."""

import asyncio
import hashlib
import time
from collections import Counter
from dataclasses import dataclass
from uuid import uuid4

import httpx
import pytest
from kit.bridges import Bridge, bridge_settings, running_bridge
from kit.databases import Database
from kit.services import running, server_settings
from kit.stripe_fakes import fake_stripe
from kit.waiting import eventually

from credit_service.client import CreditClient
from stripe_bridge import checkout_status

PAUSE_SECONDS = 2  # after which the bridge reads a checkout again

TOKEN = "a token of the gateway"
BEARER = {"Authorization": f"Bearer {TOKEN}"}


class Clock:
    """The clock of the bridge's reads of checkouts; a test moves it ahead."""

    ahead = 0.0

    def monotonic(self):
        return time.monotonic() + self.ahead


CLOCK = Clock()


@dataclass
class Shop:
    database: Database
    client: CreditClient
    fake: object
    bridge: Bridge

    async def sells(self, user_id, pack="starter") -> str:
        """Opens a checkout; returns its id."""
        order = {
            "user_id": str(user_id),
            "pack": pack,
            "success_url": "https://app.example.com/paid",
            "cancel_url": "https://app.example.com/credits",
        }
        answer = await self.bridge.http.post("/checkout-sessions", json=order, headers=BEARER)
        return answer.json()["id"]

    async def look(self, session_id, user_id) -> httpx.Response:
        return await self.bridge.http.get(
            f"/checkout-sessions/{session_id}", params={"user_id": str(user_id)}, headers=BEARER
        )

    async def refresh(self, session_id, user_id) -> httpx.Response:
        return await self.bridge.http.post(
            f"/checkout-sessions/{session_id}/refresh",
            json={"user_id": str(user_id)},
            headers=BEARER,
        )

    async def becomes(self, session_id, user_id, state, *, refreshed=False) -> dict:
        """Waits for a state; asks each time when the bridge may read Stripe again."""
        ask = self.refresh if refreshed else self.look

        async def answered():
            CLOCK.ahead += PAUSE_SECONDS
            answer = await ask(session_id, user_id)
            assert answer.status_code in {200, 503}, answer.text
            return answer.json() if answer.json().get("state") == state else None

        return await eventually(answered)

    async def balance(self, user_id) -> int:
        return (await self.client.get_user_credit(user_id)).balance


@pytest.fixture(scope="module")
async def shop(make_shared_database):
    database = await make_shared_database()
    async with (
        fake_stripe() as fake,
        running(server_settings(database.service_url)) as service,
        running_bridge(
            bridge_settings(
                service.target,
                stripe_address=fake.url,
                checkout_token_sha256=hashlib.sha256(TOKEN.encode()).hexdigest(),
            )
        ) as bridge,
    ):
        await fake.settings(mode="lose")  # the webhook never comes
        await fake.price(900, id="price_starter", currency="eur")
        yield Shop(database, await service.client(), fake, bridge)


@pytest.fixture(autouse=True)
def clock(monkeypatch):
    """The bridge's clock, moved past the last test's reads of Stripe."""
    monkeypatch.setattr(checkout_status, "time", CLOCK)
    CLOCK.ahead += PAUSE_SECONDS
    return CLOCK


def refusal(answer):
    return answer.status_code, answer.json()["error"]["reason"]


async def test_a_checkout_is_open_until_it_is_paid_and_a_refresh_settles_it(shop):
    user_id = await shop.database.user()
    session_id = await shop.sells(user_id)
    opened = await shop.look(session_id, user_id)
    assert opened.json() == {"id": session_id, "state": "open", "credits": None}
    await shop.fake.pay_session(session_id)
    # A look shows the state and writes nothing, although the webhook is lost.
    assert (await shop.becomes(session_id, user_id, "processing"))["credits"] is None
    assert await shop.balance(user_id) == 0
    settled = await shop.refresh(session_id, user_id)
    assert settled.json() == {"id": session_id, "state": "credited", "credits": 100}
    again = await asyncio.gather(*(shop.refresh(session_id, user_id) for _ in range(5)))
    assert {answer.json()["state"] for answer in again} == {"credited"}
    assert (await shop.look(session_id, user_id)).json()["state"] == "credited"
    assert await shop.balance(user_id) == 100
    assert await shop.database.faults() == []


async def test_a_session_that_names_only_the_user_is_credited_by_the_catalogue(shop):
    user_id = await shop.database.user()
    session = await shop.fake.sdk().v1.checkout.sessions.create_async(
        {
            "mode": "payment",
            "line_items": [{"price": "price_starter", "quantity": 1}],
            "metadata": {"credit_user_id": str(user_id)},
            "success_url": "https://app.example.com/paid",
        }
    )
    await shop.fake.pay_session(session.id)
    settled = await shop.refresh(session.id, user_id)
    assert settled.json() == {"id": session.id, "state": "credited", "credits": None}
    assert await shop.balance(user_id) == 100


async def test_a_late_webhook_after_a_refresh_credits_nothing_twice(shop):
    user_id = await shop.database.user()
    session_id = await shop.sells(user_id)
    await shop.fake.pay_session(session_id)
    await shop.becomes(session_id, user_id, "credited", refreshed=True)
    for event in await shop.fake.events(object=session_id):
        body = (await shop.fake.sdk().v1.events.retrieve_async(event["id"])).to_dict()
        answer = await shop.bridge.deliver(body)
        assert answer.status_code == 200
    assert await shop.balance(user_id) == 100


async def test_a_bank_debit_stays_processing_until_it_ends(shop):
    user_id = await shop.database.user()
    works, fails = await shop.sells(user_id), await shop.sells(user_id)
    for session_id in (works, fails):
        await shop.fake.pay_session(session_id, when="later")
        await shop.becomes(session_id, user_id, "processing", refreshed=True)
    assert await shop.balance(user_id) == 0
    await shop.fake.do("settle_session", id=works, succeeds=True)
    await shop.fake.do("settle_session", id=fails, succeeds=False)
    await shop.becomes(works, user_id, "credited", refreshed=True)
    assert (await shop.becomes(fails, user_id, "expired", refreshed=True))["credits"] is None
    assert await shop.balance(user_id) == 100


async def test_a_checkout_whose_time_has_passed_is_expired(shop):
    user_id = await shop.database.user()
    session_id = await shop.sells(user_id)
    await shop.fake.do("expire_session", id=session_id)
    await shop.becomes(session_id, user_id, "expired")


async def test_another_users_checkout_is_answered_like_an_unknown_one(shop):
    user_id, other = await shop.database.user(), await shop.database.user()
    session_id = await shop.sells(user_id)
    await shop.fake.pay_session(session_id)
    for answer in (
        await shop.look(session_id, other),
        await shop.refresh(session_id, other),
        await shop.look(f"cs_test_{uuid4().hex}", user_id),
        await shop.look("pi_1234567890abcdef", user_id),
        await shop.look("cs_short", user_id),
    ):
        assert refusal(answer) == (404, "unknown_checkout")
    assert await shop.balance(other) == 0


async def test_stripe_is_read_once_in_two_seconds_a_session_and_five_times_a_second(
    shop, clock, monkeypatch
):
    now = clock.monotonic()
    monkeypatch.setattr(clock, "monotonic", lambda: now)
    user_id = await shop.database.user()
    session_id = await shop.sells(user_id)
    answers = await asyncio.gather(*(shop.look(session_id, user_id) for _ in range(50)))
    assert {answer.json()["state"] for answer in answers} == {"open"}
    others = [f"cs_test_{uuid4().hex}" for _ in range(20)]
    answers = await asyncio.gather(*(shop.look(each, user_id) for each in others))
    refusals = Counter(refusal(answer) for answer in answers)
    assert refusals == {(503, "too_many_reads"): 16, (404, "unknown_checkout"): 4}


@pytest.mark.parametrize("body", [{}, {"user_id": "me"}, {"user_id": 1}, [], {"user_id": None}])
async def test_a_refresh_names_the_user(shop, body):
    path = f"/checkout-sessions/cs_test_{uuid4().hex}/refresh"
    answer = await shop.bridge.http.post(path, json=body, headers=BEARER)
    assert refusal(answer) == (400, "invalid_request")


async def test_only_callers_with_the_token_may_ask(shop):
    for method, path in (
        ("GET", "/checkout-sessions/cs_test_1234567890"),
        ("POST", "/checkout-sessions/cs_test_1234567890/refresh"),
        ("POST", "/portal-sessions"),
    ):
        answer = await shop.bridge.http.request(method, path, json={})
        assert refusal(answer) == (401, "unauthenticated")


async def test_no_answer_from_stripe_is_a_503(shop):
    user_id = await shop.database.user()
    session_id = await shop.sells(user_id)
    await shop.fake.api_faults({"kind": "status", "status": 500})
    try:
        assert refusal(await shop.look(session_id, user_id)) == (503, "stripe_away")
    finally:
        await shop.fake.api_faults()


async def test_the_portal_opens_for_the_customer_of_the_user(shop):
    user_id, other = uuid4(), uuid4()
    back = {"return_url": "https://app.example.com/credits"}
    await shop.fake.do("customer", metadata={"credit_user_id": str(user_id)})
    order = {"user_id": str(user_id), **back}
    answer = await shop.bridge.http.post("/portal-sessions", json=order, headers=BEARER)
    assert answer.status_code == 200
    assert answer.json()["url"].startswith(shop.fake.url)
    order = {"user_id": str(other), **back}
    answer = await shop.bridge.http.post("/portal-sessions", json=order, headers=BEARER)
    assert refusal(answer) == (404, "no_customer")
    order = {"user_id": str(user_id), "return_url": "http://evil.example.com"}
    answer = await shop.bridge.http.post("/portal-sessions", json=order, headers=BEARER)
    assert refusal(answer) == (400, "invalid_request")
