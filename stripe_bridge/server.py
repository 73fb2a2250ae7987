"""The bridge put together: clients, routes, poller; how it starts and stops."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING

import structlog

from credit_service.client import CreditClient
from credit_service.runtime import build_info, http
from credit_service.runtime.metrics_port import serve_metrics
from stripe_bridge.app import Probes, Selling, Webhooks, make_app
from stripe_bridge.checkout_status import CheckoutStatus, SessionReads
from stripe_bridge.orders import Checkouts
from stripe_bridge.own_programs import OwnPrograms
from stripe_bridge.poll import Poller
from stripe_bridge.portal import Portal
from stripe_bridge.settle import Settler
from stripe_bridge.stripe_api import StripeReads, stripe_client

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    import grpc
    import stripe

    from stripe_bridge.bodies import Limits
    from stripe_bridge.catalog import Policy
    from stripe_bridge.webhook import Secret

_log = structlog.get_logger()

# Longer than any request may take.
_DRAIN_SECONDS = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class CreditService:
    """Where the credit service is, and who the bridge is there.

    Attributes:
        target: host:port.
        token: the bridge's bearer token; None: it has none.
        credentials: TLS; None: plaintext.
    """

    target: str
    token: str | None
    credentials: grpc.ChannelCredentials | None

    def client(self) -> CreditClient:
        """Makes a client, which connects with its first call."""
        return CreditClient(self.target, token=self.token, credentials=self.credentials)


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What the bridge is made of.

    Attributes:
        listen: host:port; port 0 takes any free one.
        credit_service: where credits are written.
        stripe_key: of Stripe's API.
        stripe_address: of Stripe's API; None: Stripe's own.
        secrets: that events are signed with.
        policy: what is granted, and the packs on sale.
        checkout_token_sha256: of the token with which packs are sold; None: none are.
        return_origins: to which a checkout may lead back; empty: any with TLS.
        limits: of requests.
        poll_seconds: between two looks at Stripe's newest events; 0: never.
        unready_seconds: how long a bridge that is told to stop still serves.
        metrics_port: where Prometheus reads; None: nowhere.
        metrics_host: the address of that port.
    """

    listen: str
    credit_service: CreditService
    stripe_key: str
    stripe_address: str | None
    secrets: Sequence[Secret]
    policy: Policy
    checkout_token_sha256: str | None
    return_origins: frozenset[str]
    limits: Limits
    poll_seconds: float
    unready_seconds: float
    metrics_port: int | None
    metrics_host: str


async def serve(
    settings: Settings, stop: asyncio.Event, started: Callable[[int], Awaitable[None]]
) -> None:
    """Runs the bridge until `stop` is set; then it is not ready, and then answers what it has.

    Args:
        settings: what the bridge is made of.
        stop: set it to end.
        started: awaited with the port once requests are answered.

    Raises:
        StartRefusedError: a port is taken.
    """
    async with AsyncExitStack() as stack:
        listener = stack.enter_context(http.bound(settings.listen, setting="STRIPE_BRIDGE_LISTEN"))
        serve_metrics(
            settings.metrics_host, settings.metrics_port, setting="STRIPE_BRIDGE_METRICS_PORT"
        )
        build_info.expose("stripe_bridge_build_info")
        client = await stack.enter_async_context(
            stripe_client(settings.stripe_key, address=settings.stripe_address)
        )
        credit_service = await stack.enter_async_context(settings.credit_service.client())
        reads = StripeReads(client)
        settler = Settler(reads, credit_service, settings.policy)
        webhooks = Webhooks(settler, secrets=settings.secrets, limits=settings.limits)
        stack.push_async_callback(webhooks.drained)
        probes = Probes(credit_service)
        selling = _selling(settings, client, reads, settler, credit_service)
        app = make_app(webhooks, selling, probes, settings.policy.catalog)
        await stack.enter_async_context(http.serving(app, listener, drain_seconds=_DRAIN_SECONDS))
        if settings.poll_seconds:
            polling = asyncio.create_task(Poller(reads, settler).run(settings.poll_seconds))
            stack.push_async_callback(_cancelled, polling)
        await started(listener.getsockname()[1])
        await stop.wait()
        probes.stopping = True
        _log.info("stopping: no longer ready, requests in flight are answered")
        await asyncio.sleep(settings.unready_seconds)
    _log.info("stopped")


def _selling(
    settings: Settings,
    client: stripe.StripeClient,
    reads: StripeReads,
    settler: Settler,
    credit_service: CreditClient,
) -> Selling | None:
    """Makes what our own programs may ask for; None: they have no token."""
    if settings.checkout_token_sha256 is None:
        return None
    programs = OwnPrograms(token_sha256=settings.checkout_token_sha256, limits=settings.limits)
    origins = settings.return_origins
    return Selling(
        Checkouts(client, settings.policy, programs, return_origins=origins),
        CheckoutStatus(
            SessionReads(client),
            programs,
            settler=settler,
            looker=Settler(reads, credit_service, settings.policy, validate_only=True),
        ),
        Portal(client, programs, return_origins=origins),
    )


async def _cancelled(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.wait({task})
