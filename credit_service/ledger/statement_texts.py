"""The texts of the ledger's statements, on one database and on a distributed book."""

from __future__ import annotations

from importlib import resources
from typing import TYPE_CHECKING

from credit_service.database.distributed_book import distributed_text

if TYPE_CHECKING:
    import asyncpg
    from asyncpg.pool import PoolConnectionProxy

SQL = {
    file.name.removesuffix(".sql"): file.read_text()
    for file in (resources.files(__package__) / "sql").iterdir()
    if file.name.endswith(".sql")
}

# On a distributed book a statement is of one shard only. PostgreSQL alone would be slowed down by
# these texts, or choose other plans.
DISTRIBUTED_SQL = {name: distributed_text(text) for name, text in SQL.items()}


def text(connection: asyncpg.Connection | PoolConnectionProxy, name: str) -> str:
    """The text of a statement for the book that a connection leads to."""
    return (DISTRIBUTED_SQL if of_distributed_book(connection) else SQL)[name]


def of_distributed_book(connection: asyncpg.Connection | PoolConnectionProxy) -> bool:
    """Whether a connection leads to a distributed book, by the map that was read last."""
    # A connection that other code made has no such attribute.
    return getattr(connection, "is_distributed", False)
