"""The bridge in this process, on a real socket, and events as Stripe signs them."""

import asyncio
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from uuid import uuid4

import httpx
from kit.http_clients import http_client
from kit.in_process import start
from kit.stripe_fakes import KEY, SECRET
from kit.waiting import patience
from stripe import WebhookSignature

from credit_service.client import CreditClient
from stripe_bridge import server
from stripe_bridge.catalog import Catalog, Policy
from stripe_bridge.request_bodies import Limits
from stripe_bridge.server import CreditService
from stripe_bridge.webhook import Secret

# Nothing listens there; this is enough for tests that need no credits or no Stripe.
NOWHERE = "127.0.0.1:9"

PACKS = """
[[pack]]
id = "starter"
name = "100 credits"
credits = 100
price = "price_starter"
amount_minor = 900
currency = "eur"

[[pack]]
id = "studio"
name = "1,000 credits"
credits = 1000
lookup_key = "credits_1000"
amount_minor = 7900
currency = "eur"
valid_for = "365d"
"""


@dataclass
class Bridge:
    """A bridge that runs, and a client of it."""

    port: int
    stop: asyncio.Event
    task: asyncio.Task[None]
    http: httpx.AsyncClient

    async def deliver(self, event: dict, **options: object) -> httpx.Response:
        """Posts an event as Stripe does."""
        return await self.post(json.dumps(event).encode(), **options)

    async def post(self, body: bytes, *, secret: str = SECRET) -> httpx.Response:
        """Posts bytes, signed."""
        headers = {"Stripe-Signature": signature(body, secret)}
        return await self.http.post("/stripe/webhooks", content=body, headers=headers)


def signature(body: bytes, secret: str = SECRET, at: int | None = None) -> str:
    """Signs a body as of a time, by default now; bytes that are not UTF-8 are taken as Latin-1."""
    try:
        text = body.decode()
    except UnicodeDecodeError:
        text = body.decode("latin-1")
    return WebhookSignature.generate_signature_header(text, secret, at)


@dataclass(frozen=True, slots=True, kw_only=True)
class PatientCreditService(CreditService):
    """A credit service whose answers the bridge awaits for as long as this machine needs."""

    def client(self) -> CreditClient:
        return CreditClient(
            self.target,
            token=self.token,
            credentials=self.credentials,
            deadline_seconds=patience(5),
        )


def bridge_settings(credit_target: str, **changes: object) -> server.Settings:
    """Settings of a bridge on any free port, without a Stripe because most tests need none.

    Its time limits grow with the slowness of the machine; a test about a limit sets it.
    """
    return replace(
        server.Settings(
            listen="127.0.0.1:0",
            credit_service=PatientCreditService(target=credit_target, token=None, credentials=None),
            stripe_key=KEY,
            stripe_address=f"http://{NOWHERE}",
            secrets=(Secret(SECRET, live=False),),
            policy=Policy(catalog=Catalog.parse(PACKS)),
            checkout_token_sha256=None,
            return_origins=frozenset(),
            limits=Limits(read_seconds=patience(2.5), budget_seconds=patience(4)),
            poll_seconds=0,
            unready_seconds=0,
            metrics_port=None,
            metrics_host="127.0.0.1",
            stripe_seconds=patience(2),
        ),
        **changes,
    )


@asynccontextmanager
async def running_bridge(settings: server.Settings) -> AsyncIterator[Bridge]:
    """Runs a bridge in this process for the length of the block, and stops it."""
    stop = asyncio.Event()
    port, task = await start(server.serve, settings, stop)
    url = f"http://127.0.0.1:{port}"
    async with http_client(base_url=url, timeout=patience(20)) as http:
        try:
            yield Bridge(port, stop, task, http)
        finally:
            stop.set()
    await task


def paid_session(user_id: object, credits_: int = 100, **changes: object) -> dict:
    """A Checkout Session of ours that is paid."""
    mark = uuid4().hex
    return {
        "id": f"cs_test_{mark}",
        "object": "checkout.session",
        "mode": "payment",
        "payment_status": "paid",
        "status": "complete",
        "payment_intent": f"pi_{mark}",
        "amount_total": 900,
        "currency": "eur",
        "customer": None,
        "customer_details": {"email": "buyer@example.com"},
        "metadata": {
            "credit_user_id": str(user_id),
            "credits": str(credits_),
            "credits_v": "1",
        },
        **changes,
    }


def event_of(obj: dict, kind: str = "checkout.session.completed", **changes: object) -> dict:
    """An event about an object, made at this moment."""
    return {
        "id": f"evt_{uuid4().hex}",
        "object": "event",
        "type": kind,
        "created": int(time.time()),
        "livemode": False,
        "data": {"object": obj},
        **changes,
    }
