"""The gateway as a guest: in Starlette and FastAPI, under their middleware, under plain uvicorn."""

import contextlib
import os
import signal
import sys

import fastapi
import httpx
import pytest
from kit.gateways import bearer, named_users, opened_page, problem
from kit.http_clients import http_client
from kit.paths import ROOT
from kit.programs import free_port
from kit.stripe_fakes import Program
from kit.waiting import eventually, patience
from kit.web_hosts import serving
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.responses import PlainTextResponse
from starlette.routing import Mount, Route

from credit_service.errors import InsufficientCredits
from credit_service.gateway import Gateway, Limits, Rate, problem_response

pytestmark = pytest.mark.shared


async def home(_):
    return PlainTextResponse("home")


async def marked(request, call_next):
    response = await call_next(request)
    response.headers["X-Host"] = "was here"
    return response


def starlette_host(gateway):
    return Starlette(
        routes=[Route("/", home), Mount("/credits", gateway.app)],
        middleware=[
            Middleware(BaseHTTPMiddleware, dispatch=marked),
            Middleware(GZipMiddleware, minimum_size=1),
        ],
    )


def fastapi_host(gateway):
    app = fastapi.FastAPI()
    app.middleware("http")(marked)

    @app.get("/")
    async def _home():
        return "home"

    @app.post("/jobs")
    async def _job():
        return problem_response(InsufficientCredits(30, 10, 0, 20))

    app.mount("/credits", gateway.app)
    return app


@pytest.fixture(params=[starlette_host, fastapi_host], ids=["starlette", "fastapi"])
async def host(request, client):
    limits = Limits(heartbeat_seconds=0.2, streams_opened=Rate(1000, 1000))
    gateway = Gateway(client, users=named_users, limits=limits)
    async with (
        gateway,
        serving(request.param(gateway), lifespan="off") as url,
        http_client(base_url=url, timeout=patience(30)) as http,
    ):
        yield gateway, http


async def test_its_routes_are_below_the_mount(host, database):
    _, http = host
    user_id = await database.user(100)
    answer = await http.get("/credits/account", headers=bearer(user_id))
    assert answer.json()["balance"] == 100
    assert answer.headers["x-host"] == "was here"
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert problem(await http.get("/credits/account")) == (401, "UNAUTHENTICATED")
    assert problem(await http.get("/credits/nothing", headers=bearer(user_id)))[0] == 404
    assert problem(await http.get("/credits/account/", headers=bearer(user_id)))[0] == 404
    assert (await http.get("/credits/openapi.json")).json()["openapi"] == "3.1.0"
    # The host's own answers stay as they are.
    own = await http.get("/")
    assert "home" in own.text
    assert "content-security-policy" not in own.headers


async def test_a_page_is_live_under_the_hosts_middleware(host, database, client):
    gateway, http = host
    user_id = await database.user(100)
    async with opened_page(http, bearer(user_id), "/credits/account/stream") as page:
        await page.shows(100)
        await client.spend_credits(user_id, amount=1)
        await page.shows(99)
        await eventually(lambda: page.heartbeats)
        gateway.stop()
        assert await page.ends() == "stopping"
    refused = await http.get("/credits/account/stream", headers=bearer(user_id))
    assert problem(refused) == (503, "STOPPING")
    assert (await http.get("/credits/account", headers=bearer(user_id))).status_code == 200


async def test_a_page_that_leaves_is_forgotten(host, database):
    gateway, http = host
    user_id = await database.user(100)
    async with opened_page(http, bearer(user_id), "/credits/account/stream") as page:
        await page.shows(100)
        assert gateway.streams_open == 1
    await eventually(lambda: gateway.streams_open == 0)


async def test_an_apps_own_route_refuses_in_the_same_words(client):
    gateway = Gateway(client, users=named_users)
    async with (
        serving(fastapi_host(gateway), lifespan="off") as url,
        http_client(base_url=url) as http,
    ):
        answer = await http.post("/jobs")
        assert problem(answer) == (402, "INSUFFICIENT_CREDITS")
        assert answer.json()["shortfall"] == 20


@contextlib.asynccontextmanager
async def uvicorn(target, *options):
    """Plain uvicorn in a separate process, which knows nothing of streams."""
    port = free_port()
    path = os.pathsep.join([str(ROOT / "tests"), *sys.path])
    environment = {"HOST_APP_TARGET": target, "PYTHONPATH": path}
    # Longer than httpx keeps a connection, because it might otherwise use one that was just closed.
    kept = ("--timeout-keep-alive", "75")
    arguments = ("--factory", "kit.host_app:made", "--port", str(port), *kept, *options)
    program = Program("uvicorn", arguments, environment)
    try:
        async with http_client(
            base_url=f"http://127.0.0.1:{port}",
            timeout=patience(30),
            limits=httpx.Limits(max_connections=None),
        ) as http:

            async def answers():
                with contextlib.suppress(httpx.TransportError):
                    return (await http.get("/")).status_code == 200

            await eventually(answers, seconds=60)
            yield program, http
    finally:
        program.close()


@pytest.mark.parametrize(
    "options", [(), ("--workers", "2"), ("--reload", "--reload-dir", "docs")], ids=" ".join
)
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_plain_uvicorn_stops_with_a_hundred_open_streams(options, number, service, database):
    users = [await database.user(10) for _ in range(25)]
    async with (
        uvicorn(service.target, *options) as (program, http),
        contextlib.AsyncExitStack() as stack,
    ):
        pages = [
            await stack.enter_async_context(
                opened_page(http, bearer(user_id), "/credits/account/stream")
            )
            for user_id in users * 4
        ]
        for page in pages:
            await page.shows(10)
        if number is signal.SIGINT:
            # Like Ctrl-C, to the whole group.
            os.killpg(program.popen.pid, number)
        else:
            program.signal(number)
        assert {await page.ends() for page in pages} == {"stopping"}
        await eventually(lambda: program.popen.poll() is not None)
    assert "Traceback" not in program.output
