"""Behind nginx with a cache: streams stay live, and nothing of one user reaches another."""

import contextlib
from dataclasses import dataclass

import httpx
import pytest
from kit.gateways import bearer, gateway_settings, opened_page, problem, running_gateway
from kit.http_clients import http_client
from kit.proxies import documented_location, nginx
from kit.waiting import eventually, patience
from prometheus_client import REGISTRY

from credit_service.gateway import Limits, Rate, files

pytestmark = pytest.mark.shared

LIMITS = Limits(link_seconds=0.2, streams_opened=Rate(1000, 1000))


@dataclass
class Proxied:
    gateway: object
    http: httpx.AsyncClient


@pytest.fixture
async def proxied(service, tmp_path):
    async with (
        running_gateway(gateway_settings(service.target, limits=LIMITS)) as gateway,
        nginx(tmp_path, documented_location(gateway.port)) as url,
        http_client(base_url=f"{url}/credits", timeout=patience(30)) as http,
    ):
        yield Proxied(gateway, http)


async def test_a_stream_is_not_held_back(proxied, database, client):
    user_id = await database.user(100)
    for encoding in ("identity", "gzip"):
        headers = bearer(user_id) | {"Accept-Encoding": encoding}
        async with opened_page(proxied.http, headers) as page:
            balance = (await client.get_user_credit(user_id)).balance
            await page.shows(balance)
            await client.spend_credits(user_id, amount=1)
            await page.shows(balance - 1)


def streams_open():
    return REGISTRY.get_sample_value("credit_gateway_streams")


async def test_a_page_that_leaves_is_forgotten_and_one_that_stays_is_sent_the_end(
    proxied, database
):
    user_id = await database.user(100)
    before = streams_open()
    async with opened_page(proxied.http, bearer(user_id)) as page:
        await page.shows(100)
        assert streams_open() == before + 1
    await eventually(lambda: streams_open() == before)
    async with opened_page(proxied.http, bearer(user_id)) as page:
        await page.shows(100)
        proxied.gateway.stop.set()
        assert await page.ends() == "stopping"


async def test_answers_for_one_user_are_never_cached(proxied, database, client):
    first, second = await database.user(100), await database.user(55)
    for balance in (100, 99):
        for path in ("/account", "/transactions", "/holds", "/prices", "/usage"):
            answers = [
                await proxied.http.get(path, headers=bearer(user_id)) for user_id in (first, second)
            ]
            assert {answer.status_code for answer in answers} == {200}
            assert "HIT" not in {answer.headers["x-cache"] for answer in answers}
            if path == "/account":
                assert [answer.json()["balance"] for answer in answers] == [balance, 55]
            refused = await proxied.http.get(path)
            assert problem(refused) == (401, "UNAUTHENTICATED")
        await client.spend_credits(first, amount=1)
    probes = [await proxied.http.get("/readyz") for _ in range(2)]
    assert "HIT" not in [answer.headers["x-cache"] for answer in probes]


async def test_files_are_cached_under_hashed_names_and_revalidated_under_plain_ones(proxied):
    (module,) = [each for each in files.packaged() if each.is_script]
    for encoding in ("identity", "gzip"):
        headers = {"Accept-Encoding": encoding}
        kept = [await proxied.http.get(f"/{module.hashed_name}", headers=headers) for _ in range(2)]
        assert [answer.headers["x-cache"] for answer in kept] == ["MISS", "HIT"]
        assert kept[1].content == module.content
        assert kept[1].headers.get("content-encoding", "identity") == encoding
        asked = [await proxied.http.get("/credits.js", headers=headers) for _ in range(2)]
        assert "HIT" not in [answer.headers["x-cache"] for answer in asked]
        assert asked[1].content == module.content


async def test_while_the_gateway_is_away_no_old_balance_is_served(service, database, tmp_path):
    user_id = await database.user(100)
    async with contextlib.AsyncExitStack() as stack:
        async with running_gateway(gateway_settings(service.target)) as gateway:
            url = await stack.enter_async_context(
                nginx(tmp_path, documented_location(gateway.port))
            )
            http = await stack.enter_async_context(http_client(timeout=patience(30)))
            answer = await http.get(f"{url}/credits/account", headers=bearer(user_id))
            assert answer.json()["balance"] == 100
        answer = await http.get(f"{url}/credits/account", headers=bearer(user_id))
        assert answer.status_code == 502
