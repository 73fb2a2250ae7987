"""Every setting of credit-gateway, with its unit, default and meaning."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, ClassVar, Literal, Self, TypeVar
from uuid import UUID

from pydantic import AfterValidator, BeforeValidator, Field, SecretStr, model_validator
from pydantic_settings import NoDecode, SettingsConfigDict

from credit_service.runtime import environment
from credit_service.runtime.environment import EnvironmentSettings, HostAndPort, Port, is_loopback

PREFIX = "CREDIT_GATEWAY_"

_HOST = r"([A-Za-z0-9.-]+|\[[0-9A-Fa-f:.]+\])"
_ADDRESS = re.compile(rf"(https?)://{_HOST}(:[0-9]{{1,5}})?([/?#][!-~]*)?")


def _split(text: object) -> object:
    return [part.strip() for part in text.split(",")] if isinstance(text, str) else text


def _origin(text: str) -> str:
    if not re.fullmatch(f"https?://{_HOST}(:[0-9]{{1,5}})?", text) or text != text.lower():
        raise ValueError(
            "must be origins such as https://app.example.com, in lower case and without a path,"
            " several with commas between"
        )
    return text


def _address(text: str) -> str:
    parts = _ADDRESS.fullmatch(text)
    if parts is None or (parts[1] == "http" and not is_loopback(f"{parts[2]}:0")):
        raise ValueError("must be https://..., or http:// on this machine")
    return text


def _host(text: str) -> str:
    if not re.fullmatch(rf"{_HOST}(:[0-9]{{1,5}})?", text) or text != text.lower():
        raise ValueError("must be hosts such as checkout.stripe.com, with commas between")
    return text


def _token(token: SecretStr) -> SecretStr:
    if not re.fullmatch("[!-~]+", token.get_secret_value()):
        raise ValueError("must be printable ASCII without spaces")
    return token


_T = TypeVar("_T")
_Listed = Annotated[tuple[_T, ...], NoDecode, BeforeValidator(_split)]
_Address = Annotated[str, AfterValidator(_address)]
_Token = Annotated[SecretStr, AfterValidator(_token)]


class Settings(EnvironmentSettings):
    """The settings of the gateway; each is an environment variable with its prefix."""

    model_config = SettingsConfigDict(env_prefix=PREFIX)

    program: ClassVar[str] = "credit-gateway"

    listen: HostAndPort = Field(
        "127.0.0.1:8082", description="Address and port that the gateway listens on."
    )
    allow_plaintext: bool = Field(
        default=False,
        description="Listen beyond loopback; the gateway has no TLS, so only behind a proxy that"
        " has it.",
    )
    credit_target: HostAndPort = Field(
        "127.0.0.1:50051", description="Address and port of the credit service."
    )
    credit_token: _Token | None = Field(
        None, description="The gateway's bearer token for the credit service; its role is `web`."
    )
    credit_tls_ca: Path | None = Field(
        None,
        description="Who signs the credit service's certificate (PEM). Unset: no TLS, unless"
        " there is a client certificate.",
    )
    credit_tls_certificate: Path | None = Field(
        None, description="The gateway's client certificate for the credit service (PEM)."
    )
    credit_tls_key: Path | None = Field(
        None, description="The private key of the client certificate (PEM)."
    )
    development: bool = Field(
        default=False,
        description="Take everybody on this machine for the user they say they are, for trying"
        " out; only on loopback. A bearer token is the user's id itself.",
    )
    development_user: UUID | None = Field(
        None, description="The development user of requests without a token. Unset: no user."
    )
    supabase_url: _Address | None = Field(
        None,
        description="The Supabase project whose users ask, such as https://project.supabase.co.",
    )
    supabase_anonymous: bool = Field(
        default=False, description="Whether the project's anonymous users have credits."
    )
    supabase_shared_secret: bool = Field(
        default=False,
        description="Whether tokens are signed with the project's shared secret; its auth server is"
        " then asked.",
    )
    supabase_api_key: _Token | None = Field(
        None,
        description="The project's publishable key, which its auth server wants; only with a"
        " shared secret.",
    )
    jwt_issuer: str | None = Field(
        None, description="The issuer of the users' tokens, exactly as their claim `iss` has it."
    )
    jwt_audience: str | None = Field(
        None, description="What the claim `aud` of the users' tokens must name."
    )
    jwt_keys_url: _Address | None = Field(
        None, description="Address of the issuer's key set (JWKS)."
    )
    jwt_algorithms: _Listed[str] = Field(
        ("ES256",), description="Algorithms that the issuer signs with, with commas between."
    )
    jwt_user_claim: str = Field("sub", description="The claim that names the user.")
    jwt_user_namespace: UUID | None = Field(
        None,
        description="Set where that claim is no UUID: the user's id is then the uuid5 of this"
        " namespace, the issuer, a newline and the claim. It must never change.",
    )
    bridge_address: _Address | None = Field(
        None,
        description="Where the Stripe bridge is, such as http://127.0.0.1:8081. Unset: nothing is"
        " sold.",
    )
    bridge_token: _Token | None = Field(
        None,
        description="The bearer token that the bridge knows by"
        " STRIPE_BRIDGE_CHECKOUT_TOKEN_SHA256.",
    )
    success_url: _Address | None = Field(
        None,
        description="Where Stripe leads after a payment; {CHECKOUT_SESSION_ID} in it becomes the"
        " checkout's id.",
    )
    cancel_url: _Address | None = Field(
        None, description="Where Stripe leads a buyer who turns back."
    )
    portal_return_url: _Address | None = Field(
        None,
        description="Where Stripe's billing portal leads back. Unset: the portal is not offered.",
    )
    checkout_hosts: _Listed[Annotated[str, AfterValidator(_host)]] = Field(
        ("checkout.stripe.com",),
        description="Hosts of the pages where buyers pay, with commas between; http is taken from"
        " this machine only.",
    )
    portal_hosts: _Listed[Annotated[str, AfterValidator(_host)]] = Field(
        ("billing.stripe.com",), description="Hosts of the billing portal, with commas between."
    )
    origins: _Listed[Annotated[str, AfterValidator(_origin)]] = Field(
        (),
        description="Origins of pages on other hosts that may ask, with commas between. Unset:"
        " only pages of this very origin.",
    )
    grant_descriptions: bool = Field(
        default=False,
        description="Show users what was written about a grant; it may be a note of the staff's.",
    )
    streams: int = Field(
        2000, ge=1, le=100_000, description="Streams open at the same time; more get 503."
    )
    unready_seconds: float = Field(
        0,
        ge=0,
        le=60 * 60,
        description="How long, once a signal asks it to end, it still serves while /readyz says"
        " 503, so that a load balancer looks elsewhere.",
    )
    metrics_port: Port | None = Field(None, description="Port for Prometheus. Unset: no metrics.")
    metrics_host: str = Field("127.0.0.1", description="Address of the metrics port.")
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="Least level that is logged."
    )
    log_format: Literal["auto", "json", "console"] = Field(
        "auto", description="auto: console on a terminal, JSON elsewhere."
    )

    @model_validator(mode="after")
    def _fit_together(self) -> Self:
        if not is_loopback(self.listen) and not self.allow_plaintext:
            raise ValueError(
                f"{PREFIX}LISTEN: {self.listen} is beyond loopback and the gateway has no TLS;"
                f" behind a proxy that has it, set {PREFIX}ALLOW_PLAINTEXT=true"
            )
        if (self.credit_tls_certificate is None) != (self.credit_tls_key is None):
            raise ValueError(
                f"{PREFIX}CREDIT_TLS_CERTIFICATE and {PREFIX}CREDIT_TLS_KEY go together; set both"
            )
        if self.development and not is_loopback(self.listen):
            raise ValueError(
                f"{PREFIX}DEVELOPMENT: {self.listen} is beyond loopback, where development users"
                " would let everybody in"
            )
        if self.development_user is not None and not self.development:
            raise ValueError(f"{PREFIX}DEVELOPMENT_USER needs {PREFIX}DEVELOPMENT=true")
        self._users_fit_together()
        selling = ("bridge_address", "bridge_token", "success_url", "cancel_url")
        lacking = [name for name in selling if getattr(self, name) is None]
        if lacking and len(lacking) < len(selling):
            raise ValueError(
                f"{PREFIX}BRIDGE_ADDRESS needs {', '.join(PREFIX + n.upper() for n in lacking)}"
                if lacking[0] != selling[0]
                else f"{PREFIX}BRIDGE_ADDRESS is unset, and something is to be sold through it"
            )
        return self

    def _users_fit_together(self) -> None:
        issuer = {
            name: getattr(self, name) for name in ("jwt_issuer", "jwt_audience", "jwt_keys_url")
        }
        if None in issuer.values() and any(issuer.values()):
            raise ValueError(
                f"{' and '.join(PREFIX + name.upper() for name in issuer)} go together; set all"
            )
        ways = (self.development, self.supabase_url is not None, self.jwt_issuer is not None)
        if sum(ways) > 1:
            raise ValueError(
                f"set one of {PREFIX}SUPABASE_URL, {PREFIX}JWT_ISSUER and {PREFIX}DEVELOPMENT: each"
                " tells on its own who is asking"
            )
        if self.supabase_shared_secret != (self.supabase_api_key is not None):
            raise ValueError(
                f"{PREFIX}SUPABASE_SHARED_SECRET and {PREFIX}SUPABASE_API_KEY go together; set both"
            )

    @property
    def logs_json(self) -> bool | None:
        """True or False as set; None: as the terminal decides."""
        return None if self.log_format == "auto" else self.log_format == "json"


def variable(name: str) -> str:
    """Names the environment variable of a setting."""
    return environment.variable(Settings, name)


def read() -> Settings:
    """Reads the settings from the environment.

    Raises:
        ConfigurationError: a value cannot be used, or a variable with the prefix is unknown.
    """
    return environment.read(Settings)
