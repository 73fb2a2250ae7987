"""The route that sells credit packs: `POST /checkout-sessions`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from stripe_bridge import metrics
from stripe_bridge.checkout import open_session, read_order

if TYPE_CHECKING:
    from collections.abc import Collection

    import stripe
    from starlette.requests import Request
    from starlette.responses import Response

    from stripe_bridge.api_requests import ApiRequests
    from stripe_bridge.catalog import Policy


class Checkouts:
    """Answers `POST /checkout-sessions` for callers with the token."""

    def __init__(
        self,
        client: stripe.StripeClient,
        policy: Policy,
        programs: ApiRequests,
        *,
        return_origins: Collection[str],
    ) -> None:
        """Sells the packs of the policy's catalogue."""
        self._client = client
        self._policy = policy
        self._programs = programs
        self._return_origins = return_origins

    async def post(self, request: Request) -> Response:
        """Makes a Checkout Session, or finds the one made under the same key."""
        return await self._programs.answer(request, self._sold, "checkout", metrics.CHECKOUTS)

    async def _sold(self, request: Request, facts: dict[str, object]) -> dict[str, object]:
        order = read_order(
            await self._programs.fields(request),
            catalog=self._policy.catalog,
            return_origins=self._return_origins,
            credits_max=self._policy.max_credits_per_purchase,
        )
        facts |= {"user": str(order.user_id), "pack": order.pack.id, "quantity": order.quantity}
        opened = await open_session(self._client, order)
        facts["session"] = opened.id
        return {"id": opened.id, "url": opened.url, "expires_at": opened.expires_at}
