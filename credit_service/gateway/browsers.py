"""The headers that browsers need, and the pages that may send requests: CORS, Fetch metadata.

A request with a bearer token needs no more proof, because no page of another site can make a
browser send one unless the preflight allowed it. Any other request may carry what a browser adds by
itself, a cookie or the password of HTTP Basic. So it must come from a page of this origin or of a
listed one ("Fetch Metadata Request Headers", "Fetch").
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from starlette.datastructures import MutableHeaders
from starlette.responses import Response

from credit_service.gateway.problems import Problem

if TYPE_CHECKING:
    from collections.abc import Collection

    from starlette.datastructures import Headers
    from starlette.requests import Request
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

_METHODS = "GET, POST"
_REQUEST_HEADERS = "authorization, content-type, idempotency-key"
_RESPONSE_HEADERS = "Retry-After"
_PREFLIGHT_SECONDS = 600

_ALWAYS = (
    ("X-Content-Type-Options", "nosniff"),
    ("Content-Security-Policy", "default-src 'none'; frame-ancestors 'none'"),
    ("Referrer-Policy", "no-referrer"),
)


class Browsers:
    """The pages that may send requests; `origins` are exact, such as https://app.example.com."""

    def __init__(self, origins: Collection[str]) -> None:
        self._origins = frozenset(origins)

    def check(self, request: Request) -> None:
        """Checks that the page behind a request may act for its user.

        Raises:
            Problem: 403 CROSS_ORIGIN; 401 if there is neither a browser nor a credential.
        """
        headers = request.headers
        origin, site = headers.get("origin"), headers.get("sec-fetch-site")
        if _has_bearer_token(headers) or origin in self._origins or site == "same-origin":
            return
        if site is None and origin is None and "cookie" not in headers:
            raise Problem("UNAUTHENTICATED")
        raise Problem("CROSS_ORIGIN")

    def allows(self, origin: str | None) -> bool:
        """Whether pages of an origin may read answers."""
        return origin in self._origins

    def wrap(self, app: ASGIApp) -> ASGIApp:
        """Adds the headers to every answer of `app`, and answers preflights."""

        async def wrapped(scope: Scope, receive: Receive, send: Send) -> None:
            if scope["type"] != "http":
                await app(scope, receive, send)
                return
            asked = {name: value for name, value in scope["headers"] if name in _ASKED}
            origin = asked.get(b"origin", b"").decode("latin-1") or None

            async def sent(message: Message) -> None:
                if message["type"] == "http.response.start":
                    self._add_headers(MutableHeaders(scope=message), origin)
                await send(message)

            if scope["method"] == "OPTIONS" and b"access-control-request-method" in asked:
                await self._preflight(origin)(scope, receive, sent)
            else:
                await app(scope, receive, sent)

        return wrapped

    def _add_headers(self, headers: MutableHeaders, origin: str | None) -> None:
        for name, value in _ALWAYS:
            headers[name] = value
        if self._origins and "vary" not in headers:
            headers["Vary"] = "Origin"
        if origin is not None and origin in self._origins:
            headers["Access-Control-Allow-Origin"] = origin
            headers["Access-Control-Allow-Credentials"] = "true"
            headers["Access-Control-Expose-Headers"] = _RESPONSE_HEADERS

    def _preflight(self, origin: str | None) -> Response:
        if not self.allows(origin):
            return Response(status_code=403, headers={"Cache-Control": "no-store"})
        return Response(
            status_code=204,
            headers={
                "Access-Control-Allow-Methods": _METHODS,
                "Access-Control-Allow-Headers": _REQUEST_HEADERS,
                "Access-Control-Max-Age": str(_PREFLIGHT_SECONDS),
            },
        )


def _has_bearer_token(headers: Headers) -> bool:
    return headers.get("authorization", "").lower().startswith("bearer ")


_ASKED = {b"origin", b"access-control-request-method"}
