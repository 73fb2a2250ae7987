"""Users by their token (RFC 7519), as an issuer such as Supabase signs it.

Only asymmetric algorithms are accepted, and each key only with its own. The fields of a header that
say where keys are (`jku`, `x5u`, `jwk`) are ignored; a header that demands extensions (`crit`) is
refused.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit
from uuid import UUID, uuid5

import jwt

from credit_service.fields import uuid_or_none
from credit_service.gateway.key_sets import KeySet
from credit_service.gateway.users import User, bearer_token

if TYPE_CHECKING:
    from collections.abc import Collection

    from starlette.requests import Request

Claims = Mapping[str, Any]

LEEWAY_SECONDS = 10
_KEPT_MAX = 10_000
_KEY_ID_LENGTH_MAX = 256
_ASYMMETRIC = {
    "ES256",
    "ES384",
    "ES512",
    "RS256",
    "RS384",
    "RS512",
    "PS256",
    "PS384",
    "PS512",
    "EdDSA",
}
# Errors that a malformed token can cause.
_UNREADABLE = (jwt.PyJWTError, ValueError, TypeError, KeyError, OverflowError, RecursionError)


def uuid_claim(name: str = "sub") -> Callable[[Claims], UUID | None]:
    """Uses a claim that is a UUID as the user's id."""
    return lambda claims: uuid_or_none(claims.get(name))


def hashed_claim(namespace: UUID, name: str = "sub") -> Callable[[Claims], UUID | None]:
    """Makes the user's id from a claim that is any text: uuid5 of issuer, newline and claim.

    Args:
        namespace: a UUID of your own; it must never change, because the users would change with it.
        name: of the claim.
    """

    def user_id(claims: Claims) -> UUID | None:
        value = claims.get(name)
        if not isinstance(value, str) or not value:
            return None
        return uuid5(namespace, f"{claims['iss']}\n{value}")

    return user_id


class Tokens:
    """Verifies tokens of one issuer, and remembers those that it has verified."""

    def __init__(
        self,
        *,
        issuer: str,
        audience: str,
        jwks_url: str,
        algorithms: Collection[str],
        read: Callable[[Claims], User | None],
    ) -> None:
        if not algorithms or not _ASYMMETRIC.issuperset(algorithms):
            raise ValueError(f"algorithms must be some of {', '.join(sorted(_ASYMMETRIC))}")
        _require_tls(jwks_url)
        self._issuer = issuer
        self._audience = audience
        self._algorithms = frozenset(algorithms)
        self._read = read
        self._keys = KeySet(jwks_url)
        # By the token's SHA-256: the user, and the key set with which it was verified.
        self._verified: dict[bytes, tuple[User, int]] = {}

    async def aclose(self) -> None:
        """Closes the connection to the issuer."""
        await self._keys.aclose()

    async def user(self, token: str) -> User | None:
        """Finds the user of a token; None: it is not valid.

        Raises:
            Problem: 503, the issuer's keys are not available.
        """
        digest = hashlib.sha256(token.encode()).digest()
        known = self._verified.get(digest)
        if known is not None:
            user, version = known
            if version == await self._keys.current() and not _is_over(user):
                return user
            self._verified.pop(digest, None)
        claims = await self._claims(token)
        user_found = None if claims is None else self._read(claims)
        if user_found is not None:
            if len(self._verified) >= _KEPT_MAX:
                del self._verified[next(iter(self._verified))]
            self._verified[digest] = user_found, self._keys.version
        return user_found

    async def _claims(self, token: str) -> Claims | None:
        header = header_of(token)
        if header is None or header.get("alg") not in self._algorithms:
            return None
        key_id = header.get("kid")
        if key_id is not None and len(key_id) > _KEY_ID_LENGTH_MAX:
            return None
        key = await self._keys.key(key_id)
        if key is None or key.algorithm_name != header["alg"]:
            return None
        return checked_claims(token, key, issuer=self._issuer, audience=self._audience)


def header_of(token: str) -> dict[str, Any] | None:
    """Reads the header of a token, unverified; None: malformed, or it demands extensions."""
    try:
        header = jwt.get_unverified_header(token)
    except _UNREADABLE:
        return None
    return None if "crit" in header else header


def checked_claims(
    token: str, key: jwt.PyJWK | None, *, issuer: str, audience: str
) -> Claims | None:
    """Verifies a token and its claims; without a key only the claims, for others to verify.

    Returns:
        The claims, which have `exp`, `sub`, `iss` and `aud`, the given issuer and audience, and
        times that hold within 10 s; None: something is wrong.
    """
    try:
        claims: Claims = jwt.decode(
            token,
            key or "",
            algorithms=[key.algorithm_name] if key else None,
            issuer=issuer,
            audience=audience,
            leeway=LEEWAY_SECONDS,
            options={
                "verify_signature": key is not None,
                "verify_exp": True,
                "verify_nbf": True,
                "verify_iat": True,
                "verify_aud": True,
                "verify_iss": True,
                "require": ["exp", "sub", "iss", "aud"],
            },
        )
        float(claims["exp"])
    except _UNREADABLE:
        return None
    return claims


def user_of(user_id: UUID | None, claims: Claims) -> User | None:
    """Makes a user from claims."""
    return None if user_id is None else User(user_id, float(claims["exp"]))


def _is_over(user: User) -> bool:
    return user.expires_at is not None and user.expires_at + LEEWAY_SECONDS <= time.time()


def _require_tls(url: str) -> None:
    parts = urlsplit(url)
    here = parts.hostname in {"127.0.0.1", "localhost", "::1"}
    if parts.scheme != "https" and not (parts.scheme == "http" and here):
        raise ValueError(f"{url} must be https, because forged keys would let anybody in")


class JwtUsers:
    """Users of any issuer that publishes its keys.

    For example:

        JwtUsers(
            "https://login.example.com/",
            "credits",
            "https://login.example.com/.well-known/jwks.json",
            algorithms=("RS256",),
            user_id=uuid_claim("sub"),
        )
    """

    def __init__(
        self,
        issuer: str,
        audience: str,
        jwks_url: str,
        *,
        algorithms: Collection[str],
        user_id: Callable[[Claims], UUID | None],
    ) -> None:
        """Prepares the verification; keys are fetched with the first token.

        Args:
            issuer: the exact text of the claim `iss`.
            audience: what the claim `aud` must name.
            jwks_url: https address of the issuer's key set.
            algorithms: those it signs with, such as ES256; only asymmetric ones.
            user_id: finds the user's id in the claims: `uuid_claim` or `hashed_claim`.
        """
        self._tokens = Tokens(
            issuer=issuer,
            audience=audience,
            jwks_url=jwks_url,
            algorithms=algorithms,
            read=lambda claims: user_of(user_id(claims), claims),
        )

    async def __call__(self, request: Request) -> User | None:
        """Returns the user of the bearer token."""
        token = bearer_token(request)
        return None if token is None else await self._tokens.user(token)

    async def aclose(self) -> None:
        """Closes the connection to the issuer."""
        await self._tokens.aclose()
