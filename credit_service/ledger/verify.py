"""Adds up the whole ledger and names what does not fit; changes nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING

import asyncpg

from credit_service.database.postgres import ALL_PLANS
from credit_service.ledger import store
from credit_service.rules.model import FIRST_USER, user_after

if TYPE_CHECKING:
    from collections.abc import Callable
    from uuid import UUID

_ACCOUNTS_AT_ONCE = 500

# How long a statement over several accounts may take, and one over a single account. Several that
# take longer are verified in halves.
_SECONDS_TOGETHER = 60.0
_SECONDS_ALONE = 600.0

# How much longer it waits for the server to say so.
_GRACE_SECONDS = 30.0


async def verify(
    connection: asyncpg.Connection,
    user_id: UUID | None,
    say: Callable[[str], None],
    progress: Callable[[int], None],
) -> tuple[int, int]:
    """Verifies one account, or all of them.

    The sum of the changes is the balance and the held part, the open holds are what is held, seq
    has no gaps, times can be sent and never fall, refunds stay within their spends, payments are
    credited once, a reversal belongs to one payment, and a kept key names an entry that can answer
    its call. The place in the feed never falls from one entry to the next. A grant is the sum of
    its changes, what holds have pinned is the sum of theirs, and what reversals moved and counted
    is what they return. A top-up is as its last change left it, has succeeded if its payment
    was purchased, and is counted in its month.

    Args:
        connection: to the database.
        user_id: the account; None: all.
        say: called with each fault, a line at a time.
        progress: called with the number of accounts verified so far.

    Returns:
        How many accounts there were, and how many of them have a fault.
    """
    if user_id is not None:
        _, account, _ = await store.get_account(connection, user_id)
        if account is None:
            return 0, 0
    verified = 0
    faulty: set[UUID] = set()
    first: UUID | None = FIRST_USER
    while first is not None:
        user_ids = (
            await store.list_accounts(connection, first, _ACCOUNTS_AT_ONCE)
            if user_id is None
            else [user_id]
        )
        if not user_ids:
            break
        for found, fault in await _find_faults(connection, user_ids):
            faulty.add(found)
            say(f"{found}: {fault}")
        verified += len(user_ids)
        progress(verified)
        first = user_after(user_ids[-1])
        if user_id is not None:
            break
    return verified, len(faulty)


async def _find_faults(
    connection: asyncpg.Connection, user_ids: list[UUID]
) -> list[tuple[UUID, str]]:
    seconds = _SECONDS_TOGETHER if len(user_ids) > 1 else _SECONDS_ALONE
    limit_ms = round(seconds * 1000)
    try:
        async with connection.transaction():
            await connection.execute(f"SET LOCAL statement_timeout = {limit_ms}; {ALL_PLANS}")
            # One statement sees one moment, so that writers need not pause.
            return await store.find_faults(connection, user_ids, seconds=seconds + _GRACE_SECONDS)
    except asyncpg.QueryCanceledError:
        if len(user_ids) == 1:
            raise
    middle = len(user_ids) // 2
    faults = await _find_faults(connection, user_ids[:middle])
    return faults + await _find_faults(connection, user_ids[middle:])
