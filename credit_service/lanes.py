"""The writer lanes: group commit over row locks.

A lane has a queue and at most one transaction in flight. While that runs, commands pile up, and the
next batch is the whole pile, up to a bound. A call's handler owns no transaction: it waits on a
future, and when it is cancelled it only stops listening. Futures are resolved after the COMMIT and
never before.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING

import asyncpg
import structlog

from credit_service import metrics, store
from credit_service.errors import (
    CreditError,
    InternalError,
    LedgerUnavailable,
    Overloaded,
)
from credit_service.model import Outcome, SpendTogether
from credit_service.postgres import unreachable
from credit_service.transactions import CommitLostError, Transactions

if TYPE_CHECKING:
    from collections.abc import Sequence
    from uuid import UUID

    from credit_service.desk import Terms
    from credit_service.model import Command, Entry
    from credit_service.postgres import Address

_log = structlog.get_logger()

# How often a batch is run again after a fault that another run can heal.
_ATTEMPTS = 5

# For how long a user whose row somebody else kept locked is served apart from the others.
_ASIDE_SECONDS = 10.0

# Another transaction was in the way and is gone by the next attempt: a serialization failure or
# deadlock, a collision over a new account or payment, a user deleted meanwhile, a guard that
# failed, a plan outdated by DDL.
_COLLISIONS = (
    asyncpg.SerializationError,
    asyncpg.DeadlockDetectedError,
    asyncpg.UniqueViolationError,
    asyncpg.ForeignKeyViolationError,
    asyncpg.InvalidCachedStatementError,
    asyncpg.OutdatedSchemaCacheError,
    store.StaleAccountError,
)


@dataclass(slots=True, eq=False)
class _Waiting:
    """A command in the queue, the future its caller awaits, and until when (loop time)."""

    command: Command
    answer: asyncio.Future[Outcome]
    deadline: float


class Lane:
    """One clerk: the queue, and the task that runs what piled up."""

    def __init__(
        self,
        name: str,
        address: Address,
        terms: Terms,
        *,
        adds_users: bool,
        queue_limit: int,
        batch_limit: int,
        locked: dict[UUID, float],
        aside: Lane | None,
    ) -> None:
        """Starts it; it connects when it has something to write.

        Args:
            name: its name in metrics.
            address: the database, as the service's role.
            terms: prices and floor.
            adds_users: whether a purchase for an unknown user adds the user.
            queue_limit: commands that may wait.
            batch_limit: commands that a transaction takes at most.
            locked: takes the users whose rows somebody else kept locked, and until when (loop
                time) they are to be served aside.
            aside: the lane that serves them; None: this one.
        """
        self._locked = locked
        self._aside = aside
        self._transactions = Transactions(address, terms, adds_users=adds_users)
        self._queue_limit = queue_limit
        self._batch_limit = batch_limit
        self._queue: deque[_Waiting] = deque()
        self._filled = asyncio.Event()
        self._closing = False
        self._task = asyncio.create_task(self._run(), name=f"lane {name}")
        self._queued = metrics.QUEUED.labels(name)
        self._queued.set_function(lambda: len(self._queue))

    def submit(self, command: Command, deadline: float) -> asyncio.Future[Outcome]:
        """Puts a command into the queue.

        Args:
            command: what to do.
            deadline: the loop time after which nobody waits; past it the command is not started.

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
        self._queue.append(_Waiting(command, answer, deadline))
        self._filled.set()
        return answer

    def take_over(self, waiting: _Waiting) -> bool:
        """Takes a command from another lane's queue; False, and it does not, once it is closing."""
        if not self._closing:
            self._queue.append(waiting)
            self._filled.set()
        return not self._closing

    async def close(self) -> None:
        """Runs what is queued, takes nothing more, and closes the connection."""
        self._closing = True
        self._filled.set()
        await self._task
        self._transactions.close()

    async def _run(self) -> None:
        while True:
            await self._filled.wait()
            if not self._queue:
                if self._closing:
                    return
                self._filled.clear()
                continue
            batch = self._without_locked(self._take())
            if not batch:
                continue
            started = time.perf_counter()
            try:
                await self._serve(batch)
            except Exception:
                # A lane that died would leave its users waiting for ever.
                _log.exception("lane failed on a batch", commands=len(batch))
                _fail(batch, InternalError)
            metrics.BATCH_COMMANDS.observe(len(batch))
            metrics.BATCH_SECONDS.observe(time.perf_counter() - started)

    def _take(self) -> list[_Waiting]:
        """Takes the pile, up to the bound; what spends several times counts as often."""
        batch: list[_Waiting] = []
        size = 0
        while self._queue:
            command = self._queue[0].command
            size += len(command.spends) if isinstance(command, SpendTogether) else 1
            if batch and size > self._batch_limit:
                break
            batch.append(self._queue.popleft())
        return batch

    def _without_locked(self, batch: list[_Waiting]) -> list[_Waiting]:
        """Hands over what came before its user's row was found locked, and keeps the rest."""
        if not self._locked or self._aside is None:
            return batch
        now = asyncio.get_running_loop().time()
        return [
            waiting
            for waiting in batch
            if self._locked.get(waiting.command.user_id, now) <= now
            or not self._aside.take_over(waiting)
        ]

    async def _serve(self, batch: list[_Waiting], lost: Sequence[Entry] = ()) -> None:
        """Answers every call of the batch, running it again or in parts where that can help.

        Args:
            batch: the calls.
            lost: the entries of an earlier run whose COMMIT was sent and never answered.
        """
        for attempt in range(_ATTEMPTS):
            batch = _wanted(batch)
            if not batch:
                return
            try:
                answers = await self._transactions.run([waiting.command for waiting in batch], lost)
            except CommitLostError as fault:
                # Run again on a fresh connection: under the lock the keys tell whether it happened.
                self._note(fault, batch)
                lost = [*lost, *fault.entries]
            except _COLLISIONS as fault:
                self._note(fault, batch)
                await asyncio.sleep(random.uniform(0, 0.01 * 2**attempt))  # noqa: S311
            except asyncpg.LockNotAvailableError as fault:
                self._note(fault, batch)
                await self._serve_unlocked(batch, lost)
                return
            except Exception as fault:  # whatever a single command can bring about
                self._note(fault, batch)
                if unreachable(fault):
                    _fail(batch, LedgerUnavailable)
                elif len(batch) == 1:
                    _log.exception("command failed", call=batch[0].command.call)
                    _fail(batch, InternalError)
                else:
                    await self._serve_halves(batch, lost)
                return
            else:
                for waiting, answer in zip(batch, answers, strict=True):
                    _answer(waiting, answer)
                return
        if len(batch) == 1:
            _fail(batch, LedgerUnavailable)
        else:
            await self._serve_halves(batch, lost)

    async def _serve_unlocked(self, batch: list[_Waiting], lost: Sequence[Entry]) -> None:
        """Serves all but those whose rows somebody else keeps locked.

        These get a second chance in the lane aside. Where they had it, they are told to come again.
        """
        users = {waiting.command.user_id for waiting in batch}
        try:
            locked = users if len(users) == 1 else await self._transactions.find_locked(users)
        except Exception as fault:
            self._note(fault, batch)
            _fail(batch, LedgerUnavailable)
            return
        if not locked:
            # It was another row, or it is free again.
            for user_id in users:
                await self._serve(_of(batch, {user_id}), lost)
            return
        until = asyncio.get_running_loop().time() + _ASIDE_SECONDS
        self._locked.update(dict.fromkeys(locked, until))
        # Another lane knows nothing of lost entries and would call them repeated.
        if len(users) > 1 and not lost:
            batch = self._without_locked(batch)
        _fail(_of(batch, locked), LedgerUnavailable)
        await self._serve(_of(batch, users - locked), lost)

    async def _serve_halves(self, batch: list[_Waiting], lost: Sequence[Entry]) -> None:
        """Halves a batch, and its halves, until the command that spoils it stands alone."""
        middle = len(batch) // 2
        await self._serve(batch[:middle], lost)
        await self._serve(batch[middle:], lost)

    def _note(self, fault: Exception, batch: list[_Waiting]) -> None:
        metrics.BATCH_FAULTS.labels(type(fault).__name__).inc()
        _log.warning("batch disturbed", fault=type(fault).__name__, commands=len(batch))


class Lanes:
    """The lanes of a process, and one aside for users whose rows somebody else keeps locked."""

    def __init__(
        self,
        address: Address,
        terms: Terms,
        *,
        count: int,
        adds_users: bool,
        queue_limit: int,
        batch_limit: int,
    ) -> None:
        """Starts `count` lanes and the one aside; the rest is as for `Lane`."""
        self._locked: dict[UUID, float] = {}

        def lane(name: str, aside: Lane | None) -> Lane:
            return Lane(
                name,
                address,
                terms,
                adds_users=adds_users,
                queue_limit=queue_limit,
                batch_limit=batch_limit,
                locked=self._locked,
                aside=aside,
            )

        self._aside = lane("aside", None)
        self._lanes = [lane(str(number), self._aside) for number in range(count)]

    def of(self, user_id: UUID) -> Lane:
        """Chooses the lane of a user; the only place that may know about shards."""
        if self._locked:
            until = self._locked.get(user_id)
            if until is not None:
                if asyncio.get_running_loop().time() < until:
                    return self._aside
                del self._locked[user_id]
        return self._lanes[user_id.int % len(self._lanes)]

    async def close(self) -> None:
        """Closes all of them, as `Lane.close` does one."""
        await asyncio.gather(*(lane.close() for lane in (*self._lanes, self._aside)))


def _of(batch: list[_Waiting], users: set[UUID]) -> list[_Waiting]:
    return [waiting for waiting in batch if waiting.command.user_id in users]


def _wanted(batch: list[_Waiting]) -> list[_Waiting]:
    """Drops the commands whose callers are gone or whose time has passed."""
    now = asyncio.get_running_loop().time()
    late = [waiting for waiting in batch if waiting.deadline <= now]
    _fail(late, LedgerUnavailable)
    return [waiting for waiting in batch if not waiting.answer.done()]


def _answer(waiting: _Waiting, answer: Outcome | CreditError) -> None:
    if waiting.answer.done():
        return
    if isinstance(answer, CreditError):
        waiting.answer.set_exception(answer)
    else:
        waiting.answer.set_result(answer)


def _fail(batch: list[_Waiting], error: type[InternalError | LedgerUnavailable]) -> None:
    for waiting in batch:
        _answer(waiting, error())
