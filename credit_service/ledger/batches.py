"""Batches of calls: each call of one gets an answer, whatever happens to the transaction."""

from __future__ import annotations

import asyncio
import random
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import asyncpg
import structlog

from credit_service.database.postgres import unreachable
from credit_service.errors import CreditError, InternalError, LedgerUnavailable
from credit_service.ledger import metrics, store
from credit_service.ledger.transactions import CommitLostError

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence
    from uuid import UUID

    from credit_service.ledger.transactions import Transactions
    from credit_service.rules.commands import Command
    from credit_service.rules.model import Entry, Outcome

_log = structlog.get_logger()

# How often a batch is run again after a fault that another run can heal.
_ATTEMPTS = 5

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
class Waiting:
    """A command in a queue and the future its caller awaits.

    Attributes:
        command: what to do.
        answer: what its caller awaits.
        deadline: until when (loop time) it may begin.
        patience: until when (loop time) it waits for its contended row; None before it does.
    """

    command: Command
    answer: asyncio.Future[Outcome]
    deadline: float
    patience: float | None = None


class Stuck(NamedTuple):
    """Calls that met a row which another transaction keeps locked; they have no answer yet.

    Attributes:
        batch: the calls.
        lost: the entries of earlier runs whose COMMIT was sent and never answered.
    """

    batch: list[Waiting]
    lost: Sequence[Entry]


class BatchRunner:
    """Runs batches on one connection, again or in parts where that can help."""

    def __init__(self, transactions: Transactions) -> None:
        """Takes the connection."""
        self._transactions = transactions

    async def serve(
        self, batch: list[Waiting], lost: Sequence[Entry] = (), *, hurried: bool = False
    ) -> list[Stuck]:
        """Answers every call of the batch but those it returns.

        Args:
            batch: the calls.
            lost: the entries of an earlier run whose COMMIT was sent and never answered.
            hurried: whether to wait for a lock for a moment only.

        Returns:
            The calls that met a locked row.
        """
        stuck: list[Stuck] = []
        started = time.perf_counter()
        await self._serve(batch, lost, stuck, hurried=hurried)
        metrics.BATCH_COMMANDS.observe(len(batch))
        metrics.BATCH_SECONDS.observe(time.perf_counter() - started)
        return stuck

    async def find_locked(self, batch: list[Waiting]) -> set[UUID] | None:
        """Tells whose account's row another transaction has locked at this moment.

        Args:
            batch: calls of these users.

        Returns:
            Those of the users; None where the database did not answer, and then the calls are
            answered.
        """
        try:
            return await self._transactions.find_locked(users_of(batch))
        except Exception as fault:
            note(fault, batch)
            fail(batch, LedgerUnavailable)
            return None

    def close(self) -> None:
        """Drops the connection."""
        self._transactions.close()

    async def _serve(
        self,
        batch: list[Waiting],
        lost: Sequence[Entry],
        stuck: list[Stuck],
        *,
        hurried: bool,
    ) -> None:
        for attempt in range(_ATTEMPTS):
            batch = wanted(batch)
            if not batch:
                return
            try:
                commands = [waiting.command for waiting in batch]
                answers = await self._transactions.run(commands, lost, hurried=hurried)
            except CommitLostError as fault:
                # Run again on a fresh connection: under the lock the keys tell whether it happened.
                note(fault, batch)
                lost = [*lost, *fault.entries]
            except _COLLISIONS as fault:
                note(fault, batch)
                await asyncio.sleep(random.uniform(0, 0.01 * 2**attempt))  # noqa: S311
            except asyncpg.LockNotAvailableError as fault:
                note(fault, batch)
                stuck.append(Stuck(batch, lost))
                return
            except Exception as fault:  # whatever a single command can bring about
                note(fault, batch)
                if unreachable(fault):
                    fail(batch, LedgerUnavailable)
                elif len(batch) == 1:
                    _log.exception("command failed", call=batch[0].command.call)
                    fail(batch, InternalError)
                else:
                    await self._serve_halves(batch, lost, stuck, hurried=hurried)
                return
            else:
                for waiting, answer in zip(batch, answers, strict=True):
                    _answer(waiting, answer)
                return
        if len(batch) == 1:
            fail(batch, LedgerUnavailable)
        else:
            await self._serve_halves(batch, lost, stuck, hurried=hurried)

    async def _serve_halves(
        self,
        batch: list[Waiting],
        lost: Sequence[Entry],
        stuck: list[Stuck],
        *,
        hurried: bool,
    ) -> None:
        """Halves a batch, and its halves, until the command that spoils it is alone."""
        middle = len(batch) // 2
        await self._serve(batch[:middle], lost, stuck, hurried=hurried)
        await self._serve(batch[middle:], lost, stuck, hurried=hurried)


def users_of(batch: list[Waiting]) -> set[UUID]:
    """The users of these calls."""
    return {waiting.command.user_id for waiting in batch}


def of_users(batch: list[Waiting], users: Collection[UUID]) -> list[Waiting]:
    """Those of the calls that are about these users."""
    return [waiting for waiting in batch if waiting.command.user_id in users]


def wanted(batch: list[Waiting]) -> list[Waiting]:
    """Drops the calls whose callers are gone, and fails those whose time has passed."""
    now = asyncio.get_running_loop().time()
    fail([waiting for waiting in batch if waiting.deadline <= now], LedgerUnavailable)
    return [waiting for waiting in batch if not waiting.answer.done()]


def fail(batch: list[Waiting], error: type[InternalError | LedgerUnavailable]) -> None:
    """Answers every call with an error of its own, unless it has an answer."""
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
