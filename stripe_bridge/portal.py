"""Opens Stripe's billing portal for a user, with receipts, cards and subscriptions."""

from __future__ import annotations

from typing import TYPE_CHECKING

from credit_service.fields import uuid_or_none
from stripe_bridge import metrics
from stripe_bridge.checkout import CheckoutRefused, return_url
from stripe_bridge.customers import find_customer
from stripe_bridge.stripe_api import stripe_errors

if TYPE_CHECKING:
    from collections.abc import Collection

    import stripe
    from starlette.requests import Request
    from starlette.responses import Response

    from stripe_bridge.api_requests import ApiRequests


class Portal:
    """Answers `POST /portal-sessions` for callers with the token."""

    def __init__(
        self,
        client: stripe.StripeClient,
        programs: ApiRequests,
        *,
        return_origins: Collection[str],
    ) -> None:
        self._client = client
        self._programs = programs
        self._return_origins = return_origins

    async def post(self, request: Request) -> Response:
        """Makes a portal session of the customer whose metadata names the user."""
        return await self._programs.answer(request, self._opened, "portal", metrics.PORTALS)

    async def _opened(self, request: Request, facts: dict[str, object]) -> dict[str, object]:
        fields = await self._programs.fields(request)
        if not isinstance(fields, dict) or fields.keys() != {"user_id", "return_url"}:
            raise CheckoutRefused(400, "invalid_request", "send user_id and return_url")
        user_id = uuid_or_none(fields["user_id"])
        if user_id is None:
            raise CheckoutRefused(400, "invalid_request", "user_id must be a UUID")
        back = return_url(fields, "return_url", self._return_origins)
        facts["user"] = str(user_id)
        customer = await find_customer(self._client, user_id)
        if customer is None:
            raise CheckoutRefused(404, "no_customer", "Stripe has no customer for this user")
        with stripe_errors("portal session"):
            session = await self._client.v1.billing_portal.sessions.create_async(
                {"customer": customer, "return_url": back}
            )
        return {"url": session.url}
