"""The gateway in this process, on a real socket, and pages that listen to its streams."""

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace

import httpx
from kit.http_clients import http_client
from kit.in_process import start
from kit.openapi import check_answer, check_schema
from kit.stripe_fakes import Program
from kit.waiting import eventually, patience

from credit_service.fields import uuid_or_none
from credit_service.gateway import Limits, User, server
from credit_service.gateway.server import CreditService
from credit_service.gateway.users import bearer_token


async def named_users(request):
    """Takes the token as the user's id, and the part after an @ as the time when it expires."""
    user, _, expires_at = (bearer_token(request) or "").partition("@")
    user_id = uuid_or_none(user)
    if user_id is None or (expires_at and float(expires_at) <= time.time()):
        return None
    return User(user_id, float(expires_at) if expires_at else None)


def bearer(user_id, expires_at=None):
    ending = "" if expires_at is None else f"@{expires_at}"
    return {"Authorization": f"Bearer {user_id}{ending}"}


@dataclass
class Gateway:
    """A gateway that runs, and a client of it."""

    port: int
    stop: asyncio.Event
    task: asyncio.Task[None]
    http: httpx.AsyncClient

    async def get(self, user_id: object, path: str, **options: object) -> httpx.Response:
        """Asks as a user."""
        return await self.http.get(path, headers=bearer(user_id), **options)

    async def post(
        self, user_id: object, path: str, value: object, **headers: str
    ) -> httpx.Response:
        """Posts JSON as a user."""
        named = {name.replace("_", "-"): text for name, text in headers.items()}
        return await self.http.post(path, json=value, headers=bearer(user_id) | named)

    @asynccontextmanager
    async def page(
        self, user_id: object, *, expires_at: float | None = None
    ) -> AsyncIterator["Page"]:
        """Opens a page of a user, which listens to the stream."""
        async with opened_page(self.http, bearer(user_id, expires_at)) as page:
            yield page


@dataclass
class Page:
    """A page with an open stream; it remembers the events that it received."""

    events: list[tuple[str, dict]] = field(default_factory=list)
    heartbeats: int = 0
    closed: bool = False

    def all(self, name: str) -> list[dict]:
        """The events of a name, oldest first."""
        return [data for each, data in self.events if each == name]

    @property
    def balance(self) -> int | None:
        accounts = self.all("account")
        return accounts[-1]["balance"] if accounts else None

    async def shows(self, balance: int) -> None:
        """Waits until the page shows a balance."""
        await eventually(lambda: self.balance == balance)

    async def hears(self, name: str, count: int = 1) -> dict:
        """Waits for `count` events of a name; returns the last of them."""
        await eventually(lambda: len(self.all(name)) >= count)
        return self.all(name)[count - 1]

    async def ends(self) -> str:
        """Waits until the stream is closed; returns the reason it gave."""
        await eventually(lambda: self.closed)
        return self.all("end")[-1]["reason"]

    async def listen(self, response: httpx.Response) -> None:
        """Reads the stream, as "Server-sent events" of the HTML standard says."""
        name, data = "", ""
        with contextlib.suppress(httpx.TransportError):
            async for line in response.aiter_lines():
                if line.startswith(":"):
                    self.heartbeats += 1
                elif line.startswith("event: "):
                    name = line.removeprefix("event: ")
                elif line.startswith("data: "):
                    data = line.removeprefix("data: ")
                elif not line and name:
                    self.events.append((name, json.loads(data)))
                    if name == "account":
                        check_schema({"$ref": "#/components/schemas/Account"}, json.loads(data))
                    name = ""
        self.closed = True


@asynccontextmanager
async def opened_page(
    http: httpx.AsyncClient, headers: dict[str, str], path: str = "/account/stream"
) -> AsyncIterator[Page]:
    """Opens a page for the stream at any address."""
    page = Page()
    async with http.stream("GET", path, headers=headers, timeout=patience(60)) as response:
        assert response.status_code == 200, await response.aread()
        listening = asyncio.create_task(page.listen(response))
        try:
            yield page
        finally:
            listening.cancel()
            await asyncio.wait({listening})


def gateway_settings(credit_target: str, **changes: object) -> server.Settings:
    """Settings of a gateway on any free port."""
    return replace(
        server.Settings(
            listen="127.0.0.1:0",
            credit_service=CreditService(target=credit_target, token=None, credentials=None),
            users=named_users,
            bridge=None,
            origins=(),
            grant_descriptions=False,
            limits=Limits(),
            unready_seconds=0,
            metrics_port=None,
            metrics_host="127.0.0.1",
        ),
        **changes,
    )


@asynccontextmanager
async def running_gateway(settings: server.Settings) -> AsyncIterator[Gateway]:
    """Runs a gateway in this process for the length of the block, and stops it."""
    stop = asyncio.Event()
    port, task = await start(server.serve, settings, stop)
    url = f"http://127.0.0.1:{port}"
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=20)
    async with http_client(
        base_url=url,
        timeout=patience(30),
        limits=limits,
        event_hooks={"response": [check_answer]},
    ) as http:
        try:
            yield Gateway(port, stop, task, http)
        finally:
            stop.set()
            await task


@contextlib.contextmanager
def gateway_program(*arguments: str, **settings: str) -> Iterator[Program]:
    """Runs `credit-gateway serve`, or another of its commands, in a separate process.

    Args:
        arguments: of the command line, `serve` where there are none.
        settings: by their names without the prefix (`LISTEN="127.0.0.1:0"`).
    """
    environment = {f"CREDIT_GATEWAY_{name}": value for name, value in settings.items()}
    program = Program("credit_service.gateway", arguments or ("serve",), environment)
    try:
        yield program
    finally:
        program.close()


def unix_time(seconds_from_now: float) -> float:
    return time.time() + seconds_from_now


def problem(response: httpx.Response) -> tuple[int, str]:
    """Status and reason of a refusal, which must be a problem of RFC 9457."""
    assert response.headers["content-type"] == "application/problem+json", response.text
    body = response.json()
    assert body["status"] == response.status_code
    return response.status_code, body["reason"]
