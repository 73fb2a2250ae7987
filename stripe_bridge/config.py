"""Every setting of the bridge, with its unit, default and meaning."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, ClassVar, Literal, Self, TypeVar

from pydantic import AfterValidator, BeforeValidator, Field, SecretStr, model_validator
from pydantic_settings import NoDecode, SettingsConfigDict

from credit_service.runtime import environment
from credit_service.runtime.environment import EnvironmentSettings, HostAndPort, Port, is_loopback
from stripe_bridge.catalog import CREDITS_MAX, Catalog, Policy
from stripe_bridge.webhook import Secret

PREFIX = "STRIPE_BRIDGE_"

_HOST = r"([A-Za-z0-9.-]+|\[[0-9A-Fa-f:.]+\])"


def _split(text: object) -> object:
    return [part.strip() for part in text.split(",")] if isinstance(text, str) else text


def _webhook_secret(secret: SecretStr) -> SecretStr:
    if not re.fullmatch("(live|test):whsec_[!-~]+", secret.get_secret_value()):
        raise ValueError("must be live:whsec_... or test:whsec_..., several with commas between")
    return secret


def _stripe_key(key: SecretStr) -> SecretStr:
    if not re.fullmatch("(rk|sk)_[!-~]+", key.get_secret_value()):
        raise ValueError("must be Stripe's restricted or secret key: rk_... or sk_...")
    return key


def _token(token: SecretStr) -> SecretStr:
    if not re.fullmatch("[!-~]+", token.get_secret_value()):
        raise ValueError("must be printable ASCII without spaces")
    return token


def _token_sha256(text: str) -> str:
    if not re.fullmatch("[0-9a-f]{64}", text):
        raise ValueError("must be a SHA-256: 64 hex digits in lower case")
    return text


def _currency(text: str) -> str:
    if not re.fullmatch("[a-z]{3}", text):
        raise ValueError("must be currencies such as eur, several with commas between")
    return text


def _billing_reason(text: str) -> str:
    if not re.fullmatch("[a-z_]+", text) or text == "manual":
        raise ValueError(
            "must be reasons such as subscription_cycle, several with commas between; never manual:"
            " a checkout payment with an invoice would be credited twice"
        )
    return text


def _origin(text: str) -> str:
    if not re.fullmatch(f"https?://{_HOST}(:[0-9]{{1,5}})?", text) or text != text.lower():
        raise ValueError(
            "must be origins such as https://app.example.com, in lower case and without a path,"
            " several with commas between"
        )
    return text


def _stripe_address(text: str) -> str:
    parts = re.fullmatch(f"(https?)://{_HOST}(:[0-9]{{1,5}})?", text)
    if parts is None or (parts[1] == "http" and not is_loopback(f"{parts[2]}:0")):
        raise ValueError("must be https://host:port, or http:// on this machine")
    return text


_T = TypeVar("_T")
_Listed = Annotated[tuple[_T, ...], NoDecode, BeforeValidator(_split)]


class Settings(EnvironmentSettings):
    """The settings of the bridge; each is an environment variable with its prefix."""

    model_config = SettingsConfigDict(env_prefix=PREFIX)

    program: ClassVar[str] = "stripe-bridge"

    listen: HostAndPort = Field(
        "127.0.0.1:8081", description="Address and port of the webhook and the other routes."
    )
    allow_plaintext: bool = Field(
        default=False,
        description="Listen beyond loopback; the bridge has no TLS, so only behind a proxy that"
        " provides it.",
    )
    credit_target: HostAndPort = Field(
        "127.0.0.1:50051", description="Address and port of the credit service."
    )
    credit_token: Annotated[SecretStr, AfterValidator(_token)] | None = Field(
        None, description="The bridge's bearer token for the credit service; its role is `bridge`."
    )
    credit_tls_ca: Path | None = Field(
        None,
        description="Authority that signs the credit service's certificate (PEM). Unset: no TLS,"
        " unless there is a client certificate.",
    )
    credit_tls_certificate: Path | None = Field(
        None, description="The bridge's client certificate for the credit service (PEM)."
    )
    credit_tls_key: Path | None = Field(
        None, description="The private key of the client certificate (PEM)."
    )
    stripe_key: Annotated[SecretStr, AfterValidator(_stripe_key)] | None = Field(
        None,
        description="Stripe's key, preferably a restricted one: reads Checkout Sessions,"
        " PaymentIntents, Charges, Refunds, Disputes, Invoices, Customers, Prices and Events;"
        " writes Checkout Sessions if the bridge sells packs.",
    )
    stripe_address: Annotated[str, AfterValidator(_stripe_address)] | None = Field(
        None, description="Address of Stripe's API, for a fake Stripe. Unset: the real one."
    )
    webhook_secrets: _Listed[Annotated[SecretStr, AfterValidator(_webhook_secret)]] = Field(
        (),
        description="Signing secrets of the webhook endpoint, each after its mode:"
        " live:whsec_... or test:whsec_...; two, separated by a comma, while one is replaced.",
    )
    catalog: Path | None = Field(
        None,
        description="File of packs and prices (TOML). Unset: only metadata says how many credits"
        " a payment gives.",
    )
    allow_client_reference_id: bool = Field(
        default=False,
        description="Use a session's client_reference_id as the user if its metadata names none;"
        " on a Payment Link the buyer chooses it.",
    )
    allow_free_orders: bool = Field(
        default=False, description="Give credits for orders that cost nothing, as in a promotion."
    )
    max_credits_per_purchase: int = Field(
        CREDITS_MAX,
        ge=1,
        le=CREDITS_MAX,
        description="Maximum number of credits of one purchase; more needs a person's decision.",
    )
    allowed_currencies: _Listed[Annotated[str, AfterValidator(_currency)]] = Field(
        (),
        description="Currencies in which credits are sold, separated by commas; others need a"
        " person's decision. Unset: all.",
    )
    invoice_billing_reasons: _Listed[Annotated[str, AfterValidator(_billing_reason)]] = Field(
        tuple(sorted(Policy(catalog=Catalog()).invoice_billing_reasons)),
        description="Billing reasons of the invoices that give credits, separated by commas.",
    )
    checkout_token_sha256: Annotated[str, AfterValidator(_token_sha256)] | None = Field(
        None,
        description="SHA-256 of the bearer token for /checkout-sessions and /portal-sessions."
        " Unset: no such routes.",
    )
    return_origins: _Listed[Annotated[str, AfterValidator(_origin)]] = Field(
        (),
        description="Origins to which a checkout may return, separated by commas. Unset: any with"
        " TLS.",
    )
    park_after_hours: float = Field(
        24,
        ge=0,
        le=24 * 30,
        description="Age from which an event that only a person can resolve is answered 200, so"
        " that Stripe does not disable the endpoint; reconcile finds it again.",
    )
    poll_seconds: float = Field(
        60,
        ge=0,
        le=24 * 60 * 60,
        description="How often Stripe's newest events are searched for lost ones; 0: never.",
    )
    body_bytes: int = Field(
        1024 * 1024, ge=1024, le=16 * 1024 * 1024, description="Maximum size of an event, in bytes."
    )
    requests_in_flight: int = Field(
        1000, ge=1, le=100_000, description="Maximum number of events in flight; more get 503."
    )
    unready_seconds: float = Field(
        1,
        ge=0,
        le=60 * 60,
        description="How long the bridge still serves after SIGTERM while /readyz says 503, so that"
        " a load balancer stops sending requests.",
    )
    metrics_port: Port | None = Field(None, description="Port for Prometheus. Unset: no metrics.")
    metrics_host: str = Field("127.0.0.1", description="Address of the metrics port.")
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="Lowest level that is logged."
    )
    log_format: Literal["auto", "json", "console"] = Field(
        "auto", description="auto: console on a terminal, JSON elsewhere."
    )

    @model_validator(mode="after")
    def _fit_together(self) -> Self:
        if not is_loopback(self.listen) and not self.allow_plaintext:
            raise ValueError(
                f"{PREFIX}LISTEN: {self.listen} is beyond loopback and the bridge has no TLS;"
                f" behind a proxy that has it, set {PREFIX}ALLOW_PLAINTEXT=true"
            )
        if (self.credit_tls_certificate is None) != (self.credit_tls_key is None):
            raise ValueError(
                f"{PREFIX}CREDIT_TLS_CERTIFICATE and {PREFIX}CREDIT_TLS_KEY go together; set both"
            )
        if len(modes := {secret.live for secret in self.secrets()}) > 1:
            raise ValueError(
                f"{PREFIX}WEBHOOK_SECRETS: live and test secrets in one bridge would let test"
                " payments buy real credits; run a bridge and a credit service for each"
            )
        key = self.stripe_key.get_secret_value() if self.stripe_key else ""
        if any(f"k_{_mode(live=not live)}_" in key for live in modes):
            raise ValueError(
                f"{PREFIX}STRIPE_KEY and {PREFIX}WEBHOOK_SECRETS are of different modes"
            )
        return self

    @property
    def logs_json(self) -> bool | None:
        """True or False as set; None: as the terminal decides."""
        return None if self.log_format == "auto" else self.log_format == "json"

    def secrets(self) -> tuple[Secret, ...]:
        """Makes the webhook's secrets."""
        written = (secret.get_secret_value().partition(":") for secret in self.webhook_secrets)
        return tuple(Secret(value, mode == _mode(live=True)) for mode, _, value in written)

    def policy(self) -> Policy:
        """Reads the catalogue and makes the policy of grants.

        Raises:
            ConfigurationError: the catalogue cannot be used.
        """
        return Policy(
            catalog=Catalog() if self.catalog is None else Catalog.read(self.catalog),
            allow_client_reference_id=self.allow_client_reference_id,
            allow_free_orders=self.allow_free_orders,
            max_credits_per_purchase=self.max_credits_per_purchase,
            allowed_currencies=frozenset(self.allowed_currencies),
            invoice_billing_reasons=frozenset(self.invoice_billing_reasons),
        )


def _mode(*, live: bool) -> str:
    return "live" if live else "test"


def variable(name: str) -> str:
    """Names the environment variable of a setting."""
    return environment.variable(Settings, name)


def read() -> Settings:
    """Reads the settings from the environment.

    Raises:
        ConfigurationError: a value cannot be used, or a variable with our prefix is unknown.
    """
    return environment.read(Settings)
