"""Adds up the whole ledger and names every fault; changes nothing."""

from __future__ import annotations

import asyncio
from itertools import groupby
from operator import itemgetter
from typing import TYPE_CHECKING

import asyncpg

from credit_service.database.postgres import ALL_PLANS
from credit_service.database.shard_map import Shards
from credit_service.ledger import fault_store, store
from credit_service.rules.model import FIRST_USER, user_after

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from uuid import UUID

    from credit_service.database.shard_map import ShardMap

_ACCOUNTS_AT_ONCE = 500

# How long a statement over several accounts may take, and one over a single account. Several that
# take longer are verified in halves.
_SECONDS_TOGETHER = 60.0
_SECONDS_ALONE = 600.0

# How much longer it waits for the server to report that.
_GRACE_SECONDS = 30.0

# On a distributed book a payment that is being credited is on one shard a moment before it is on
# the other. So a fault of a payment counts only if this many looks in a row find it.
_LOOKS = 3
_PAUSE_SECONDS = 0.25


async def verify(
    connection: asyncpg.Connection,
    user_id: UUID | None,
    say: Callable[[str], None],
    progress: Callable[[int], None],
) -> tuple[int, int]:
    """Verifies one account, or all of them, on a distributed book shard by shard.

    The changes add up to balance and held, the open holds add up to held, seq has no gaps, times
    can be sent and never fall, refunds stay within their spends, payments are credited once, a
    reversal belongs to one payment, and a kept key names an entry that can answer its call. The
    place in the feed never falls from one entry to the next. A grant is the sum of its changes,
    what holds have pinned is the sum of theirs, and what reversals moved and counted is what they
    return. A top-up is as its last change left it, has succeeded if its payment was purchased, and
    is counted in its month.

    Args:
        connection: to the database.
        user_id: the account; None: all.
        say: called with each fault, a line at a time, in the order of the accounts.
        progress: called with the number of accounts verified so far.

    Returns:
        How many accounts there were, and how many of them have a fault.
    """
    shards = Shards()
    await shards.read(connection)
    if user_id is not None:
        _, account, _ = await store.get_account(connection, user_id)
        if account is None:
            return 0, 0
    verified = 0
    faulty: set[UUID] = set()
    first: UUID | None = FIRST_USER
    while first is not None:
        user_ids = (
            await store.list_accounts(
                connection, first, _ACCOUNTS_AT_ONCE * max(1, len(shards.map.starts))
            )
            if user_id is None
            else [user_id]
        )
        if not user_ids:
            break
        faults: list[tuple[UUID, str]] = []
        for together in _of_one_shard(user_ids, shards.map):
            faults += await _find_lasting_faults(
                connection, together, distributed=shards.map.is_distributed
            )
        for found, fault in sorted(faults, key=itemgetter(0)):
            faulty.add(found)
            say(f"{found}: {fault}")
        verified += len(user_ids)
        progress(verified)
        first = user_after(user_ids[-1])
        if user_id is not None:
            break
    return verified, len(faulty)


def _of_one_shard(user_ids: list[UUID], shards: ShardMap) -> Iterator[list[UUID]]:
    """Divides users by their shard, and those of a shard into parts that are verified at once."""
    for _, group in groupby(sorted(user_ids, key=shards.shard_of), key=shards.shard_of):
        users = list(group)
        for start in range(0, len(users), _ACCOUNTS_AT_ONCE):
            yield users[start : start + _ACCOUNTS_AT_ONCE]


async def _find_lasting_faults(
    connection: asyncpg.Connection, user_ids: list[UUID], *, distributed: bool
) -> list[tuple[UUID, str]]:
    faults = await _find_faults(connection, user_ids, distributed=distributed)
    if not distributed:
        return faults
    doubtful = {each for each in faults if fault_store.OF_PAYMENTS.match(each[1])}
    certain = [each for each in faults if each not in doubtful]
    for _ in range(_LOOKS - 1):
        if not doubtful:
            break
        await asyncio.sleep(_PAUSE_SECONDS)
        suspects = sorted({user_id for user_id, _ in doubtful})
        doubtful &= set(await _find_faults(connection, suspects, distributed=True))
    return certain + sorted(doubtful)


async def _find_faults(
    connection: asyncpg.Connection, user_ids: list[UUID], *, distributed: bool
) -> list[tuple[UUID, str]]:
    seconds = _SECONDS_TOGETHER if len(user_ids) > 1 else _SECONDS_ALONE
    limit_ms = round(seconds * 1000)
    try:
        async with connection.transaction():
            await connection.execute(f"SET LOCAL statement_timeout = {limit_ms}; {ALL_PLANS}")
            # One statement sees one moment, so writers need not pause.
            return await fault_store.find_faults(
                connection, user_ids, distributed=distributed, seconds=seconds + _GRACE_SECONDS
            )
    except asyncpg.QueryCanceledError:
        if len(user_ids) == 1:
            raise
    middle = len(user_ids) // 2
    faults = await _find_faults(connection, user_ids[:middle], distributed=distributed)
    return faults + await _find_faults(connection, user_ids[middle:], distributed=distributed)
