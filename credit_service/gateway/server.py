"""The program credit-gateway put together: client, app, HTTP server; how it starts and stops."""

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

from credit_service.client import CreditClient
from credit_service.gateway.app import Gateway

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

    import grpc

    from credit_service.gateway.bridge import Bridge
    from credit_service.gateway.limits import Limits
    from credit_service.gateway.users import Users

_log = structlog.get_logger()

_BACKLOG = 2048
# Longer than a proxy keeps a connection, so that it never sends into one that is being closed.
_KEEP_ALIVE_SECONDS = 75
_DRAIN_SECONDS = 2


class StartRefusedError(Exception):
    """The gateway cannot start; the text names the cause and the remedy."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CreditService:
    """Where the credit service is, and who the gateway is there.

    Attributes:
        target: host:port.
        token: the gateway's bearer token; None: it has none.
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
    """What the program is made of.

    Attributes:
        listen: host:port; port 0 takes any free one.
        credit_service: where balances are read.
        users: tells who asks.
        bridge: sells packs; None: nothing is sold.
        origins: of pages on other hosts that may ask.
        grant_descriptions: whether users see what was written about a grant.
        limits: how much of everything.
        unready_seconds: how long it still serves once it is to end.
        metrics_port: where Prometheus reads; None: nowhere.
        metrics_host: the address of that port.
    """

    listen: str
    credit_service: CreditService
    users: Users
    bridge: Bridge | None
    origins: tuple[str, ...]
    grant_descriptions: bool
    limits: Limits
    unready_seconds: float
    metrics_port: int | None
    metrics_host: str


async def serve(
    settings: Settings, stop: asyncio.Event, started: Callable[[int], Awaitable[None]]
) -> None:
    """Runs the gateway until `stop` is set; then it ends its streams and answers what it has.

    Args:
        settings: what the program is made of.
        stop: set it to end.
        started: awaited with the port once requests are answered.

    Raises:
        StartRefusedError: a port is taken.
    """
    async with AsyncExitStack() as stack:
        listener = stack.enter_context(_bound(settings.listen))
        _serve_metrics(settings)
        client = await stack.enter_async_context(settings.credit_service.client())
        gateway = await stack.enter_async_context(
            Gateway(
                client,
                users=settings.users,
                bridge=settings.bridge,
                origins=settings.origins,
                grant_descriptions=settings.grant_descriptions,
                limits=settings.limits,
                logs=True,
            )
        )
        server = _Server(_http(gateway.app))
        serving = asyncio.create_task(server.serve(sockets=[listener]))
        stack.push_async_callback(_stopped, server, serving)
        listening = asyncio.create_task(server.listening.wait())
        await asyncio.wait({serving, listening}, return_when=asyncio.FIRST_COMPLETED)
        await started(listener.getsockname()[1])
        await stop.wait()
        gateway.probes.stopping = True
        _log.info("stopping: no longer ready")
        await asyncio.sleep(settings.unready_seconds)
        gateway.stop()
    _log.info("stopped")


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
        http="h11",
        ws="none",
        lifespan="off",
        log_config=None,
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
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host.strip("[]"), int(port)))
        listener.listen(_BACKLOG)
    except OSError as error:
        listener.close()
        raise StartRefusedError(
            f"cannot listen on {listen}: {error.strerror}; choose another with"
            " CREDIT_GATEWAY_LISTEN or end the program that has it"
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
            f" {error.strerror}; choose another with CREDIT_GATEWAY_METRICS_PORT"
        ) from error


async def _stopped(server: _Server, serving: asyncio.Task[None]) -> None:
    server.should_exit = True
    await serving
