"""Identifies users: the type of a resolver, and the resolver for development.

The gateway may read every account, so only the resolver keeps users apart. There is no default.
"""

from __future__ import annotations

import os
import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from ipaddress import ip_address
from typing import TYPE_CHECKING, NamedTuple

from starlette.requests import Request

from credit_service.fields import uuid_or_none
from credit_service.gateway.problems import Problem

if TYPE_CHECKING:
    from uuid import UUID

    from starlette.datastructures import Headers

TOKEN_BYTES_MAX = 8 * 1024

DEVELOPMENT_VARIABLE = "CREDIT_GATEWAY_DEVELOPMENT"


class User(NamedTuple):
    """An authenticated user.

    Attributes:
        id: the user at the credit service.
        expires_at: when the proof of identity ends, in seconds since 1970; None: never.
    """

    id: UUID
    expires_at: float | None = None


# Returns the user of a request, or None if it carries no valid credentials. Raises `Problem` if the
# credentials cannot be verified now.
Users = Callable[[Request], Awaitable[User | None]]


def bearer_token(request: Request) -> str | None:
    """Reads the bearer token of a request; None: there is none, or one of more than 8 KiB."""
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    token = token.strip()
    if scheme.lower() != "bearer" or not token or len(token) > TOKEN_BYTES_MAX:
        return None
    return token


class DevelopmentError(Exception):
    """Development users are configured where they are not allowed."""


@dataclass(frozen=True, slots=True)
class DevelopmentUsers:
    """Trusts every program on this machine, to try things out.

    The bearer token is the user's id. Answers 403 unless the connection comes from loopback without
    a proxy and is for a loopback host; a page that asks must come from that host too.

    Attributes:
        user: the user of requests without a token; None: they have none.

    Raises:
        DevelopmentError: the variable CREDIT_GATEWAY_DEVELOPMENT is not true.
    """

    user: UUID | None = None

    def __post_init__(self) -> None:
        if os.environ.get(DEVELOPMENT_VARIABLE, "").lower() not in {"true", "1"}:
            raise DevelopmentError(f"development users need {DEVELOPMENT_VARIABLE}=true")

    async def __call__(self, request: Request) -> User | None:
        """Returns the user that the token names."""
        if not _is_on_this_machine(request):
            raise Problem("DEVELOPMENT_ONLY")
        if "authorization" not in request.headers:
            return None if self.user is None else User(self.user)
        user_id = uuid_or_none(bearer_token(request))
        return None if user_id is None else User(user_id)


def _is_on_this_machine(request: Request) -> bool:
    host = request.headers.get("host", "")
    return (
        request.client is not None
        and _is_loopback(request.client.host)
        and _is_loopback(re.sub(":[0-9]+$", "", host).strip("[]"))
        and not _came_through_a_proxy(request.headers)
        and request.headers.get("origin", f"http://{host}") == f"http://{host}"
    )


def _came_through_a_proxy(headers: Headers) -> bool:
    return any(
        name in {"forwarded", "via", "x-real-ip"} or name.startswith("x-forwarded-")
        for name in headers
    )


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
