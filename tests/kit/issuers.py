"""An issuer of tokens on a real socket, and the keys it signs with."""

import asyncio
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from uuid import uuid4

import jwt
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from kit.web_hosts import serving
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, RedirectResponse, Response
from starlette.routing import Route

SHARED_SECRET = "a shared secret of at least thirty-two bytes"
_CURVES = {"ES256": ec.SECP256R1, "ES384": ec.SECP384R1}
API_KEY = "sb_publishable_of_the_tests"


class Key:
    """A key pair with an id."""

    def __init__(self, algorithm: str = "ES256", key_id: str | None = None, bits: int = 2048):
        self.algorithm = algorithm
        self.id = key_id or uuid4().hex
        self.private = (
            ec.generate_private_key(_CURVES[algorithm]())
            if algorithm in _CURVES
            else rsa.generate_private_key(public_exponent=65537, key_size=bits)
        )

    @property
    def jwk(self) -> dict:
        """The public half, as the issuer publishes it."""
        kind = jwt.get_algorithm_by_name(self.algorithm)
        published = json.loads(kind.to_jwk(self.private.public_key()))
        published.pop("key_ops", None)
        return {**published, "kid": self.id, "alg": self.algorithm, "use": "sig"}

    @property
    def public_pem(self) -> bytes:
        return self.private.public_key().public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )

    def signs(self, claims: dict, **header: object) -> str:
        """Signs claims; `header` adds to the header or changes it."""
        return jwt.encode(claims, self.private, self.algorithm, {"kid": self.id, **header})


class Issuer:
    """A Supabase project's auth server: its key set, and `GET /user`."""

    def __init__(self) -> None:
        self.key = Key()
        self.keys = [self.key.jwk]
        self.url = ""
        self.fetches = 0
        self.asked = 0
        self.asking = 0
        self.asking_most = 0
        self.mode = "ok"
        self.released = asyncio.Event()

    @property
    def name(self) -> str:
        return f"{self.url}/auth/v1"

    def claims(self, user_id: object, **changes: object) -> dict:
        """The claims of an access token of this issuer; None removes a claim."""
        said = {
            "iss": self.name,
            "aud": "authenticated",
            "role": "authenticated",
            "sub": str(user_id),
            "exp": int(time.time()) + 3600,
            "is_anonymous": False,
            **changes,
        }
        return {name: value for name, value in said.items() if value is not None}

    def token(self, user_id: object, **changes: object) -> str:
        return self.key.signs(self.claims(user_id, **changes))

    def rotates(self) -> None:
        """Signs with a new key from now on, and no longer with the old one."""
        self.key = Key()
        self.keys = [self.key.jwk]

    async def jwks(self, _: Request) -> Response:
        self.fetches += 1
        match self.mode:
            case "away":
                return Response(status_code=500)
            case "hangs":
                await self.released.wait()
            case "redirects":
                return RedirectResponse(f"{self.url}/elsewhere")
            case "large":
                return JSONResponse({"keys": self.keys, "more": "x" * 70_000})
            case "nonsense":
                return Response(b"<html>")
            case "error":
                return JSONResponse({"message": "no Route matched with those values"})
        return JSONResponse({"keys": self.keys})

    async def elsewhere(self, _: Request) -> Response:
        return JSONResponse({"keys": self.keys})

    async def user(self, request: Request) -> Response:
        self.asked += 1
        self.asking += 1
        self.asking_most = max(self.asking_most, self.asking)
        try:
            await asyncio.sleep(0.02)
            if self.mode == "away":
                return Response(status_code=500)
            if request.headers.get("apikey") != API_KEY:
                return JSONResponse({"message": "Invalid API key"}, 401)
            token = request.headers["authorization"].removeprefix("Bearer ")
            try:
                claims = jwt.decode(
                    token, SHARED_SECRET, algorithms=["HS256"], audience="authenticated"
                )
            except jwt.PyJWTError:
                return JSONResponse({"code": 403, "error_code": "bad_jwt", "msg": "invalid"}, 403)
            return JSONResponse({"id": claims["sub"], "aud": "authenticated"})
        finally:
            self.asking -= 1


@asynccontextmanager
async def running_issuer() -> AsyncIterator[Issuer]:
    """Runs an issuer for the length of the block."""
    issuer = Issuer()
    app = Starlette(
        routes=[
            Route("/auth/v1/.well-known/jwks.json", issuer.jwks),
            Route("/auth/v1/user", issuer.user),
            Route("/elsewhere", issuer.elsewhere),
        ]
    )
    async with serving(app) as url:
        issuer.url = url
        try:
            yield issuer
        finally:
            issuer.released.set()
