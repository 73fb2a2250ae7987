"""The route by which our own programs sell credit packs."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
import logging
import time
from http import HTTPStatus
from typing import TYPE_CHECKING

import structlog
from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse

from stripe_bridge import metrics
from stripe_bridge.answers import RETRY_AFTER, error_body
from stripe_bridge.bodies import Bodies, TooLarge, TooMuch
from stripe_bridge.checkout import CheckoutRefused, open_session, read_order
from stripe_bridge.model import Unresolved
from stripe_bridge.stripe_api import StripeAway, StripeRefuses

if TYPE_CHECKING:
    from collections.abc import Collection

    import stripe
    from starlette.requests import Request
    from starlette.responses import Response

    from stripe_bridge.bodies import Limits
    from stripe_bridge.catalog import Policy

_log = structlog.get_logger()

_BYTES_MAX = 16 * 1024


class Checkouts:
    """Answers `POST /checkout-sessions`, for our own programs alone."""

    def __init__(
        self,
        client: stripe.StripeClient,
        policy: Policy,
        *,
        token_sha256: str,
        return_origins: Collection[str],
        limits: Limits,
    ) -> None:
        """Sells the packs of the policy's catalogue to whoever has the token of `token_sha256`."""
        self._client = client
        self._policy = policy
        self._token_sha256 = token_sha256
        self._return_origins = return_origins
        self._limits = limits
        self._bodies = Bodies(limits)

    async def post(self, request: Request) -> Response:
        """Makes a Checkout Session, or finds the one made under the same key."""
        started = time.monotonic()
        facts: dict[str, object] = {}
        headers: dict[str, str] = {}
        try:
            async with asyncio.timeout(self._limits.budget_seconds):
                answer = await self._sold(request, facts)
            status, reason = 200, ""
        except CheckoutRefused as refused:
            status, reason, problem = refused.status, refused.reason, str(refused)
            if status == HTTPStatus.UNAUTHORIZED:
                headers = {"WWW-Authenticate": "Bearer"}
        except (StripeAway, TimeoutError) as away:
            status, reason = 503, "stripe_away"
            facts["problem"] = str(away) or "out of time"
            problem = "Stripe gave no answer; ask again with the same idempotency_key"
            headers = RETRY_AFTER
        except (StripeRefuses, Unresolved) as refused:
            status, reason = 502, "stripe_refuses"
            problem = "Stripe does not sell this; `stripe-bridge check-config` tells why"
            facts["problem"] = str(refused)
            metrics.ALERTS.labels(reason).inc()
        if reason:
            answer = error_body(reason, problem)
        metrics.CHECKOUTS.labels(str(status), reason).inc()
        seconds = time.monotonic() - started
        level = logging.ERROR if status == HTTPStatus.BAD_GATEWAY else logging.INFO
        facts |= {"reason": reason, "ms": round(seconds * 1000, 2)}
        _log.log(level, "checkout", status=status, **facts)
        return JSONResponse(answer, status, headers)

    async def _sold(self, request: Request, facts: dict[str, object]) -> dict[str, object]:
        if not self._knows(request.headers.get("authorization", "")):
            raise CheckoutRefused(401, "unauthenticated", "send `Authorization: Bearer <token>`")
        order = read_order(
            await self._order(request),
            catalog=self._policy.catalog,
            return_origins=self._return_origins,
            credits_max=self._policy.max_credits_per_purchase,
        )
        facts |= {"user": str(order.user_id), "pack": order.pack.id, "quantity": order.quantity}
        opened = await open_session(self._client, order)
        facts["session"] = opened.id
        return {"id": opened.id, "url": opened.url, "expires_at": opened.expires_at}

    def _knows(self, authorization: str) -> bool:
        scheme, _, token = authorization.partition(" ")
        digest = hashlib.sha256(token.strip().encode()).hexdigest()
        return hmac.compare_digest(digest, self._token_sha256) and scheme.lower() == "bearer"

    async def _order(self, request: Request) -> object:
        try:
            return json.loads((await self._bodies.read(request, _BYTES_MAX)).decode())
        except TooLarge:
            most = f"an order has at most {_BYTES_MAX} bytes"
            raise CheckoutRefused(413, "too_large", most) from None
        except (TimeoutError, ClientDisconnect, TooMuch):
            raise CheckoutRefused(408, "too_slow", "the body did not come in time") from None
        except (ValueError, RecursionError):
            raise CheckoutRefused(400, "invalid_request", "the body must be JSON") from None
