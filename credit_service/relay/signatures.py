"""Signs webhooks, as the Standard Webhooks specification says."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable
    from datetime import datetime

    from standardwebhooks import Webhook


def signature(secrets: Iterable[Webhook], event_id: str, now: datetime, body: str) -> str:
    """Signs a request, once with each secret of its endpoint.

    Args:
        secrets: of the endpoint.
        event_id: as the `webhook-id` header has it.
        now: as the `webhook-timestamp` header has it.
        body: of the request.

    Returns:
        The value of the `webhook-signature` header.
    """
    return " ".join(secret.sign(event_id, now, body) for secret in secrets)
