"""docs/web.md, and the web gateway in docs/deploy.md: every snippet runs as printed."""

import asyncio
import re
from typing import Annotated

import httpx
import pytest
from fastapi import Depends, FastAPI
from kit.documents import DEPLOY, Shell, snippets
from kit.gateways import bearer, gateway_program, named_users
from kit.issuers import running_issuer
from kit.paths import ROOT
from kit.waiting import patience
from kit.web_hosts import serving
from pydantic import BaseModel

from credit_service.gateway import Bridge, Gateway, User

WEB = ROOT / "docs" / "web.md"
MODULE = ROOT / "credit_service" / "gateway" / "static" / "credits.js"


@pytest.fixture
async def issuer():
    async with running_issuer() as issuer:
        yield issuer


def run(snippet, swaps, **names):
    """Runs a snippet of Python with these names; returns all names that then exist."""
    for printed, real in swaps.items():
        assert printed in snippet
        snippet = snippet.replace(printed, real)
    exec(snippet, names)
    return names


def asking(url):
    return httpx.AsyncClient(base_url=url, timeout=patience(30))


async def test_the_gateway_is_mounted_as_printed(service, issuer, database):
    (snippet,) = snippets(WEB, "In ten minutes", "python")
    user_id = await database.user(100)
    swaps = {"127.0.0.1:50051": service.target, "https://project.supabase.co": issuer.url}
    names = run(snippet, swaps)
    token = {"Authorization": f"Bearer {issuer.token(user_id)}"}
    async with (
        names["client"],
        names["gateway"],
        serving(names["app"], lifespan="off") as url,
        asking(url) as http,
    ):
        assert (await http.get("/credits/account", headers=token)).json()["balance"] == 100
        assert (await http.get("/credits/account")).status_code == 401
        (html,) = snippets(WEB, "In ten minutes", "html")
        (module,) = re.findall(r'src="(.*?)"', html)
        assert (await http.get(module)).text == MODULE.read_text()


async def test_it_is_mounted_in_an_app_as_the_manual_of_operators_prints(
    client, issuer, database, service
):
    (snippet,) = snippets(DEPLOY, "The web gateway", "python")
    names = run(
        "from credit_service.gateway import Gateway, SupabaseUsers\n" + snippet,
        {"https://project.supabase.co": issuer.url},
        app=FastAPI(),
        client=client,
    )
    user_id = await database.user(100)
    token = {"Authorization": f"Bearer {issuer.token(user_id)}"}
    async with (
        names["gateway"],
        serving(names["app"], lifespan="off") as url,
        asking(url) as http,
    ):
        assert (await http.get("/credits/account", headers=token)).json()["balance"] == 100


async def test_it_runs_as_a_program_with_the_printed_settings(service, issuer, database, tmp_path):
    (snippet,) = snippets(DEPLOY, "The web gateway", "sh")
    exports, serve = re.fullmatch(r"((?:export .*\n)+)(.*)\n", snippet).groups()
    assert serve.split(" #")[0].strip() == "credit-gateway serve"
    shell = Shell(
        tmp_path,
        {"127.0.0.1:50051": service.target, "https://project.supabase.co": issuer.url},
    )
    await asyncio.to_thread(shell.run, exports)
    settings = {
        name.removeprefix("CREDIT_GATEWAY_"): value
        for name, value in shell.environment.items()
        if name.startswith("CREDIT_GATEWAY_")
    }
    user_id = await database.user(100)
    with gateway_program(**settings, LISTEN="127.0.0.1:0") as started:
        listens = await asyncio.to_thread(started.wait_for, r"listens on (\S+:\d+)")
        async with asking(f"http://{listens[1]}") as http:
            token = {"Authorization": f"Bearer {issuer.token(user_id)}"}
            assert (await http.get("/account", headers=token)).json()["balance"] == 100
            page = {"Origin": "https://app.example.com"}
            answer = await http.get("/prices", headers=page)
            assert answer.headers["access-control-allow-origin"] == page["Origin"]


class JobRequest(BaseModel):
    job: str
    expected_cost: int


async def signed_in() -> User:
    return User(JobRequest.user_id)


async def test_a_job_route_holds_the_credits_as_printed(client, database):
    (snippet,) = snippets(WEB, "Job routes of your own", "python")
    JobRequest.user_id = await database.user(100)
    app = FastAPI()
    names = {"Annotated": Annotated, "Depends": Depends, "JobRequest": JobRequest, "User": User}
    run(
        snippet.replace("    ...\n", "    return {}\n"),
        {},
        app=app,
        client=client,
        signed_in=signed_in,
        **names,
    )
    async with serving(app, lifespan="off") as url, asking(url) as http:
        for _ in range(2):
            answer = await http.post("/jobs", json={"job": "song-1", "expected_cost": 10})
            assert answer.status_code == 200, answer.text
    credit = await client.get_user_credit(JobRequest.user_id)
    assert (credit.balance, credit.held) == (100, 10)
    # A worker continues with this hold, because the key is the same.
    async with client.hold(JobRequest.user_id, "stem_separation", job="song-1"):
        pass
    credit = await client.get_user_credit(JobRequest.user_id)
    assert (credit.balance, credit.held) == (90, 0)


async def test_a_gateway_that_sells_packs_is_made_as_printed(client, database):
    (snippet,) = snippets(WEB, "Buying", "python")
    names = run(
        snippet,
        {"http://127.0.0.1:8081": "http://127.0.0.1:9"},
        Bridge=Bridge,
        Gateway=Gateway,
        client=client,
        users=named_users,
    )
    user_id = await database.user(100)
    async with (
        names["gateway"] as gateway,
        serving(gateway.app, lifespan="off") as url,
        asking(url) as http,
    ):
        http.headers = bearer(user_id)
        assert (await http.get("/account")).status_code == 200
        # There is no bridge, which shows only when it is called.
        answer = await http.get("/packs")
        assert (answer.status_code, answer.json()["reason"]) == (503, "BRIDGE_UNAVAILABLE")


def test_every_custom_property_that_it_names_is_used_by_the_elements():
    named = set(re.findall(r"--credits-[a-z0-9-]*[a-z0-9]", WEB.read_text()))
    assert len(named) > 10
    used = set(re.findall(r"--credits-[a-z0-9-]*[a-z0-9]", MODULE.read_text()))
    assert named <= used, named - used
