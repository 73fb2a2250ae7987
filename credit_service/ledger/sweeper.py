"""The sweeper: records what is due of accounts that no call touches: holds end, credits lapse.

No answer ever needs it, because what is due is decided by a comparison. It submits commands like
any other caller, so every replica may run one at the same time. It yields to callers: a round is as
large as it may be without taking long, and a pause follows.
"""

from __future__ import annotations

import asyncio
import random
from typing import TYPE_CHECKING

import structlog

from credit_service.errors import CreditError, UserNotFound
from credit_service.ledger.batches import EXPIRIES_MAX
from credit_service.ledger.contention import Contention
from credit_service.rules.commands import SERVICE, Expire

if TYPE_CHECKING:
    from collections.abc import Iterator
    from uuid import UUID

    from credit_service.ledger.ledger import Ledger

_log = structlog.get_logger()

# How long it waits when nothing is due, and the maximum after failures, each of which doubles it.
_PAUSE_SECONDS = 1.0
_PAUSE_SECONDS_MAX = 10.0

# How many due holds, and how many due grants, one look at the ledger finds.
_LOOK = 5_000

# A round of commands settles about so many holds and grants. It takes no longer than this, or the
# next is smaller; a shorter one is followed by a larger one.
_ROUND_MIN, _ROUND_MAX = 100, EXPIRIES_MAX
_ROUND_SECONDS = 0.04

# After a round it pauses for twice as long as the round took, which leaves most of the time to the
# callers. Where they or other programs make it take long, it pauses no longer than this.
_REST_SECONDS_MAX = 0.05

# How long a command waits for its batch.
_WAIT_SECONDS = 10.0

# For how long it leaves out a user of whom it could not record what is due.
_LEFT_OUT_SECONDS = 10.0


async def sweep(ledger: Ledger) -> None:
    """Records what is due: once a second, or without a pause while there is more."""
    sweeper = Sweeper(ledger)
    pause = _PAUSE_SECONDS
    while True:
        try:
            more = await sweeper.record_due()
        except Exception as error:  # Whatever it is, it must not end the sweeper.
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
    """Records what is due, in rounds that leave time to the callers."""

    def __init__(self, ledger: Ledger) -> None:
        """Takes the ledger."""
        self._ledger = ledger
        self._left_out = Contention(_LEFT_OUT_SECONDS)
        self._round = _ROUND_MIN

    async def record_due(self) -> bool:
        """Records what has been due for longest.

        Returns:
            Whether there was more than one look finds or one round settles.

        Raises:
            CreditError: not one of a round could be recorded: the database is away, or busy.
        """
        now = asyncio.get_running_loop().time()
        self._left_out.forget(now)
        due = await self._ledger.reads.due_users(_LOOK, self._left_out.users)
        for users in self._rounds(due):
            await self._record(users)
        counts = [count for _, count in due]
        return sum(counts) >= _LOOK or max(counts, default=0) > _ROUND_MAX

    def _rounds(self, due: list[tuple[UUID, int]]) -> Iterator[list[UUID]]:
        """Divides the users so that each part is one round, or one user with more."""
        users: list[UUID] = []
        settled = 0
        for user_id, count in due:
            if users and settled + count > self._round:
                yield users
                users, settled = [], 0
            users.append(user_id)
            settled += count
        if users:
            yield users

    async def _record(self, users: list[UUID]) -> None:
        loop = asyncio.get_running_loop()
        started = loop.time()
        answers = await asyncio.gather(
            *(
                self._ledger.enqueue(Expire(user_id=user_id, caller=SERVICE), _WAIT_SECONDS)
                for user_id in users
            ),
            return_exceptions=True,
        )
        took = loop.time() - started
        faults = {
            user_id: answer
            for user_id, answer in zip(users, answers, strict=True)
            # Of a user who was deleted meanwhile nothing is due any more.
            if isinstance(answer, BaseException) and not isinstance(answer, UserNotFound)
        }
        if faults:
            self._left_out.mark(faults, loop.time())
            if len(faults) == len(users):
                raise next(iter(faults.values()))
        if took > _ROUND_SECONDS:
            self._round = max(_ROUND_MIN, self._round // 2)
        else:
            self._round = min(_ROUND_MAX, self._round * 2)
        await asyncio.sleep(min(2 * took, _REST_SECONDS_MAX))
