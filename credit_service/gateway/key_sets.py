"""The keys with which an issuer signs its tokens: a JSON Web Key Set (RFC 7517), fetched and kept.

PyJWT's own client is synchronous and waits up to 30 s under a lock, so the set is fetched by httpx.
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any

import httpx
import jwt
import orjson
import structlog
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey

from credit_service.gateway import metrics
from credit_service.gateway.problems import Problem

if TYPE_CHECKING:
    from collections.abc import Mapping

_log = structlog.get_logger()

_FETCH_SECONDS = 5.0
_BYTES_MAX = 64 * 1024
_KEYS_MAX = 100
# How long a key set is used, and how much longer while the issuer is away. A withdrawn key is
# accepted for as long.
KEPT_SECONDS = 5 * 60.0
STALE_SECONDS = 10 * 60.0
# Between two fetches for key ids that are not in the set, because anybody can invent key ids.
UNKNOWN_SECONDS = 30.0
_AFTER_FAILURE_SECONDS = 5.0
RSA_BITS_MIN = 2048


class KeySet:
    """The key set of one issuer."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._keys: Mapping[str | None, jwt.PyJWK] = {}
        self._fetched_at = float("-inf")
        self._failed_at = float("-inf")
        self._unknown_at = float("-inf")
        self._fetching: asyncio.Task[None] | None = None
        self._http: httpx.AsyncClient | None = None
        self.version = 0

    async def aclose(self) -> None:
        """Closes the connection."""
        if self._fetching is not None:
            self._fetching.cancel()
            await asyncio.wait({self._fetching})
        if self._http is not None:
            await self._http.aclose()
            self._http = None

    async def current(self) -> int:
        """Fetches the set if it is too old; returns a number that changes with the set.

        Raises:
            Problem: 503, the issuer is away and the last set is too old.
        """
        age = time.monotonic() - self._fetched_at
        if age >= KEPT_SECONDS:
            if time.monotonic() - self._failed_at >= _AFTER_FAILURE_SECONDS:
                await self._fetch()
            age = time.monotonic() - self._fetched_at
            if age >= KEPT_SECONDS + STALE_SECONDS:
                raise Problem("ISSUER_UNAVAILABLE")
        return self.version

    async def key(self, key_id: str | None) -> jwt.PyJWK | None:
        """Finds a key by its id; without an id, the only key of a set.

        Returns:
            The key; None: a set fetched since the request has no key of that id.

        Raises:
            Problem: 503, unknown: the issuer is away, or was asked a moment ago.
        """
        asked_at = time.monotonic()
        await self.current()
        key = self._found(key_id)
        if key is not None or self._fetched_at >= asked_at:
            return key
        fetching = self._fetching is not None and not self._fetching.done()
        if not fetching:
            wait = self._unknown_at + UNKNOWN_SECONDS - asked_at
            if wait > 0:
                raise Problem("ISSUER_UNAVAILABLE", retry_after=wait)
            self._unknown_at = asked_at
        await self._fetch()
        if self._fetched_at < asked_at:
            raise Problem("ISSUER_UNAVAILABLE")
        return self._found(key_id)

    def _found(self, key_id: str | None) -> jwt.PyJWK | None:
        if key_id is None:
            return next(iter(self._keys.values())) if len(self._keys) == 1 else None
        return self._keys.get(key_id)

    async def _fetch(self) -> None:
        """Fetches the set, once for all callers; after a failure the last one stays."""
        if self._fetching is None or self._fetching.done():
            self._fetching = asyncio.create_task(self._fetched())
        await asyncio.shield(self._fetching)

    async def _fetched(self) -> None:
        try:
            async with asyncio.timeout(_FETCH_SECONDS):
                keys = _usable(await self._read())
        except (httpx.HTTPError, TimeoutError, ValueError, jwt.PyJWTError) as error:
            self._failed_at = time.monotonic()
            metrics.ALERTS.labels("ISSUER_UNAVAILABLE").inc()
            _log.error("key set not fetched", url=self._url, problem=type(error).__name__)
            return
        self._fetched_at = time.monotonic()
        self._keys = keys
        self.version += 1

    async def _read(self) -> Any:
        if self._http is None:
            self._http = httpx.AsyncClient(follow_redirects=False, timeout=_FETCH_SECONDS)
        async with self._http.stream("GET", self._url) as response:
            if response.status_code != httpx.codes.OK:
                raise ValueError(f"status {response.status_code}")
            content = bytearray()
            async for chunk in response.aiter_bytes():
                content += chunk
                if len(content) > _BYTES_MAX:
                    raise ValueError("too large")
        return orjson.loads(content)


def _usable(document: Any) -> dict[str | None, jwt.PyJWK]:
    """Picks the keys that may verify; an id that appears twice is left out.

    Raises:
        ValueError: the document is not a key set.
    """
    listed = document.get("keys") if isinstance(document, dict) else None
    if not isinstance(listed, list) or len(listed) > _KEYS_MAX:
        raise ValueError("not a key set")
    objects = [each for each in listed if isinstance(each, dict)]
    ids = [each.get("kid") for each in objects]
    usable: dict[str | None, jwt.PyJWK] = {}
    for each, key_id in zip(objects, ids, strict=True):
        if not isinstance(key_id, str | None) or ids.count(key_id) > 1:
            continue
        key = _verifying(each)
        if key is not None:
            usable[key_id] = key
    return usable


def _verifying(published: dict[str, Any]) -> jwt.PyJWK | None:
    """Reads a key of a set; None: it must not verify tokens."""
    use, operations = published.get("use"), published.get("key_ops")
    if use not in (None, "sig") or (isinstance(operations, list) and "verify" not in operations):
        return None
    if published.get("kty") == "oct" or "d" in published:
        # A secret has no place in a public set.
        return None
    try:
        key = jwt.PyJWK(published)
    except (jwt.PyJWTError, NotImplementedError):
        # This kind of key does not sign tokens. PyJWT raises the second for the algorithm `none`.
        return None
    if isinstance(key.key, RSAPublicKey) and key.key.key_size < RSA_BITS_MIN:
        return None
    return key
