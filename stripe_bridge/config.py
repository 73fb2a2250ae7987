"""Every setting of the bridge, with its unit, default and meaning."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, ClassVar, Self

from pydantic import AfterValidator, Field, SecretStr, model_validator
from pydantic_settings import SettingsConfigDict

from credit_service.runtime import environment
from credit_service.runtime.environment import HostAndPort
from credit_service.runtime.http_settings import (
    HOST,
    HttpProgramSettings,
    Listed,
    Origin,
    Token,
    check_address,
)
from stripe_bridge.catalog import CREDITS_MAX, Catalog, Policy
from stripe_bridge.checkout import CheckoutRefused, return_url
from stripe_bridge.webhook import Secret

PREFIX = "STRIPE_BRIDGE_"

_ADDRESS = re.compile(f"(https?)://{HOST}(:[0-9]{{1,5}})?")


def _webhook_secret(secret: SecretStr) -> SecretStr:
    if not re.fullmatch("(live|test):whsec_[!-~]+", secret.get_secret_value()):
        raise ValueError("must be live:whsec_... or test:whsec_..., several with commas between")
    return secret


def _stripe_key(key: SecretStr) -> SecretStr:
    if not re.fullmatch("(rk|sk)_[!-~]+", key.get_secret_value()):
        raise ValueError("must be Stripe's restricted or secret key: rk_... or sk_...")
    return key


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


def _stripe_address(text: str) -> str:
    return check_address(text, _ADDRESS, "must be https://host:port, or http:// on this machine")


def _return_url(text: str) -> str:
    try:
        return return_url({"it": text}, "it", ())
    except CheckoutRefused as refused:
        raise ValueError(str(refused).removeprefix("it ")) from None


class Settings(HttpProgramSettings):
    """The settings of the bridge; each is an environment variable with its prefix."""

    model_config = SettingsConfigDict(env_prefix=PREFIX)

    program: ClassVar[str] = "stripe-bridge"

    listen: HostAndPort = Field(
        "127.0.0.1:8081", description="Address and port of the webhook and the other routes."
    )
    credit_token: Token | None = Field(
        None, description="The bridge's bearer token for the credit service; its role is `bridge`."
    )
    stripe_key: Annotated[SecretStr, AfterValidator(_stripe_key)] | None = Field(
        None,
        description="Stripe's key, preferably a restricted one: reads Checkout Sessions,"
        " PaymentIntents, Charges, Refunds, Disputes, Invoices, Customers, Prices and Events;"
        " writes Checkout Sessions if the bridge sells packs. For saved cards and top-ups it also"
        " reads PaymentMethods and writes Customers and PaymentIntents.",
    )
    stripe_address: Annotated[str, AfterValidator(_stripe_address)] | None = Field(
        None, description="Address of Stripe's API, for a fake Stripe. Unset: the real one."
    )
    webhook_secrets: Listed[Annotated[SecretStr, AfterValidator(_webhook_secret)]] = Field(
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
    allowed_currencies: Listed[Annotated[str, AfterValidator(_currency)]] = Field(
        (),
        description="Currencies in which credits are sold, separated by commas; others need a"
        " person's decision. Unset: all.",
    )
    invoice_billing_reasons: Listed[Annotated[str, AfterValidator(_billing_reason)]] = Field(
        tuple(sorted(Policy(catalog=Catalog()).invoice_billing_reasons)),
        description="Billing reasons of the invoices that give credits, separated by commas.",
    )
    checkout_token_sha256: Annotated[str, AfterValidator(_token_sha256)] | None = Field(
        None,
        description="SHA-256 of the bearer token for /checkout-sessions and /portal-sessions."
        " Unset: no such routes.",
    )
    return_origins: Listed[Origin] = Field(
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
    top_up_seconds: float = Field(
        0,
        ge=0,
        le=60 * 60,
        description="How often requested top-ups are searched for and charged to saved cards, such"
        " as 10; 0: never.",
    )
    top_up_retry_hours: float = Field(
        24,
        ge=0,
        le=24 * 30,
        description="How long after a failed try a top-up is tried again; the third failure is the"
        " last.",
    )
    top_up_return_url: Annotated[str, AfterValidator(_return_url)] | None = Field(
        None,
        description="Page of the app to which the link to pay for a failed top-up returns;"
        " required with STRIPE_BRIDGE_TOP_UP_SECONDS.",
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

    @model_validator(mode="after")
    def _fit_together(self) -> Self:
        if len(modes := {secret.live for secret in self.secrets()}) > 1:
            raise ValueError(
                f"{PREFIX}WEBHOOK_SECRETS: live and test secrets in one bridge would let test"
                " payments buy real credits; run a bridge and a credit service for each"
            )
        if self.top_up_seconds and self.top_up_return_url is None:
            raise ValueError(
                f"{PREFIX}TOP_UP_SECONDS needs {PREFIX}TOP_UP_RETURN_URL, the page to which the"
                " link to pay for a failed top-up returns"
            )
        key = self.stripe_key.get_secret_value() if self.stripe_key else ""
        if any(f"k_{_mode(live=not live)}_" in key for live in modes):
            raise ValueError(
                f"{PREFIX}STRIPE_KEY and {PREFIX}WEBHOOK_SECRETS are of different modes"
            )
        return self

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
