"""Tries events again that an endpoint did not take, the longest waiting first.

The events of a user are tried in their order: while the first one fails, the others wait.
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Protocol

import structlog

from credit_service.errors import LedgerUnavailable
from credit_service.relay import metrics, parked_store
from credit_service.relay.events import event_type
from credit_service.relay.lease import LeaseLostError

if TYPE_CHECKING:
    from collections.abc import Collection
    from uuid import UUID

    from credit_service.ledger.feed import Feed, Value
    from credit_service.ledger.read_connections import ReadPool
    from credit_service.relay.endpoints import Endpoint
    from credit_service.relay.lease import Reader
    from credit_service.relay.parked_store import Parked
    from credit_service.relay.sender import Attempt
    from credit_service.relay.timing import Timing
    from credit_service.rules.feed_values import Place

_log = structlog.get_logger()

# The number of users whose events are tried again at a time, and of events in a row of a user.
_USERS_AT_A_TIME = 4
_IN_A_ROW = 100

_COUNT_SECONDS = 10.0


class Sending(Protocol):
    """The delivery that sends to the same endpoint."""

    @property
    def takes_nothing(self) -> bool:
        """Whether events wait and the endpoint has taken none since they first failed."""

    @property
    def is_down(self) -> bool:
        """Whether events of many users have failed since the endpoint last took one."""

    @property
    def users_in_flight(self) -> Collection[UUID]:
        """Users who have an event in flight."""

    async def attempt(self, place: Place, item: Value) -> Attempt:
        """Sends an event once."""


class ParkedRetries:
    """The events that are parked for one endpoint.

    Attributes:
        users: those with an event that is being sent from here.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        reader: Reader,
        pool: ReadPool,
        feed: Feed,
        timing: Timing,
        *,
        sending: Sending,
    ) -> None:
        """Tries nothing yet."""
        self.users: set[UUID] = set()
        self._endpoint = endpoint
        self._reader = reader
        self._pool = pool
        self._feed = feed
        self._timing = timing
        self._sending = sending
        self._stopping = False
        self._counted_at = float("-inf")

    def stop(self) -> None:
        """Begins no further attempt."""
        self._stopping = True

    async def run(self) -> None:
        """Tries the events that are due, until it is cancelled.

        Raises:
            LeaseLostError: another process has taken over.
        """
        running: dict[UUID, asyncio.Task[None]] = {}
        try:
            while True:
                for user_id, task in list(running.items()):
                    if task.done():
                        del running[user_id]
                        self.users.discard(user_id)
                        self._look_at(task)
                try:
                    await self._count()
                    if len(running) < _USERS_AT_A_TIME and not self._waits:
                        for user_id in await self._due(_USERS_AT_A_TIME - len(running)):
                            self.users.add(user_id)
                            running[user_id] = asyncio.create_task(self._try_user(user_id))
                except LedgerUnavailable:
                    pass  # the delivery says so
                except Exception:
                    # The retries must outlive any failure.
                    _log.exception("retries failed, trying again", endpoint=self._endpoint.name)
                    await asyncio.sleep(self._timing.pause_after(0))
                if running:
                    await asyncio.wait(
                        running.values(),
                        timeout=self._timing.look,
                        return_when=asyncio.FIRST_COMPLETED,
                    )
                else:
                    await asyncio.sleep(self._timing.look)
        finally:
            for task in running.values():
                task.cancel()
            await asyncio.gather(*running.values(), return_exceptions=True)

    @property
    def _waits(self) -> bool:
        return self._stopping or self._sending.is_down

    def _look_at(self, task: asyncio.Task[None]) -> None:
        fault = task.exception()
        if isinstance(fault, LeaseLostError):
            raise fault
        if fault is not None and not isinstance(fault, LedgerUnavailable):
            _log.error("retry failed", endpoint=self._endpoint.name, exc_info=fault)

    async def _due(self, limit: int) -> list[UUID]:
        busy = {*self.users, *self._sending.users_in_flight}
        async with self._pool.lend() as connection:
            found = await parked_store.find_due_users(connection, self._endpoint.name, busy, limit)
        # Meanwhile the next event of a user may have been started.
        return [user_id for user_id in found if user_id not in self._sending.users_in_flight]

    async def _try_user(self, user_id: UUID) -> None:
        name = self._endpoint.name
        for _ in range(_IN_A_ROW):
            async with self._pool.lend() as connection:
                parked = await parked_store.first_parked(connection, name, user_id)
            if parked is None or self._waits:
                return
            if not await self._try(parked):
                return

    async def _try(self, parked: Parked) -> bool:
        """Tries an event once; returns whether the next one of the user follows at once."""
        name, place = self._endpoint.name, parked.place
        page = await self._feed.page(place._replace(number=place.number - 1), 1)
        if page.standing or place.tx >= page.boundary:
            return False
        # It is gone where its user was deleted.
        item = next((found for at, found in page.items if at == place), None)
        problem = ""
        if item is not None and event_type(item) is not None:
            ended = await self._sending.attempt(place, item)
            problem = ended.problem
        # While the endpoint takes nothing, its answer says nothing about the event.
        old = parked.age_seconds >= self._timing.dead and not self._sending.takes_nothing
        dead = bool(problem) and old
        async with self._reader.writing() as connection:
            if problem:
                wait = None if dead else self._timing.retry_after(parked.tries + 1)
                await parked_store.fail_parked(connection, name, place, problem, wait)
            else:
                await parked_store.delete_parked(connection, name, place)
            if dead or not problem:
                await parked_store.promote_parked(connection, name, [place.user_id])
        if dead:
            _log.error(
                "event given up; `credit-service relay retry` sends it again",
                endpoint=name,
                user_id=str(place.user_id),
                tries=parked.tries + 1,
                problem=problem,
            )
        return dead or not problem

    async def _count(self) -> None:
        if time.monotonic() - self._counted_at < _COUNT_SECONDS:
            return
        name = self._endpoint.name
        async with self._pool.lend() as connection:
            counts = await parked_store.count_parked(connection, name)
            if counts.dead:
                await parked_store.forget_dead(connection, name, self._timing.kept)
        metrics.PARKED.labels(name).set(counts.parked)
        metrics.DEAD.labels(name).set(counts.dead)
        self._counted_at = time.monotonic()
