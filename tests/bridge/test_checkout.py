"""Selling credit packs: valid orders, and the sessions that they open at Stripe."""

import asyncio
import hashlib
import json
from dataclasses import replace
from uuid import UUID, uuid4

import httpx
import pytest
from kit.bridges import NOWHERE, PACKS, bridge_settings, event_of, running_bridge
from kit.stripe_fakes import KEY, fake_stripe

from stripe_bridge.catalog import Catalog, Policy
from stripe_bridge.checkout import CheckoutRefused, open_session, read_order
from stripe_bridge.request_bodies import Limits
from stripe_bridge.stripe_api import StripeReads

TOKEN = "a token of the gateway"
USER = "6f2c1f0e-8a52-4be0-9f0a-0f6f0f3f7c11"
ORDER = {
    "user_id": USER,
    "pack": "starter",
    "success_url": "https://app.example.com/paid?session={CHECKOUT_SESSION_ID}",
    "cancel_url": "https://app.example.com/credits",
}


def selling(address, **changes):
    return bridge_settings(
        changes.pop("credit_target", NOWHERE),
        stripe_address=address,
        checkout_token_sha256=hashlib.sha256(TOKEN.encode()).hexdigest(),
        **changes,
    )


@pytest.fixture(scope="module")
async def fake():
    async with fake_stripe() as running:
        await running.price(900, id="price_starter", currency="eur")
        await running.price(7900, id="price_studio", currency="eur", lookup_key="credits_1000")
        yield running


@pytest.fixture(scope="module")
async def bridge(fake):
    async with running_bridge(selling(fake.url)) as running_one:
        yield running_one


async def order(bridge, fields, token=TOKEN):
    headers = {"Authorization": f"Bearer {token}"}
    return await bridge.http.post("/checkout-sessions", json=fields, headers=headers)


def refusal(answer):
    return answer.status_code, answer.json()["error"]["reason"]


def read(fields, **options):
    policy = {"return_origins": (), "credits_max": 10**12, **options}
    return read_order(fields, catalog=Catalog.parse(PACKS), **policy)


def refused(fields, **options):
    with pytest.raises(CheckoutRefused) as refusal:
        read(fields, **options)
    return refusal.value


async def test_a_session_sells_the_pack_to_the_user_and_freezes_both(bridge, fake):
    answer = await order(bridge, {**ORDER, "quantity": 3})
    assert answer.status_code == 200
    made = answer.json()
    session = await fake.do("object", id=made["id"])
    assert made == {key: session[key] for key in ("id", "url", "expires_at")}
    frozen = {"credit_user_id": USER, "credits": "300", "credits_v": "1"}
    assert session["metadata"] == frozen
    assert (session["mode"], session["client_reference_id"]) == ("payment", USER)
    assert session["success_url"] == ORDER["success_url"]
    assert session["cancel_url"] == ORDER["cancel_url"]
    assert session["invoice_creation"] == {"enabled": False}
    (line,) = await StripeReads(fake.sdk()).line_items(made["id"])
    assert (line["price"]["id"], line["quantity"]) == ("price_starter", 3)
    paid = await fake.pay_session(made["id"])
    intent = await fake.do("object", id=paid["payment_intent"])
    assert (intent["status"], intent["metadata"]) == ("succeeded", frozen)


async def test_a_session_of_a_pack_whose_credits_lapse_fixes_their_lifetime(fake):
    pack = PACKS.replace("credits = 100\n", 'credits = 100\nvalid_for = "52w"\n')
    ordered = read_order(ORDER, catalog=Catalog.parse(pack), return_origins=(), credits_max=10**12)
    made = await open_session(fake.sdk(), ordered)
    session = await fake.do("object", id=made.id)
    assert session["metadata"]["credits_valid_for"] == "364d"


async def test_a_pack_named_by_lookup_key_sells_the_price_that_has_it(bridge, fake):
    made = (await order(bridge, {**ORDER, "pack": "studio"})).json()
    session = await fake.do("object", id=made["id"])
    assert session["metadata"]["credits"] == "1000"
    (line,) = await StripeReads(fake.sdk()).line_items(made["id"])
    assert line["price"]["id"] == "price_studio"


async def test_an_order_that_saves_the_card_has_the_customer_of_the_user(bridge, fake):
    user = str(uuid4())
    saving = {**ORDER, "user_id": user, "save_card": True}
    made = [(await order(bridge, saving)).json()["id"] for _ in range(2)]
    customers = {(await fake.do("object", id=each))["customer"] for each in made}
    (customer,) = customers
    assert (await fake.do("object", id=customer))["metadata"] == {"credit_user_id": user}
    await fake.pay_session(made[0])
    methods = fake.sdk().v1.payment_methods
    saved = await methods.list_async({"customer": customer, "type": "card"})
    assert len(saved.data) == 1


async def test_an_order_saves_no_card_unless_it_says_so(bridge, fake):
    for fields in (ORDER, {**ORDER, "save_card": False}):
        made = (await order(bridge, fields)).json()["id"]
        assert (await fake.do("object", id=made))["customer"] is None


async def test_a_double_click_is_one_session(bridge):
    answers = await asyncio.gather(
        *(order(bridge, {**ORDER, "idempotency_key": "click-1"}) for _ in range(5))
    )
    assert len({answer.json()["id"] for answer in answers}) == 1


async def test_without_a_key_every_order_is_a_new_session(bridge):
    ids = {(await order(bridge, ORDER)).json()["id"] for _ in range(3)}
    assert len(ids) == 3


async def test_two_users_with_the_same_key_never_share_a_session(bridge, fake):
    sessions = {}
    for user_id in (str(uuid4()), str(uuid4())):
        answer = await order(bridge, {**ORDER, "user_id": user_id, "idempotency_key": "first"})
        sessions[user_id] = answer.json()["id"]
    assert len(set(sessions.values())) == 2
    for user_id, session_id in sessions.items():
        session = await fake.do("object", id=session_id)
        assert session["metadata"]["credit_user_id"] == user_id


async def test_a_key_that_was_used_for_another_order_is_a_409(bridge):
    first = {**ORDER, "idempotency_key": "used"}
    assert (await order(bridge, first)).status_code == 200
    assert refusal(await order(bridge, {**first, "quantity": 2})) == (409, "idempotency_key_reused")


@pytest.mark.parametrize(
    "authorization",
    [
        *(None, "", "Bearer", "Bearer x", TOKEN, f"Basic {TOKEN}", f"Bearer {TOKEN}x"),
        *(f"Bearer {hashlib.sha256(TOKEN.encode()).hexdigest()}", b"Bearer \xff\xfe"),
    ],
)
async def test_nothing_is_sold_without_the_token(bridge, fake, authorization):
    before = (await fake.counts())["api_requests"]
    headers = {} if authorization is None else {"Authorization": authorization}
    answer = await bridge.http.post("/checkout-sessions", json=ORDER, headers=headers)
    assert refusal(answer) == (401, "unauthenticated")
    assert answer.headers["www-authenticate"] == "Bearer"
    assert (await fake.counts())["api_requests"] == before


async def test_a_body_that_is_not_an_order_is_refused(bridge):
    headers = {"Authorization": f"Bearer {TOKEN}"}
    for body in (b"", b"{", b"\xff", b"[" * 10_000, b"NaN", b"[]", b'"x"', b"null", b'{"a":1}'):
        answer = await bridge.http.post("/checkout-sessions", content=body, headers=headers)
        assert refusal(answer) == (400, "invalid_request")
    large = json.dumps({**ORDER, "idempotency_key": "x" * 20_000}).encode()
    answer = await bridge.http.post("/checkout-sessions", content=large, headers=headers)
    assert refusal(answer) == (413, "too_large")


async def test_stripe_away_is_a_503_and_a_price_it_lacks_a_502(fake):
    async with running_bridge(selling("http://127.0.0.1:9")) as bridge:
        answer = await order(bridge, ORDER)
        assert refusal(answer) == (503, "stripe_away")
        assert answer.headers["retry-after"]
    for pack in ('price = "price_nobody_made"', 'lookup_key = "nobody_has"'):
        catalog = Catalog.parse(PACKS.replace('price = "price_starter"', pack))
        settings = replace(selling(fake.url), policy=Policy(catalog=catalog))
        async with running_bridge(settings) as bridge:
            assert refusal(await order(bridge, ORDER)) == (502, "stripe_refuses")


async def test_a_stripe_that_hangs_is_a_503_within_the_budget(fake):
    limits = Limits(budget_seconds=0.5)
    async with running_bridge(selling(fake.url, limits=limits)) as bridge:
        hang = {"path": "checkout/sessions", "kind": "hang", "seconds": 30}
        await fake.api_faults(hang)
        try:
            assert refusal(await order(bridge, ORDER)) == (503, "stripe_away")
        finally:
            await fake.api_faults()


async def test_credits_arrive_after_the_payment(service, client, database, fake):
    user_id = await database.user()
    async with running_bridge(selling(fake.url, credit_target=service.target)) as bridge:
        made = (await order(bridge, {**ORDER, "user_id": str(user_id), "quantity": 2})).json()
        paid = await fake.pay_session(made["id"])
        answer = await bridge.deliver(event_of(paid))
        assert answer.json()["outcome"] == "committed"
        intent = await fake.do("object", id=paid["payment_intent"])
        answer = await bridge.deliver(event_of(intent, "payment_intent.succeeded"))
        assert answer.json()["outcome"] == "replayed"
    assert (await client.get_user_credit(user_id)).balance == 200


@pytest.mark.parametrize(
    ("change", "words"),
    [
        *(
            ({"user_id": user_id}, "user_id must be a UUID")
            for user_id in (None, "", 1, [], "x", f" {USER}", USER[:-1], f"{{{USER}}}", f"{USER}\n")
        ),
        *(
            ({"quantity": quantity}, "quantity must be a whole number")
            for quantity in (0, -1, 1.0, 1.5, True, "1", None, [], 10**6, float("nan"))
        ),
        *(
            ({"idempotency_key": key}, "idempotency_key must have")
            for key in ("", "a b", "ä", "x" * 129, 1, [], "a\n", "\x00")
        ),
        *(
            ({name: url}, f"{name} must be a URL")
            for name in ("success_url", "cancel_url")
            for url in (
                *(None, "", 1, [], "app.example.com", "//app.example.com", "/paid", "https://"),
                *("javascript:alert(1)", "https:/a.example.com", "https:a", "ftp://a.example.com"),
                *("https://a.example.com@evil.example", "https://a.example.com\\@evil.example"),
                *("https://a.example.com /x", "https://a.example.com/\n", "https://a b/"),
                *("https://ä.example", "https://a.example.com:x/", "https://a.example.com/ä"),
                "https://a.example.com/" + "x" * 2048,
            )
        ),
        *(({"save_card": no}, "save_card must be true or false") for no in (1, "true", None, [])),
        ({"success_url": "http://app.example.com/"}, "success_url must be https"),
        ({"cancel_url": "http://localhost.example.com/"}, "cancel_url must be https"),
        ({"colour": 1}, "'colour' is not a field of an order"),
        ({"\ud800": 1}, "is not a field of an order"),
    ],
)
def test_a_malformed_order_is_refused_with_the_field(change, words):
    refusal = refused({**ORDER, **change})
    assert (refusal.status, refusal.reason) == (400, "invalid_request")
    assert words in str(refusal)


@pytest.mark.parametrize("pack", [None, "", "STARTER", 1, [], "price_starter"])
def test_only_packs_of_the_catalogue_are_sold(pack):
    refusal = refused({**ORDER, "pack": pack})
    assert (refusal.status, refusal.reason) == (404, "unknown_pack")


def test_one_purchase_never_gives_more_than_the_maximum():
    assert read({**ORDER, "quantity": 5}, credits_max=500).credits == 500
    refusal = refused({**ORDER, "quantity": 6}, credits_max=500)
    assert (refusal.status, refusal.reason) == (422, "too_many_credits")


@pytest.mark.parametrize(
    ("url", "allowed"),
    [
        ("https://app.example.com", True),
        ("https://app.example.com/paid?a=b#c", True),
        ("https://APP.example.com:443/paid", True),
        ("http://localhost:3000/paid", True),
        ("https://app.example.com:8443/paid", False),
        ("https://app.example.com.evil.example/", False),
        ("https://evil.example/https://app.example.com", False),
        ("http://localhost:3001/paid", False),
        ("https://localhost:3000/paid", False),
    ],
)
def test_a_checkout_leads_back_only_to_origins_that_are_listed(url, allowed):
    origins = {"https://app.example.com", "http://localhost:3000"}
    for name in ("success_url", "cancel_url"):
        back = {**ORDER, "cancel_url": "https://app.example.com", name: url}
        if allowed:
            assert getattr(read(back, return_origins=origins), name) == url
        else:
            assert "not allowed" in str(refused(back, return_origins=origins))


@pytest.mark.parametrize("host", ["localhost", "localhost:3000", "127.0.0.1:1", "[::1]:3000"])
def test_without_a_list_plain_http_leads_only_to_this_machine(host):
    assert read({**ORDER, "success_url": f"http://{host}/paid"})


def test_an_order_is_read_from_its_fields():
    taken = read({**ORDER, "user_id": USER.upper(), "quantity": 2, "idempotency_key": "k"})
    assert (taken.user_id, taken.pack.id, taken.quantity) == (UUID(USER), "starter", 2)
    assert taken.credits == 200
    assert taken.idempotency_key == f"credit-checkout:{USER}:k"
    assert len(read({**ORDER, "idempotency_key": "x" * 128}).idempotency_key) <= 255


async def test_the_key_of_stripe_is_in_no_answer(fake):
    async with running_bridge(selling(fake.url, stripe_key="rk_of_nobody_hunter2")) as bridge:
        answer = await order(bridge, ORDER)
        assert refusal(answer) == (502, "stripe_refuses")
        assert "hunter2" not in answer.text
        assert KEY not in answer.text


async def test_the_route_exists_only_with_a_token():
    async with running_bridge(bridge_settings(NOWHERE)) as bridge:
        answer = await order(bridge, ORDER)
        assert isinstance(answer, httpx.Response)
        assert refusal(answer) == (404, "not_found")
