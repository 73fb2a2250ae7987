"""The sweeper: records what is due of accounts that no call touches: holds end, credits lapse.

No answer ever needs it, because a comparison decides what is due.
"""

from __future__ import annotations

import asyncio
import random
from typing import TYPE_CHECKING

import structlog

from credit_service.errors import CreditError, UserNotFound
from credit_service.ledger.contention import Contention
from credit_service.ledger.due_rounds import SIZE_MAX

if TYPE_CHECKING:
    from collections.abc import Iterator
    from uuid import UUID

    from credit_service.ledger.due_rounds import DueRounds
    from credit_service.ledger.reads import Reads

_log = structlog.get_logger()

# How long it waits when nothing is due, and the maximum wait; each failure doubles the wait.
_PAUSE_SECONDS = 1.0
_PAUSE_SECONDS_MAX = 10.0

# How many due holds, and how many due grants, one look at the ledger finds.
_LOOK = 5_000

# How long it leaves out a user after a failure to record what is due of that user.
_LEFT_OUT_SECONDS = 10.0


async def sweep(reads: Reads, rounds: DueRounds) -> None:
    """Records what is due: once a second, or without a pause while there is more."""
    sweeper = Sweeper(reads, rounds)
    pause = _PAUSE_SECONDS
    while True:
        try:
            more = await sweeper.record_due()
        except Exception as error:  # The sweeper must outlive any failure.
            if isinstance(error, CreditError):
                _log.warning("expiry not recorded, trying again", problem=error.reason)
            else:
                _log.exception("sweeper failed")
            await asyncio.sleep(pause * random.uniform(0.5, 1.0))  # noqa: S311
            pause = min(pause * 2, _PAUSE_SECONDS_MAX)
        else:
            pause = _PAUSE_SECONDS
            if not more:
                await asyncio.sleep(pause)


class Sweeper:
    """Finds what is due and has it recorded."""

    def __init__(self, reads: Reads, rounds: DueRounds) -> None:
        """Takes what finds it and what records it."""
        self._reads = reads
        self._rounds = rounds
        self._left_out = Contention(_LEFT_OUT_SECONDS)

    async def record_due(self) -> bool:
        """Records what has been due for longest.

        Returns:
            Whether there was more than one look finds or one round settles.

        Raises:
            CreditError: no user of the round could be recorded: the database is away, or busy.
        """
        now = asyncio.get_running_loop().time()
        self._left_out.forget(now)
        due = await self._reads.due_users(_LOOK, self._left_out.users)
        for users in self._parts(due):
            await self._record(users)
        counts = [count for _, count in due]
        return sum(counts) >= _LOOK or max(counts, default=0) > SIZE_MAX

    def _parts(self, due: list[tuple[UUID, int]]) -> Iterator[list[UUID]]:
        """Divides the users so that each part is one round, or one user with more."""
        users: list[UUID] = []
        settled = 0
        for user_id, count in due:
            if users and settled + count > self._rounds.size:
                yield users
                users, settled = [], 0
            users.append(user_id)
            settled += count
        if users:
            yield users

    async def _record(self, users: list[UUID]) -> None:
        faults = {
            user_id: answer
            for user_id, answer in (await self._rounds.record(users)).items()
            # Nothing is due any more of a user who was deleted meanwhile.
            if isinstance(answer, BaseException) and not isinstance(answer, UserNotFound)
        }
        if faults:
            self._left_out.mark(faults, asyncio.get_running_loop().time())
            if len(faults) == len(users):
                raise next(iter(faults.values()))
