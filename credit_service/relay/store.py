"""One function per statement of the relay, values in, values out; the statements are in sql/."""

from __future__ import annotations

from importlib import resources
from typing import TYPE_CHECKING, NamedTuple

from credit_service.rules.feed_values import Place

if TYPE_CHECKING:
    from datetime import datetime

    import asyncpg
    from asyncpg.pool import PoolConnectionProxy

    Connection = asyncpg.Connection | PoolConnectionProxy

SQL = {
    file.name.removesuffix(".sql"): file.read_text()
    for file in (resources.files(__package__) / "sql").iterdir()
    if file.name.endswith(".sql")
}


class Holder(NamedTuple):
    """The holder of the lease, and for how many seconds; below zero it has run out."""

    name: str
    fence: int
    seconds: float


class ReaderPlace(NamedTuple):
    """How far a reader has come, and when it last moved."""

    name: str
    place: Place
    moved_at: datetime


async def take_lease(connection: Connection, holder: str, seconds: float) -> int | None:
    """Takes the lease; returns its fence, or None while another process has it."""
    fence: int | None = await connection.fetchval(SQL["take_lease"], holder, int(seconds * 1000))
    return fence


async def renew_lease(connection: Connection, fence: int, seconds: float) -> bool:
    """Keeps the lease for longer; returns whether it is still this process's."""
    return await connection.fetchval(SQL["renew_lease"], fence, int(seconds * 1000)) is not None


async def end_lease(connection: Connection, fence: int) -> None:
    """Gives the lease back."""
    await connection.execute(SQL["end_lease"], fence)


async def show_lease(connection: Connection) -> Holder | None:
    """Reads the present or last holder of the lease; None: it was never taken."""
    row = await connection.fetchrow(SQL["show_lease"])
    return None if row is None else Holder(*row)


async def claim_reader(
    connection: Connection, reader: str, fence: int, beginning: Place
) -> Place | None:
    """Makes a reader this process's own.

    Args:
        connection: to the database.
        reader: its name.
        fence: the fence of this process's lease.
        beginning: where it begins if it is new.

    Returns:
        Its place; None where a process with a later lease has it.
    """
    row = await connection.fetchrow(SQL["claim_reader"], reader, fence, *beginning)
    return None if row is None else Place(*row)


async def lock_reader(connection: Connection, reader: str, fence: int) -> bool:
    """Locks a reader; returns whether it is still this process's."""
    return await connection.fetchval(SQL["lock_reader"], reader, fence) is not None


async def move_reader(connection: Connection, reader: str, place: Place) -> None:
    """Moves a reader on, never back."""
    await connection.execute(SQL["move_reader"], reader, *place)


async def list_readers(connection: Connection) -> list[ReaderPlace]:
    """Lists how far all readers have come."""
    rows = await connection.fetch(SQL["list_readers"])
    return [ReaderPlace(row[0], Place(*row[1:5]), row[5]) for row in rows]
