"""The bridge put together: clients, routes, poller; how it starts and stops."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import structlog
import uvicorn
from prometheus_client import start_http_server
from uvicorn.protocols.http.h11_impl import H11Protocol

from credit_service.client import CreditClient
from stripe_bridge.app import Probes, Selling, Webhooks, make_app
from stripe_bridge.checkout_status import CheckoutStatus, SessionReads
from stripe_bridge.orders import Checkouts
from stripe_bridge.own_programs import OwnPrograms
from stripe_bridge.poll import Poller
from stripe_bridge.portal import Portal
from stripe_bridge.settle import Settler
from stripe_bridge.stripe_api import StripeReads, stripe_client

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator, Sequence

    import grpc
    import stripe

    from stripe_bridge.bodies import Limits
    from stripe_bridge.catalog import Policy
    from stripe_bridge.webhook import Secret

_log = structlog.get_logger()

_BACKLOG = 2048
_HEAD_SECONDS = 10.0
# Longer than a proxy keeps a connection, so that it never sends into one that is being closed.
_KEEP_ALIVE_SECONDS = 75
# Longer than any request may take.
_DRAIN_SECONDS = 10


class StartRefusedError(Exception):
    """The bridge cannot start; the text names the cause and the remedy."""


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
        listener = stack.enter_context(_bound(settings.listen))
        _serve_metrics(settings)
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
        server = _Server(_http(app))
        serving = asyncio.create_task(server.serve(sockets=[listener]))
        stack.push_async_callback(_stopped, server, serving)
        if settings.poll_seconds:
            polling = asyncio.create_task(Poller(reads, settler).run(settings.poll_seconds))
            stack.push_async_callback(_cancelled, polling)
        listening = asyncio.create_task(server.listening.wait())
        await asyncio.wait({serving, listening}, return_when=asyncio.FIRST_COMPLETED)
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


class _Connection(H11Protocol):
    """A connection that is closed when the head of a request does not come as a whole in time.

    uvicorn waits for ever for the first one, and for the rest of one that has begun.
    """

    _waiting: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._wait_for_head()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self._has_request:
            self._wait_no_more()
        elif self._waiting is None:
            self._wait_for_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._wait_no_more()
        super().connection_lost(exc)

    @property
    def _has_request(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _wait_for_head(self) -> None:
        self._waiting = self.loop.call_later(_HEAD_SECONDS, self.transport.close)

    def _wait_no_more(self) -> None:
        if self._waiting is not None:
            self._waiting.cancel()
            self._waiting = None


class _Server(uvicorn.Server):
    """uvicorn inside a program of its own, whose signals it leaves alone."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.listening = asyncio.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.listening.set()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def _http(app: Any) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        http=_Connection,
        ws="none",
        lifespan="off",
        log_config=None,
        # What goes wrong with a request is told by the routes, without what was in it.
        log_level="critical",
        access_log=False,
        proxy_headers=False,
        server_header=False,
        timeout_keep_alive=_KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=_DRAIN_SECONDS,
    )


@contextlib.contextmanager
def _bound(listen: str) -> Iterator[socket.socket]:
    host, _, port = listen.rpartition(":")
    family = socket.AF_INET6 if "[" in host else socket.AF_INET
    # Without TCP by its name asyncio leaves Nagle's algorithm on, which costs 40 ms an answer.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host.strip("[]"), int(port)))
        listener.listen(_BACKLOG)
    except OSError as error:
        listener.close()
        raise StartRefusedError(
            f"cannot listen on {listen}: {error.strerror}; choose another with"
            " STRIPE_BRIDGE_LISTEN or end the program that has it"
        ) from error
    with listener:
        yield listener


def _serve_metrics(settings: Settings) -> None:
    if settings.metrics_port is None:
        return
    try:
        start_http_server(settings.metrics_port, addr=settings.metrics_host)
    except OSError as error:
        raise StartRefusedError(
            f"cannot serve metrics on {settings.metrics_host}:{settings.metrics_port}:"
            f" {error.strerror}; choose another with STRIPE_BRIDGE_METRICS_PORT"
        ) from error


async def _stopped(server: _Server, serving: asyncio.Task[None]) -> None:
    server.should_exit = True
    await serving


async def _cancelled(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.wait({task})
