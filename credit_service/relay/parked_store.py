"""The events that are parked: one function per statement, values in, values out."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from credit_service.database.statements import fetch_by_values
from credit_service.relay.store import SQL
from credit_service.rules.feed_values import Place

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence
    from datetime import datetime
    from uuid import UUID

    from credit_service.relay.store import Connection

# The count at which counting stops.
COUNT_MAX = 100_000


class Parking(NamedTuple):
    """An event to park.

    Attributes:
        type: of the event.
        tries: how often it was tried; 0 for one that only follows another.
        wait_seconds: how long until it is tried again.
        problem: why it was not taken.
    """

    place: Place
    type: str
    tries: int
    wait_seconds: float
    problem: str


class Parked(NamedTuple):
    """The event of a user that is tried next.

    Attributes:
        tries: how often it was tried.
        age_seconds: how long it has been parked.
    """

    place: Place
    tries: int
    age_seconds: float


class Listed(NamedTuple):
    """An event that is parked or dead, as it is shown to operators."""

    place: Place
    type: str
    tries: int
    problem: str
    parked_at: datetime
    next_try: datetime | None
    dead_at: datetime | None


class Counts(NamedTuple):
    """How many events are parked, and how many are dead; both up to `COUNT_MAX`."""

    parked: int
    dead: int


async def find_parked_users(
    connection: Connection, endpoint: str, user_ids: Collection[UUID]
) -> set[UUID]:
    """Finds which of the users have events that are parked and not dead."""
    rows = await connection.fetch(SQL["find_parked_users"], endpoint, list(user_ids))
    return {row[0] for row in rows}


async def insert_parked(connection: Connection, endpoint: str, events: Sequence[Parking]) -> None:
    """Puts events by."""
    await connection.execute(
        SQL["insert_parked"],
        endpoint,
        [event.place.user_id for event in events],
        [event.place.tx for event in events],
        [event.place.kind for event in events],
        [event.place.number for event in events],
        [event.type for event in events],
        [event.tries for event in events],
        [int(event.wait_seconds * 1000) for event in events],
        [event.problem for event in events],
    )


async def promote_parked(connection: Connection, endpoint: str, user_ids: Collection[UUID]) -> None:
    """Makes the first event of each user due, unless it already waits for its time."""
    await connection.execute(SQL["promote_parked"], endpoint, list(user_ids))


async def find_due_users(
    connection: Connection, endpoint: str, busy: Collection[UUID], limit: int
) -> list[UUID]:
    """Finds users who have an event that is due to be tried, the longest waiting first.

    Args:
        connection: to the database.
        endpoint: its name.
        busy: users to leave out.
        limit: the maximum number of rows to look at.
    """
    rows = await connection.fetch(SQL["find_due_users"], endpoint, list(busy), limit)
    return list(dict.fromkeys(row[0] for row in rows))


async def first_parked(connection: Connection, endpoint: str, user_id: UUID) -> Parked | None:
    """Finds the first event of a user that is parked and not dead."""
    row = await connection.fetchrow(SQL["first_parked"], endpoint, user_id)
    return None if row is None else Parked(Place(*row[:4]), row[4], row[5])


async def delete_parked(connection: Connection, endpoint: str, place: Place) -> None:
    """Deletes an event that the endpoint has, or that is gone from the ledger."""
    await connection.execute(SQL["delete_parked"], endpoint, *place)


async def fail_parked(
    connection: Connection,
    endpoint: str,
    place: Place,
    problem: str,
    wait_seconds: float | None,
) -> None:
    """Notes a failed attempt.

    Args:
        connection: to the database.
        endpoint: its name.
        place: the event.
        problem: why it was not taken.
        wait_seconds: how long until it is tried again; None: it is dead.
    """
    wait_ms = int((wait_seconds or 0) * 1000)
    await connection.execute(
        SQL["fail_parked"], endpoint, *place, problem, wait_ms, wait_seconds is None
    )


async def forget_dead(connection: Connection, endpoint: str, seconds: float) -> None:
    """Deletes some events that have been dead for longer than this."""
    await connection.execute(SQL["forget_dead"], endpoint, int(seconds * 1000))


async def count_parked(connection: Connection, endpoint: str) -> Counts:
    """Counts the events that are parked, and those that are dead."""
    rows = await connection.fetch(SQL["count_parked"], endpoint, COUNT_MAX)
    return Counts(*rows[0])


async def list_parked(
    connection: Connection, endpoint: str, *, dead: bool, after: Place, limit: int
) -> list[Listed]:
    """Lists events, in the order of users and then of the feed.

    Args:
        connection: to the database.
        endpoint: its name.
        dead: whether to list dead events; otherwise those that are parked.
        after: the last one of the page before.
        limit: how many.
    """
    # There is an index of the dead events, and one of the others.
    rows = await fetch_by_values(connection, SQL["list_parked"], endpoint, dead, *after, limit)
    return [Listed(Place(*row[:4]), *row[4:]) for row in rows]


async def revive_parked(connection: Connection, endpoint: str, place: Place) -> bool:
    """Lets an event be tried again at once; returns whether there is such an event."""
    return await connection.fetchval(SQL["revive_parked"], endpoint, *place) is not None
