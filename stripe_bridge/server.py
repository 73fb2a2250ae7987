"""Puts the bridge together: clients, routes, poller; starts and stops it."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING

import structlog

from credit_service.client import CreditClient
from credit_service.runtime import build_info, http
from credit_service.runtime.metrics_port import serve_metrics
from stripe_bridge.api_requests import ApiRequests
from stripe_bridge.app import Probes, Selling, Webhooks, make_app
from stripe_bridge.checkout_route import Checkouts
from stripe_bridge.checkout_status import CheckoutStatus, SessionReads
from stripe_bridge.poll import Poller
from stripe_bridge.portal import Portal
from stripe_bridge.settle import Settler
from stripe_bridge.stripe_api import CALL_SECONDS, StripeReads, stripe_client
from stripe_bridge.top_up_payments import TopUpPayments
from stripe_bridge.top_up_work import Charging
from stripe_bridge.top_ups import TopUps

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence
    from datetime import timedelta

    import grpc
    import stripe

    from stripe_bridge.catalog import Policy
    from stripe_bridge.request_bodies import Limits
    from stripe_bridge.webhook import Secret

_log = structlog.get_logger()

# Longer than the budget of a request.
_DRAIN_SECONDS = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class CreditService:
    """The address of the credit service, and the bridge's credentials there.

    Attributes:
        target: host:port.
        token: the bridge's bearer token; None: it has none.
        credentials: TLS; None: plaintext.
    """

    target: str
    token: str | None
    credentials: grpc.ChannelCredentials | None

    def client(self) -> CreditClient:
        """Makes a client, which connects at its first call."""
        return CreditClient(self.target, token=self.token, credentials=self.credentials)


@dataclass(frozen=True, slots=True, kw_only=True)
class TopUpSettings:
    """How top-ups are charged.

    Attributes:
        pause_seconds: between two rounds.
        retry_after: the pause between a failed try and the next one.
        return_url: where Stripe sends a customer who has paid by a link.
    """

    pause_seconds: float
    retry_after: timedelta
    return_url: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """The settings that the bridge needs to run.

    Attributes:
        listen: host:port; port 0 takes any free one.
        credit_service: where credits are written.
        stripe_key: of Stripe's API.
        stripe_address: of Stripe's API; None: Stripe's own.
        secrets: the signing secrets of events.
        policy: which payments give credits, and the packs on sale.
        checkout_token_sha256: of the token that callers need to sell packs; None: nothing is sold.
        return_origins: the origins that a checkout may return to; empty: any with https.
        limits: of requests.
        poll_seconds: the pause between two polls of Stripe's newest events; 0: no polls.
        top_ups: how top-ups are charged; None: they are not.
        unready_seconds: how long a bridge still serves after it was asked to stop.
        stripe_seconds: how long a try of a request to Stripe may take.
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
    top_ups: TopUpSettings | None = None
    stripe_seconds: float = CALL_SECONDS


async def serve(
    settings: Settings, stop: asyncio.Event, started: Callable[[int], Awaitable[None]]
) -> None:
    """Runs the bridge until `stop` is set, and then until the events in flight are answered.

    Args:
        settings: what the bridge needs.
        stop: an event that ends the bridge when it is set.
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
            stripe_client(
                settings.stripe_key,
                address=settings.stripe_address,
                seconds=settings.stripe_seconds,
            )
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
        if settings.top_ups is not None:
            charging = asyncio.create_task(
                top_ups(settings.top_ups, client, credit_service, settings.policy).run(
                    settings.top_ups.pause_seconds
                )
            )
            stack.push_async_callback(_cancelled, charging)
        await started(listener.getsockname()[1])
        await stop.wait()
        probes.stopping = True
        _log.info("stopping: no longer ready, requests in flight are answered")
        await asyncio.sleep(settings.unready_seconds)
    _log.info("stopped")


def top_ups(
    settings: TopUpSettings,
    client: stripe.StripeClient,
    credit_service: CreditClient,
    policy: Policy,
) -> TopUps:
    """Puts together the parts that charge top-ups."""
    return TopUps(
        Charging(
            credit_service=credit_service,
            payments=TopUpPayments(client, return_url=settings.return_url),
            settler=Settler(StripeReads(client), credit_service, policy),
            policy=policy,
            retry_after=settings.retry_after,
        )
    )


def _selling(
    settings: Settings,
    client: stripe.StripeClient,
    reads: StripeReads,
    settler: Settler,
    credit_service: CreditClient,
) -> Selling | None:
    """Makes the routes that need the token; None: there is no token."""
    if settings.checkout_token_sha256 is None:
        return None
    programs = ApiRequests(token_sha256=settings.checkout_token_sha256, limits=settings.limits)
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
