"""The composition root: what the service is made of, in the order in which it starts and stops."""

from __future__ import annotations

import asyncio
import gc
import random
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import asyncpg
import structlog
from grpc_health.v1 import health_pb2
from grpc_health.v1.health import aio as health_aio

from credit_service.database import distributed_book, migrations
from credit_service.database.postgres import Absence, absence, missing_protection
from credit_service.database.shard_map import ShardMapError
from credit_service.database.statements import loses_statements
from credit_service.ledger import sweeper
from credit_service.ledger.due_rounds import DueRounds
from credit_service.ledger.feed import Feed
from credit_service.ledger.feed_lag import FeedLag
from credit_service.ledger.lanes import Lanes
from credit_service.ledger.ledger import Ledger
from credit_service.ledger.read_connections import ReadPool
from credit_service.ledger.reads import Reads
from credit_service.ledger.shard_following import follow_shards
from credit_service.ledger.watch import Watchers
from credit_service.ledger.watched_due import WatchedDue
from credit_service.relay.relay import relaying
from credit_service.rpc import access, grpc_server
from credit_service.rpc.interceptor import Interceptor
from credit_service.rpc.open_calls import OpenCalls
from credit_service.rpc.servicer import CreditServicer
from credit_service.runtime import build_info, metrics_port
from credit_service.runtime.start_errors import StartRefusedError
from credit_service.v1 import credit_service_pb2 as pb

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from credit_service.ledger.transactions import WriterSettings
    from credit_service.relay.relay import RelaySettings
    from credit_service.rpc.access import Authenticator
    from credit_service.rpc.tls import ServerCertificate

_log = structlog.get_logger()

_PROBE_SECONDS = 1.0

# Objects made and not yet freed between two rounds of the garbage collector; the default is 700.
_COLLECTOR_THRESHOLD = 10_000

_CONNECT_BACKOFF_SECONDS_MAX = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What the server is made of.

    Attributes:
        listen: host:port; port 0 takes any free one.
        health_listen: host:port of a listener that answers health checks only; None: none.
        writers: settings of the writers; the reads use the same database and terms.
        authenticator: identifies callers.
        certificate: the server's certificate; None: no TLS.
        pool_size: connections for the reads.
        calls_in_flight: calls answered at the same time; more are refused.
        drain_seconds: how long running calls may take to end when the service stops.
        connection_age_seconds: the age of a connection at which its client is asked to reconnect.
        share_port: lets several processes listen on the port.
        metrics_port: the port that Prometheus reads; None: no metrics.
        metrics_host: the address of that port.
        relay: sends webhooks, in one process at a time; None: this process sends none.
    """

    listen: str
    health_listen: str | None
    writers: WriterSettings
    authenticator: Authenticator
    certificate: ServerCertificate | None
    pool_size: int
    calls_in_flight: int
    drain_seconds: float
    connection_age_seconds: float
    share_port: bool
    metrics_port: int | None
    metrics_host: str
    relay: RelaySettings | None = None


async def serve(
    settings: Settings, stop: asyncio.Event, started: Callable[[int], Awaitable[None]]
) -> None:
    """Runs the service until `stop` is set, then drains it.

    Args:
        settings: the server's parts and limits.
        stop: set it to end.
        started: awaited with the port once calls are answered.

    Raises:
        StartRefusedError: the database lacks migrations, a port is taken, or a call has no row in
            the table of rights.
    """
    _require_rights()
    async with AsyncExitStack() as stack:
        if not await _database_ready(settings, stop):
            return
        writers = settings.writers
        pools = ReadPool(writers.address, settings.pool_size), ReadPool(writers.address, 1)
        for pool in pools:
            await pool.open()
            stack.push_async_callback(pool.close)
        lanes = Lanes(writers)
        stack.push_async_callback(lanes.close)
        ledger = Ledger(lanes, Reads(*pools, writers.terms), writers.terms)
        rounds = DueRounds(ledger)
        watched_due = WatchedDue(rounds, writers.terms)
        watchers = Watchers(ledger.reads, watched_due)
        health = health_aio.HealthServicer()
        open_calls = OpenCalls(settings.calls_in_flight)
        interceptor = Interceptor(settings.authenticator, open_calls)
        options = grpc_server.server_options(
            share_port=settings.share_port,
            connection_age_seconds=settings.connection_age_seconds,
            calls_max=settings.calls_in_flight,
        )
        servicer = CreditServicer(ledger, watchers, Feed(pools[0]))
        server = grpc_server.make_server(servicer, health, interceptor, options)
        port = grpc_server.bind(
            server, settings.listen, settings.certificate, setting="CREDIT_LISTEN"
        )
        metrics_port.serve_metrics(
            settings.metrics_host, settings.metrics_port, setting="CREDIT_METRICS_PORT"
        )
        build_info.expose("credit_build_info")
        relay = None
        if settings.relay is not None:
            relay = await stack.enter_async_context(relaying(settings.relay))
        await server.start()
        stack.push_async_callback(
            grpc_server.drain, server, open_calls, port, settings.drain_seconds
        )
        if settings.health_listen is not None:
            await stack.enter_async_context(
                grpc_server.health_listener(
                    settings.health_listen, health, share_port=settings.share_port
                )
            )
        if relay is not None:
            stack.callback(relay.stop)
        stack.push_async_callback(health.enter_graceful_shutdown)
        for task in (
            _probe(ledger, health, settings.authenticator),
            sweeper.sweep(ledger.reads, rounds),
            watchers.poll(),
            watched_due.record(),
            FeedLag(pools[0]).run(),
            follow_shards(pools[0], writers.address.shards),
            grpc_server.close_silent_connections(open_calls, port),
        ):
            stack.push_async_callback(_cancel, asyncio.create_task(task))
        await _set_health(health, serving=True)
        _spare_the_collector()
        await started(port)
        await stop.wait()
        _log.info("stopping: calls in flight are answered, new ones refused")
    _log.info("stopped")


def _require_rights() -> None:
    for method in pb.DESCRIPTOR.services_by_name["CreditService"].methods:
        if method.name not in access.CALLS:
            raise StartRefusedError(f"{method.name} has no row in the table of access.py; add it")


async def _database_ready(settings: Settings, stop: asyncio.Event) -> bool:
    """Waits for the database and checks it; False when the service is stopped meanwhile."""
    address = settings.writers.address
    pause = 0.25
    while not stop.is_set():
        try:
            if address.statements.size and await loses_statements(address.connect):
                address.statements.give_up("seen at the start")
            connection = await address.connect()
            try:
                await _check_database(connection, settings)
            finally:
                await connection.close()
        except asyncpg.InsufficientPrivilegeError as error:
            raise StartRefusedError(
                f"the service's database role lacks rights: {error}; run `credit-service migrate`,"
                " with CREDIT_MIGRATE_URL as the owner of the tables"
            ) from error
        except ShardMapError as error:
            raise StartRefusedError(
                f"{error}; distribute it with `credit-service distribute`"
            ) from error
        except Exception as error:
            if address.statements.notice(error):
                continue
            why = absence(error)
            if why is None:
                raise
            if why is Absence.REFUSED:
                raise StartRefusedError(
                    f"the database refuses the service: {error}; correct CREDIT_DATABASE_URL"
                ) from error
            _log.warning(
                "database not reachable, trying again",
                problem=f"{type(error).__name__}: {error}",
                seconds=round(pause, 2),
            )
            waiting = asyncio.create_task(stop.wait())
            await asyncio.wait({waiting}, timeout=pause * random.uniform(0.8, 1.2))  # noqa: S311
            waiting.cancel()
            pause = min(pause * 2, _CONNECT_BACKOFF_SECONDS_MAX)
        else:
            return True
    return False


async def _check_database(connection: Any, settings: Settings) -> None:
    try:
        missing = await migrations.pending(connection)
    except migrations.MigrationError as error:
        raise StartRefusedError(str(error)) from error
    if missing:
        raise StartRefusedError(
            f"the database lacks the migrations {', '.join(missing)}; run `credit-service migrate`"
            " or start with `credit-service serve --migrate`"
        )
    made_here = await connection.fetchval(
        "SELECT obj_description(oid, 'pg_class') = 'made by credit_service' FROM pg_class"
        " WHERE relname = 'users' AND relnamespace = 'auth'::regnamespace"
    )
    if settings.writers.adds_users and not made_here:
        raise StartRefusedError(
            "CREDIT_USERS=managed needs a user table made by the migrations, and this auth.users"
            " was made by others; set CREDIT_USERS=existing"
        )
    if settings.writers.address.shards.map.is_distributed:
        if settings.relay is not None:
            raise StartRefusedError(distributed_book.NO_WEBHOOKS)
        _log.info("the book is distributed: there is no feed of transactions, and no webhooks")
    for sentence in await missing_protection(connection):
        _log.warning("protection missing: " + sentence)


def _spare_the_collector() -> None:
    """Makes the garbage collector run seldom, and only over objects that calls make.

    Calls leave hardly any cycles, so most of its rounds find nothing. Objects made at the start are
    never freed.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(_COLLECTOR_THRESHOLD)


async def _probe(
    ledger: Ledger, health: health_aio.HealthServicer, authenticator: Authenticator
) -> None:
    """Updates health and identities once a second."""
    serving = True
    while True:
        await asyncio.sleep(_PROBE_SECONDS)
        authenticator.reload()
        try:
            answers = await ledger.reads.check()
        except Exception:
            # The probe must outlive any fault.
            _log.exception("probe failed")
            answers = False
        if answers != serving:
            serving = answers
            _log.warning(
                "a writable database answers again" if answers else "no writable database answers"
            )
            await _set_health(health, serving=answers)


async def _set_health(health: health_aio.HealthServicer, *, serving: bool) -> None:
    state = health_pb2.HealthCheckResponse
    for name in ("", grpc_server.SERVICE_NAME):
        await health.set(name, state.SERVING if serving else state.NOT_SERVING)
    metrics_port.SERVING.set(int(serving))


async def _cancel(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.wait({task})
