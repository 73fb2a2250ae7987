"""Every setting of credit-gateway, with its unit, default and meaning."""

from __future__ import annotations

import re
from typing import Annotated, ClassVar, Self
from uuid import UUID

from pydantic import AfterValidator, Field, model_validator
from pydantic_settings import SettingsConfigDict

from credit_service.runtime import environment
from credit_service.runtime.environment import HostAndPort, is_loopback
from credit_service.runtime.http_settings import (
    HOST,
    HttpProgramSettings,
    Listed,
    Origin,
    Token,
    check_address,
)

PREFIX = "CREDIT_GATEWAY_"

_ADDRESS = re.compile(rf"(https?)://{HOST}(:[0-9]{{1,5}})?([/?#][!-~]*)?")


def _address(text: str) -> str:
    return check_address(text, _ADDRESS, "must be https://..., or http:// on this machine")


def _host(text: str) -> str:
    if not re.fullmatch(rf"{HOST}(:[0-9]{{1,5}})?", text) or text != text.lower():
        raise ValueError("must be hosts such as checkout.stripe.com, separated by commas")
    return text


_Address = Annotated[str, AfterValidator(_address)]
_Host = Annotated[str, AfterValidator(_host)]


class Settings(HttpProgramSettings):
    """The settings of the gateway; each is an environment variable with its prefix."""

    model_config = SettingsConfigDict(env_prefix=PREFIX)

    program: ClassVar[str] = "credit-gateway"

    listen: HostAndPort = Field(
        "127.0.0.1:8082", description="Address and port that the gateway listens on."
    )
    credit_token: Token | None = Field(
        None, description="The gateway's bearer token for the credit service; its role is `web`."
    )
    development: bool = Field(
        default=False,
        description="Trust every program on this machine, to try things out; only on loopback."
        " The bearer token is the user's id.",
    )
    development_user: UUID | None = Field(
        None, description="The development user of requests without a token. Unset: none."
    )
    supabase_url: _Address | None = Field(
        None,
        description="The Supabase project of the users, such as https://project.supabase.co.",
    )
    supabase_anonymous: bool = Field(
        default=False, description="Whether the project's anonymous users have credits."
    )
    supabase_shared_secret: bool = Field(
        default=False,
        description="Whether tokens are signed with the project's shared secret; its auth server"
        " then verifies them.",
    )
    supabase_api_key: Token | None = Field(
        None,
        description="The project's publishable key, which its auth server demands; only with a"
        " shared secret.",
    )
    jwt_issuer: str | None = Field(
        None, description="The issuer of the users' tokens, exactly as in their claim `iss`."
    )
    jwt_audience: str | None = Field(
        None, description="What the claim `aud` of the users' tokens must name."
    )
    jwt_keys_url: _Address | None = Field(
        None, description="Address of the issuer's key set (JWKS)."
    )
    jwt_algorithms: Listed[str] = Field(
        ("ES256",), description="Algorithms that the issuer signs with, separated by commas."
    )
    jwt_user_claim: str = Field("sub", description="The claim that names the user.")
    jwt_user_namespace: UUID | None = Field(
        None,
        description="Set where that claim is no UUID: the user's id is then the uuid5 of this"
        " namespace, the issuer, a newline and the claim. It must never change.",
    )
    bridge_address: _Address | None = Field(
        None,
        description="Address of the Stripe bridge, such as http://127.0.0.1:8081. Unset: nothing is"
        " sold.",
    )
    bridge_token: Token | None = Field(
        None,
        description="The bearer token whose hash is the bridge's"
        " STRIPE_BRIDGE_CHECKOUT_TOKEN_SHA256.",
    )
    success_url: _Address | None = Field(
        None,
        description="Where Stripe sends a buyer after payment; {CHECKOUT_SESSION_ID} in it becomes"
        " the checkout's id.",
    )
    cancel_url: _Address | None = Field(
        None, description="Where Stripe sends a buyer who gives up."
    )
    portal_return_url: _Address | None = Field(
        None,
        description="Where Stripe's billing portal returns. Unset: the portal is not offered.",
    )
    checkout_hosts: Listed[_Host] = Field(
        ("checkout.stripe.com",),
        description="Hosts of the pages where buyers pay, separated by commas; http only on"
        " this machine.",
    )
    portal_hosts: Listed[_Host] = Field(
        ("billing.stripe.com",), description="Hosts of the billing portal, separated by commas."
    )
    origins: Listed[Origin] = Field(
        (),
        description="Origins of pages on other hosts that may send requests, separated by commas."
        " Unset: only pages of the same origin.",
    )
    grant_descriptions: bool = Field(
        default=False,
        description="Show users the description of a grant, which may be a note by the staff.",
    )
    streams: int = Field(
        2000, ge=1, le=100_000, description="Maximum number of open streams; more get 503."
    )
    unready_seconds: float = Field(
        0,
        ge=0,
        le=60 * 60,
        description="How long the gateway still serves after SIGTERM while /readyz says 503, so"
        " that a load balancer turns elsewhere.",
    )

    @model_validator(mode="after")
    def _fit_together(self) -> Self:
        if self.development and not is_loopback(self.listen):
            raise ValueError(
                f"{PREFIX}DEVELOPMENT: {self.listen} is beyond loopback, where development users"
                " would let anybody in"
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
                f"set only one of {PREFIX}SUPABASE_URL, {PREFIX}JWT_ISSUER and {PREFIX}DEVELOPMENT,"
                " because each decides who the user is"
            )
        if self.supabase_shared_secret != (self.supabase_api_key is not None):
            raise ValueError(
                f"{PREFIX}SUPABASE_SHARED_SECRET and {PREFIX}SUPABASE_API_KEY go together; set both"
            )


def variable(name: str) -> str:
    """Names the environment variable of a setting."""
    return environment.variable(Settings, name)


def read() -> Settings:
    """Reads the settings from the environment.

    Raises:
        ConfigurationError: a value cannot be used, or a variable with the prefix is unknown.
    """
    return environment.read(Settings)
