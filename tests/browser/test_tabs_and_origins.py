"""Several tabs of one browser, cookies instead of tokens, and pages of other origins."""

from uuid import UUID

import pytest
from kit.browser_pages import balance, opened
from kit.waiting import eventually
from kit.web_hosts import serving
from kit.web_pages import Site, file, running_site
from playwright.async_api import expect
from prometheus_client import REGISTRY
from starlette.applications import Starlette
from starlette.routing import Route

from credit_service.gateway import User

pytestmark = pytest.mark.shared

COOKIE_PAGE = """<!doctype html><html lang="en"><head><title>Credits</title>
<link rel="icon" href="icon.svg"><script type="module" src="credits/credits.js"></script></head>
<body><credits-provider base="/credits/"><credits-balance></credits-balance>
<credits-cost items="render:3"></credits-cost></credits-provider></body></html>"""


def streams_open():
    return REGISTRY.get_sample_value("credit_gateway_streams")


async def test_tabs_of_one_user_share_a_stream_and_tabs_of_two_users_do_not(
    chromium, service, database, client
):
    user_id, other = await database.user(100), await database.user(55)
    site = Site()
    site.signs_in(user_id)
    before = streams_open()
    async with running_site(site, service.target) as url, opened(chromium, url) as first:
        await expect(balance(first)).to_have_text("100")
        second = await first.context.new_page()
        await second.goto(url)
        await expect(balance(second)).to_have_text("100")
        assert streams_open() == before + 1
        site.signs_in(other)
        third = await first.context.new_page()
        await third.goto(url)
        await expect(balance(third)).to_have_text("55")
        assert streams_open() == before + 2
        await client.spend_credits(user_id, amount=1)
        for page, shown in ((first, "99"), (second, "99"), (third, "55")):
            await expect(balance(page)).to_have_text(shown)
        site.signs_in(user_id)
        await first.close()
        await client.spend_credits(user_id, amount=1)
        await expect(balance(second)).to_have_text("98")
        await eventually(lambda: streams_open() == before + 2)


async def test_without_web_locks_every_tab_has_a_stream_of_its_own(
    chromium, service, database, client
):
    user_id = await database.user(100)
    site = Site()
    site.signs_in(user_id)
    before = streams_open()
    async with running_site(site, service.target) as url, opened(chromium, url) as first:
        context = first.context
        await context.add_init_script("delete Navigator.prototype.locks")
        tabs = [await context.new_page() for _ in range(2)]
        for tab in tabs:
            await tab.goto(url)
            await expect(balance(tab)).to_have_text("100")
        await first.close()
        await eventually(lambda: streams_open() == before + 2)
        await client.spend_credits(user_id, amount=1)
        for tab in tabs:
            await expect(balance(tab)).to_have_text("99")


async def cookie_users(request):
    session = request.cookies.get("session")
    return None if session is None else User(UUID(session))


def refused():
    labels = {"status": "403", "reason": "CROSS_ORIGIN"}
    routes = (("/account", "GET"), ("/quotes", "POST"))
    name = "credit_gateway_requests_total"
    return [
        REGISTRY.get_sample_value(name, {"route": route, "method": method, **labels}) or 0
        for route, method in routes
    ]


async def test_a_cookie_is_enough_on_its_own_origin_and_useless_on_another(
    chromium, service, database, client
):
    user_id = await database.user(100)
    site = Site(routes=[Route("/", file(COOKIE_PAGE, "text/html"))])
    hostile = Starlette(routes=[Route("/", file("<title>Hostile</title>", "text/html", policy=""))])
    async with (
        running_site(site, service.target, users=cookie_users) as url,
        serving(hostile) as elsewhere,
    ):
        # Cookies know no ports, so the browser sends this one from both pages.
        cookies = [{"name": "session", "value": str(user_id), "url": url}]
        async with opened(chromium, url, cookies=cookies) as page:
            await expect(balance(page)).to_have_text("100")
            await expect(page.locator("credits-cost")).to_contain_text("15 credits")
            await client.spend_credits(user_id, amount=1)
            await expect(balance(page)).to_have_text("99")
        before = refused()
        blocked = ("has been blocked by CORS policy",)
        async with opened(chromium, elsewhere, cookies=cookies, expected=blocked) as page:
            read = """async ([url, options]) => {
              const sent = fetch(url, { credentials: "include", ...options });
              return sent.then((answer) => answer.text(), () => "unreadable");
            }"""
            address = f"{url}/credits/account"
            assert await page.evaluate(read, [address, {}]) == "unreadable"
            body = '{"items": [{"operation": "render"}]}'
            options = {"method": "POST", "mode": "no-cors", "body": body}
            assert await page.evaluate(read, [f"{url}/credits/quotes", options]) == ""
        assert refused() == [count + 1 for count in before]
