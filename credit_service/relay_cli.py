"""`credit-service relay`: sends webhooks, shows what failed, sends it again, tries an endpoint."""

from __future__ import annotations

import asyncio
import sys
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Annotated

import structlog
import uvloop
from cyclopts import App, Parameter

from credit_service import cli_start
from credit_service.cli_start import Refused
from credit_service.database import distributed_book, migrations
from credit_service.database.postgres import Address, unreachable
from credit_service.errors import LedgerUnavailable
from credit_service.ledger.read_connections import ReadPool
from credit_service.ledger.statement_texts import of_distributed_book
from credit_service.relay import operate
from credit_service.relay.endpoints import EndpointsFile
from credit_service.relay.relay import AlertSettings, RelaySettings, relaying
from credit_service.runtime import build_info, metrics_port
from credit_service.runtime.build_info import VERSION
from credit_service.runtime.stop_signals import stop_on_signals

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from credit_service.config import Settings
    from credit_service.relay.operate import Operator

app = App(name="relay")

_log = structlog.get_logger()


@app.default
def relay() -> None:
    """Send webhooks until SIGTERM or Ctrl-C, as `serve` also does where CREDIT_WEBHOOKS is set.

    Only one process sends at a time; if it fails, another takes over within ten seconds. Connects
    by CREDIT_DATABASE_URL, or to the embedded server.
    """
    settings = cli_start.settings()
    cli_start.configure_logs(settings)
    with cli_start.database(settings) as (_, service_url):
        made = _required(settings, service_url)
        asyncio.run(_require_feed(made.address))
        uvloop.run(_serve(made, settings.metrics_host, settings.metrics_port))


@app.command
def status(
    endpoint: str | None = None, *, events: Annotated[bool, Parameter(negative="")] = False
) -> None:
    """Print which process sends, and for each endpoint its place and its parked and dead events.

    Args:
        endpoint: Only this endpoint; by default all.
        events: Also list dead events, and the first thousand events that are parked, each with its
            problem.
    """
    _with_operator(lambda operator: operator.show(endpoint, events=events))


@app.command
def retry(endpoint: str, event: str | None = None) -> None:
    """Have the relay send dead events again, in each user's order, and try parked events now.

    Args:
        endpoint: The endpoint's name.
        event: Only this event, by its webhook-id; by default all dead events.
    """
    _with_operator(lambda operator: operator.retry(endpoint, event))


@app.command
def test(endpoint: str) -> None:
    """Send an event of type relay.test to an endpoint; exit code 1 unless it is taken.

    Args:
        endpoint: The endpoint's name.
    """
    settings = cli_start.settings()
    file = _file(settings)
    found = file.endpoints.get(endpoint)
    if found is None:
        raise Refused(f"{settings.webhooks} has no endpoint {endpoint}")
    ended = asyncio.run(operate.test(found, datetime.now(UTC), private=settings.webhooks_private))
    said = "taken" if ended.taken else ended.problem
    print(f"{endpoint}: {said}, after {ended.seconds:.2f} s")
    sys.exit(0 if ended.taken else 1)


def relay_settings(settings: Settings, service_url: str) -> RelaySettings | None:
    """Makes a relay's settings; None where no file of endpoints is set.

    Raises:
        EndpointsError: the file cannot be used.
    """
    if settings.webhooks is None:
        return None
    return RelaySettings(
        address=Address(service_url, settings.statement_cache),
        endpoints=_file(settings),
        private=settings.webhooks_private,
        alerts=AlertSettings(
            terms=settings.terms(),
            cool_down=timedelta(seconds=settings.alert_cool_down_seconds),
            expiring_days=settings.expiring_days,
        ),
    )


def _required(settings: Settings, service_url: str) -> RelaySettings:
    made = relay_settings(settings, service_url)
    if made is None:
        raise Refused("set CREDIT_WEBHOOKS to the file of endpoints")
    return made


def _file(settings: Settings) -> EndpointsFile:
    if settings.webhooks is None:
        raise Refused("set CREDIT_WEBHOOKS to the file of endpoints")
    return EndpointsFile(settings.webhooks, private=settings.webhooks_private)


async def _require_feed(address: Address) -> None:
    """Refuses a database without migrations or feed; the relay itself waits for an absent one."""
    try:
        connection = await address.connect()
        try:
            missing = await migrations.pending(connection)
            distributed = of_distributed_book(connection)
        finally:
            await connection.close()
    except Exception as error:
        if not unreachable(error):
            raise
        return
    if distributed:
        raise Refused(distributed_book.NO_WEBHOOKS)
    if missing:
        raise Refused(
            f"the database lacks the migrations {', '.join(missing)}; run `credit-service migrate`"
        )


async def _serve(made: RelaySettings, metrics_host: str, port: int | None) -> None:
    """Sends until SIGTERM or SIGINT; a second one ends the process at once."""
    stop = asyncio.Event()
    stop_on_signals(stop)
    metrics_port.serve_metrics(metrics_host, port, setting="CREDIT_METRICS_PORT")
    build_info.expose("credit_build_info")
    async with relaying(made):
        count = len(made.endpoints.endpoints)
        endpoints = "1 endpoint" if count == 1 else f"{count} endpoints"
        print(f"credit-service {VERSION} relay sends to {endpoints}")
        await stop.wait()
        _log.info("stopping: events in flight are recorded, no new ones sent")
    _log.info("stopped")


def _with_operator(work: Callable[[Operator], Awaitable[None]]) -> None:
    settings = cli_start.settings()
    with cli_start.database(settings) as (_, service_url):
        made = _required(settings, service_url)

        async def run() -> None:
            await _require_feed(made.address)
            pool = ReadPool(made.address, 1)
            await pool.open()
            try:
                await work(operate.Operator(pool, made.endpoints.endpoints, print))
            finally:
                await pool.close()

        try:
            asyncio.run(run())
        except LedgerUnavailable as error:
            raise Refused("the database cannot be reached") from error
        except operate.UnknownError as error:
            raise Refused(str(error)) from error
