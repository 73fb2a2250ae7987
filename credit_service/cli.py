"""The command line: serve, migrate, settings, verify, export, relay and more; see `--help`."""

from __future__ import annotations

import os

# gRPC reads this when it is imported. Otherwise its own lines mix with the JSON lines of the log.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")

import credit_service.runtime  # noqa: F401  # loads structlog without rich

# isort: split

import asyncio
import hashlib
import json
import re
import secrets
import sys
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated
from uuid import UUID

import asyncpg
import grpc
import structlog
import uvloop
from cyclopts import App, Parameter, validators
from grpc_health.v1 import health_pb2, health_pb2_grpc

from credit_service import (
    cli_start,
    distribute_cli,
    export,
    export_rows,
    feed_cli,
    processes,
    relay_cli,
    server,
)
from credit_service.cli_start import DatabaseAway, Refused
from credit_service.database import migrations
from credit_service.database.distribution import DistributionError
from credit_service.database.embedded import EmbeddedPostgresError
from credit_service.database.postgres import Absence, Address, absence
from credit_service.database.shard_map import ShardMapError
from credit_service.export_files import ExportError
from credit_service.ledger import verify as book
from credit_service.ledger.export import BEGINNING, END
from credit_service.ledger.transactions import WriterSettings
from credit_service.relay.endpoints import EndpointsError
from credit_service.rpc import access
from credit_service.rpc.access import Authenticator, IdentitiesError, Role
from credit_service.rpc.tls import CertificateError, ServerCertificate
from credit_service.runtime import logs
from credit_service.runtime.build_info import VERSION
from credit_service.runtime.environment import PORT_MAX, ConfigurationError, described
from credit_service.runtime.start_errors import StartRefusedError

if TYPE_CHECKING:
    from credit_service.config import Settings

app = App(
    name="credit-service",
    help="A credit service: sells, spends, refunds and reports credits over gRPC, on PostgreSQL.",
    version=lambda: f"credit-service {VERSION}",
    version_flags=["--version"],
)

app.command(relay_cli.app)
app.command(feed_cli.app)
app.command(distribute_cli.app)

_log = structlog.get_logger()

_HEALTH_SECONDS = 3
_MIGRATE_AGAIN_SECONDS = 2


@app.command
def serve(
    *,
    migrate: Annotated[bool, Parameter(negative="")] = False,
    processes: Annotated[int, Parameter(validator=validators.Number(gte=1, lte=64))] = 1,
) -> None:
    """Run the service until SIGTERM or Ctrl-C; calls in flight are then answered.

    Settings are environment variables, listed by `credit-service settings`. Without
    CREDIT_DATABASE_URL an embedded PostgreSQL runs beside the service and keeps its data.

    Args:
        migrate: First bring the database to the newest version.
        processes: Processes that share the port; one per core is a good number.
    """
    settings = cli_start.settings()
    cli_start.configure_logs(settings)
    with cli_start.database(settings, owned=True) as (owner_url, service_url):
        if migrate:
            asyncio.run(_migrate_patiently(owner_url, service_url))
        if settings.identities is None:
            _log.warning("no identities are set: every caller on this machine is operator `local`")
        _run(settings, service_url, processes)


@app.command
def migrate() -> None:
    """Bring the database to the newest version and give the service's role its rights.

    Connects as the owner of the tables by CREDIT_MIGRATE_URL, or, where that is not set, by
    CREDIT_DATABASE_URL. Safe to run twice, and twice at once.
    """
    settings = cli_start.settings()
    with cli_start.database(settings) as (owner_url, service_url):
        asyncio.run(_migrate(owner_url, service_url))


@app.command
def settings() -> None:
    """Print every setting with its value, default and meaning; passwords are masked."""
    for line in described(cli_start.settings()):
        print(line)


@app.command
def verify(user_id: UUID | None = None) -> None:
    """Add the book up again and name every account that does not add up; exit code 1 if any.

    Changes nothing, and runs beside the service. Connects by CREDIT_DATABASE_URL, or to the
    embedded server.

    Args:
        user_id: Only this account; by default all.
    """
    settings = cli_start.settings()
    with cli_start.database(settings) as (_, service_url):
        accounts, faulty = asyncio.run(_verify(service_url, user_id))
    if user_id is not None and accounts == 0:
        raise Refused(f"there is no account for {user_id}; check the id")
    print(f"{accounts} accounts verified, {faulty} with faults")
    sys.exit(1 if faulty else 0)


@app.command(name="export")
def export_command(
    what: export_rows.What,
    *,
    since: str | None = None,
    until: str | None = None,
    format: export_rows.Format | None = None,  # noqa: A002  # its name on the command line
    output: Path | None = None,
    resume: str | None = None,
) -> None:
    """Write accounts or transactions to a file or standard output, as CSV, JSON lines or Parquet.

    Accounts come in the order of users, transactions of all users in the order of time. Progress
    and the cursor of an export that stops early go to standard error. Ctrl-C stops it between two
    rows, with exit code 130. Changes nothing, and runs beside the service. Connects by
    CREDIT_DATABASE_URL, or to the embedded server.

    Parquet needs the extra `parquet` and --output. Its file appears when it is complete; an export
    that stops early leaves none, and begins again.

    Args:
        what: Accounts as they are now, or transactions: all entries of the ledger.
        since: Only transactions from this time on, or accounts that changed since; in UTC, such as
            2026-11-01 or 2026-11-01T12:00:00Z. By default from the beginning.
        until: Only what is before this time. By default, and at most, now.
        format: By default csv.
        output: The file, which must not exist yet. By default standard output.
        resume: Go on at the cursor of an export that stopped early, with its times and format. A
            file given by --output is cut after the last row before the cursor.
    """
    settings = cli_start.settings()
    if resume is None:
        cursor = export.Cursor.first(
            what,
            format or export_rows.Format.CSV,
            BEGINNING if since is None else _moment("--since", since),
            END if until is None else _moment("--until", until),
        )
    else:
        cursor = export.Cursor.parse(resume)
        if cursor.what is not what or (since, until, format) != (None, None, None):
            raise Refused(
                f"--resume goes on with {cursor.what}; leave out --since, --until and --format"
            )
    file = export.open_file(cursor, output, resumed=resume is not None)
    with closing(file), cli_start.database(settings) as (_, service_url):
        address = Address(service_url, settings.statement_cache)
        terms = settings.terms()
        reached = asyncio.run(export.run(address, cursor, terms, file))
    print(reached.summary(output), file=sys.stderr)
    if not reached.complete:
        sys.exit(1 if reached.problem else 130)


@app.command
def health(target: str | None = None) -> None:
    """Ask a running service whether it serves; exit code 0 if it does, 1 if not.

    Args:
        target: host:port without TLS; by default CREDIT_HEALTH_LISTEN, or CREDIT_LISTEN.
    """
    settings = cli_start.settings()
    if target is None:
        target = settings.health_listen or settings.listen
        if settings.health_listen is None and settings.tls_certificate is not None:
            raise Refused(
                "set CREDIT_HEALTH_LISTEN: this command asks without TLS, and CREDIT_LISTEN has TLS"
            )
    target = re.sub(r"^(0\.0\.0\.0|\[::\])(?=:)", "localhost", target)
    with grpc.insecure_channel(target) as channel:
        try:
            answer = health_pb2_grpc.HealthStub(channel).Check(  # type: ignore[attr-defined]
                health_pb2.HealthCheckRequest(), timeout=_HEALTH_SECONDS
            )
        except grpc.RpcError as error:
            print(f"{target}: {error.code().name}")
            sys.exit(1)
    state = health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status)
    print(f"{target}: {state}")
    sys.exit(0 if state == "SERVING" else 1)


@app.command
def token(name: str, role: Role) -> None:
    """Make a bearer token for a caller, and the lines that make it known to the service.

    The lines go to standard output, for the file of CREDIT_IDENTITIES. The token goes to standard
    error, for the caller alone; it is shown once and stored nowhere.

    Args:
        name: The caller's name, which its entries carry.
        role: What it may call.
    """
    if not access.NAME.fullmatch(name):
        raise Refused("a caller's name has 1 to 64 printable ASCII characters")
    made = secrets.token_urlsafe(32)
    print(made, file=sys.stderr)
    print("\n[[identity]]")
    # JSON quotes printable ASCII as TOML does.
    print(f'name = {json.dumps(name)}\nrole = "{role.value}"')
    print(f'token_sha256 = "{hashlib.sha256(made.encode()).hexdigest()}"')


def main(arguments: list[str] | None = None) -> None:
    """Runs the command line; a refusal is one line on standard error and exit code 2.

    Args:
        arguments: those after the program's name; None: those of the process.
    """
    logs.print_at_once()
    try:
        app(arguments)
    except _REFUSALS as refusal:
        print(f"credit-service: {refusal}", file=sys.stderr)
        sys.exit(2)


_REFUSALS = (
    Refused,
    ExportError,
    ConfigurationError,
    migrations.MigrationError,
    StartRefusedError,
    DistributionError,
    ShardMapError,
    EmbeddedPostgresError,
    IdentitiesError,
    CertificateError,
    EndpointsError,
)


async def _migrate(owner_url: str, service_url: str) -> None:
    setting = "CREDIT_DATABASE_URL"
    try:
        service_role = await Address(service_url, 0).role()
        if owner_url != service_url:
            setting = "CREDIT_MIGRATE_URL"
        await migrations.migrate(owner_url, service_role, print)
    except Exception as error:
        why = absence(error)
        if why is not None:
            refusal = Refused if why is Absence.REFUSED else DatabaseAway
            raise refusal(
                f"the database cannot be reached by {setting}: {type(error).__name__}: {error}"
            ) from error
        if isinstance(error, asyncpg.PostgresError):
            raise Refused(f"the database refuses the role of {setting}: {error}") from error
        raise


async def _verify(service_url: str, user_id: UUID | None) -> tuple[int, int]:
    def progress(accounts: int) -> None:
        if sys.stderr.isatty():
            print(f"\r{accounts} accounts", end="", file=sys.stderr, flush=True)

    try:
        # A standby's book can be verified too.
        connection = await Address(service_url, 0).connect(writable=False)
        try:
            return await book.verify(connection, user_id, print, progress)
        finally:
            await connection.close()
    except Exception as error:
        if absence(error) is not None:
            raise Refused(
                f"the database cannot be reached: {type(error).__name__}: {error}"
            ) from error
        if isinstance(error, asyncpg.PostgresError):
            raise Refused(
                f"the database cannot be verified: {error}; run `credit-service migrate` first"
            ) from error
        raise


def _moment(option: str, text: str) -> datetime:
    try:
        moment = datetime.fromisoformat(text)
        return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).astimezone(UTC)
    except (ValueError, OverflowError) as error:
        raise Refused(f"{option}: {text} is not a time such as 2026-11-01T12:00:00Z") from error


async def _migrate_patiently(owner_url: str, service_url: str) -> None:
    """Waits for a database that is still starting, as the service itself does."""
    while True:
        try:
            return await _migrate(owner_url, service_url)
        except DatabaseAway as refusal:
            _log.warning("not migrated yet, trying again", problem=str(refusal))
            await asyncio.sleep(_MIGRATE_AGAIN_SECONDS)


def _server_settings(settings: Settings, service_url: str, process: int | None) -> server.Settings:
    certificate = None
    if settings.tls_certificate is not None and settings.tls_key is not None:
        certificate = ServerCertificate(
            settings.tls_certificate, settings.tls_key, settings.tls_client_ca
        )
    metrics_port = settings.metrics_port
    if metrics_port is not None:
        metrics_port += process or 0
        if metrics_port > PORT_MAX:
            raise Refused(f"CREDIT_METRICS_PORT: process {process} would take {metrics_port}")
    return server.Settings(
        listen=settings.listen,
        health_listen=settings.health_listen,
        writers=WriterSettings(
            address=Address(service_url, settings.statement_cache),
            terms=settings.terms(),
            adds_users=settings.adds_users,
            lanes=settings.lanes,
            queue_limit=settings.lane_queue,
            batch_limit=settings.lane_batch,
        ),
        authenticator=Authenticator(settings.identities),
        certificate=certificate,
        pool_size=settings.pool_size,
        calls_in_flight=settings.calls_in_flight,
        drain_seconds=settings.drain_seconds,
        connection_age_seconds=settings.connection_age_seconds,
        share_port=process is not None,
        metrics_port=metrics_port,
        metrics_host=settings.metrics_host,
        relay=relay_cli.relay_settings(settings, service_url),
    )


def _run(settings: Settings, service_url: str, count: int) -> None:
    if count == 1:
        made = _server_settings(settings, service_url, process=None)
        uvloop.run(processes.run_one(made, lambda port: _announce(settings, port)))
        return
    # Made here once so that a mistake is reported before any process starts.
    _server_settings(settings, service_url, process=count - 1)
    shared = {"CREDIT_LISTEN": settings.listen}
    if settings.health_listen is not None:
        shared["CREDIT_HEALTH_LISTEN"] = settings.health_listen
    drained = processes.run_many(
        count, shared, _run_child, (settings, service_url), lambda: _announce(settings, 0)
    )
    if not drained:
        sys.exit(1)


def _run_child(
    process: int, report: processes.Report, settings: Settings, service_url: str
) -> None:
    """Runs one of several processes; called in a fresh interpreter."""
    cli_start.configure_logs(settings, process=process)
    try:
        made = _server_settings(settings, service_url, process)
        uvloop.run(processes.run_one(made, lambda _port: report()))
    except _REFUSALS as refusal:
        print(f"credit-service: {refusal}", file=sys.stderr)
        sys.exit(processes.REFUSED)


def _announce(settings: Settings, port: int) -> None:
    host = settings.listen.rpartition(":")[0]
    listen = f"{host}:{port}" if port else settings.listen
    prices = ", ".join(
        f"{name} {price.unit_cost} per {price.unit}"
        for name, price in settings.price_list().prices.items()
    )
    print(
        f"credit-service {VERSION} listens on {listen}"
        f" ({'TLS' if settings.tls_certificate else 'plaintext'})"
    )
    print(f"prices in credits: {prices}")
    if settings.tls_certificate is None and settings.identities is None:
        print("try it:")
        print(f"  grpcurl -plaintext {listen} credit_service.v1.CreditService/ListPrices")
        print(f"  scripts/demo{'' if listen == '127.0.0.1:50051' else f' --target {listen}'}")
