"""The HTTP routes: Stripe's webhook, the sale of credit packs, and the probes."""

from __future__ import annotations

import asyncio
import logging
import time
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING

import structlog
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse
from starlette.routing import Route

from credit_service.errors import CreditError
from stripe_bridge import failure_log, metrics, webhook, webhook_answers
from stripe_bridge.model import Settled
from stripe_bridge.request_bodies import Bodies, TooLarge, TooMuch
from stripe_bridge.settle import EVENT_NEVER_MADE, EVENT_TYPES
from stripe_bridge.webhook_answers import RETRY_AFTER, Answer, error_body

if TYPE_CHECKING:
    from collections.abc import Sequence

    from starlette.requests import Request
    from starlette.responses import Response

    from credit_service.client import CreditClient
    from stripe_bridge.catalog import Catalog
    from stripe_bridge.checkout_route import Checkouts
    from stripe_bridge.checkout_status import CheckoutStatus
    from stripe_bridge.portal import Portal
    from stripe_bridge.request_bodies import Limits
    from stripe_bridge.settle import Settler
    from stripe_bridge.webhook import Event, Secret

_log = structlog.get_logger()

_READY_SECONDS = 1.0
_READY_KEPT_SECONDS = 1.0
_PACKS_KEPT_SECONDS = 60

_KINDS = {*EVENT_TYPES, EVENT_NEVER_MADE}


class Webhooks:
    """Answers `POST /stripe/webhooks`."""

    def __init__(
        self,
        settler: Settler,
        *,
        secrets: Sequence[Secret],
        limits: Limits,
    ) -> None:
        """Takes events signed with one of `secrets`."""
        self._settler = settler
        self._secrets = secrets
        self._limits = limits
        self._bodies = Bodies(limits)
        self._in_flight = 0
        self._settling: set[asyncio.Task[Answer]] = set()

    async def post(self, request: Request) -> Response:
        """Answers one request: 2xx only if the credits are committed or there is nothing to do."""
        started = time.monotonic()
        admitted = await self._admitted(request)
        if isinstance(admitted, Answer):
            return _response(_logged(admitted, None, started))
        # Counted only from here on, so that slow requests of strangers do not crowd out Stripe.
        if self._in_flight >= self._limits.requests_in_flight:
            full = Answer(503, "unavailable", "too_many_requests")
            return _response(_logged(full, admitted, started))
        self._in_flight += 1
        metrics.IN_FLIGHT.inc()
        try:
            # A task of its own, so that it finishes even if the sender goes away.
            settling = asyncio.create_task(self._settled(admitted, started))
            self._settling.add(settling)
            settling.add_done_callback(self._settling.discard)
            return _response(await asyncio.shield(settling))
        finally:
            self._in_flight -= 1
            metrics.IN_FLIGHT.dec()

    async def drained(self) -> None:
        """Waits until every admitted event has been settled or given up."""
        if self._settling:
            await asyncio.wait(self._settling)

    async def _admitted(self, request: Request) -> Event | Answer:
        try:
            body = await self._bodies.read(request, self._limits.body_bytes)
        except TooLarge:
            return Answer(413, "refused", "too_large")
        except TooMuch:
            return Answer(503, "unavailable", "too_many_bytes")
        except TimeoutError:
            # The rest of the body may never come.
            return Answer(408, "refused", "too_slow", closes=True)
        except ClientDisconnect:
            return Answer(400, "refused", "incomplete")
        admitted = webhook.admit(
            body,
            request.headers.getlist("stripe-signature"),
            secrets=self._secrets,
            now=time.time(),
        )
        if isinstance(admitted, webhook.Refusal):
            return webhook_answers.of_refusal(admitted)
        return admitted

    async def _settled(self, event: Event, started: float) -> Answer:
        try:
            left = self._limits.budget_seconds - (time.monotonic() - started)
            async with asyncio.timeout(left):
                answer = webhook_answers.of_settled(await self._settle(event))
        except Exception as error:
            answer = webhook_answers.of_error(
                error,
                age_seconds=0 if event.created is None else time.time() - event.created,
                park_after_seconds=self._limits.park_after_seconds,
            )
            if webhook_answers.is_bug(error):
                failure_log.log_failure("bug", error, event_id=event.id)
        return _logged(answer, event, started)

    async def _settle(self, event: Event) -> Settled:
        if event.nothing is not None:
            return Settled("nothing", event.nothing.reason)
        if event.obj is None:
            return await self._settler.thin_event(
                event.kind, event_id=event.id, object_id=event.object_id
            )
        return await self._settler.event(event.kind, event.obj)


def _logged(answer: Answer, event: Event | None, started: float) -> Answer:
    """Logs and counts an answer, and returns it."""
    seconds = time.monotonic() - started
    kind = "" if event is None else event.kind if event.kind in _KINDS else "other"
    metrics.EVENTS.labels(kind, str(answer.status), answer.outcome, answer.reason).inc()
    metrics.EVENT_SECONDS.observe(seconds)
    if answer.alerts:
        metrics.ALERTS.labels(answer.reason).inc()
    if answer.outcome == "parked":
        metrics.PARKED.labels(answer.reason).inc()
    facts: dict[str, object] = {"status": answer.status, "outcome": answer.outcome}
    if event is not None:
        facts |= {"event_id": event.id, "type": event.kind, "object": event.object_id}
    facts["reason"] = answer.reason
    if answer.problem:
        facts["problem"] = answer.problem
    facts["ms"] = round(seconds * 1000, 2)
    level = logging.INFO
    if answer.alerts or answer.outcome == "parked":
        level = logging.ERROR
    elif answer.outcome == "unavailable":
        level = logging.WARNING
    _log.log(level, "webhook", **facts)
    return answer


def _response(answer: Answer) -> Response:
    headers: dict[str, str] = {}
    if answer.outcome == "unavailable":
        headers |= RETRY_AFTER
    if answer.closes:
        headers["Connection"] = "close"
    return JSONResponse(answer.body, answer.status, headers)


class Probes:
    """Answers the probes: whether the bridge runs, and whether it can do its work."""

    def __init__(self, credit_service: CreditClient) -> None:
        """Checks whether `credit_service` answers, at most once a second."""
        self._credit_service = credit_service
        self._asking = asyncio.Lock()
        self._problem = ""
        self._asked = float("-inf")
        self.stopping = False

    async def health(self, _: Request) -> Response:
        """Answers 200 as long as the bridge runs."""
        return JSONResponse({"status": "ok"})

    async def ready(self, _: Request) -> Response:
        """Answers 200 while events can be settled; 503 while the bridge stops or cannot write."""
        problem = await self._found()
        if self.stopping:
            problem = "stopping"
        if problem:
            return JSONResponse(error_body(problem, "Not ready."), 503)
        return JSONResponse({"status": "ready"})

    async def _found(self) -> str:
        async with self._asking:
            if time.monotonic() - self._asked >= _READY_KEPT_SECONDS:
                self._problem = await self._ask()
                self._asked = time.monotonic()
                metrics.READY.set(0 if self._problem else 1)
            return self._problem

    async def _ask(self) -> str:
        try:
            async with asyncio.timeout(_READY_SECONDS):
                await self._credit_service.list_prices()
        except TimeoutError:
            return "credit_service_silent"
        except CreditError as error:
            return error.reason.lower()
        return ""


@dataclass(frozen=True, slots=True)
class Selling:
    """The routes that need the bridge's bearer token."""

    checkouts: Checkouts
    status: CheckoutStatus
    portal: Portal

    def routes(self) -> list[Route]:
        """Makes the routes."""
        return [
            Route("/checkout-sessions", self.checkouts.post, methods=["POST"]),
            Route("/checkout-sessions/{id}", self.status.get, methods=["GET"]),
            Route("/checkout-sessions/{id}/refresh", self.status.refresh, methods=["POST"]),
            Route("/portal-sessions", self.portal.post, methods=["POST"]),
        ]


def make_app(
    webhooks: Webhooks, selling: Selling | None, probes: Probes, catalog: Catalog
) -> Starlette:
    """Puts the routes together; None for `selling`: this bridge sells nothing."""
    packs = [
        {
            "id": pack.id,
            "name": pack.name,
            "credits": pack.credits,
            "amount_minor": pack.amount_minor,
            "currency": pack.currency,
            # null: its credits do not expire.
            "valid_for_seconds": pack.valid_for and pack.valid_for // timedelta(seconds=1),
        }
        for pack in catalog.packs
    ]

    async def credit_packs(_: Request) -> Response:
        headers = {
            "Cache-Control": f"public, max-age={_PACKS_KEPT_SECONDS}",
            # Pages of any origin may show the packs.
            "Access-Control-Allow-Origin": "*",
        }
        return JSONResponse({"packs": packs}, headers=headers)

    routes = [
        Route("/stripe/webhooks", webhooks.post, methods=["POST"]),
        Route("/credit-packs", credit_packs, methods=["GET"]),
        Route("/healthz", probes.health, methods=["GET"]),
        Route("/readyz", probes.ready, methods=["GET"]),
    ]
    if selling is not None:
        routes += selling.routes()
    app = Starlette(
        routes=routes, exception_handlers={HTTPException: _no_such_route, Exception: _bug}
    )
    # Stripe treats a redirect as a failure.
    app.router.redirect_slashes = False
    return app


async def _no_such_route(_: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)  # noqa: S101  # Starlette chooses by this class
    reason = {404: "not_found", 405: "method_not_allowed"}.get(error.status_code, "refused")
    return JSONResponse(error_body(reason, error.detail), error.status_code, error.headers)


async def _bug(request: Request, error: Exception) -> Response:
    metrics.ALERTS.labels("bug").inc()
    failure_log.log_failure("bug", error, path=request.url.path)
    return JSONResponse(error_body("failed", "The failure is logged."), 500)
