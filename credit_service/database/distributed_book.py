"""What differs on a distributed book: the texts of statements, and what it does not offer."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import asyncpg
    from asyncpg.pool import PoolConnectionProxy

# On a distributed book the text after this marker replaces its line of SQL.
_DISTRIBUTED = re.compile("^.*-- distributed: (.*)$", re.MULTILINE)

# A distributed book has no common order of transactions.
NOT_OFFERED = (
    "the feed of transactions (StreamTransactions, `credit-service feed`)",
    "webhooks and alerts, which are made from the feed (CREDIT_WEBHOOKS, `credit-service relay`)",
)

# Citus accepts such a foreign key and checks it against its own copy of the table, which is empty.
_UNPLACED_REFERENCES = """
    SELECT DISTINCT reference.conrelid::regclass::text
    FROM pg_constraint AS reference
    WHERE
        reference.contype = 'f'
        AND EXISTS (
            SELECT 1 FROM pg_dist_partition WHERE logicalrelid = reference.confrelid::regclass
        )
        AND NOT EXISTS (
            SELECT 1 FROM pg_dist_partition WHERE logicalrelid = reference.conrelid::regclass
        )
        AND NOT relation_is_a_known_shard(reference.conrelid)
    ORDER BY 1
"""

NO_WEBHOOKS = (
    "webhooks and alerts are made from the feed, which a distributed book does not have: unset"
    " CREDIT_WEBHOOKS"
)


async def is_distributed(connection: asyncpg.Connection | PoolConnectionProxy) -> bool:
    """Tells whether the accounts of this database are split over the nodes of a cluster."""
    if await connection.fetchval("SELECT to_regclass('pg_dist_partition')") is None:
        return False
    found = await connection.fetchval(
        "SELECT 1 FROM pg_dist_partition WHERE logicalrelid = to_regclass('user_credits')"
    )
    return found is not None


async def unplaced_references(connection: asyncpg.Connection) -> list[str]:
    """Names the tables that refer to distributed ones and are not distributed themselves."""
    return [row[0] for row in await connection.fetch(_UNPLACED_REFERENCES)]


def distributed_text(sql: str) -> str:
    """The text of a statement or of a migration for a distributed book."""
    return _DISTRIBUTED.sub(r"\1", sql)
