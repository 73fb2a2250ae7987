"""Users of a Supabase project, by its access tokens.

A project with signing keys publishes them. The tokens of the few projects with a shared secret are
verified by the auth server, because Supabase advises against local verification with that secret.
"""

from __future__ import annotations

import asyncio
import hashlib
import re
import time
from typing import TYPE_CHECKING

import httpx
import orjson
import structlog

from credit_service.fields import uuid_or_none
from credit_service.gateway import metrics
from credit_service.gateway.problems import Problem
from credit_service.gateway.tokens import (
    LEEWAY_SECONDS,
    Tokens,
    checked_claims,
    header_of,
    user_of,
)
from credit_service.gateway.users import User, bearer_token

if TYPE_CHECKING:
    from collections.abc import Callable

    from starlette.requests import Request

    from credit_service.gateway.tokens import Claims

_log = structlog.get_logger()

_AUDIENCE = "authenticated"
_ALGORITHMS = ("ES256", "RS256")
_SHARED_SECRET_ALGORITHM = "HS256"  # noqa: S105  # the name of an algorithm
_ASK_SECONDS = 5.0
_ASKED_AT_ONCE = 8
_ANSWER_BYTES_MAX = 64 * 1024
_TAKEN_SECONDS = 60.0
_REFUSED_SECONDS = 10.0
_KEPT_MAX = 10_000


class SupabaseUsers:
    """Users of a Supabase project: `SupabaseUsers("https://project.supabase.co")`."""

    def __init__(
        self,
        project_url: str,
        *,
        anonymous: bool = False,
        shared_secret_project: bool = False,
        api_key: str | None = None,
    ) -> None:
        """Prepares the verification; keys are fetched with the first token.

        Args:
            project_url: of the project.
            anonymous: whether anonymous users have credits; if not, they are refused with 403.
            shared_secret_project: accept tokens signed with the project's shared secret; its auth
                server verifies them.
            api_key: the project's publishable key, which the auth server demands.
        """
        issuer = _issuer(project_url)
        read = _reader(anonymous=anonymous)
        self._tokens = Tokens(
            issuer=issuer,
            audience=_AUDIENCE,
            jwks_url=f"{issuer}/.well-known/jwks.json",
            algorithms=_ALGORITHMS,
            read=read,
        )
        self._read = read
        self._issuer = issuer
        self._auth_server: _AuthServer | None = None
        if shared_secret_project:
            if api_key is None:
                raise ValueError("a project with a shared secret needs its publishable api_key")
            self._auth_server = _AuthServer(f"{issuer}/user", api_key)

    async def __call__(self, request: Request) -> User | None:
        """Returns the user of the bearer token."""
        token = bearer_token(request)
        if token is None:
            return None
        if self._auth_server is not None:
            header = header_of(token)
            if header is not None and header.get("alg") == _SHARED_SECRET_ALGORITHM:
                return await self._asked(token, self._auth_server)
        return await self._tokens.user(token)

    async def aclose(self) -> None:
        """Closes the connections."""
        await self._tokens.aclose()
        if self._auth_server is not None:
            await self._auth_server.aclose()

    async def _asked(self, token: str, auth_server: _AuthServer) -> User | None:
        # Claims are checked first, so that only plausible tokens reach the auth server.
        claims = checked_claims(token, None, issuer=self._issuer, audience=_AUDIENCE)
        user = None if claims is None else self._read(claims)
        if user is None or not await auth_server.takes(token, user):
            return None
        return user


class _AuthServer:
    """Asks the auth server whose token it is, and keeps its answers by the token's hash."""

    def __init__(self, url: str, api_key: str) -> None:
        self._url = url
        self._api_key = api_key
        self._http: httpx.AsyncClient | None = None
        self._turns = asyncio.Semaphore(_ASKED_AT_ONCE)
        # Whether the token was accepted, and how long that answer counts.
        self._kept: dict[bytes, tuple[bool, float]] = {}

    async def aclose(self) -> None:
        if self._http is not None:
            await self._http.aclose()
            self._http = None

    async def takes(self, token: str, user: User) -> bool:
        """Asks whether a token is the user's.

        Raises:
            Problem: 503, the auth server does not answer.
        """
        digest = hashlib.sha256(token.encode()).digest()
        known = self._kept.get(digest)
        if known is not None and time.monotonic() < known[1]:
            return known[0]
        try:
            async with asyncio.timeout(_ASK_SECONDS), self._turns:
                taken = await self._ask(token, user)
        except (httpx.HTTPError, TimeoutError, ValueError, KeyError, TypeError) as error:
            metrics.ALERTS.labels("ISSUER_UNAVAILABLE").inc()
            _log.error("auth server does not answer", url=self._url, problem=type(error).__name__)
            raise Problem("ISSUER_UNAVAILABLE") from None
        seconds = _TAKEN_SECONDS if taken else _REFUSED_SECONDS
        if taken and user.expires_at is not None:
            seconds = min(seconds, user.expires_at + LEEWAY_SECONDS - time.time())
        self._kept.pop(digest, None)
        if len(self._kept) >= _KEPT_MAX:
            del self._kept[next(iter(self._kept))]
        self._kept[digest] = taken, time.monotonic() + seconds
        return taken

    async def _ask(self, token: str, user: User) -> bool:
        if self._http is None:
            self._http = httpx.AsyncClient(follow_redirects=False, timeout=_ASK_SECONDS)
        headers = {"apikey": self._api_key, "Authorization": f"Bearer {token}"}
        async with self._http.stream("GET", self._url, headers=headers) as response:
            content = bytearray()
            async for chunk in response.aiter_bytes():
                content += chunk
                if len(content) > _ANSWER_BYTES_MAX:
                    raise ValueError("too large")
        answer = orjson.loads(content)
        # The server refuses a token in this form; its proxy refuses a wrong api_key in another.
        if response.status_code in {401, 403} and not {"error_code", "msg"}.isdisjoint(answer):
            return False
        if response.status_code != httpx.codes.OK:
            raise ValueError(f"status {response.status_code}")
        return uuid_or_none(answer["id"]) == user.id


def _reader(*, anonymous: bool) -> Callable[[Claims], User | None]:
    """Reads the claims of Supabase's access tokens.

    Args:
        anonymous: whether anonymous users have credits; if not, they are refused with 403.
    """

    def read(claims: Claims) -> User | None:
        if claims.get("role") != "authenticated":
            return None
        if claims.get("is_anonymous", False) is not False and not anonymous:
            raise Problem("ANONYMOUS_USER")
        return user_of(uuid_or_none(claims.get("sub")), claims)

    return read


def _issuer(project_url: str) -> str:
    """Names the issuer of a Supabase project.

    Raises:
        ValueError: it is not the address of a project.
    """
    if not re.fullmatch(r"https?://[^\s/?#]+/?", project_url):
        raise ValueError("the project's address must be like https://project.supabase.co")
    return f"{project_url.rstrip('/')}/auth/v1"
