"""Settings that the bridge and the gateway share: HTTP servers that are clients of the service."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Literal, Self, TypeVar

import grpc
from pydantic import AfterValidator, BeforeValidator, Field, SecretStr, model_validator
from pydantic_settings import NoDecode

from credit_service.runtime.environment import (
    ConfigurationError,
    EnvironmentSettings,
    HostAndPort,
    Port,
    is_loopback,
    variable,
)

HOST = r"([A-Za-z0-9.-]+|\[[0-9A-Fa-f:.]+\])"


def _split(text: object) -> object:
    return [part.strip() for part in text.split(",")] if isinstance(text, str) else text


def _origin(text: str) -> str:
    if not re.fullmatch(f"https?://{HOST}(:[0-9]{{1,5}})?", text) or text != text.lower():
        raise ValueError(
            "must be origins such as https://app.example.com, in lower case and without a path,"
            " separated by commas"
        )
    return text


def _token(token: SecretStr) -> SecretStr:
    if not re.fullmatch("[!-~]+", token.get_secret_value()):
        raise ValueError("must be printable ASCII without spaces")
    return token


def check_address(text: str, pattern: re.Pattern[str], problem: str) -> str:
    """Checks an address: https, or http if it is on this machine.

    Args:
        text: the address.
        pattern: what it must match; group 1 is the scheme, group 2 the host.
        problem: the error text for an address that does not match.

    Raises:
        ValueError: with `problem`.
    """
    parts = pattern.fullmatch(text)
    if parts is None or (parts[1] == "http" and not is_loopback(f"{parts[2]}:0")):
        raise ValueError(problem)
    return text


_T = TypeVar("_T")
Listed = Annotated[tuple[_T, ...], NoDecode, BeforeValidator(_split)]
Origin = Annotated[str, AfterValidator(_origin)]
Token = Annotated[SecretStr, AfterValidator(_token)]


class HttpProgramSettings(EnvironmentSettings):
    """Settings of a program with a port for HTTP that calls the credit service."""

    listen: HostAndPort = Field(description="Address and port that the program listens on.")
    allow_plaintext: bool = Field(
        default=False,
        description="Listen beyond loopback; the program has no TLS, so only behind a proxy that"
        " provides it.",
    )
    credit_target: HostAndPort = Field(
        "127.0.0.1:50051", description="Address and port of the credit service."
    )
    credit_token: Token | None = Field(
        None, description="The program's bearer token for the credit service."
    )
    credit_tls_ca: Path | None = Field(
        None,
        description="Authority that signs the credit service's certificate (PEM). Unset: no TLS,"
        " unless there is a client certificate.",
    )
    credit_tls_certificate: Path | None = Field(
        None, description="The program's client certificate for the credit service (PEM)."
    )
    credit_tls_key: Path | None = Field(
        None, description="The private key of the client certificate (PEM)."
    )
    unready_seconds: float = Field(
        ge=0,
        le=60 * 60,
        description="How long the program still serves after SIGTERM while /readyz says 503, so"
        " that a load balancer turns elsewhere.",
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
    def _is_safe_to_start(self) -> Self:
        kind = type(self)
        if not is_loopback(self.listen) and not self.allow_plaintext:
            raise ValueError(
                f"{variable(kind, 'listen')}: {self.listen} is beyond loopback and {self.program}"
                " has no TLS; behind a proxy that has it, set"
                f" {variable(kind, 'allow_plaintext')}=true"
            )
        if (self.credit_tls_certificate is None) != (self.credit_tls_key is None):
            raise ValueError(
                f"{variable(kind, 'credit_tls_certificate')} and"
                f" {variable(kind, 'credit_tls_key')} go together; set both"
            )
        return self

    @property
    def logs_json(self) -> bool | None:
        """True or False as set; None: as the terminal decides."""
        return None if self.log_format == "auto" else self.log_format == "json"

    def credit_bearer_token(self) -> str | None:
        """Returns the token for the credit service; None: the program has none."""
        return None if self.credit_token is None else self.credit_token.get_secret_value()

    def credit_credentials(self) -> grpc.ChannelCredentials | None:
        """Reads the files of TLS for the credit service; None: plaintext.

        Raises:
            ConfigurationError: a file cannot be read.
        """
        authority, key, certificate = (
            self._content(name)
            for name in ("credit_tls_ca", "credit_tls_key", "credit_tls_certificate")
        )
        if authority is None and certificate is None:
            return None
        return grpc.ssl_channel_credentials(authority, key, certificate)

    def _content(self, name: str) -> bytes | None:
        path: Path | None = getattr(self, name)
        try:
            return None if path is None else path.read_bytes()
        except OSError as error:
            raise ConfigurationError(
                f"{variable(type(self), name)}: {path}: {error.strerror}"
            ) from error
