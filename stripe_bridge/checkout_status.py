"""The status of a checkout, for the page to which Stripe sends the buyer back.

The webhook may be late or lost, so the page does not wait for it: a refresh settles the session
with the same settler, and may be repeated. A GET writes nothing.
"""

from __future__ import annotations

import asyncio
import re
import time
from typing import TYPE_CHECKING, Literal

import structlog

from credit_service.fields import uuid_or_none
from stripe_bridge import metrics
from stripe_bridge.checkout import CheckoutRefused
from stripe_bridge.fields import Object, child
from stripe_bridge.metadata import USER_KEY, frozen_credits
from stripe_bridge.model import Unresolved
from stripe_bridge.stripe_api import StripeMissing, stripe_errors

if TYPE_CHECKING:
    from uuid import UUID

    import stripe
    from starlette.requests import Request
    from starlette.responses import Response

    from stripe_bridge.api_requests import ApiRequests
    from stripe_bridge.settle import Settler

_log = structlog.get_logger()

State = Literal["open", "processing", "credited", "expired"]

_ID = re.compile(r"cs_(test_|live_)?[A-Za-z0-9]{10,200}")

_KEPT_SECONDS = 2.0
_READS_PER_SECOND = 5

# The status of a payment intent whose delayed payment, such as a bank debit, has failed.
_FAILED = {"requires_payment_method", "canceled"}


class SessionReads:
    """Reads sessions from Stripe: each once in two seconds, and five per second in all."""

    def __init__(self, client: stripe.StripeClient) -> None:
        self._client = client
        self._kept: dict[str, tuple[float, asyncio.Task[Object]]] = {}
        self._read_at: list[float] = []

    async def read(self, session_id: str) -> Object:
        """Reads a session with its payment intent; all callers within two seconds share one read.

        Raises:
            CheckoutRefused: 404 unknown_checkout, 503 too_many_reads.
            StripeAway: no usable answer came.
            StripeRefuses: the key may not read sessions.
        """
        now = time.monotonic()
        kept = self._kept.get(session_id)
        if kept is None or now - kept[0] >= _KEPT_SECONDS:
            self._read_at = [at for at in self._read_at if now - at < 1]
            if len(self._read_at) >= _READS_PER_SECOND:
                raise CheckoutRefused(503, "too_many_reads", "ask again in a second")
            self._read_at.append(now)
            # At five reads per second only a few are younger than two seconds.
            self._kept = {
                each: (at, task)
                for each, (at, task) in self._kept.items()
                if now - at < _KEPT_SECONDS
            }
            task = asyncio.create_task(self._asked(session_id))
            # The callers may have gone, and an exception that is never read would be logged.
            task.add_done_callback(lambda done: done.cancelled() or done.exception())
            kept = self._kept[session_id] = now, task
        try:
            # Shielded, because other callers may wait for the same answer.
            return await asyncio.shield(kept[1])
        except StripeMissing:
            raise unknown() from None

    async def _asked(self, session_id: str) -> Object:
        with stripe_errors(session_id):
            session = await self._client.v1.checkout.sessions.retrieve_async(
                session_id, {"expand": ["payment_intent"]}
            )
        return session.to_dict()


class CheckoutStatus:
    """Answers requests for the status of a checkout."""

    def __init__(
        self, reads: SessionReads, programs: ApiRequests, *, settler: Settler, looker: Settler
    ) -> None:
        """Settles with `settler`; `looker` does the same without writing anything."""
        self._reads = reads
        self._programs = programs
        self._settler = settler
        self._looker = looker

    async def get(self, request: Request) -> Response:
        """Answers `GET /checkout-sessions/{id}?user_id=`: reads only."""
        return await self._programs.answer(
            request, self._looked, "checkout read", metrics.CHECKOUT_READS
        )

    async def refresh(self, request: Request) -> Response:
        """Answers `POST /checkout-sessions/{id}/refresh` with a user_id: settles first."""
        return await self._programs.answer(
            request, self._refreshed, "checkout refreshed", metrics.CHECKOUT_READS
        )

    async def _looked(self, request: Request, facts: dict[str, object]) -> dict[str, object]:
        user_id = _user(request.query_params.get("user_id"))
        return await self._state(request, user_id, self._looker, facts)

    async def _refreshed(self, request: Request, facts: dict[str, object]) -> dict[str, object]:
        fields = await self._programs.fields(request)
        if not isinstance(fields, dict) or fields.keys() != {"user_id"}:
            raise CheckoutRefused(400, "invalid_request", "send the user_id and nothing else")
        return await self._state(request, _user(fields["user_id"]), self._settler, facts)

    async def _state(
        self, request: Request, user_id: UUID, settler: Settler, facts: dict[str, object]
    ) -> dict[str, object]:
        session_id = request.path_params["id"]
        if not _ID.fullmatch(session_id):
            raise unknown()
        facts |= {"session": session_id, "user": str(user_id)}
        session = await self._reads.read(session_id)
        metadata = child(session, "metadata")
        if uuid_or_none(metadata.get(USER_KEY)) != user_id:
            # The answer for another user's checkout is the one for a checkout that does not exist.
            raise unknown()
        state = await _state_of(session, settler)
        facts["state"] = state
        # For a session whose metadata names only the user, the catalogue decides the credits.
        credits_ = frozen_credits(metadata, session_id) if state == "credited" else None
        return {"id": session_id, "state": state, "credits": credits_}


async def _state_of(session: Object, settler: Settler) -> State:
    if session.get("status") == "open":
        return "open"
    if session.get("status") == "expired":
        return "expired"
    if session.get("payment_status") == "unpaid":
        # A bank debit stays in this state for days.
        failed = child(session, "payment_intent").get("status") in _FAILED
        return "expired" if failed else "processing"
    try:
        settled = await settler.session_now(session)
    except Unresolved as unresolved:
        # The buyer has paid, and a person must act; the webhook alerts as well.
        _log.error("checkout unresolved", reason=unresolved.reason, problem=unresolved.detail)
        metrics.ALERTS.labels(unresolved.reason).inc()
        return "processing"
    if settled.alerts:
        _log.error("checkout needs a person", reason=settled.reason, refs=settled.refs)
        metrics.ALERTS.labels(settled.reason).inc()
    written = settled.outcome == "replayed" or (
        settled.outcome == "committed" and not settler.validate_only
    )
    return "credited" if written else "processing"


def unknown() -> CheckoutRefused:
    """Makes the answer for a checkout that does not exist or is another user's."""
    return CheckoutRefused(404, "unknown_checkout", "there is no such checkout of this user")


def _user(value: object) -> UUID:
    user_id = uuid_or_none(value)
    if user_id is None:
        raise CheckoutRefused(400, "invalid_request", "user_id must be a UUID")
    return user_id
