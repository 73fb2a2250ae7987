"""Makes the webhook endpoint in Stripe that delivers to the bridge."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from stripe_bridge.settle import EVENT_TYPES
from stripe_bridge.stripe_api import STRIPE_VERSION, StripeRefuses, stripe_errors

if TYPE_CHECKING:
    import stripe


class EndpointExists(Exception):
    """There is an endpoint with this URL already; the API does not show its secret again."""


async def make_endpoint(client: stripe.StripeClient, url: str, *, again: bool) -> tuple[str, bool]:
    """Makes an endpoint with the pinned API version and exactly our events.

    Args:
        client: its key may read and write webhook endpoints.
        url: where Stripe delivers, `https://.../stripe/webhooks`.
        again: make another one even if one has this URL; each event then comes twice.

    Returns:
        The signing secret, and whether it is of live mode.

    Raises:
        EndpointExists: there is one with this URL.
        StripeAway: no usable answer came.
        StripeRefuses: the key lacks the right, or Stripe does not take the URL.
    """
    # The SDK has literal types; ours are shared with the poller and the reads.
    enabled: list[Any] = list(EVENT_TYPES)
    version: Any = STRIPE_VERSION
    endpoints = client.v1.webhook_endpoints
    with stripe_errors("webhook endpoints"):
        listed = await endpoints.list_async({"limit": 100})
        made = [each.id async for each in listed.auto_paging_iter() if each.url == url]
        if made and not again:
            raise EndpointExists(made[0])
        endpoint = await endpoints.create_async(
            {
                "url": url,
                "enabled_events": enabled,
                "api_version": version,
                "description": "Credits",
            }
        )
    if not endpoint.secret:
        raise StripeRefuses("Stripe showed no signing secret; look it up in its Dashboard")
    return endpoint.secret, endpoint.livemode
