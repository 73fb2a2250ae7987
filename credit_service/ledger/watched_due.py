"""Records what is due on watched accounts when its time comes, and not when the sweeper passes.

So a state that a watcher sees has a seq of its own, and an account that is watched gets its
allowance. Accounts that fall due at the same midnight wait here and not in the lanes, which take
them in the sweeper's rounds. No answer needs any of it.
"""

from __future__ import annotations

import asyncio
import contextlib
from datetime import UTC, datetime, timedelta
from itertools import islice
from typing import TYPE_CHECKING

import structlog

from credit_service.errors import UserNotFound
from credit_service.rules.due import next_due
from credit_service.rules.model import Outcome

if TYPE_CHECKING:
    from collections.abc import Mapping
    from uuid import UUID

    from credit_service.ledger.due_rounds import DueRounds
    from credit_service.rules.model import Account
    from credit_service.rules.terms import Terms

_log = structlog.get_logger()

# How long it waits before it tries again what could not be recorded.
_AGAIN = timedelta(seconds=10)

# How long a state waits to be shown until what is due is recorded.
_PATIENCE_SECONDS = 1.0


class WatchedDue:
    """Knows when each watched account falls due. Times are the database's."""

    def __init__(self, rounds: DueRounds, terms: Terms) -> None:
        """Takes what it works with.

        Args:
            rounds: records what is due.
            terms: with the configured allowance.
        """
        self._rounds = rounds
        self._terms = terms
        self._times: dict[UUID, datetime | None] = {}
        self._soonest: datetime | None = None
        self._now = datetime.min.replace(tzinfo=UTC)
        # Users whose time has come, in that order, and the waits that end when each was tried.
        self._due: dict[UUID, asyncio.Future[None]] = {}
        self._any = asyncio.Event()

    @property
    def is_planned(self) -> bool:
        """Whether anything will fall due, so that the time matters."""
        return self._soonest is not None

    def add(self, user_id: UUID) -> None:
        """Begins to watch over a user; nothing falls due before `plan` sets a time."""
        self._times.setdefault(user_id, None)

    def remove(self, user_id: UUID) -> None:
        """Stops watching over a user; what has fallen due is still recorded."""
        del self._times[user_id]

    def plan(self, account: Account) -> None:
        """Notes when an account next falls due, if its user is watched over."""
        if account.user_id in self._times:
            self._plan(account.user_id, next_due(account, self._terms))

    def look(self, now: datetime) -> None:
        """Takes up the users that are due by the present time."""
        self._now = now
        if self._soonest is None or now < self._soonest:
            return
        for user_id, time in self._times.items():
            if time is not None and time <= now:
                self._times[user_id] = None
                self._ask(user_id)
        self._soonest = min((time for time in self._times.values() if time), default=None)

    async def recorded(self, user_id: UUID) -> None:
        """Waits until recording what is due of a user was tried, for a second at most."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_PATIENCE_SECONDS):
                await asyncio.shield(self._ask(user_id))

    async def record(self) -> None:
        """Records what has fallen due, round by round; runs until it is cancelled."""
        while True:
            await self._any.wait()
            users = list(islice(self._due, self._rounds.size))
            if not users:
                self._any.clear()
                continue
            try:
                answers = await self._rounds.record(users, watched=True)
            except Exception as error:
                # This loop must outlive any failure.
                _log.exception("recording what is due failed")
                answers = dict.fromkeys(users, error)
            self._note(answers)

    def _note(self, answers: Mapping[UUID, Outcome | BaseException]) -> None:
        """Plans when each user is due next, and ends the waits for it."""
        faults = []
        for user_id, answer in answers.items():
            if isinstance(answer, Outcome):
                self.plan(answer.account)
            elif not isinstance(answer, UserNotFound) and user_id in self._times:
                faults.append(answer)
                self._plan(user_id, self._now + _AGAIN)
            self._due.pop(user_id).set_result(None)
        if faults:
            problem = type(faults[0]).__name__
            _log.warning("due and not recorded, trying again", users=len(faults), problem=problem)

    def _plan(self, user_id: UUID, time: datetime | None) -> None:
        self._times[user_id] = time
        if time is not None and (self._soonest is None or time < self._soonest):
            self._soonest = time

    def _ask(self, user_id: UUID) -> asyncio.Future[None]:
        if user_id not in self._due:
            self._due[user_id] = asyncio.get_running_loop().create_future()
            self._any.set()
        return self._due[user_id]
