"""Every setting of the service, with its unit, default and meaning."""

from __future__ import annotations

import re
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal, Self, cast
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, SecretStr, model_validator
from pydantic_settings import SettingsConfigDict

from credit_service.fields import AMOUNT_MAX, is_operation
from credit_service.rules.grant_values import Allowance
from credit_service.rules.pricing import Price, PriceList
from credit_service.rules.terms import Terms
from credit_service.runtime import environment
from credit_service.runtime.environment import (
    EnvironmentSettings,
    HostAndPort,
    Port,
    Seconds,
    is_port,
)

if TYPE_CHECKING:
    from credit_service.rules.grant_values import AllowancePeriod

PREFIX = "CREDIT_"


class OtherPrice(BaseModel):
    """The price of an operation other than the two that every installation has."""

    model_config = ConfigDict(extra="forbid")

    cost: int = Field(ge=1, le=AMOUNT_MAX)
    unit: str = Field(min_length=1, max_length=32)


def _postgres_url(url: SecretStr) -> SecretStr:
    try:
        parts = urlsplit(url.get_secret_value())
    except ValueError:
        parts = urlsplit("")
    hosts = parts.netloc.rpartition("@")[2]
    usable = (
        re.fullmatch(r"(\[[^\]]+\]|[^:\[\]]+)(:(?P<port>.*))?", host)
        for host in (hosts.split(",") if hosts else ())
    )
    if parts.scheme not in {"postgresql", "postgres"} or not all(
        match and is_port(match["port"] or "5432") for match in usable
    ):
        raise ValueError(
            "must be postgresql://role:password@host:port/database, with special characters in the"
            " password written as %xx, such as %2F for /"
        )
    return url


_GRACE_UNITS = {"h": "hours", "d": "days"}
_GRACE_MAX = timedelta(days=366)


def _grace(text: str) -> str:
    match = re.fullmatch(r"([1-9]\d{0,3})([hd])", text)
    if not match or _duration(text) > _GRACE_MAX:
        raise ValueError("must be hours or days, such as 12h or 7d, and at most 366d")
    return text


def _duration(text: str) -> timedelta:
    return timedelta(**{_GRACE_UNITS[text[-1]]: int(text[:-1])})


def _allowance(text: str) -> str:
    match = re.fullmatch(r"([1-9]\d{0,12})/(day|week|month)", text)
    if not match or int(match[1]) > AMOUNT_MAX:
        raise ValueError(
            f"must be credits per day, week or month, such as 20/month, and at most {AMOUNT_MAX}"
        )
    return text


_PostgresUrl = Annotated[SecretStr, AfterValidator(_postgres_url)]
_Cost = Annotated[int, Field(ge=1, le=AMOUNT_MAX)]


class Settings(EnvironmentSettings):
    """The settings of the service; each is an environment variable with the prefix CREDIT_."""

    model_config = SettingsConfigDict(env_prefix=PREFIX)

    program: ClassVar[str] = "credit-service"
    reserved: ClassVar[tuple[str, ...]] = ("CREDIT_GATEWAY_",)

    listen: HostAndPort = Field(
        "127.0.0.1:50051", description="Address and port the service listens on."
    )
    health_listen: HostAndPort | None = Field(
        None,
        description="A second address that answers only health checks, without TLS."
        " CREDIT_LISTEN answers them too.",
    )
    database_url: _PostgresUrl | None = Field(
        None,
        description="PostgreSQL, as the service's role: postgresql://role:password@host/database."
        " Unset: the embedded server.",
    )
    migrate_url: _PostgresUrl | None = Field(
        None,
        description="The same database, as the owner of the tables. Unset: CREDIT_DATABASE_URL.",
    )
    data_dir: Path | None = Field(
        None,
        description="Where the embedded server keeps its data. Unset: /var/lib/credit-service for"
        " root, credit-service in the user's data folder for others.",
    )
    users: Literal["existing", "managed"] | None = Field(
        None,
        description="existing: only users in auth.users are known. managed: a purchase, grant or"
        " policy for an unknown user adds the user. Unset: managed with the embedded server,"
        " existing otherwise.",
    )
    cost_per_stem_separation: _Cost = Field(10, description="Credits for one stem separation.")
    cost_per_render: _Cost = Field(5, description="Credits for one render.")
    other_prices: dict[str, OtherPrice] = Field(
        {},
        description="Prices of other operations, as JSON:"
        ' {"mastering": {"cost": 20, "unit": "track"}}.',
        examples=['{"mastering": {"cost": 20, "unit": "track"}}'],
    )
    min_balance: int = Field(
        0,
        ge=-AMOUNT_MAX,
        le=AMOUNT_MAX,
        description="Credits that a spend or hold must leave available; a negative number allows"
        " that much debt.",
    )
    open_holds: int = Field(
        100, ge=1, le=10_000, description="Maximum number of open holds of an account."
    )
    allowance: Annotated[str, AfterValidator(_allowance)] | None = Field(
        None,
        description="Free credits of every account in each day, week or month of UTC, such as"
        " 20/month; they expire at its end. An account's policy may say otherwise. Unset: none.",
    )
    alert_below: int | None = Field(
        None,
        ge=-AMOUNT_MAX,
        le=AMOUNT_MAX,
        description="Credits available below which an account is low; an account's policy may say"
        " otherwise. Unset: none.",
    )
    alert_cool_down_seconds: Seconds = Field(
        300,
        description="How long after an alert about an account the next one waits if the account has"
        " more credits again; a worse alert never waits.",
    )
    expiring_days: int = Field(
        7,
        ge=1,
        le=365,
        description="How many days before credits expire `credits.expiring` is sent.",
    )
    refund_grace: Annotated[str, AfterValidator(_grace)] = Field(
        "7d",
        description="How long credits can be used that are refunded after they have expired, such"
        " as 12h or 7d.",
    )
    identities: Path | None = Field(
        None,
        description="File of callers (TOML), read again when it changes. Unset: loopback only, and"
        " every caller is the operator `local`.",
    )
    webhooks: Path | None = Field(
        None,
        description="File of the endpoints that events are sent to (TOML), read again when it"
        " changes. Unset: no webhooks.",
    )
    webhooks_private: bool = Field(
        default=False,
        description="Let webhooks go to addresses that are not globally routable, and there by"
        " http too.",
    )
    tls_certificate: Path | None = Field(
        None, description="The server's certificate chain (PEM), read again when it changes."
    )
    tls_key: Path | None = Field(None, description="The private key of the certificate (PEM).")
    tls_client_ca: Path | None = Field(
        None,
        description="Authority that signs the callers' certificates (PEM). If set, every caller"
        " needs a certificate.",
    )
    allow_plaintext: bool = Field(
        default=False,
        description="Listen beyond loopback without TLS; only behind a proxy that provides it.",
    )
    lanes: int = Field(
        1,
        ge=1,
        le=64,
        description="Writer lanes per process, each with up to two database connections.",
    )
    lane_queue: int = Field(
        4000,
        ge=1,
        description="Maximum number of commands waiting in a lane; more are refused at once.",
    )
    lane_batch: int = Field(
        500, ge=1, le=1000, description="Maximum number of commands in one transaction."
    )
    pool_size: int = Field(
        4, ge=1, le=100, description="Database connections for reads, per process."
    )
    statement_cache: int = Field(
        100,
        ge=0,
        description="Prepared statements per connection; 0 behind a transaction pooler.",
    )
    calls_in_flight: int = Field(
        4000, ge=1, description="Maximum number of calls in flight; more are refused at once."
    )
    drain_seconds: Seconds = Field(
        20, description="How long calls in flight may take to end when the service stops."
    )
    connection_age_seconds: Seconds = Field(
        600, description="Age at which a connection is asked to reconnect, so that load spreads."
    )
    metrics_port: Port | None = Field(
        None,
        description="Port for Prometheus; process N of several uses port + N. Unset: no metrics.",
    )
    metrics_host: str = Field("127.0.0.1", description="Address of the metrics port.")
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="Lowest level that is logged."
    )
    log_format: Literal["auto", "json", "console"] = Field(
        "auto", description="auto: console on a terminal, JSON elsewhere."
    )

    @model_validator(mode="after")
    def _fit_together(self) -> Self:
        for name in self.other_prices:
            if not is_operation(name):
                raise ValueError(
                    f"{PREFIX}OTHER_PRICES: {name!r} is not a name for an operation; use"
                    " lower-case letters, digits and _"
                )
            if name in {"stem_separation", "render"}:
                raise ValueError(
                    f"{PREFIX}OTHER_PRICES: set {PREFIX}COST_PER_{name.upper()} for {name}"
                )
        if (self.tls_certificate is None) != (self.tls_key is None):
            raise ValueError(f"{PREFIX}TLS_CERTIFICATE and {PREFIX}TLS_KEY go together; set both")
        if self.tls_client_ca is not None and self.tls_certificate is None:
            raise ValueError(
                f"{PREFIX}TLS_CLIENT_CA needs {PREFIX}TLS_CERTIFICATE and {PREFIX}TLS_KEY"
            )
        if not self.on_loopback:
            if self.tls_certificate is None and not self.allow_plaintext:
                raise ValueError(
                    f"{PREFIX}LISTEN: {self.listen} is beyond loopback and there is no TLS; set"
                    f" {PREFIX}TLS_CERTIFICATE and {PREFIX}TLS_KEY, or, behind a proxy that"
                    f" provides TLS, {PREFIX}ALLOW_PLAINTEXT=true"
                )
            if self.identities is None:
                raise ValueError(
                    f"{PREFIX}LISTEN: {self.listen} is beyond loopback and no callers are known;"
                    f" set {PREFIX}IDENTITIES"
                )
        return self

    @property
    def on_loopback(self) -> bool:
        """Whether only this machine can connect."""
        return environment.is_loopback(self.listen)

    @property
    def adds_users(self) -> bool:
        """Whether a purchase, grant or policy for an unknown user adds the user."""
        return (self.users or ("managed" if self.database_url is None else "existing")) == "managed"

    @property
    def logs_json(self) -> bool | None:
        """True or False as set; None: as the terminal decides."""
        return None if self.log_format == "auto" else self.log_format == "json"

    def price_list(self) -> PriceList:
        """Makes the price list."""
        others = {name: Price(price.cost, price.unit) for name, price in self.other_prices.items()}
        return PriceList(
            {
                "stem_separation": Price(self.cost_per_stem_separation, "separation"),
                "render": Price(self.cost_per_render, "render"),
                **others,
            }
        )

    def terms(self) -> Terms:
        """Makes the terms of the rules."""
        allowance = None
        if self.allowance is not None:
            amount, _, period = self.allowance.partition("/")
            allowance = Allowance(int(amount), cast("AllowancePeriod", period))
        return Terms(
            self.price_list(),
            self.min_balance,
            self.open_holds,
            refund_grace=_duration(self.refund_grace),
            allowance=allowance,
            alert_below=self.alert_below,
        )


def variable(name: str) -> str:
    """Names the environment variable of a setting."""
    return environment.variable(Settings, name)


def read() -> Settings:
    """Reads the settings from the environment.

    Raises:
        ConfigurationError: a value cannot be used, or a variable with our prefix is unknown.
    """
    return environment.read(Settings)
