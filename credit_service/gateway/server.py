"""The program credit-gateway: its client, app and HTTP server; how it starts and stops."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING

import structlog

from credit_service.client import CreditClient
from credit_service.gateway.app import Gateway
from credit_service.runtime import build_info, http
from credit_service.runtime.metrics_port import serve_metrics

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    import grpc

    from credit_service.gateway.bridge import Bridge
    from credit_service.gateway.rate_limits import Limits
    from credit_service.gateway.users import Users

_log = structlog.get_logger()

_DRAIN_SECONDS = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class CreditService:
    """How the gateway reaches the credit service.

    Attributes:
        target: host:port.
        token: the gateway's bearer token; None: none.
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
    """Everything the program needs.

    Attributes:
        listen: host:port; port 0 takes any free one.
        credit_service: the service that balances are read from.
        users: finds the user of a request.
        bridge: sells packs; None: nothing is sold.
        origins: of pages on other hosts that may ask.
        grant_descriptions: whether users see the description of a grant or correction.
        limits: of streams and of requests.
        unready_seconds: how long it still serves after the signal to stop.
        metrics_port: for Prometheus; None: no metrics.
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
    """Runs the gateway until `stop` is set; then ends its streams and finishes its requests.

    Args:
        settings: everything the program needs.
        stop: ends the program when set.
        started: awaited with the port as soon as requests are answered.

    Raises:
        StartRefusedError: a port is taken.
    """
    async with AsyncExitStack() as stack:
        listener = stack.enter_context(http.bound(settings.listen, setting="CREDIT_GATEWAY_LISTEN"))
        serve_metrics(
            settings.metrics_host, settings.metrics_port, setting="CREDIT_GATEWAY_METRICS_PORT"
        )
        build_info.expose("credit_gateway_build_info")
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
        await stack.enter_async_context(
            http.serving(gateway.app, listener, drain_seconds=_DRAIN_SECONDS)
        )
        await started(listener.getsockname()[1])
        await stop.wait()
        gateway.probes.stopping = True
        _log.info("stopping: no longer ready")
        await asyncio.sleep(settings.unready_seconds)
        gateway.stop()
    _log.info("stopped")
