"""The writer lanes: group commit over row locks.

A lane has a queue. While a batch of it is in flight, commands wait in the queue, and the next batch
is the whole queue, up to a bound. When much has piled up, a second batch begins before the first is
committed: the database writes the one while the process decides the other. The two never have a
user in common, so a user has no more than one transaction in flight and is served in order. On a
distributed book this holds for each lane only: a user's purchases with a payment, reversals and
top-up notes go through a lane of their own, and the lock of the account's row decides their order
among the user's other calls.

The handler of a call owns no transaction: it waits for a future, and when it is cancelled it only
stops waiting. Futures are resolved after the COMMIT and never before.
"""

from __future__ import annotations

import asyncio
from collections import deque
from itertools import islice
from typing import TYPE_CHECKING, Protocol

import structlog

from credit_service.errors import InternalError, LedgerUnavailable, Overloaded
from credit_service.ledger import metrics
from credit_service.ledger.batches import (
    BatchRunner,
    Waiting,
    by_user,
    fail,
    names_payment,
    of_users,
    postponed,
    size_of,
    users_of,
)
from credit_service.ledger.contention import GLANCE_SECONDS, ContendedCalls, Contention
from credit_service.ledger.transactions import Transactions

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from uuid import UUID

    from credit_service.ledger.batches import Stuck
    from credit_service.ledger.transactions import WriterSettings
    from credit_service.rules.commands import Command
    from credit_service.rules.model import Entry, Outcome

_log = structlog.get_logger()

# How many waiting commands justify a second batch beside the first. With fewer, one larger batch
# afterwards costs less processor time.
_BESIDE = 45

# The maximum number of batches that a lane has in flight, each on a connection of its own.
_IN_FLIGHT = 2


class Calls(Protocol):
    """Serves the batches of a lane."""

    async def serve(self, batch: list[Waiting]) -> list[Waiting]:
        """Answers the calls of a batch but those it returns, which stay first in the queue."""

    def close(self) -> None:
        """Drops the connection."""


class Lane:
    """A queue, and the task that makes batches of the calls in it."""

    def __init__(self, name: str, calls: Sequence[Calls], settings: WriterSettings) -> None:
        """Starts it; it connects when it has something to write.

        Args:
            name: its name in metrics.
            calls: each serves one batch at a time; while there is little to do, only the first is
                used.
            settings: the bounds of queue and batch.
        """
        self._calls = calls
        self._idle = [*reversed(calls)]
        self._queue_limit = settings.queue_limit
        self._batch_limit = settings.batch_limit
        self._beside = min(_BESIDE, settings.batch_limit)
        self._queue: deque[Waiting] = deque()
        self._kept = 0  # how many calls at the head of the queue had to wait
        self._unseen = 0  # how much came since the queue was looked through
        self._busy: set[UUID] = set()  # the users of the batches in flight
        self._serving: set[asyncio.Task[None]] = set()
        self._changed = asyncio.Event()
        self._closing = False
        self._task = asyncio.create_task(self._run(), name=f"lane {name}")
        self._queued = metrics.QUEUED.labels(name)
        self._queued.set_function(lambda: len(self._queue))

    def submit(self, command: Command, deadline: float) -> asyncio.Future[Outcome]:
        """Puts a command into the queue.

        Args:
            command: what to do.
            deadline: the loop time after which no caller waits; past it the command is not started.

        Returns:
            A future of the outcome; its exception is what `rules.decide` or the lane raised.

        Raises:
            Overloaded: the queue is full.
            LedgerUnavailable: the lane is closing.
        """
        if self._closing:
            raise LedgerUnavailable
        if len(self._queue) >= self._queue_limit:
            raise Overloaded
        answer: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
        self._put(Waiting(command, answer, deadline))
        return answer

    def take_over(self, waiting: Waiting) -> bool:
        """Takes a call from another lane's queue; False, without taking it, once it is closing."""
        if not self._closing:
            self._put(waiting)
        return not self._closing

    async def close(self) -> None:
        """Runs the queued calls, takes no more, and closes the connections."""
        self._closing = True
        self._changed.set()
        await self._task
        for calls in self._calls:
            calls.close()

    def _put(self, waiting: Waiting) -> None:
        self._queue.append(waiting)
        self._unseen += size_of(waiting.command)
        self._changed.set()

    async def _run(self) -> None:
        while self._serving or self._queue or not self._closing:
            await self._changed.wait()
            self._changed.clear()
            while batch := self._take():
                serving = asyncio.create_task(self._serve(self._idle.pop(), batch))
                self._serving.add(serving)

    def _take(self) -> list[Waiting]:
        """Takes the waiting calls, up to the bound, if a batch may begin now.

        Calls of users in a batch in flight stay where they are. Calls that were in a batch before
        and had to wait do not count, because they would keep the others from being served.
        """
        if not self._idle or (self._serving and self._unseen < self._beside):
            return []
        unseen = 0
        batch: list[Waiting] = []
        left: list[Waiting] = []
        size = 0
        for place, waiting in enumerate(self._queue):
            if waiting.command.user_id in self._busy:
                left.append(waiting)
                continue
            if place >= self._kept:
                size += size_of(waiting.command)
                if size > self._batch_limit and len(batch) > self._kept:
                    left.extend(islice(self._queue, place, None))
                    unseen = len(self._queue) - place
                    break
            batch.append(waiting)
        self._unseen = unseen
        if self._serving and size < self._beside:
            return []
        self._queue = deque(left)
        self._kept = 0
        self._busy |= users_of(batch)
        return batch

    async def _serve(self, calls: Calls, batch: list[Waiting]) -> None:
        kept: list[Waiting] = []
        try:
            kept = await calls.serve(batch)
        except Exception:
            # A lane that died would leave its users waiting for ever.
            _log.exception("lane failed on a batch", commands=len(batch))
            fail(batch, InternalError)
        self._queue.extendleft(reversed(kept))
        self._kept += len(kept)
        self._busy -= users_of(batch)
        # Calls of these users that came meanwhile were passed over.
        self._unseen = len(self._queue)
        self._idle.append(calls)
        self._serving.discard(asyncio.current_task())
        self._changed.set()


class OrdinaryCalls:
    """Serves batches as they come; a call that meets a locked row goes on in the contended lane."""

    def __init__(
        self, runner: BatchRunner, contention: Contention, hand_over: Callable[[Waiting], bool]
    ) -> None:
        """Takes what it works with.

        Args:
            runner: runs its batches.
            contention: takes the users whose rows are locked.
            hand_over: gives a call to the contended lane; False: that lane is closing.
        """
        self._runner = runner
        self._contention = contention
        self._hand_over = hand_over

    async def serve(self, batch: list[Waiting]) -> list[Waiting]:
        """Answers the calls of a batch, and hands over those of contended users.

        Returns:
            The calls about accounts of which more holds are due than a batch may end.
        """
        batch = self._without_contended(batch)
        return postponed(await self._serve(batch, ())) if batch else []

    def close(self) -> None:
        """Drops the connection."""
        self._runner.close()

    def _without_contended(self, batch: list[Waiting]) -> list[Waiting]:
        """Hands over calls from before their user's row was found locked, and returns the rest."""
        if not self._contention:
            return batch
        now = asyncio.get_running_loop().time()
        self._contention.forget(now)
        return [
            waiting
            for waiting in batch
            if not self._contention.includes(waiting.command.user_id, now)
            or not self._hand_over(waiting)
        ]

    async def _serve(self, batch: list[Waiting], lost: Sequence[Entry]) -> list[Waiting]:
        # Where some rows are kept locked, more are to be expected.
        left = await self._runner.serve(batch, lost=lost, hurried=bool(self._contention))
        waiting = left.postponed
        for stuck in left.stuck:
            waiting += await self._serve_stuck(stuck)
        return waiting

    async def _serve_stuck(self, stuck: Stuck) -> list[Waiting]:
        """Serves all but those whose rows are kept locked; these go to the contended lane."""
        batch, lost = stuck
        users = users_of(batch)
        locked = await self._find_locked(batch)
        if locked is None:
            return []
        if not locked:
            # Another row was locked, or the row is free again.
            parts = by_user(batch)
            return [waiting for part in parts for waiting in await self._serve(part, lost)]
        self._contention.mark(locked, asyncio.get_running_loop().time())
        # Another lane knows nothing of lost entries and would call them repeated.
        if not lost:
            batch = self._without_contended(batch)
        fail(of_users(batch, locked), LedgerUnavailable)
        rest = of_users(batch, users - locked)
        return await self._serve(rest, lost) if rest else []

    async def _find_locked(self, batch: list[Waiting]) -> set[UUID] | None:
        users = users_of(batch)
        if len(users) == 1:
            return users
        locked = await self._runner.find_locked(batch)
        if locked:
            # Another process has its rows locked too, but never for long.
            await asyncio.sleep(GLANCE_SECONDS)
            locked = await self._runner.find_locked(of_users(batch, locked))
        return locked


class NodeLanes:
    """The lanes of the users of one node, so that an absent node holds up only its own users."""

    def __init__(self, settings: WriterSettings, node: int) -> None:
        """Starts them; each connects when it has something to write.

        Args:
            settings: the database, the number of lanes and their bounds.
            node: its number, from 0.
        """
        self._settings = settings
        self._suffix = f" {node}" if node else ""
        self._contention = contention = Contention()
        self._contended = Lane(
            f"contended{self._suffix}", [ContendedCalls(self._runner(), contention)], settings
        )
        first = node * settings.lanes
        self._lanes = [self._lane(str(first + number)) for number in range(settings.lanes)]
        self._payments: Lane | None = None
        self._closing = False

    def of(self, user_id: UUID) -> Lane:
        """Chooses the lane of a user."""
        if self._is_contended(user_id):
            return self._contended
        return self._lanes[user_id.int % len(self._lanes)]

    def of_payments(self, user_id: UUID) -> Lane:
        """Chooses the lane of a user's calls that name a payment; the first such call makes it.

        Raises:
            LedgerUnavailable: the lanes are closing, and it was not made before.
        """
        if self._is_contended(user_id):
            return self._contended
        if self._payments is None:
            if self._closing:
                raise LedgerUnavailable
            self._payments = self._lane(f"payments{self._suffix}")
        return self._payments

    async def close(self) -> None:
        """Closes all of them, as `Lane.close` does one."""
        self._closing = True
        lanes = self._lanes if self._payments is None else [*self._lanes, self._payments]
        await asyncio.gather(*(lane.close() for lane in lanes))
        await self._contended.close()

    def _is_contended(self, user_id: UUID) -> bool:
        contention = self._contention
        return bool(contention) and contention.includes(user_id, asyncio.get_running_loop().time())

    def _lane(self, name: str) -> Lane:
        calls = [
            OrdinaryCalls(self._runner(), self._contention, self._contended.take_over)
            for _ in range(_IN_FLIGHT)
        ]
        return Lane(name, calls, self._settings)

    def _runner(self) -> BatchRunner:
        return BatchRunner(Transactions(self._settings), self._settings.batch_limit)


class Lanes:
    """The lanes of a process: those of one node, or of each node that the book is split over."""

    def __init__(self, settings: WriterSettings) -> None:
        """Starts the lanes of the first node; those of another are made for its first call."""
        self._settings = settings
        self._shards = settings.address.shards
        self._nodes = [NodeLanes(settings, 0)]
        self._closing = False

    def submit(self, command: Command, deadline: float) -> asyncio.Future[Outcome]:
        """Gives a command to its lane, as `Lane.submit` does.

        Raises:
            Overloaded: the lane is full.
            LedgerUnavailable: the lanes are closing.
        """
        lanes = self._of_node(command.user_id)
        # A payment may be on another node than its user. Then the batch commits in two phases, and
        # no other call should wait for that.
        if self._shards.map.is_distributed and names_payment(command):
            return lanes.of_payments(command.user_id).submit(command, deadline)
        return lanes.of(command.user_id).submit(command, deadline)

    def of(self, user_id: UUID) -> Lane:
        """Chooses the lane of a user, for calls that name no payment."""
        return self._of_node(user_id).of(user_id)

    async def close(self) -> None:
        """Closes all of them, as `Lane.close` does one."""
        self._closing = True
        await asyncio.gather(*(lanes.close() for lanes in self._nodes))

    def _of_node(self, user_id: UUID) -> NodeLanes:
        node = self._shards.map.node_of_user(user_id)
        if self._closing and node >= len(self._nodes):
            raise LedgerUnavailable
        while node >= len(self._nodes):
            self._nodes.append(NodeLanes(self._settings, len(self._nodes)))
        return self._nodes[node]
