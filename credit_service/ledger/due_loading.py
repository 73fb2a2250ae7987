"""Finding what is due: holds that end and grants that lapse, in the order of their times."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, NamedTuple

from credit_service.ledger import grant_store, store
from credit_service.rules.commands import Command, Expire
from credit_service.rules.grant_values import Grant
from credit_service.rules.model import Hold

if TYPE_CHECKING:
    from collections.abc import Sequence
    from uuid import UUID

    import asyncpg
    from asyncpg.pool import PoolConnectionProxy

    from credit_service.rules.batch_state import BatchState

_NEVER = datetime.max.replace(tzinfo=UTC)


class Due(NamedTuple):
    """What a batch settles of a user.

    Attributes:
        ends: holds whose time has passed, the soonest first.
        lapses: the seqs of grants whose time has passed, the soonest first.
        next_end: at or before the expiry of every other open hold; None without any.
        next_lapse: at or before the expiry of every other open grant; None without any.
    """

    ends: Sequence[Hold] = ()
    lapses: Sequence[int] = ()
    next_end: datetime | None = None
    next_lapse: datetime | None = None


async def find_due(
    connection: asyncpg.Connection | PoolConnectionProxy,
    state: BatchState,
    commands: list[Command],
    limit: int,
) -> dict[UUID, Due]:
    """Finds the holds that the batch ends and the grants that it lets lapse, by user."""
    now = state.now
    holding: set[UUID] = set()
    lapsing: set[UUID] = set()
    for user_id, user in state.users.items():
        if (user.account.next_hold_expiry or _NEVER) <= now:
            holding.add(user_id)
        if (user.account.next_lapse or _NEVER) <= now:
            lapsing.add(user_id)
    if not (holding or lapsing):
        return {}
    # Callers first, in their order; the sweeper can wait.
    callers = [c.user_id for c in commands if not isinstance(c, Expire)]
    asked = [u for u in dict.fromkeys([*callers, *state.users]) if u in holding or u in lapsing]
    due: dict[UUID, list[Hold | Grant]] = {user_id: [] for user_id in asked}
    if among := [user_id for user_id in asked if user_id in holding]:
        for hold in await store.load_due_holds(connection, among, now, limit + 1):
            due[hold.user_id].append(hold)
    if among := [user_id for user_id in asked if user_id in lapsing]:
        for granted in await grant_store.load_due_grants(connection, among, now, limit + 1):
            due[granted.user_id].append(granted)
            state.users[granted.user_id].grants[granted.seq] = granted
    complete: dict[UUID, None] = {}
    is_full = False
    for user_id, found in due.items():
        found.sort(key=_end)
        # What is due of the users after the one that fills the batch was not loaded.
        if is_full or len(found) > limit:
            state.users[user_id].more_due = is_full = True
            del found[limit:]
            limit = 0
        else:
            limit -= len(found)
            complete[user_id] = None
    ends: dict[UUID, datetime] = {}
    lapses: dict[UUID, datetime] = {}
    if among := [user_id for user_id in complete if user_id in holding]:
        ends = await store.load_next_expiries(connection, among, now)
    if among := [user_id for user_id in complete if user_id in lapsing]:
        lapses = await grant_store.load_next_lapses(connection, among, now)
    return {
        user_id: Due(
            [one for one in found if isinstance(one, Hold)],
            [one.seq for one in found if isinstance(one, Grant)],
            ends.get(user_id)
            if user_id in holding
            else state.users[user_id].account.next_hold_expiry,
            lapses.get(user_id) if user_id in lapsing else state.users[user_id].account.next_lapse,
        )
        for user_id, found in due.items()
        if found or user_id in complete
    }


def _end(due: Hold | Grant) -> tuple[datetime, bool, int]:
    """When it is due; at the same instant, holds end before grants lapse."""
    if isinstance(due, Hold):
        return due.expires_at, False, due.seq
    return due.expire_time or _NEVER, True, due.seq
