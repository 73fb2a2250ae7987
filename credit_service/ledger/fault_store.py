"""Finds faults in the book, on one database and on a distributed book."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from credit_service.ledger.statement_texts import DISTRIBUTED_SQL, SQL

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping
    from uuid import UUID

    import asyncpg

# The beginnings of faults found by comparing entries with the records of their payments.
OF_PAYMENTS = re.compile(r"payment |the reversals of |reversal |grant \d+ says that reversals ")

_PURCHASE_COLUMNS, _REVERSAL_COLUMNS = 4, 6


async def find_faults(
    connection: asyncpg.Connection, user_ids: Collection[UUID], *, distributed: bool, seconds: float
) -> list[tuple[UUID, str]]:
    """Names every fault of the accounts.

    On a distributed book the purchases and reversals are read first, because they are on other
    shards than their users. So the changes of a payment between the two reads can look like a
    fault.

    Args:
        connection: in a transaction.
        user_ids: the accounts; on a distributed book all of one shard.
        distributed: whether the book is distributed.
        seconds: how long a statement may take.

    Returns:
        An account and a sentence for each fault.
    """
    texts: Mapping[str, str] = SQL
    payments: list[list[object]] = []
    if distributed:
        texts = DISTRIBUTED_SQL
        rows = await connection.fetch(SQL["list_payments"], user_ids, timeout=seconds)
        refs = [row[0] for row in rows]
        bought = await connection.fetch(SQL["load_purchases"], refs, timeout=seconds)
        returned = await connection.fetch(SQL["load_reversals_of_payments"], refs, timeout=seconds)
        payments = [
            *([row[column] for row in bought] for column in range(_PURCHASE_COLUMNS)),
            *([row[column] for row in returned] for column in range(_REVERSAL_COLUMNS)),
        ]
    rows = await connection.fetch(texts["find_faults"], user_ids, *payments, timeout=seconds)
    return [(row[0], row[1]) for row in rows]
