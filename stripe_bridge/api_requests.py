"""Answers requests that need the bridge's bearer token: token, JSON, time limit and errors."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
import logging
import time
from collections.abc import Awaitable, Callable
from http import HTTPStatus
from typing import TYPE_CHECKING

import structlog
from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse

from credit_service.errors import CreditError
from stripe_bridge import metrics
from stripe_bridge.checkout import CheckoutRefused
from stripe_bridge.model import Unresolved
from stripe_bridge.request_bodies import Bodies, TooLarge, TooMuch
from stripe_bridge.stripe_api import StripeAway, StripeRefuses
from stripe_bridge.webhook_answers import RETRY_AFTER, error_body

if TYPE_CHECKING:
    from prometheus_client import Counter
    from starlette.requests import Request
    from starlette.responses import Response

    from stripe_bridge.request_bodies import Limits

_log = structlog.get_logger()

_BYTES_MAX = 16 * 1024

# Takes a request and the facts for its log line, to which it may add; returns the answer.
Work = Callable[["Request", dict[str, object]], Awaitable[dict[str, object]]]


class ApiRequests:
    """Answers requests that carry the token."""

    def __init__(self, *, token_sha256: str, limits: Limits) -> None:
        """Accepts the token with this SHA-256."""
        self._token_sha256 = token_sha256
        self._limits = limits
        self._bodies = Bodies(limits)

    async def answer(self, request: Request, work: Work, name: str, counter: Counter) -> Response:
        """Answers one request with the result of `work`.

        Args:
            request: with or without the token.
            work: makes the answer; raises CheckoutRefused, and the errors of Stripe and of the
                credit service.
            name: of the log line.
            counter: counts answers by status and reason.
        """
        started = time.monotonic()
        facts: dict[str, object] = {}
        headers: dict[str, str] = {}
        status, reason, answer = 200, "", {}
        try:
            async with asyncio.timeout(self._limits.budget_seconds):
                if not self._knows(request.headers.get("authorization", "")):
                    raise CheckoutRefused(
                        401, "unauthenticated", "send `Authorization: Bearer <token>`"
                    )
                answer = await work(request, facts)
        except CheckoutRefused as refused:
            status, reason, problem = refused.status, refused.reason, str(refused)
            if status == HTTPStatus.UNAUTHORIZED:
                headers = {"WWW-Authenticate": "Bearer"}
            if status == HTTPStatus.SERVICE_UNAVAILABLE:
                headers = RETRY_AFTER
        except (StripeAway, TimeoutError) as away:
            status, reason = 503, "stripe_away"
            facts["problem"] = str(away) or "out of time"
            problem = "Stripe gave no answer; ask again with the same idempotency_key"
            headers = RETRY_AFTER
        except (StripeRefuses, Unresolved) as refused:
            status, reason = 502, "stripe_refuses"
            problem = "Stripe does not sell this; `stripe-bridge check-config` says why"
            facts["problem"] = str(refused)
            metrics.ALERTS.labels(reason).inc()
        except CreditError as error:
            status, reason = 503, "credit_service_away"
            facts["problem"] = str(error)
            problem = "the credit service gave no answer; ask again"
            headers = RETRY_AFTER
        if reason:
            answer = error_body(reason, problem)
        counter.labels(str(status), reason).inc()
        seconds = time.monotonic() - started
        level = logging.ERROR if status == HTTPStatus.BAD_GATEWAY else logging.INFO
        facts |= {"reason": reason, "ms": round(seconds * 1000, 2)}
        _log.log(level, name, status=status, **facts)
        return JSONResponse(answer, status, headers)

    async def fields(self, request: Request) -> object:
        """Reads the JSON of a request.

        Raises:
            CheckoutRefused: 400 invalid_request, 408 too_slow, 413 too_large.
        """
        try:
            return json.loads((await self._bodies.read(request, _BYTES_MAX)).decode())
        except TooLarge:
            most = f"an order has at most {_BYTES_MAX} bytes"
            raise CheckoutRefused(413, "too_large", most) from None
        except (TimeoutError, ClientDisconnect, TooMuch):
            raise CheckoutRefused(408, "too_slow", "the body did not come in time") from None
        except (ValueError, RecursionError):
            raise CheckoutRefused(400, "invalid_request", "the body must be JSON") from None

    def _knows(self, authorization: str) -> bool:
        scheme, _, token = authorization.partition(" ")
        digest = hashlib.sha256(token.strip().encode()).hexdigest()
        return hmac.compare_digest(digest, self._token_sha256) and scheme.lower() == "bearer"
