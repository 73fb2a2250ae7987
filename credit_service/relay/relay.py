"""The relay: as long as it has the lease, it delivers the feed to every endpoint of the file."""

from __future__ import annotations

import asyncio
import os
import random
import socket
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import structlog

from credit_service.errors import LedgerUnavailable
from credit_service.ledger.feed import Feed
from credit_service.ledger.read_connections import ReadPool, StatementOutdatedError
from credit_service.relay import alerts, metrics
from credit_service.relay.lease import Lease, LeaseLostError, Reader
from credit_service.relay.timing import Timing
from credit_service.rules.feed_values import BEGINNING

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from datetime import timedelta

    from credit_service.database.postgres import Address
    from credit_service.relay.delivery import Delivery
    from credit_service.relay.endpoints import Endpoint, EndpointsFile
    from credit_service.rules.terms import Terms

_log = structlog.get_logger()

_CONNECTIONS = 4
_LOOK_AT_FILE_SECONDS = 1.0


def reader_name(endpoint: str) -> str:
    """The name under which an endpoint's place in the feed is kept."""
    return f"webhook/{endpoint}"


@dataclass(frozen=True, slots=True, kw_only=True)
class AlertSettings:
    """The settings of the alerts.

    Attributes:
        terms: the configured floor and threshold.
        cool_down: how long after an alert about a balance a better level waits.
        expiring_days: how many days before their expiry credits are announced.
    """

    terms: Terms
    cool_down: timedelta
    expiring_days: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RelaySettings:
    """The parts and settings of a relay.

    Attributes:
        address: the database, as the service's role.
        endpoints: where events are sent.
        private: whether addresses that are not globally routable are allowed.
        alerts: the settings of the alerts; None: none are made.
        timing: all waiting times.
    """

    address: Address
    endpoints: EndpointsFile
    private: bool
    alerts: AlertSettings | None = None
    timing: Timing = field(default_factory=Timing)


class Relay:
    """Sends webhooks whenever it is this process's turn."""

    def __init__(self, settings: RelaySettings) -> None:
        """Connects to nothing yet."""
        # Imported here because it loads an HTTP client, which takes a seventh of a start, and most
        # processes send no webhooks.
        from credit_service.relay.delivery import Delivery  # noqa: PLC0415

        self._delivery_class = Delivery
        self._settings = settings
        self._pool = ReadPool(settings.address, _CONNECTIONS)
        self._feed = Feed(self._pool)
        self._stop = asyncio.Event()
        self._deliveries: dict[str, tuple[Delivery, asyncio.Task[None]]] = {}
        self._alerts: asyncio.Task[None] | None = None

    def stop(self) -> None:
        """Lets `run` end once the requests in flight are answered and recorded."""
        self._stop.set()

    async def run(self) -> None:
        """Waits for the lease, sends while it holds it, and waits again, until it is stopped."""
        await self._pool.open()
        holder = f"{socket.gethostname()}:{os.getpid()}"[:100]
        away = False
        try:
            while not self._stop.is_set():
                try:
                    lease = await Lease.take(self._pool, holder, self._settings.timing.lease)
                except (LedgerUnavailable, StatementOutdatedError):
                    if not away:
                        _log.warning("relay waits for the database")
                    away, lease = True, None
                else:
                    away = False
                if lease is not None:
                    await self._hold(lease)
                if not self._stop.is_set():
                    await self._sleep(self._settings.timing.lease / 5 * random.uniform(0.8, 1.2))  # noqa: S311
        finally:
            await self._pool.close()

    async def _hold(self, lease: Lease) -> None:
        """Sends until the relay is stopped or the lease is lost."""
        _log.info("relay sends", fence=lease.fence)
        metrics.ACTIVE.set(1)
        keeping = asyncio.create_task(lease.keep())
        try:
            await self._deliver(lease, keeping)
            await self._end_deliveries()
        except LeaseLostError:
            _log.warning("relay lost its lease", fence=lease.fence)
        except Exception:
            # No failure may end the webhooks for good.
            _log.exception("relay failed, trying again")
        finally:
            metrics.ACTIVE.set(0)
            tasks = [keeping, *self._running()]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            self._deliveries.clear()
            self._alerts = None
            await lease.give_back()

    async def _deliver(self, lease: Lease, keeping: asyncio.Task[None]) -> None:
        """Keeps a delivery running for each endpoint of the file, and follows its changes."""
        file = self._settings.endpoints
        while not self._stop.is_set():
            for name in file.reload():
                await self._end(name)
            for name, endpoint in file.endpoints.items():
                if name not in self._deliveries:
                    await self._begin(lease, endpoint)
            if self._alerts is None and self._settings.alerts is not None:
                await self._begin_alerts(lease, self._settings.alerts)
            waiting = asyncio.create_task(self._stop.wait())
            tasks = {keeping, waiting, *self._running()}
            done, _ = await asyncio.wait(
                tasks, timeout=_LOOK_AT_FILE_SECONDS, return_when=asyncio.FIRST_COMPLETED
            )
            waiting.cancel()
            for task in done - {waiting}:
                task.result()

    def _running(self) -> list[asyncio.Task[None]]:
        alerts = [] if self._alerts is None else [self._alerts]
        return [*alerts, *(task for _, task in self._deliveries.values())]

    async def _begin_alerts(self, lease: Lease, settings: AlertSettings) -> None:
        try:
            end = await self._feed.end()
            reader = await Reader.claim(self._pool, alerts.READER, lease.fence, end)
        except (LedgerUnavailable, StatementOutdatedError) as fault:
            # It is tried again with the next look at the file.
            _log.warning("alerts not begun", problem=str(fault))
            return
        made = alerts.Alerts(
            self._pool,
            self._feed,
            settings.terms,
            cool_down=settings.cool_down,
            expiring_days=settings.expiring_days,
        )
        self._alerts = asyncio.create_task(made.run(reader))

    async def _begin(self, lease: Lease, endpoint: Endpoint) -> None:
        settings = self._settings
        try:
            start = BEGINNING if endpoint.from_beginning else await self._feed.end()
            reader = await Reader.claim(self._pool, reader_name(endpoint.name), lease.fence, start)
            delivery = self._delivery_class(
                endpoint, reader, self._pool, self._feed, settings.timing, private=settings.private
            )
        except (LedgerUnavailable, StatementOutdatedError, OSError) as fault:
            # It is tried again with the next look at the file.
            _log.warning("webhooks not begun", endpoint=endpoint.name, problem=str(fault))
            return
        task = asyncio.create_task(delivery.run())
        self._deliveries[endpoint.name] = delivery, task
        _log.info("webhooks begin", endpoint=endpoint.name, url=endpoint.shown_url)

    async def _end(self, name: str) -> None:
        if name in self._deliveries:
            delivery, task = self._deliveries.pop(name)
            delivery.stop()
            try:
                await task
            finally:
                task.cancel()

    async def _end_deliveries(self) -> None:
        for delivery, _ in self._deliveries.values():
            delivery.stop()
        await asyncio.gather(*(task for _, task in self._deliveries.values()))

    async def _sleep(self, seconds: float) -> None:
        waiting = asyncio.create_task(self._stop.wait())
        await asyncio.wait({waiting}, timeout=seconds)
        waiting.cancel()


@asynccontextmanager
async def relaying(settings: RelaySettings) -> AsyncIterator[Relay]:
    """Sends webhooks for the length of the block, whenever it is this process's turn.

    Yields:
        The relay, which may be asked to stop before the end of the block.
    """
    relay = Relay(settings)
    task = asyncio.create_task(relay.run())
    try:
        yield relay
    finally:
        relay.stop()
        await task
