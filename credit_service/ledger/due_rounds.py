"""Rounds of commands that record what is due: holds end, credits lapse, allowances come.

The sweeper and the watch give them to the lanes like any other caller, so every replica may do it
at the same time. They yield to callers: only one round of the two runs at a time, its size keeps it
short, and a pause follows.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from credit_service.ledger.batches import EXPIRIES_MAX
from credit_service.rules.commands import SERVICE, Expire

if TYPE_CHECKING:
    from collections.abc import Sequence
    from uuid import UUID

    from credit_service.ledger.ledger import Ledger
    from credit_service.rules.model import Outcome

# About how many holds and grants a round settles. If a round takes longer than this, the next is
# smaller; if it is shorter, the next is larger.
_SIZE_MIN, SIZE_MAX = 100, EXPIRIES_MAX
_ROUND_SECONDS = 0.04

# The pause after a round is twice as long as the round, which leaves most of the time to the
# callers. Where they or other programs make a round take long, the pause is no longer than this.
_PAUSE_SECONDS_MAX = 0.05

# How long a command waits for its batch.
_WAIT_SECONDS = 10.0


class DueRounds:
    """Records what is due, in rounds that leave time to the callers.

    Attributes:
        size: about how many holds and grants the next round may settle.
    """

    def __init__(self, ledger: Ledger) -> None:
        """Takes the ledger."""
        self.size = _SIZE_MIN
        self._ledger = ledger
        self._turn = asyncio.Lock()
        self._pause_until = 0.0

    async def record(
        self, users: Sequence[UUID], *, watched: bool = False
    ) -> dict[UUID, Outcome | BaseException]:
        """Records what is due of some users, as much of each as a batch settles.

        Args:
            users: with about `size` due holds and grants together, or one user with more.
            watched: whether they are watched, so that they also get their allowance.

        Returns:
            By user, the outcome or the exception.
        """
        loop = asyncio.get_running_loop()
        async with self._turn:
            await asyncio.sleep(self._pause_until - loop.time())
            started = loop.time()
            answers = await asyncio.gather(
                *(self._record(user_id, watched) for user_id in users), return_exceptions=True
            )
            took = loop.time() - started
            self._pause_until = started + took + min(2 * took, _PAUSE_SECONDS_MAX)
            if took > _ROUND_SECONDS:
                self.size = max(_SIZE_MIN, self.size // 2)
            else:
                self.size = min(SIZE_MAX, self.size * 2)
        return dict(zip(users, answers, strict=True))

    async def _record(self, user_id: UUID, watched: bool) -> Outcome:
        command = Expire(user_id=user_id, caller=SERVICE, watched=watched)
        return await self._ledger.enqueue(command, _WAIT_SECONDS)
