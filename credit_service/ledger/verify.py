"""Adds the whole book up again and names what does not fit; changes nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING
from uuid import UUID

from credit_service.database.postgres import ALL_PLANS
from credit_service.ledger import store

if TYPE_CHECKING:
    from collections.abc import Callable

    import asyncpg

_ACCOUNTS_AT_ONCE = 500
_SECONDS = 600


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
    its call.

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
    last = UUID(int=0)
    while True:
        user_ids = (
            await store.list_accounts(connection, last, _ACCOUNTS_AT_ONCE)
            if user_id is None
            else [user_id]
        )
        if not user_ids:
            break
        async with connection.transaction():
            await connection.execute(f"SET LOCAL statement_timeout = '{_SECONDS}s'; {ALL_PLANS}")
            # One statement sees one moment, so that writers need not pause.
            faults = await store.find_faults(connection, user_ids, seconds=_SECONDS)
        for found, fault in faults:
            faulty.add(found)
            say(f"{found}: {fault}")
        verified += len(user_ids)
        progress(verified)
        last = user_ids[-1]
        if user_id is not None:
            break
    return verified, len(faulty)
