"""The files that pages load: the module of custom elements, its typings, the OpenAPI document.

Each is served under its plain name, which browsers check again by its ETag. A script is also served
under a name with its hash, which may be kept for ever.
"""

from __future__ import annotations

import gzip
import hashlib
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import TYPE_CHECKING

from starlette.responses import Response

if TYPE_CHECKING:
    from starlette.requests import Request

_TYPES = {
    "css": "text/css; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "json": "application/json",
    "ts": "text/plain; charset=utf-8",  # not executed; a proxy must not mistake it for video
    "svg": "image/svg+xml",
}

_REVALIDATED = "no-cache"
_IMMUTABLE = "public, max-age=31536000, immutable"


@dataclass(frozen=True, slots=True)
class File:
    """A file, and how it is sent.

    Attributes:
        name: its plain name.
        content: its bytes.
        packed: its bytes, compressed by gzip.
        digest: 16 hex digits that change with its content.
    """

    name: str
    content: bytes
    packed: bytes
    digest: str

    @property
    def hashed_name(self) -> str:
        """The name that only this content has."""
        stem, _, suffix = self.name.partition(".")
        return f"{stem}.{self.digest}.{suffix}"

    @property
    def is_script(self) -> bool:
        """Whether browsers execute it."""
        return self.name.endswith(".js")

    async def latest(self, request: Request) -> Response:
        """Answers under the plain name: kept, but checked again each time."""
        return self._response(request, _REVALIDATED)

    async def immutable(self, request: Request) -> Response:
        """Answers under the hashed name: kept for ever."""
        return self._response(request, _IMMUTABLE)

    def _response(self, request: Request, caching: str) -> Response:
        packs = "gzip" in request.headers.get("accept-encoding", "")
        etag = f'"{self.digest}{"-gzip" if packs else ""}"'
        headers = {
            "Cache-Control": caching,
            "ETag": etag,
            "Vary": "Accept-Encoding, Origin",
            "Cross-Origin-Resource-Policy": "cross-origin",
        }
        known = request.headers.get("if-none-match", "")
        if etag in [each.strip().removeprefix("W/") for each in known.split(",")]:
            return Response(status_code=304, headers=headers)
        if packs:
            headers["Content-Encoding"] = "gzip"
        kind = _TYPES[self.name.rpartition(".")[2]]
        return Response(self.packed if packs else self.content, headers=headers, media_type=kind)


@cache
def packaged() -> tuple[File, ...]:
    """Reads the files that came with the package, once."""
    here = resources.files("credit_service.gateway")
    found = [here / "openapi.json", *(here / "static").iterdir()]
    return tuple(
        File(each.name, content, gzip.compress(content, mtime=0), digest)
        for each in sorted(found, key=lambda each: each.name)
        if each.name.rpartition(".")[2] in _TYPES
        for content in (each.read_bytes(),)
        for digest in (hashlib.sha256(content).hexdigest()[:16],)
    )
