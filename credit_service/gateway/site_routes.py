"""The routes with the same answer for all users: configuration and probes."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

import orjson
from starlette.responses import Response

from credit_service.errors import CreditError
from credit_service.gateway import metrics
from credit_service.gateway.requests import Query

if TYPE_CHECKING:
    from starlette.requests import Request

    from credit_service.client import CreditClient
    from credit_service.gateway.bridge import Bridge

_READY_SECONDS = 1.0
_READY_KEPT_SECONDS = 1.0


def public(value: object, status: int = 200, caching: str = "no-cache") -> Response:
    """Makes an answer that is the same for all users."""
    return Response(
        orjson.dumps(value), status, {"Cache-Control": caching}, media_type="application/json"
    )


class Site:
    """Answers what a page needs before it knows its user."""

    def __init__(self, bridge: Bridge | None) -> None:
        sells = bridge is not None
        has_portal = bridge is not None and bridge.has_portal
        self._config = {
            "checkout_hosts": bridge.checkout_hosts if bridge is not None else (),
            "portal_hosts": bridge.portal_hosts if bridge is not None and has_portal else (),
            "features": {"checkout": sells, "portal": has_portal},
        }

    async def config(self, request: Request) -> Response:
        """Answers `GET /config`."""
        Query(request)
        return public(self._config)


class Probes:
    """Answers the probes: whether the gateway runs, and whether it can work."""

    def __init__(self, client: CreditClient) -> None:
        """Prepares the probes, which ask the service at most once a second."""
        self._client = client
        self._asking: asyncio.Task[str] | None = None
        self._problem = ""
        self._asked = float("-inf")
        self.stopping = False

    async def health(self, _: Request) -> Response:
        """Answers 200 as long as the gateway runs."""
        return public({"status": "ok"}, caching="no-store")

    async def ready(self, _: Request) -> Response:
        """Answers 200 while balances can be read; 503 while it stops or the service is away."""
        problem = "stopping" if self.stopping else await self._found()
        if problem:
            return public({"status": "not ready", "reason": problem}, 503, caching="no-store")
        return public({"status": "ready"}, caching="no-store")

    async def _found(self) -> str:
        if time.monotonic() - self._asked >= _READY_KEPT_SECONDS:
            if self._asking is None or self._asking.done():
                self._asking = asyncio.create_task(self._ask())
            # Shielded, because others may wait for the same answer.
            self._problem = await asyncio.shield(self._asking)
            self._asked = time.monotonic()
            metrics.READY.set(0 if self._problem else 1)
        return self._problem

    async def _ask(self) -> str:
        try:
            async with asyncio.timeout(_READY_SECONDS):
                await self._client.list_prices()
        except TimeoutError:
            return "credit_service_silent"
        except CreditError as error:
            return error.reason.lower()
        return ""
