"""Delivers the feed to one endpoint: several requests at a time, never two of the same user.

An endpoint takes an event with an answer of 2xx. One that fails blocks its user. As soon as the
endpoint takes an event of another user, blocked events are tried once more, and one that fails
although others were taken since its first try is parked, with all later events of its user. While
the endpoint takes nothing, nothing is parked and its place in the feed does not move.
"""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import structlog

from credit_service.errors import LedgerUnavailable
from credit_service.relay import metrics, parked_store
from credit_service.relay.events import event, event_time, event_type
from credit_service.relay.lease import LeaseLostError
from credit_service.relay.parked_retries import ParkedRetries
from credit_service.relay.parked_store import Parking
from credit_service.relay.sender import Attempt, Result, Sender
from credit_service.relay.window import Slot, Window

if TYPE_CHECKING:
    from uuid import UUID

    from credit_service.ledger.feed import Feed, Value
    from credit_service.ledger.read_connections import ReadPool
    from credit_service.relay.endpoints import Endpoint
    from credit_service.relay.lease import Reader
    from credit_service.relay.store import Connection
    from credit_service.relay.timing import Timing
    from credit_service.rules.feed_values import Place

_log = structlog.get_logger()

IN_FLIGHT = 32

# Items read at a time, and events waiting in the window.
_PAGE = 500
WINDOW = 1_000

# How far it reads on for events of other users while those of a few users fail.
WINDOW_MAX = 5_000

# With this many users blocked it stops sending for others, and now and then tries a few of all.
_BLOCKED_MAX = 16
_TRIED_AT_A_TIME = 4

# The maximum number of log lines for events that are parked at the same time.
_LOGGED_MAX = 10


class Delivery:
    """Sends to one endpoint what it has not taken yet, until it is stopped."""

    def __init__(
        self,
        endpoint: Endpoint,
        reader: Reader,
        pool: ReadPool,
        feed: Feed,
        timing: Timing,
        *,
        private: bool,
    ) -> None:
        """Sends nothing yet.

        Args:
            endpoint: the endpoint.
            reader: its place in the feed, under this process's lease.
            pool: connections to the database.
            feed: what happened.
            timing: all waiting times.
            private: whether addresses that are not globally routable are allowed.

        Raises:
            OSError: the file of the endpoint's authorities cannot be used.
        """
        self._endpoint = endpoint
        self._reader = reader
        self._pool = pool
        self._feed = feed
        self._timing = timing
        self._sender = Sender(
            endpoint, private=private, connections=IN_FLIGHT, attempt_seconds=timing.attempt
        )
        self._window = Window(reader.place)
        self._retries = ParkedRetries(endpoint, reader, pool, feed, timing, sending=self)
        self._sending: set[asyncio.Task[None]] = set()
        self._wake = asyncio.Event()
        self._stopping = False
        self._last_taken = float("-inf")
        self._failed_rounds = 0
        self._down = False
        self._try_blocked_at = 0.0
        self._saved_at = time.monotonic()

    @property
    def takes_nothing(self) -> bool:
        """Whether events wait and the endpoint has taken none since they first failed."""
        return self._down or self._failed_rounds > 0

    @property
    def is_down(self) -> bool:
        """Whether events of many users have failed since the endpoint last took one."""
        return self._down

    @property
    def users_in_flight(self) -> set[UUID]:
        """The users who have an event in flight."""
        return self._window.in_flight

    async def run(self) -> None:
        """Delivers until `stop` is called.

        Raises:
            LeaseLostError: another process has taken over.
        """
        retrying = asyncio.create_task(self._retries.run())
        try:
            while not self._stopping:
                try:
                    await self._turn()
                except LeaseLostError:
                    raise
                except Exception as fault:
                    # The deliveries must outlive any failure.
                    self._complain(fault)
                    await asyncio.sleep(self._timing.pause_after(0))
                if retrying.done():
                    retrying.result()
            await self._end()
        finally:
            for task in (retrying, *self._sending):
                task.cancel()
            await asyncio.gather(retrying, *self._sending, return_exceptions=True)
            await self._sender.close()
            metrics.forget(self._endpoint.name)

    def stop(self) -> None:
        """Lets `run` end once the requests in flight are answered and recorded."""
        self._stopping = True
        self._retries.stop()
        self._wake.set()

    async def attempt(self, place: Place, item: Value) -> Attempt:
        """Sends an event once, and counts it."""
        try:
            ended = await self._sender.send(event(place, item))
        except Exception as fault:
            # A fault of ours must not be tried without a pause, nor stop the events of others.
            self._complain(fault)
            ended = Attempt(Result.FAULT, f"{type(fault).__name__} in the relay", 0.0)
        name = self._endpoint.name
        metrics.ATTEMPTS.labels(name, ended.result.value).inc()
        metrics.ATTEMPT_SECONDS.labels(name).observe(ended.seconds)
        if ended.taken:
            self._note_taken()
        return ended

    def _note_taken(self) -> None:
        self._last_taken = time.monotonic()
        if self._window.blocked:
            self._window.unblock()
            self._wake.set()
        if self._failed_rounds:
            _log.info("endpoint takes events again", endpoint=self._endpoint.name)
        self._failed_rounds = 0
        self._down = False

    async def _turn(self) -> None:
        self._wake.clear()
        waits_for_others = bool(self._window.blocked) and not (
            self._window.has_free or self._window.in_flight
        )
        room = WINDOW_MAX if waits_for_others else WINDOW
        full = True
        if len(self._window) + _PAGE <= room:
            full = await self._fill()
        self._send()
        if self._is_time_to_save():
            await self._save()
        self._show()
        if full and len(self._window) + _PAGE <= WINDOW:
            return
        with suppress(TimeoutError):
            async with asyncio.timeout(self._timing.look):
                await self._wake.wait()

    async def _fill(self) -> bool:
        """Reads a page; returns whether there may be more."""
        page = await self._feed.page(self._window.read, _PAGE)
        found = [
            (place, item, kind)
            for place, item in page.items
            if (kind := event_type(item)) in self._endpoint.types
        ]
        parked: set[UUID] = set()
        users = {place.user_id for place, _, _ in found} - self._window.parking_users()
        if users:
            async with self._pool.lend() as connection:
                parked = await parked_store.find_parked_users(
                    connection, self._endpoint.name, users
                )
        # After the database was read, because an event in flight may have failed meanwhile.
        parked |= self._window.parking_users()
        for place, item, kind in found:
            self._window.add(Slot(place, item, kind), park=place.user_id in parked)
        self._window.read = page.place
        return not page.caught_up and not page.standing

    def _send(self) -> None:
        """Starts the requests that can be sent now."""
        window = self._window
        now = time.monotonic()
        if window.blocked and now >= self._try_blocked_at and not window.in_flight:
            slots = window.take_least_tried(_TRIED_AT_A_TIME, self._retries.users)
            self._failed_rounds += 1
            self._try_blocked_at = now + self._timing.pause_after(self._failed_rounds)
            for slot in slots:
                self._begin(slot)
        if self._down:
            return
        while len(self._sending) < IN_FLIGHT:
            following = window.take(self._retries.users)
            if following is None:
                return
            self._begin(following)

    def _begin(self, slot: Slot) -> None:
        task = asyncio.create_task(self._send_from(slot))
        self._sending.add(task)
        task.add_done_callback(self._sent)

    def _sent(self, task: asyncio.Task[None]) -> None:
        self._sending.discard(task)
        self._wake.set()
        if not task.cancelled() and (fault := task.exception()) is not None:
            self._complain(fault)

    async def _send_from(self, slot: Slot | None) -> None:
        """Sends an event, and then others while there are any and the endpoint takes them."""
        while slot is not None and await self._try(slot):
            if len(self._window) <= _PAGE:
                self._wake.set()
            slot = None if self._stopping else self._window.take(self._retries.users)

    async def _try(self, slot: Slot) -> bool:
        window = self._window
        slot.last_try = time.monotonic()
        if slot.first_try is None:
            slot.first_try = slot.last_try
        try:
            ended = await self.attempt(slot.place, slot.item)
        except BaseException:
            window.not_sent(slot)
            raise
        if ended.taken:
            window.taken(slot)
            return True
        slot.problem = ended.problem
        window.not_taken(slot)
        if self._last_taken >= slot.first_try:
            window.park(slot.place.user_id)
            return False
        self._down = self._down or len(window.blocked) >= _BLOCKED_MAX
        if len(window.blocked) == 1 and not self._failed_rounds:
            self._try_blocked_at = time.monotonic() + self._timing.pause_after(0)
            _log.warning(
                "event not taken",
                endpoint=self._endpoint.name,
                type=slot.type,
                problem=ended.problem,
            )
        return False

    def _is_time_to_save(self) -> bool:
        if self._window.parking:
            return True
        moved = self._window.reached > self._reader.place
        return moved and time.monotonic() - self._saved_at >= self._timing.save

    async def _save(self) -> None:
        """Records the events to be parked and the endpoint's place, in one transaction."""
        window = self._window
        slots = list(window.parking.values())
        place = window.reached_without(slots)
        async with self._reader.writing() as connection:
            if slots:
                await self._park(connection, slots)
            await self._reader.move(connection, place)
        window.parked(slots)
        self._saved_at = time.monotonic()

    async def _park(self, connection: Connection, slots: list[Slot]) -> None:
        name, timing = self._endpoint.name, self._timing
        rows = [
            Parking(
                slot.place,
                slot.type,
                tries=slot.first_try is not None,
                wait_seconds=timing.retry_after(1),
                problem=slot.problem,
            )
            for slot in slots
        ]
        await parked_store.insert_parked(connection, name, rows)
        await parked_store.promote_parked(connection, name, {slot.place.user_id for slot in slots})
        failed = [slot for slot in slots if slot.first_try is not None]
        for slot in failed[:_LOGGED_MAX]:
            _log.warning(
                "event parked",
                endpoint=name,
                type=slot.type,
                user_id=str(slot.place.user_id),
                problem=slot.problem,
            )

    async def _end(self) -> None:
        """Waits a while for requests in flight, and records the endpoint's place."""
        if self._sending:
            await asyncio.wait(self._sending, timeout=self._timing.drain)
        try:
            await self._save()
        except Exception as fault:
            if isinstance(fault, LeaseLostError):
                raise
            self._complain(fault)

    def _show(self) -> None:
        name, first = self._endpoint.name, self._window.first
        lag = 0.0
        if first is not None:
            lag = (datetime.now(UTC) - event_time(first.item)).total_seconds()
        metrics.LAG_SECONDS.labels(name).set(max(0.0, lag))
        metrics.FAILING.labels(name).set(int(self.takes_nothing))

    def _complain(self, fault: BaseException) -> None:
        if isinstance(fault, LedgerUnavailable):
            _log.warning("webhooks wait for the database", endpoint=self._endpoint.name)
        else:
            _log.error(
                "webhooks failed, trying again", endpoint=self._endpoint.name, exc_info=fault
            )
