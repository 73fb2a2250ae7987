"""The command line of credit-gateway: serve, settings, files, --version. See also `--help`."""

from __future__ import annotations

import os

# gRPC reads this when it is imported. Otherwise its own lines mix with the JSON lines of the log.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")

import asyncio
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import structlog
from cyclopts import App

from credit_service.gateway import config, files, server
from credit_service.gateway.bridge import Bridge
from credit_service.gateway.rate_limits import Limits
from credit_service.gateway.server import CreditService
from credit_service.gateway.supabase import SupabaseUsers
from credit_service.gateway.tokens import JwtUsers, hashed_claim, uuid_claim
from credit_service.gateway.users import DevelopmentError, DevelopmentUsers
from credit_service.runtime import logs
from credit_service.runtime.build_info import VERSION
from credit_service.runtime.environment import ConfigurationError, described
from credit_service.runtime.start_errors import StartRefusedError
from credit_service.runtime.stop_signals import stop_on_signals

if TYPE_CHECKING:
    from credit_service.gateway.config import Settings
    from credit_service.gateway.users import Users

app = App(
    name="credit-gateway",
    help="Shows end users their credits over HTTP: live balances, prices and purchases.",
    version=lambda: f"credit-gateway {VERSION}",
    version_flags=["--version"],
)

_log = structlog.get_logger()


class _Refused(Exception):
    """Ends the command with one line and exit code 2."""


@app.command
def serve() -> None:
    """Run the gateway until SIGTERM or Ctrl-C; every open stream is ended with `event: end`.

    Settings are environment variables, listed by `credit-gateway settings`.
    """
    settings = config.read()
    logs.configure(level=settings.log_level, as_json=settings.logs_json)
    asyncio.run(_serve(settings, _server_settings(settings)))


@app.command
def settings() -> None:
    """Print every setting with its value, default and meaning; secrets are masked."""
    for line in described(config.read()):
        print(line)


@app.command(name="files")
def write_files(directory: Path, /) -> None:
    """Write the module, its typings and the OpenAPI document into a directory, for your own CDN.

    Scripts are written under their plain name and under a name with their hash, which a cache may
    keep for ever.

    Args:
        directory: Where to; it is created if it does not exist.
    """
    directory.mkdir(parents=True, exist_ok=True)
    for each in files.packaged():
        for name in (each.name, each.hashed_name) if each.is_script else (each.name,):
            (directory / name).write_bytes(each.content)
            print(directory / name)


def main(arguments: list[str] | None = None) -> None:
    """Runs the command line; a refusal is one line on standard error and exit code 2.

    Args:
        arguments: the words after the program's name; None: those of this process.
    """
    logs.print_at_once()
    try:
        app(arguments)
    except (_Refused, ConfigurationError, DevelopmentError, StartRefusedError) as refusal:
        print(f"credit-gateway: {refusal}", file=sys.stderr)
        sys.exit(2)


async def _serve(settings: Settings, made: server.Settings) -> None:
    """Serves until SIGTERM or SIGINT; a second one ends the process at once."""
    stop = asyncio.Event()
    stop_on_signals(stop)

    async def started(port: int) -> None:
        host = settings.listen.rpartition(":")[0]
        print(f"credit-gateway {VERSION} listens on {host}:{port}")
        print(f"balances come from {settings.credit_target}", flush=True)

    await server.serve(made, stop, started)


def _server_settings(settings: Settings) -> server.Settings:
    return server.Settings(
        listen=settings.listen,
        credit_service=_credit_service(settings),
        users=_users(settings),
        bridge=_bridge(settings),
        origins=settings.origins,
        grant_descriptions=settings.grant_descriptions,
        limits=Limits(streams=settings.streams),
        unready_seconds=settings.unready_seconds,
        metrics_port=settings.metrics_port,
        metrics_host=settings.metrics_host,
    )


def _users(settings: Settings) -> Users:
    try:
        return _resolver(settings)
    except ValueError as error:
        raise _Refused(f"{config.variable('jwt_algorithms')} or an address: {error}") from None


def _resolver(settings: Settings) -> Users:
    if settings.development:
        _log.warning("development users: the gateway trusts every program on this machine")
        return DevelopmentUsers(settings.development_user)
    if settings.supabase_url is not None:
        key = settings.supabase_api_key
        return SupabaseUsers(
            settings.supabase_url,
            anonymous=settings.supabase_anonymous,
            shared_secret_project=settings.supabase_shared_secret,
            api_key=None if key is None else key.get_secret_value(),
        )
    issuer, audience, keys_url = settings.jwt_issuer, settings.jwt_audience, settings.jwt_keys_url
    if issuer is not None and audience is not None and keys_url is not None:
        namespace, claim = settings.jwt_user_namespace, settings.jwt_user_claim
        return JwtUsers(
            issuer,
            audience,
            keys_url,
            algorithms=settings.jwt_algorithms,
            user_id=uuid_claim(claim) if namespace is None else hashed_claim(namespace, claim),
        )
    raise _Refused(
        f"no user could be identified: set {config.variable('supabase_url')} or"
        f" {config.variable('jwt_issuer')}, or, to try it out on this machine,"
        f" {config.variable('development')}=true"
    )


def _bridge(settings: Settings) -> Bridge | None:
    address, token = settings.bridge_address, settings.bridge_token
    success_url, cancel_url = settings.success_url, settings.cancel_url
    if address is None or token is None or success_url is None or cancel_url is None:
        # The settings come together or not at all.
        return None
    return Bridge(
        address,
        token=token.get_secret_value(),
        success_url=success_url,
        cancel_url=cancel_url,
        portal_return_url=settings.portal_return_url,
        checkout_hosts=settings.checkout_hosts,
        portal_hosts=settings.portal_hosts,
    )


def _credit_service(settings: Settings) -> CreditService:
    return CreditService(
        target=settings.credit_target,
        token=settings.credit_bearer_token(),
        credentials=settings.credit_credentials(),
    )
