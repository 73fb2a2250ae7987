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

from credit_service.database.postgres import unreachable
from credit_service.errors import (
    CreditError,
    InternalError,
    LedgerUnavailable,
    Overloaded,
)
from credit_service.ledger import metrics, store
from credit_service.ledger.transactions import CommitLostError, Transactions
from credit_service.rules.commands import SpendTogether

if TYPE_CHECKING:
    from collections.abc import Sequence
    from uuid import UUID

    from credit_service.database.postgres import Address
    from credit_service.rules.commands import Command
    from credit_service.rules.model import Entry, Outcome
    from credit_service.rules.terms import Terms

_log = structlog.get_logger()

# How often a batch is run again after a fault that another run can heal.
_ATTEMPTS = 5

# For how long a user whose row somebody else kept locked is served apart from the others.
_CONTENDED_SECONDS = 10.0

# How long a call waits for its contended row, and how often the row is looked at.
_PATIENCE_SECONDS = 0.5
_GLANCE_SECONDS = 0.025

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
    """A command in the queue and the future its caller awaits.

    Attributes:
        command: what to do.
        answer: what its caller awaits.
        deadline: until when (loop time).
        patience: until when (loop time) it waits for its contended row; None before it does.
    """

    command: Command
    answer: asyncio.Future[Outcome]
    deadline: float
    patience: float | None = None


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
        contended: Lane | None,
    ) -> None:
        """Starts it; it connects when it has something to write.

        Args:
            name: its name in metrics.
            address: the database, as the service's role.
            terms: prices and floor.
            adds_users: whether a purchase for an unknown user adds the user.
            queue_limit: commands that may wait.
            batch_limit: commands that a transaction takes at most.
            locked: takes the users whose rows another transaction kept locked, and until when
                (loop time) the contended lane serves them.
            contended: the lane that serves them; None: this one.
        """
        self._locked = locked
        self._contended = contended
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
                await self._serve_pile(batch)
            except Exception:
                # A lane that died would leave its users waiting for ever.
                _log.exception("batch failed in its lane", commands=len(batch))
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
        if not self._locked or self._contended is None:
            return batch
        now = asyncio.get_running_loop().time()
        for user_id in [user_id for user_id, until in self._locked.items() if until <= now]:
            del self._locked[user_id]
        return [
            waiting
            for waiting in batch
            if waiting.command.user_id not in self._locked or not self._contended.take_over(waiting)
        ]

    async def _serve_pile(self, batch: list[_Waiting]) -> None:
        await self._serve(batch)

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
                commands = [waiting.command for waiting in batch]
                answers = await self._transactions.run(commands, lost, hurried=self._hurried())
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
        """Serves all but those whose rows are kept locked; these wait in the contended lane."""
        users = {waiting.command.user_id for waiting in batch}
        try:
            locked = await self._find_locked(users)
        except Exception as fault:
            self._note(fault, batch)
            _fail(batch, LedgerUnavailable)
            return
        if not locked:
            # It was another row, or it is free again.
            for user_id in users:
                await self._serve(_of(batch, {user_id}), lost)
            return
        self._mark_contended(locked)
        # Another lane knows nothing of lost entries and would call them repeated.
        if not lost:
            batch = self._without_locked(batch)
        _fail(_of(batch, locked), LedgerUnavailable)
        await self._serve(_of(batch, users - locked), lost)

    async def _find_locked(self, users: set[UUID]) -> set[UUID]:
        if len(users) == 1:
            return users
        locked = await self._transactions.find_locked(users)
        if locked:
            # Another process has its rows locked too, but never for long.
            await asyncio.sleep(_GLANCE_SECONDS)
            locked = await self._transactions.find_locked(locked)
        return locked

    def _mark_contended(self, users: set[UUID]) -> None:
        until = asyncio.get_running_loop().time() + _CONTENDED_SECONDS
        self._locked.update(dict.fromkeys(users, until))

    def _hurried(self) -> bool:
        # Where some rows are kept locked there are more to be met.
        return self._contended is not None and bool(self._locked)

    async def _serve_halves(self, batch: list[_Waiting], lost: Sequence[Entry]) -> None:
        """Halves a batch, and its halves, until the command that spoils it stands alone."""
        middle = len(batch) // 2
        await self._serve(batch[:middle], lost)
        await self._serve(batch[middle:], lost)

    def _note(self, fault: Exception, batch: list[_Waiting]) -> None:
        metrics.BATCH_FAULTS.labels(type(fault).__name__).inc()
        _log.warning("batch fault", fault=type(fault).__name__, commands=len(batch))


class _ContendedLane(Lane):
    """Serves whom it finds unlocked and looks at the others again.

    It holds no row while it waits for another: two processes would keep a row from each other for
    as long as a third row is locked.
    """

    async def _serve_pile(self, batch: list[_Waiting]) -> None:
        users = {waiting.command.user_id for waiting in batch}
        try:
            locked = await self._transactions.find_locked(users)
        except Exception as fault:
            self._note(fault, batch)
            _fail(batch, LedgerUnavailable)
            return
        await self._serve(_of(batch, users - locked))
        if locked:
            self._put_back(_of(batch, locked))
            await asyncio.sleep(_GLANCE_SECONDS)

    async def _serve_unlocked(self, batch: list[_Waiting], lost: Sequence[Entry]) -> None:
        users = {waiting.command.user_id for waiting in batch}
        if len(users) > 1:
            # It may be a row that no look shows, of the user table for example.
            for user_id in users:
                await self._serve(_of(batch, {user_id}), lost)
        elif lost:
            _fail(batch, LedgerUnavailable)
        else:
            self._put_back(batch)

    def _put_back(self, batch: list[_Waiting]) -> None:
        now = asyncio.get_running_loop().time()
        for waiting in batch:
            waiting.patience = waiting.patience or now + _PATIENCE_SECONDS
        late = [waiting for waiting in batch if (waiting.patience or now) <= now]
        self._mark_contended({waiting.command.user_id for waiting in late})
        _fail(late, LedgerUnavailable)
        self._queue.extendleft(each for each in reversed(_wanted(batch)))
        self._filled.set()

    def _hurried(self) -> bool:
        return True


class Lanes:
    """The lanes of a process, and one for users whose rows another transaction keeps locked."""

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
        """Starts `count` lanes and the contended one; the rest is as for `Lane`."""
        self._locked: dict[UUID, float] = {}

        def lane(kind: type[Lane], name: str, contended: Lane | None) -> Lane:
            return kind(
                name,
                address,
                terms,
                adds_users=adds_users,
                queue_limit=queue_limit,
                batch_limit=batch_limit,
                locked=self._locked,
                contended=contended,
            )

        self._contended = lane(_ContendedLane, "contended", None)
        self._lanes = [lane(Lane, str(number), self._contended) for number in range(count)]

    def of(self, user_id: UUID) -> Lane:
        """Chooses the lane of a user; the only place that may know about shards."""
        if self._locked:
            until = self._locked.get(user_id)
            if until is not None and asyncio.get_running_loop().time() < until:
                return self._contended
        return self._lanes[user_id.int % len(self._lanes)]

    async def close(self) -> None:
        """Closes all of them, as `Lane.close` does one."""
        await asyncio.gather(*(lane.close() for lane in self._lanes))
        await self._contended.close()


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
