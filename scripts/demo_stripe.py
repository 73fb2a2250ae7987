"""Plays a purchase, a partial refund and a won dispute, from checkout to balance, and shows it.

A fake Stripe and the bridge run as processes of their own beside a running service; no account at
Stripe is needed and nothing leaves this machine.
"""

import asyncio
import contextlib
import hashlib
import os
import re
import secrets
import sys
import tempfile
import uuid
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from credit_service.client import CreditClient
from credit_service.v1 import credit_service_pb2 as pb

_ROOT = Path(__file__).resolve().parent.parent
_START_SECONDS = 30
_DELIVERY_SECONDS = 15
_A_PERSON_MUST_ACT = 422
_PACKS = """
[[pack]]
id = "small"
name = "300 credits"
credits = 300
lookup_key = "credits_300"
amount_minor = 900
currency = "eur"
"""


class StoryFailed(Exception):
    """The story cannot go on; the message says why, and what a program said last."""


@dataclass(frozen=True, slots=True)
class Service:
    """How to reach the running credit service."""

    target: str
    token: str | None
    ca: Path | None


@dataclass(slots=True)
class _Program:
    """A program of ours in a process of its own."""

    name: str
    process: asyncio.subprocess.Process
    last_lines: deque[str] = field(default_factory=lambda: deque(maxlen=12))

    async def wait_for(self, pattern: str) -> str:
        """Reads its output until a line matches, and returns what the pattern's group caught."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_START_SECONDS):
                async for line in self._lines():
                    if match := re.search(pattern, line):
                        return match.group(1)
        said = "\n   ".join(self.last_lines) or "nothing"
        raise StoryFailed(f"{self.name} did not start. It said:\n   {said}")

    async def drain(self) -> None:
        """Reads on, for nobody can write into a full pipe."""
        async for _ in self._lines():
            pass

    async def _lines(self) -> AsyncIterator[str]:
        assert self.process.stdout is not None  # noqa: S101  # it was asked for
        async for line in self.process.stdout:
            self.last_lines.append(line.decode(errors="replace").rstrip())
            yield self.last_lines[-1]


@asynccontextmanager
async def _running(
    module: str, *arguments: str, ready: str, **environment: str
) -> AsyncIterator[str]:
    """Runs a module for the length of the block; yields what its line of readiness tells."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        module,
        *arguments,
        env={**os.environ, **environment},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        # Ctrl-C is for this program, which then stops the others in order.
        start_new_session=True,
    )
    program = _Program(module, process)
    draining = None
    try:
        told = await program.wait_for(ready)
        draining = asyncio.create_task(program.drain())
        yield told
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.terminate()
        try:
            async with asyncio.timeout(_START_SECONDS):
                await process.wait()
        except TimeoutError:
            process.kill()
            await process.wait()
        if draining is not None:
            await draining


def _fake_stripe() -> contextlib.AbstractAsyncContextManager[str]:
    # The fake is a tool of the tests, so it stands with them and is not part of what is installed.
    path = os.pathsep.join(filter(None, [str(_ROOT / "scripts"), os.environ.get("PYTHONPATH")]))
    return _running("fake_stripe", ready=r"fake stripe on (\S+)", PYTHONPATH=path)


def _bridge(
    service: Service, *, stripe: str, secret: str, token: str, packs: Path
) -> contextlib.AbstractAsyncContextManager[str]:
    settings = {
        "listen": "127.0.0.1:0",
        "credit_target": service.target,
        "stripe_address": stripe,
        "stripe_key": "sk_test_of_the_demo",
        "webhook_secrets": f"test:{secret}",
        "catalog": str(packs),
        "checkout_token_sha256": hashlib.sha256(token.encode()).hexdigest(),
        "unready_seconds": "0",
    }
    if service.token:
        settings["credit_token"] = service.token
    if service.ca:
        settings["credit_tls_ca"] = str(service.ca)
    variables = {f"STRIPE_BRIDGE_{name.upper()}": value for name, value in settings.items()}
    return _running("stripe_bridge", "serve", ready=r"listens on \S+?:(\d+)", **variables)


@dataclass(frozen=True, slots=True)
class _Stage:
    """Whom the story is about, and everybody who plays in it."""

    client: CreditClient
    user_id: uuid.UUID
    stripe: httpx.AsyncClient
    bridge: httpx.AsyncClient
    token: str

    async def happens(self, action: str, **facts: object) -> dict[str, Any]:
        """Lets something happen at Stripe, waits until the bridge knows, and shows the balance."""
        before = len((await self.stripe.get("/_fake/deliveries")).json())
        answer = await self.stripe.post(f"/_fake/{action}", json=facts)
        if answer.status_code != httpx.codes.OK:
            raise StoryFailed(f"The fake Stripe refuses {action}: {answer.text}")
        await self.told(before)
        return dict(answer.json())

    async def told(self, before: int = 0) -> None:
        """Waits until every event is delivered; shows them with their answers and the balance."""
        for _ in range(_DELIVERY_SECONDS):
            idle = (await self.stripe.get("/_fake/idle", params={"wait": 1})).json()["idle"]
            sent = await self.stripe.get("/_fake/deliveries", params={"since": before})
            attempts: list[dict[str, Any]] = sent.json()
            # No later try is answered otherwise, so nobody need wait for one.
            if idle or any(each["status"] == _A_PERSON_MUST_ACT for each in attempts):
                break
        if not idle:
            said = attempts[-1]["answer"] if attempts else "nothing"
            hint = ""
            if "user_not_found" in said:
                hint = "\nThis service adds no users itself: name one that it knows with --user."
            raise StoryFailed(f"The bridge does not take Stripe's events; it says: {said}{hint}")
        for attempt in attempts:
            milliseconds = round(attempt["seconds"] * 1000)
            print(f"   {attempt['type']:<33} {attempt['status']} after {milliseconds} ms")
        credit = await self.client.get_user_credit(self.user_id)
        print(f"   balance: {credit.balance} credits")


async def story(client: CreditClient, user_id: uuid.UUID, service: Service) -> None:
    """Buys a pack, refunds a part of the money, meets a dispute over the rest and wins it.

    Raises:
        StoryFailed: a program does not start, or does not do what the story needs.
        CreditError: the credit service refuses.
    """
    # An absent service is told at once, and not by the bridge.
    await client.list_prices()
    secret, token = f"whsec_{secrets.token_hex(16)}", secrets.token_urlsafe(24)
    async with contextlib.AsyncExitStack() as stack:
        print("Starting a fake Stripe and the bridge ...")
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        packs = directory / "packs.toml"
        packs.write_text(_PACKS)
        stripe_url = await stack.enter_async_context(_fake_stripe())
        bridge = _bridge(service, stripe=stripe_url, secret=secret, token=token, packs=packs)
        bridge_url = f"http://127.0.0.1:{await stack.enter_async_context(bridge)}"
        print(f"   fake Stripe: {stripe_url}\n   bridge: {bridge_url}")
        stage = _Stage(
            client,
            user_id,
            await stack.enter_async_context(httpx.AsyncClient(base_url=stripe_url, timeout=30)),
            await stack.enter_async_context(httpx.AsyncClient(base_url=bridge_url, timeout=30)),
            token,
        )
        price = {"unit_amount": 900, "currency": "eur", "lookup_key": "credits_300"}
        await stage.stripe.post("/_fake/price", json=price)
        endpoint = {"url": f"{bridge_url}/stripe/webhooks", "secret": secret}
        await stage.stripe.post("/_fake/endpoint", json=endpoint)
        try:
            await _get_back(stage, await _buy(stage))
        except httpx.HTTPError as failure:
            gone = f"The bridge or the fake Stripe gives no answer: {failure!r}"
            raise StoryFailed(gone) from failure
        await _look_back(stage)


async def _buy(stage: _Stage) -> str:
    packs = (await stage.bridge.get("/credit-packs")).json()["packs"]
    offers = ", ".join(f"{each['name']} for {_money(each)}" for each in packs)
    print(f"\nOn sale: {offers}. The user {stage.user_id} buys a pack.")
    order = {
        "user_id": str(stage.user_id),
        "pack": packs[0]["id"],
        "success_url": "https://app.example.com/bought",
        "cancel_url": "https://app.example.com/shop",
        "idempotency_key": uuid.uuid4().hex,
    }
    headers = {"Authorization": f"Bearer {stage.token}"}
    answer = await stage.bridge.post("/checkout-sessions", json=order, headers=headers)
    if answer.status_code != httpx.codes.OK:
        raise StoryFailed(f"The bridge makes no checkout session: {answer.text}")
    session = answer.json()
    print(f"   to pay at {session['url'][:64]}...")

    print("\nThe customer pays there; Stripe tells the bridge.")
    # Stripe's page answers with a redirect to success_url.
    await stage.stripe.post(session["url"])
    await stage.told()
    return str(session["id"])


async def _get_back(stage: _Stage, session_id: str) -> None:
    print("\nA third of the money is refunded, so a third of the credits goes.")
    await stage.happens("refund", payment=session_id, amount=300)

    print("\nThe customer disputes the rest at his bank, which takes it at once.")
    dispute = await stage.happens("dispute", payment=session_id, amount=600, reason="fraudulent")

    print("\nThe dispute is won, and the credits come back with the money.")
    await stage.happens("win", id=dispute["id"])


async def _look_back(stage: _Stage) -> None:
    print("\nThe history, newest first:")
    async for entry in stage.client.get_transaction_history(stage.user_id):
        kind = pb.TransactionType.Name(entry.type).removeprefix("TRANSACTION_TYPE_").lower()
        what = f"{entry.reference or entry.payment.ref}  {entry.description}".rstrip()
        moved = f"{entry.balance_change:+5}  -> {entry.balance_after:4}"
        print(f"   {entry.seq}  {kind:<9} {moved}  {what}")
        if kind == "purchase":
            break


def _money(pack: dict[str, Any]) -> str:
    # Right for this pack alone: not every currency has hundredths.
    return f"{pack['amount_minor'] / 100:.2f} {pack['currency'].upper()}"
