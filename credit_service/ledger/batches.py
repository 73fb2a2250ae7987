"""Batches of calls: each call of one gets an answer, whatever happens to the transaction."""

from __future__ import annotations

import asyncio
import random
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import asyncpg
import structlog

from credit_service.database import statements
from credit_service.database.postgres import unreachable
from credit_service.errors import CreditError, InternalError, LedgerUnavailable, Overloaded
from credit_service.ledger import metrics, store
from credit_service.ledger.transactions import BatchTooSlowError, CommitLostError, Way
from credit_service.rules.commands import NoteTopUp, Purchase, Reverse, SpendTogether

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Sequence
    from uuid import UUID

    from credit_service.ledger.transactions import Transactions
    from credit_service.rules.commands import Command
    from credit_service.rules.model import Entry, Outcome

_log = structlog.get_logger()

# How often a batch is run again after a fault that another run may avoid.
_ATTEMPTS = 5

# Another transaction was in the way and is gone by the next attempt: a serialization failure or
# deadlock, a collision over a new account or payment, a user deleted meanwhile, a guard that
# failed, a plan outdated by DDL, prepared statements that a pooler has lost.
_COLLISIONS = (
    asyncpg.SerializationError,
    asyncpg.DeadlockDetectedError,
    asyncpg.UniqueViolationError,
    asyncpg.ForeignKeyViolationError,
    asyncpg.InvalidCachedStatementError,
    asyncpg.OutdatedSchemaCacheError,
    *statements.LOST,
    store.StaleAccountError,
)


# Faults that a smaller batch may avoid.
_TOO_MUCH = (
    BatchTooSlowError,
    asyncpg.QueryCanceledError,  # the limit on the time of a statement
    asyncpg.IdleInTransactionSessionTimeoutError,
    asyncpg.OutOfMemoryError,
    asyncpg.ProgramLimitExceededError,
)

# Citus refuses to lock rows on several shards: a shard was split, or the book was distributed while
# the service ran.
_SEVERAL_SHARDS = asyncpg.FeatureNotSupportedError

# How many due holds a batch may end, and, once that was too many, how many more after each success.
EXPIRIES_MAX = 500
_MORE_EXPIRIES = 25

# How long a call waits until nothing of its account is due any more.
_DUE_PATIENCE_SECONDS = 2.0


@dataclass(slots=True, eq=False)
class Waiting:
    """A command in a queue and the future its caller awaits.

    Attributes:
        command: what to do.
        answer: what its caller awaits.
        deadline: until when (loop time) it may begin.
        patience: until when (loop time) it waits for an obstacle; None before it meets one.
    """

    command: Command
    answer: asyncio.Future[Outcome]
    deadline: float
    patience: float | None = None


class Left(NamedTuple):
    """The calls of a batch that have no answer yet.

    Attributes:
        stuck: those that met a row which another transaction keeps locked.
        postponed: those about accounts of which more holds are due than a batch may end.
    """

    stuck: list[Stuck]
    postponed: list[Waiting]


class Stuck(NamedTuple):
    """Calls that met a row which another transaction keeps locked.

    Attributes:
        batch: the calls.
        lost: the entries of earlier runs whose COMMIT was sent and never answered.
    """

    batch: list[Waiting]
    lost: Sequence[Entry]


class BatchRunner:
    """Runs batches on one connection, again or in parts where that can help."""

    def __init__(self, transactions: Transactions, batch_limit: int) -> None:
        """Takes the connection, and the maximum number of commands in a transaction."""
        self._transactions = transactions
        self._batch_limit = batch_limit
        self._expiries = EXPIRIES_MAX

    async def serve(
        self, batch: list[Waiting], *, lost: Sequence[Entry] = (), hurried: bool = False
    ) -> Left:
        """Answers every call of the batch except those it returns.

        Args:
            batch: the calls, any number of them: those that had to wait come back together.
            lost: the entries of an earlier run whose COMMIT was sent and never answered.
            hurried: whether to wait only a moment for a lock.
        """
        left = Left([], [])
        for of_one_shard in self._by_shard(batch):
            for part in _parts(of_one_shard, self._batch_limit):
                started = time.perf_counter()
                await self._serve(part, Way(self._expiries, hurried, lost), left)
                metrics.BATCH_COMMANDS.observe(len(part))
                metrics.BATCH_SECONDS.observe(time.perf_counter() - started)
        return left

    async def find_locked(self, batch: list[Waiting]) -> set[UUID] | None:
        """Finds the users whose account rows another transaction has locked at this moment.

        Args:
            batch: calls of these users.

        Returns:
            Those of the users; None where the database did not answer: then the calls are answered.
        """
        try:
            try:
                return await self._find_locked(batch)
            except _SEVERAL_SHARDS:
                await self._transactions.read_shards()
                return await self._find_locked(batch)
        except Exception as fault:
            note(fault, batch)
            fail(batch, LedgerUnavailable)
            return None

    def close(self) -> None:
        """Drops the connection."""
        self._transactions.close()

    async def _find_locked(self, batch: list[Waiting]) -> set[UUID]:
        locked: set[UUID] = set()
        for part in self._by_shard(batch):
            locked |= await self._transactions.find_locked(users_of(part))
        return locked

    def _by_shard(self, batch: list[Waiting]) -> Iterable[list[Waiting]]:
        """Divides calls by the shard of their users: Citus locks rows on one shard only."""
        shards = self._transactions.shards
        if not shards.is_distributed:
            return (batch,)
        parts: dict[int, list[Waiting]] = {}
        for waiting in batch:
            parts.setdefault(shards.shard_of(waiting.command.user_id), []).append(waiting)
        return parts.values()

    async def _serve(self, batch: list[Waiting], way: Way, left: Left) -> None:
        for attempt in range(_ATTEMPTS):
            batch = wanted(batch)
            if not batch:
                return
            try:
                commands = [waiting.command for waiting in batch]
                answers = await self._transactions.run(commands, way)
            except CommitLostError as fault:
                # Run again on a new connection: under the lock, the keys show whether it happened.
                note(fault, batch)
                way = way._replace(lost=[*way.lost, *fault.entries])
            except _COLLISIONS as fault:
                note(fault, batch)
                await asyncio.sleep(random.uniform(0, 0.01 * 2**attempt))  # noqa: S311
            except asyncpg.LockNotAvailableError as fault:
                note(fault, batch)
                left.stuck.append(Stuck(batch, way.lost))
                return
            except Exception as fault:  # any fault that a single command can cause
                note(fault, batch)
                await self._serve_after(fault, batch, way, left)
                return
            else:
                self._answer_all(batch, answers, way, left)
                return
        if len(batch) == 1:
            fail(batch, LedgerUnavailable)
        else:
            await self._serve_less(batch, way, left)

    async def _serve_after(
        self, fault: Exception, batch: list[Waiting], way: Way, left: Left
    ) -> None:
        """Runs less of the batch at a time, if the fault may be due to the batch."""
        too_much = isinstance(fault, _TOO_MUCH)
        if too_much or isinstance(fault, TimeoutError):
            self._expiries = max(1, way.expiries // 2)
        if isinstance(fault, _SEVERAL_SHARDS):
            await self._serve_by_new_map(batch, way, left)
        elif unreachable(fault) and not too_much:
            fail(batch, LedgerUnavailable)
        elif len(batch) > 1 or (too_much and way.expiries > 1):
            await self._serve_less(batch, way, left)
        elif too_much:
            fail(batch, LedgerUnavailable)
        else:
            _log.exception("command failed", call=batch[0].command.call)
            fail(batch, InternalError)

    async def _serve_by_new_map(self, batch: list[Waiting], way: Way, left: Left) -> None:
        """Runs a batch that was made by an old map of the shards, divided by a new one."""
        try:
            await self._transactions.read_shards()
        except Exception as fault:
            note(fault, batch)
            fail(batch, LedgerUnavailable)
            return
        parts = [*self._by_shard(batch)]
        if len(parts) > 1:
            for part in parts:
                await self._serve(part, way, left)
        elif len(batch) > 1 and self._transactions.shards.is_distributed:
            # The map has changed again, or Citus refused one call of the batch.
            await self._serve_less(batch, way, left)
        else:
            fail(batch, LedgerUnavailable)

    async def _serve_less(self, batch: list[Waiting], way: Way, left: Left) -> None:
        """Runs the halves of a batch, and their halves, until the call that spoils it is alone.

        Each half may end half as many due holds, which is all that makes a single call smaller.
        """
        way = way._replace(expiries=max(1, way.expiries // 2))
        middle = len(batch) // 2
        await self._serve(batch[:middle], way, left)
        await self._serve(batch[middle:], way, left)

    def _answer_all(
        self,
        batch: list[Waiting],
        answers: list[Outcome | CreditError | None],
        way: Way,
        left: Left,
    ) -> None:
        self._expiries = min(EXPIRIES_MAX, self._expiries + _MORE_EXPIRIES)
        for waiting, answer in zip(batch, answers, strict=True):
            if answer is not None:
                _answer(waiting, answer)
            elif way.lost:
                # The next batch knows nothing of lost entries.
                _answer(waiting, LedgerUnavailable())
            else:
                left.postponed.append(waiting)


def size_of(command: Command) -> int:
    """How much of a transaction's limit a command takes: one, or one for each of several spends."""
    return len(command.spends) if isinstance(command, SpendTogether) else 1


def names_payment(command: Command) -> bool:
    """Whether a command reads or writes records of a payment."""
    return isinstance(command, Reverse | NoteTopUp) or (
        isinstance(command, Purchase) and command.payment is not None
    )


def _parts(batch: list[Waiting], limit: int) -> Iterator[list[Waiting]]:
    """Divides calls, in their order, into parts of which each fits a transaction."""
    part: list[Waiting] = []
    size = 0
    for waiting in batch:
        more = size_of(waiting.command)
        if part and size + more > limit:
            yield part
            part, size = [], 0
        part.append(waiting)
        size += more
    if part:
        yield part


def users_of(batch: list[Waiting]) -> set[UUID]:
    """The users of these calls."""
    return {waiting.command.user_id for waiting in batch}


def of_users(batch: list[Waiting], users: Collection[UUID]) -> list[Waiting]:
    """Those of the calls that are about these users."""
    return [waiting for waiting in batch if waiting.command.user_id in users]


def by_user(batch: list[Waiting]) -> list[list[Waiting]]:
    """The calls of each user apart."""
    parts: dict[UUID, list[Waiting]] = {}
    for waiting in batch:
        parts.setdefault(waiting.command.user_id, []).append(waiting)
    return list(parts.values())


def wanted(batch: list[Waiting]) -> list[Waiting]:
    """Drops the calls whose callers are gone, and fails those whose time has passed."""
    now = asyncio.get_running_loop().time()
    fail([waiting for waiting in batch if waiting.deadline <= now], LedgerUnavailable)
    return [waiting for waiting in batch if not waiting.answer.done()]


def out_of_patience(batch: list[Waiting], seconds: float) -> list[Waiting]:
    """The calls whose patience has run out; that of the others begins or goes on."""
    now = asyncio.get_running_loop().time()
    late = []
    for waiting in batch:
        if waiting.patience is None:
            waiting.patience = now + seconds
        elif waiting.patience <= now:
            late.append(waiting)
    return late


def postponed(batch: list[Waiting]) -> list[Waiting]:
    """Those of the calls that go on waiting until nothing is due; the others are OVERLOADED."""
    fail(out_of_patience(batch, _DUE_PATIENCE_SECONDS), Overloaded)
    return wanted(batch)


def fail(batch: list[Waiting], error: type[InternalError | LedgerUnavailable | Overloaded]) -> None:
    """Answers every call that has no answer yet with an error of its own."""
    for waiting in batch:
        _answer(waiting, error())


def note(fault: Exception, batch: list[Waiting]) -> None:
    """Counts and logs a fault that made a batch run again, in parts, or not at all."""
    metrics.BATCH_FAULTS.labels(type(fault).__name__).inc()
    _log.warning("batch disturbed", fault=type(fault).__name__, commands=len(batch))


def _answer(waiting: Waiting, answer: Outcome | CreditError) -> None:
    if waiting.answer.done():
        return
    if isinstance(answer, CreditError):
        waiting.answer.set_exception(answer)
    else:
        waiting.answer.set_result(answer)
