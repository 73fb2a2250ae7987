"""The command line of the bridge; see `stripe-bridge --help`."""

from __future__ import annotations

import os

# gRPC reads this when it is imported. Otherwise its own lines mix with the JSON lines of the log.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")

import asyncio
import re
import sys
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Annotated

from cyclopts import App, Parameter

from credit_service.errors import CreditError
from credit_service.runtime import logs
from credit_service.runtime.build_info import VERSION
from credit_service.runtime.environment import ConfigurationError, described
from credit_service.runtime.start_errors import StartRefusedError
from credit_service.runtime.stop_signals import stop_on_signals
from stripe_bridge import config, config_check, server
from stripe_bridge.durations import duration_or_none
from stripe_bridge.model import Settled, Unresolved
from stripe_bridge.reconcile import Summary
from stripe_bridge.reconcile import reconcile as walk_everything
from stripe_bridge.request_bodies import Limits
from stripe_bridge.server import CreditService, TopUpSettings
from stripe_bridge.settle import Settler
from stripe_bridge.stripe_api import (
    StripeAway,
    StripeReads,
    StripeRefuses,
    kind_of,
    stripe_client,
)
from stripe_bridge.webhook_endpoint import EndpointExists, make_endpoint

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from credit_service.v1 import credit_service_pb2 as pb
    from stripe_bridge.config import Settings

app = App(
    name="stripe-bridge",
    help="A bridge from Stripe to the credit service: payments add credits, refunds and"
    " disputes reverse them, and nothing is lost or doubled.",
    version=lambda: f"stripe-bridge {VERSION}",
    version_flags=["--version"],
)

_EPOCH = datetime.fromtimestamp(0, UTC)


class _Refused(Exception):
    """Ends the command with one line and exit code 2."""


@app.command
def serve() -> None:
    """Run the bridge until SIGTERM or Ctrl-C; it answers the events in flight before it ends.

    Settings are environment variables, listed by `stripe-bridge settings`.
    """
    settings = config.read()
    logs.configure(level=settings.log_level, as_json=settings.logs_json)
    asyncio.run(_serve(settings, _server_settings(settings)))


@app.command
def settings() -> None:
    """Print every setting with its value, default and meaning; secrets are masked."""
    for line in described(config.read()):
        print(line)


@app.command
def check_config() -> None:
    """Check the settings against Stripe, this machine's clock and the credit service.

    Compares the catalogue with Stripe's prices, and tries the key's rights and the bridge's role.
    Writes nothing. Prints a line for each problem, and then ends with exit code 1.
    """
    settings = config.read()
    found = asyncio.run(_check(settings))
    for line in found:
        print(line)
    if not found:
        print("everything fits")
    sys.exit(1 if found else 0)


@app.command
def endpoint(*, url: str, again: Annotated[bool, Parameter(negative="")] = False) -> None:
    """Make the webhook endpoint in Stripe, with the API version and the events of the bridge.

    Only for this command, STRIPE_BRIDGE_STRIPE_KEY must be a key that may write webhook endpoints.
    Prints the signing secret as a line for the bridge's settings; Stripe shows it only once.

    Args:
        url: Where Stripe is to deliver: https://your-host/stripe/webhooks.
        again: Make another one even if one has this URL already.
    """
    settings = config.read()
    if not re.fullmatch(
        r"(https://[!-.0-~]+|http://(localhost|127\.0\.0\.1)(:[0-9]+)?)/[!-~]+", url
    ):
        raise _Refused("--url must be https://your-host/stripe/webhooks")
    try:
        secret, live = asyncio.run(_make_endpoint(settings, url, again=again))
    except EndpointExists as exists:
        raise _Refused(
            f"{exists} has this URL already; its secret is in Stripe's Dashboard, and --again makes"
            " another one; each event is then delivered twice"
        ) from None
    print(f"{config.variable('webhook_secrets')}={'live' if live else 'test'}:{secret}")
    print(
        "the endpoint is made; add the line above to the bridge's settings, after a comma if there"
        " is a secret already",
        file=sys.stderr,
    )


@app.command
def reconcile(
    *,
    since: str = "35d",
    disputes_since: str = "180d",
    dry_run: Annotated[bool, Parameter(negative="")] = False,
) -> None:
    """Settle every object that Stripe created since a time, so that a lost event loses no payment.

    Safe at any time, also while the bridge runs, and may be repeated. Ends with exit code 1 if
    anything stays unresolved or in conflict. `repaired` counts objects that no event had reported.

    Args:
        since: The maximum age of sessions, invoices, payments and refunds, such as 35d or 12h.
        disputes_since: The maximum age of disputes, which take longer to end.
        dry_run: Do everything but write.
    """
    periods = _period("--since", since), _period("--disputes-since", disputes_since)
    settings = config.read()
    logs.configure(level="warning", as_json=settings.logs_json)
    found = asyncio.run(_reconcile(settings, *periods, dry_run=dry_run))
    for kind, findings in (
        ("notice", found.noticed),
        ("conflict", found.conflicts),
        ("unresolved", found.unresolved),
    ):
        for finding in findings:
            print(f"{kind}: {finding.id}: {finding.reason}: {finding.detail}")
    print(
        f"{found.seen} seen, {found.already_there} already there, {found.repaired}"
        f" {'to repair' if dry_run else 'repaired'}, {found.nothing} nothing to do,"
        f" {len(found.conflicts)} conflicts, {len(found.unresolved)} unresolved"
    )
    sys.exit(1 if found.unresolved or found.conflicts else 0)


@app.command
def replay(id: str, /) -> None:  # noqa: A002  # Stripe's own word
    """Settle one event or object as it is now, and print the result; exit code 1 on a conflict.

    Args:
        id: evt_..., cs_..., pi_..., in_..., ch_..., re_... or du_... .
    """
    settings = config.read()
    logs.configure(level="warning", as_json=settings.logs_json)
    settled = asyncio.run(_replay(settings, id))
    print(" ".join([settled.outcome, settled.reason, *settled.refs]))
    sys.exit(1 if settled.outcome == "conflict" else 0)


@app.command
def top_ups(*, charge: Annotated[bool, Parameter(negative="")] = False) -> None:
    """Print the open requests for top-ups: id, user, pack, failed tries, payment, last reason.

    Args:
        charge: Do for each of them what can be done now, as `serve` does every few seconds, and
            print the outcome. Safe while bridges run; ends with exit code 1 if one needs a person.
    """
    settings = config.read()
    logs.configure(level="warning", as_json=settings.logs_json)
    sys.exit(asyncio.run(_top_ups(settings, charge=charge)))


def main(arguments: list[str] | None = None) -> None:
    """Runs the command line.

    A refusal is one line on standard error with exit code 2; a failure ends with 1.

    Args:
        arguments: those after the program's name; None: as the program was called.
    """
    logs.print_at_once()
    try:
        app(arguments)
    except (_Refused, ConfigurationError, StartRefusedError) as refusal:
        print(f"stripe-bridge: {refusal}", file=sys.stderr)
        sys.exit(2)
    except (StripeAway, StripeRefuses, Unresolved, CreditError) as failure:
        print(f"stripe-bridge: {failure}", file=sys.stderr)
        sys.exit(1)


async def _serve(settings: Settings, made: server.Settings) -> None:
    """Serves until SIGTERM or SIGINT; a second one ends the process at once."""
    stop = asyncio.Event()
    stop_on_signals(stop)

    async def started(port: int) -> None:
        host = settings.listen.rpartition(":")[0]
        print(f"stripe-bridge {VERSION} listens on {host}:{port}")
        print(f"credits go to {settings.credit_target}")

    await server.serve(made, stop, started)


def _server_settings(settings: Settings) -> server.Settings:
    secrets = settings.secrets()
    if not secrets:
        raise _Refused(
            f"set {config.variable('webhook_secrets')}: without a secret it cannot detect forged"
            " events; `stripe-bridge endpoint` makes an endpoint and its secret"
        )
    return server.Settings(
        listen=settings.listen,
        credit_service=_credit_service(settings),
        stripe_key=_stripe_key(settings),
        stripe_address=settings.stripe_address,
        secrets=secrets,
        policy=settings.policy(),
        checkout_token_sha256=settings.checkout_token_sha256,
        return_origins=frozenset(settings.return_origins),
        limits=Limits(
            body_bytes=settings.body_bytes,
            requests_in_flight=settings.requests_in_flight,
            park_after_seconds=settings.park_after_hours * 60 * 60,
        ),
        poll_seconds=settings.poll_seconds,
        top_ups=_top_up_settings(settings),
        unready_seconds=settings.unready_seconds,
        metrics_port=settings.metrics_port,
        metrics_host=settings.metrics_host,
    )


def _top_up_settings(settings: Settings) -> TopUpSettings | None:
    if not settings.top_up_seconds or settings.top_up_return_url is None:
        return None
    return TopUpSettings(
        pause_seconds=settings.top_up_seconds,
        retry_after=timedelta(hours=settings.top_up_retry_hours),
        return_url=settings.top_up_return_url,
    )


def _stripe_key(settings: Settings) -> str:
    if settings.stripe_key is None:
        raise _Refused(
            f"set {config.variable('stripe_key')}: refunds, disputes and prices are read from"
            " Stripe; a restricted key that may only read is enough"
        )
    return settings.stripe_key.get_secret_value()


def _credit_service(settings: Settings) -> CreditService:
    return CreditService(
        target=settings.credit_target,
        token=settings.credit_bearer_token(),
        credentials=settings.credit_credentials(),
    )


async def _check(settings: Settings) -> list[str]:
    found = []
    if not settings.webhook_secrets:
        found.append(f"{config.variable('webhook_secrets')} is not set, so no event is accepted")
    async with (
        stripe_client(_stripe_key(settings), address=settings.stripe_address) as client,
        _credit_service(settings).client() as credit_service,
    ):
        looked = config_check.problems(
            client, credit_service, settings.policy(), top_ups=bool(settings.top_up_seconds)
        )
        return found + [line async for line in looked]


async def _make_endpoint(settings: Settings, url: str, *, again: bool) -> tuple[str, bool]:
    async with stripe_client(_stripe_key(settings), address=settings.stripe_address) as client:
        return await make_endpoint(client, url, again=again)


def _period(option: str, text: str) -> timedelta:
    period = duration_or_none(text)
    if period is None:
        raise _Refused(f"{option} must be a time such as 35d, 12h or 90m")
    return period


@asynccontextmanager
async def _settler(
    settings: Settings, *, validate_only: bool = False
) -> AsyncIterator[tuple[StripeReads, Settler]]:
    policy = settings.policy()
    async with (
        stripe_client(_stripe_key(settings), address=settings.stripe_address) as client,
        _credit_service(settings).client() as credit_service,
    ):
        reads = StripeReads(client)
        yield reads, Settler(reads, credit_service, policy, validate_only=validate_only)


async def _reconcile(
    settings: Settings, since: timedelta, disputes_since: timedelta, *, dry_run: bool
) -> Summary:
    def progress(name: str, summary: Summary) -> None:
        if sys.stderr.isatty():
            line = f"{summary.seen} seen, {summary.repaired} repaired; now {name}"
            print(f"\r{line:<70}", end="", file=sys.stderr, flush=True)

    now = datetime.now(UTC)
    async with _settler(settings, validate_only=dry_run) as (reads, settler):
        found = await walk_everything(
            reads,
            settler,
            since=max(_EPOCH, now - since),
            disputes_since=max(_EPOCH, now - disputes_since),
            progress=progress,
        )
    if sys.stderr.isatty():
        print(file=sys.stderr)
    return found


async def _replay(settings: Settings, id: str) -> Settled:  # noqa: A002  # Stripe's own word
    if kind_of(id) is None:
        raise _Refused(f"{id!a} is not the id of an event, session, payment, refund or dispute")
    async with _settler(settings) as (_, settler):
        return await settler.replay(id)


async def _top_ups(settings: Settings, *, charge: bool) -> int:
    """Prints the open requests, or works on them and prints the outcomes; returns the exit code."""
    if not charge:
        async with _credit_service(settings).client() as credit_service:
            async for top_up in credit_service.list_top_ups():
                print(_top_up_line(top_up, top_up.payment_ref, top_up.reason))
        return 0
    charging = _top_up_settings(settings)
    if charging is None:
        raise _Refused(
            f"set {config.variable('top_up_seconds')} and {config.variable('top_up_return_url')}"
        )
    failed = False
    async with (
        stripe_client(_stripe_key(settings), address=settings.stripe_address) as client,
        _credit_service(settings).client() as credit_service,
    ):
        made = server.top_ups(charging, client, credit_service, settings.policy())
        async for worked in made.round():
            words = f"{worked.outcome} {worked.reason} {worked.detail}".rstrip()
            print(_top_up_line(worked.top_up, worked.payment, words))
            failed |= worked.outcome in ("unresolved", "away")
    return 1 if failed else 0


def _top_up_line(top_up: pb.TopUpRequest, payment: str, words: str) -> str:
    payment = payment or "no payment yet"
    line = f"{top_up.id} {top_up.user_id} {top_up.pack}, {top_up.tries} failed: {payment}"
    return f"{line}: {words}" if words else line
