"""The React and tRPC examples against the real programs: hydrated, live, refused, buying."""

import contextlib
import json
import re
from pathlib import Path

import pytest
from kit.browser_pages import new_context
from kit.http_clients import http_client
from kit.npm_apps import install_web_examples, run
from kit.paths import ROOT
from kit.programs import Command
from kit.waiting import patience
from kit.web_pages import Site, file
from kit.web_shops import running_shop
from playwright.async_api import expect
from starlette.responses import JSONResponse
from starlette.routing import Route

from credit_service.errors import CreditError
from credit_service.gateway import problem_response

pytestmark = [pytest.mark.long, pytest.mark.timeout(600)]

HERE = Path(__file__).parent / "react_app"
# Development builds, because only they warn; the server's packages are not bundled.
BUNDLE = ("npx", "esbuild", "--bundle", "--format=esm", "--jsx=automatic", "--log-level=warning")
DEVELOPMENT = '--define:process.env.NODE_ENV="development"'
ON_A_SERVER = ("--platform=node", "--packages=external")


@pytest.fixture(scope="module")
def app(tmp_path_factory):
    """The examples, installed and bundled."""
    app = install_web_examples(tmp_path_factory.mktemp("react"), *HERE.iterdir())
    run(app, *BUNDLE, DEVELOPMENT, "client.tsx", "--outfile=client.js")
    run(app, *BUNDLE, *ON_A_SERVER, "server.tsx", "--outfile=server.mjs")
    run(app, *BUNDLE, *ON_A_SERVER, "api.ts", "--outfile=api.mjs")
    return app


@pytest.fixture(scope="module")
async def shop(make_shared_database):
    async with running_shop(await make_shared_database()) as shop, shop.bridge():
        await shop.fake.settings(mode="lose")
        yield shop


def job_route(shop, user_id):
    """The app's own job route, as docs/web.md has it."""

    async def start(request):
        asked = await request.json()
        try:
            held = await shop.client.hold_credits(
                user_id,
                operation=asked["items"][0]["operation"],
                expected_cost=asked["expected_cost"],
            )
        except CreditError as error:
            return problem_response(error)
        return JSONResponse({"id": held.hold.id}, 202)

    return Route("/jobs", start, methods=["POST"])


async def test_a_page_rendered_on_a_server_is_hydrated_without_a_warning_and_lives(
    chromium, app, shop
):
    rendered = run(app, "node", "server.mjs")
    assert "credits-panel" in rendered
    html = (
        '<!doctype html><html lang="en"><head><title>React</title>'
        '<link rel="icon" href="/icon.svg"><script type="module" src="/client.js"></script></head>'
        f'<body><div id="root">{rendered}</div></body></html>'
    )
    user_id = await shop.database.user(15)
    site = Site()
    site.signs_in(user_id)
    site.routes = [
        Route("/", file(html, "text/html")),
        Route("/client.js", file((app / "client.js").read_text(), "text/javascript")),
        job_route(shop, user_id),
    ]
    said = []
    async with shop.site(site) as url:
        context = await new_context(chromium)
        page = await context.new_page()
        page.on("console", lambda line: said.append((line.type, line.text)))
        page.on("pageerror", lambda error: said.append(("thrown", str(error))))
        await page.goto(url)
        balance = page.locator(".credits-balance strong")
        await expect(balance).to_have_text("15")
        await expect(page.locator(".credits-cost strong")).to_have_text("10")
        await expect(page.get_by_role("button", name="Buy for €9.00")).to_be_visible()
        await page.get_by_role("button", name="Start").click()
        await expect(balance).to_have_text("5")
        await expect(page.locator(".credits-balance")).to_contain_text("10 held for running jobs")
        # React's advice to install its developer tools is not a warning.
        assert [line for line in said if line[0] in {"error", "warning", "thrown"}] == []
        await page.get_by_role("button", name="Start").click()
        shortfall = page.locator(".credits-shortfall")
        await expect(shortfall).to_contain_text("You need 5 more credits.")
        await shortfall.get_by_role("button", name="Buy for €9.00").click()
        await page.get_by_role("button", name="Pay").wait_for()
        assert [line for line in said if "402" not in line[1] and line[0] != "info"] == []
        await context.close()


async def test_the_trpc_router_answers_one_user_and_refuses_with_figures(app, shop):
    user_id, other = await shop.database.user(15), await shop.database.user(99)
    command = Command(app, "node", "api.mjs", shop.target, str(ROOT / "protos"))
    with contextlib.closing(command) as api:
        port = api.wait_until_listening()
        async with http_client(base_url=f"http://127.0.0.1:{port}", timeout=patience(30)) as http:

            async def asks(procedure, value=None, user=user_id):
                parameters = {} if value is None else {"input": json.dumps(value)}
                headers = {} if user is None else {"x-user": str(user)}
                return await http.get(f"/{procedure}", params=parameters, headers=headers)

            async def starts(job, expected_cost, **further):
                order = {"job": job, "operation": "stem_separation", "expectedCost": expected_cost}
                headers = {"x-user": str(user_id)}
                return await http.post("/startJob", json=order | further, headers=headers)

            assert (await asks("account", user=None)).status_code == 401
            account = (await asks("account")).json()["result"]["data"]
            assert (account["balance"], account["spendable"]) == (15, 15)
            assert (await asks("account", user=other)).json()["result"]["data"]["balance"] == 99
            quote = (await asks("quote", {"items": [{"operation": "stem_separation"}]})).json()
            assert quote["result"]["data"]["total"] == 10
            first = await starts("song-1", 10)
            assert first.status_code == 200
            assert (await starts("song-1", 10)).json() == first.json()
            changed = (await starts("song-2", 9)).json()["error"]
            assert changed["data"]["reason"] == "PRICE_CHANGED"
            refused = (await starts("song-2", 10)).json()["error"]
            assert refused["data"]["reason"] == "INSUFFICIENT_CREDITS"
            assert refused["data"]["figures"]["available"] == "5"
            assert (await starts("no job!", 10)).status_code == 400
            history = (await asks("history", {"limit": 1})).json()["result"]["data"]
            assert [entry["type"] for entry in history["items"]] == ["TRANSACTION_TYPE_PURCHASE"]
            async with http.stream("GET", "/onCredit", headers={"x-user": str(user_id)}) as live:
                async for line in live.aiter_lines():
                    if found := re.search(r'"balance":(\d+)', line):
                        assert found[1] == "15"
                        break
