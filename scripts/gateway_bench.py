"""Measures the web gateway: balances read, the delay of a thousand pages, and the load of one.

It starts a database, the service, the gateway, an issuer of tokens in this process, and for
comparison a Starlette app that makes the same call and answers a constant.
The two take turns, so that other work on the machine slows both alike.
"""

import argparse
import asyncio
import json
import os
import random
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from uuid import UUID, uuid4

import jwt
from cryptography.hazmat.primitives.asymmetric import ec
from playwright.async_api import Route as Intercepted
from playwright.async_api import async_playwright
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from credit_service.client import CreditClient
from credit_service.runtime import http

_AUDIENCE = "the bench"
_CONNECTIONS = 32
_PAIR_SECONDS = 3.0
_SPENDS_PER_SECOND = 50


class Issuer:
    """Signs tokens, and publishes its key on a port of this process."""

    def __init__(self) -> None:
        self._key = ec.generate_private_key(ec.SECP256R1())
        public = json.loads(jwt.get_algorithm_by_name("ES256").to_jwk(self._key.public_key()))
        public.pop("key_ops", None)
        body = json.dumps({"keys": [{**public, "kid": "bench", "alg": "ES256", "use": "sig"}]})
        self._answer = (
            f"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nConnection: close\r\n"
            f"Content-Length: {len(body)}\r\n\r\n{body}"
        ).encode()
        self.url = ""

    async def listen(self) -> asyncio.Server:
        """Publishes the key."""
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        return server

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(self._answer)
        await writer.drain()
        writer.close()

    def token(self, user_id: UUID) -> str:
        """Signs a token of a user."""
        claims = {
            "iss": self.url, "aud": _AUDIENCE, "sub": str(user_id), "exp": int(time.time()) + 7200,
            "role": "authenticated", "email": "ada@example.com", "session_id": uuid4().hex,
        }  # fmt: skip
        return jwt.encode(claims, self._key, "ES256", {"kid": "bench"})


@contextmanager
def _running(log: Path, *command: str, **environment: str) -> Iterator[tuple[str, int]]:
    """Runs a server for the length of the block; yields its host:port and its process id."""
    with log.open("w") as output:
        process = subprocess.Popen(  # noqa: S603  # a program of ours
            [sys.executable, *command],
            env={**os.environ, **environment},
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    try:
        deadline = time.monotonic() + 60
        while not (found := re.search(r"listens on (\S+:\d+)", log.read_text())):
            if process.poll() is not None or time.monotonic() > deadline:
                raise SystemExit(f"{command} did not start:\n{log.read_text()}")
            time.sleep(0.05)
        yield found.group(1), process.pid
    finally:
        process.terminate()
        process.wait()


async def _rival(target: str, user_id: UUID) -> None:
    """Serves a route that makes the call of `GET /account` and answers a constant."""
    async with CreditClient(target) as client:

        async def constant(_: Request) -> Response:
            await client.get_user_credit(user_id)
            return Response(b"{}", media_type="application/json")

        app = Starlette(routes=[Route("/account", constant)])
        with http.bound("127.0.0.1:0", setting="the port") as listener:
            async with http.serving(app, listener, drain_seconds=1):
                print(f"listens on 127.0.0.1:{listener.getsockname()[1]}", flush=True)
                await asyncio.Event().wait()


def _request(path: str, token: str) -> bytes:
    return f"GET {path} HTTP/1.1\r\nHost: bench\r\nAuthorization: Bearer {token}\r\n\r\n".encode()


async def _asked_per_second(address: str, tokens: list[str], seconds: float) -> float:
    """Sends requests over a few connections, one after another; returns the requests per second."""
    host, _, port = address.rpartition(":")
    end = time.monotonic() + seconds
    answered = 0

    async def ask() -> None:
        nonlocal answered
        reader, writer = await asyncio.open_connection(host, int(port))
        while time.monotonic() < end:
            writer.write(_request("/account", random.choice(tokens)))  # noqa: S311
            head = await reader.readuntil(b"\r\n\r\n")
            if not head.startswith(b"HTTP/1.1 200"):
                raise SystemExit(head.decode())
            length = re.search(rb"content-length: (\d+)", head, re.IGNORECASE)
            assert length is not None  # noqa: S101  # both servers send it
            await reader.readexactly(int(length[1]))
            answered += 1
        writer.close()

    started = time.monotonic()
    await asyncio.gather(*(ask() for _ in range(_CONNECTIONS)))
    return answered / (time.monotonic() - started)


class Page:
    """An open stream; it remembers when each balance arrived."""

    def __init__(self) -> None:
        self.seen: dict[int, float] = {}
        self.changed = asyncio.Event()

    async def listen(self, address: str, token: str) -> None:
        """Reads the stream."""
        host, _, port = address.rpartition(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(_request("/account/stream", token))
        try:
            while line := await reader.readline():
                if found := re.search(rb'"balance":(\d+)', line):
                    self.seen.setdefault(int(found[1]), time.monotonic())
                    self.changed.set()
        finally:
            writer.close()


async def _live(
    target: str, address: str, issuer: Issuer, users: list[UUID], seconds: float
) -> list[float]:
    """Opens a page for each user and spends; returns milliseconds from commit to page, sorted."""
    pages = {user: Page() for user in users}
    listening = [
        asyncio.create_task(page.listen(address, issuer.token(user)))
        for user, page in pages.items()
    ]
    async with asyncio.timeout(60):
        for page in pages.values():
            await page.changed.wait()
    took: list[float] = []
    async with CreditClient(target) as client:

        async def spend(user: UUID) -> None:
            balance = (await client.spend_credits(user, amount=1)).credit.balance
            committed = time.monotonic()
            page = pages[user]
            async with asyncio.timeout(10):
                while balance not in page.seen:
                    page.changed.clear()
                    await page.changed.wait()
            took.append(max(0.0, page.seen[balance] - committed) * 1000)

        async with asyncio.TaskGroup() as spends:
            end = time.monotonic() + seconds
            quiet = list(users)
            random.shuffle(quiet)
            while time.monotonic() < end and quiet:
                spends.create_task(spend(quiet.pop()))
                await asyncio.sleep(1 / _SPENDS_PER_SECOND)
    for task in listening:
        task.cancel()
    await asyncio.gather(*listening, return_exceptions=True)
    return sorted(took)


async def _opened(target: str, users: list[UUID]) -> None:
    """Gives every user some credits."""
    async with CreditClient(target) as client:
        for start in range(0, len(users), 100):
            await asyncio.gather(
                *(
                    client.grant_credits(user, 1000, reason="bench")
                    for user in users[start : start + 100]
                )
            )


_PAGE = """<!doctype html><html lang="en"><head><title>Bench</title>
<script type="module" src="/credits.js"></script></head>
<body><credits-provider><credits-balance></credits-balance></credits-provider>
<script type="module">
document.querySelector("credits-provider").token = async () => "%s";
const root = () => document.querySelector("credits-balance").shadowRoot;
const value = () => root()?.querySelector("[part=value]");
const look = () => /[0-9]/.test(value()?.textContent ?? "")
  ? (globalThis.usableAt = performance.now()) : requestAnimationFrame(look);
look();
</script></body></html>"""


async def _usable(address: str, token: str, times: int) -> list[float]:
    """Opens a page in a new Chromium each time; milliseconds until it shows the balance, sorted."""
    chromium = shutil.which("chromium")
    if chromium is None:
        return []

    async def page_of_the_app(route: Intercepted) -> None:
        await route.fulfill(body=_PAGE % token, content_type="text/html")

    took = []
    async with async_playwright() as playwright:
        for _ in range(times):
            browser = await playwright.chromium.launch(
                executable_path=chromium, args=["--no-sandbox", "--disable-gpu"]
            )
            page = await browser.new_page()
            # The gateway has no pages of its own; everything else comes from it over the network.
            await page.route(f"http://{address}/", page_of_the_app)
            await page.goto(f"http://{address}/")
            await page.wait_for_function("globalThis.usableAt")
            took.append(await page.evaluate("usableAt"))
            await browser.close()
    return sorted(took)


def _memory_mib(pid: int) -> float:
    found = re.search(r"VmRSS:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    return int(found[1]) / 1024 if found else float("nan")


async def _measure(place: Path, arguments: argparse.Namespace) -> None:
    issuer = Issuer()
    async with await issuer.listen():
        with ExitStack() as stack:
            service = {"CREDIT_DATA_DIR": str(place / "data"), "CREDIT_LISTEN": "127.0.0.1:0"}
            serve = ("-m", "credit_service", "serve", "--migrate")
            # Starting the programs blocks the loop, and the issuer has no request yet.
            target, _ = stack.enter_context(_running(place / "service.log", *serve, **service))
            settings = {
                "LISTEN": "127.0.0.1:0", "CREDIT_TARGET": target, "LOG_FORMAT": "json",
                "JWT_ISSUER": issuer.url, "JWT_AUDIENCE": _AUDIENCE, "JWT_KEYS_URL": issuer.url,
            }  # fmt: skip
            gateway = {f"CREDIT_GATEWAY_{name}": value for name, value in settings.items()}
            address, pid = stack.enter_context(
                _running(place / "gateway.log", "-m", "credit_service.gateway", "serve", **gateway)
            )
            users = [uuid4() for _ in range(arguments.streams)]
            await _opened(target, users)
            rival, _ = stack.enter_context(
                _running(place / "rival.log", __file__, "--rival", target, str(users[0]))
            )
            tokens = [issuer.token(user) for user in users[:200]]
            pairs = []
            for _ in range(arguments.pairs + 1):
                ours = await _asked_per_second(address, tokens, _PAIR_SECONDS)
                constant = await _asked_per_second(rival, tokens, _PAIR_SECONDS)
                pairs.append((ours, constant))
            pairs = pairs[1:]
            ratio = statistics.median(ours / constant for ours, constant in pairs)
            print(
                f"GET /account: {statistics.median(ours for ours, _ in pairs):.0f} a second; the"
                f" same call and a constant: {statistics.median(c for _, c in pairs):.0f};"
                f" median ratio of {len(pairs)} pairs {ratio:.2f} (wanted: 0.6)"
            )
            took = await _live(target, address, issuer, users, arguments.seconds)
            print(
                f"{len(users)} open streams, {len(took)} changes: p50 {took[len(took) // 2]:.0f}"
                f" ms, p99 {took[len(took) * 99 // 100]:.0f} ms from commit to page (wanted: 300);"
                f" memory {_memory_mib(pid):.0f} MiB (wanted: 150)"
            )
            if usable := await _usable(address, tokens[0], arguments.pages):
                print(
                    f"{len(usable)} pages, each in a new headless Chromium: the balance is shown"
                    f" after {statistics.median(usable):.0f} ms (median), {usable[-1]:.0f} ms at"
                    " the latest (wanted: 1000)"
                )
            else:
                print("chromium is not installed, so no page was opened")


def main() -> None:
    """Starts everything, measures, and prints three lines."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=5, help="turns of both servers (%(default)s)")
    parser.add_argument("--streams", type=int, default=1000, help="open streams (%(default)s)")
    parser.add_argument("--seconds", type=float, default=15, help="of changes (%(default)s)")
    parser.add_argument("--pages", type=int, default=5, help="opened in Chromium (%(default)s)")
    parser.add_argument("--rival", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.rival:
        target, user_id = arguments.rival
        asyncio.run(_rival(target, UUID(user_id)))
        return
    for name in [name for name in os.environ if name.startswith("CREDIT_")]:
        del os.environ[name]
    with tempfile.TemporaryDirectory(prefix="gateway-bench-") as place:
        Path(place).chmod(0o755)  # for root, the database runs as the user `nobody`
        asyncio.run(_measure(Path(place), arguments))


if __name__ == "__main__":
    main()
