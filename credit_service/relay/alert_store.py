"""One function per statement of the alerts, values in, values out; the statements are in sql/."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import orjson

from credit_service.relay.store import SQL
from credit_service.rules.alerts import Announced, Change, State
from credit_service.rules.model import Policy

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence
    from datetime import datetime
    from uuid import UUID

    import asyncpg

    from credit_service.relay.store import Connection

_NOTHING_WAITS = (None,) * 8


class NewAlert(NamedTuple):
    """An alert to be written.

    Attributes:
        type: of the event.
        time: when it was due; None: now.
        data: what the event shows.
    """

    user_id: UUID
    type: str
    time: datetime | None
    data: Mapping[str, object]


class ExpiringGrant(NamedTuple):
    """An open grant that expires soon.

    Attributes:
        is_news: whether this expiry is to be announced.
    """

    user_id: UUID
    seq: int
    expire_time: datetime
    remaining: int
    pinned: int
    is_news: bool


async def load_states(connection: Connection, user_ids: Collection[UUID]) -> dict[UUID, Announced]:
    """Loads the last announcement of each account that has one in force."""
    rows = await connection.fetch(SQL["load_alert_states"], list(user_ids))
    return dict(map(_announced, rows))


class Horizon(NamedTuple):
    """A moment, and the feed number below which everything from before the moment lies."""

    moment: datetime
    tx: int


async def read_horizon(connection: Connection) -> Horizon:
    """Reads the present moment, with its number in the feed."""
    (row,) = await connection.fetch(SQL["read_horizon"])
    return Horizon(*row)


async def find_cooled(
    connection: Connection, moment: datetime | None, limit: int
) -> dict[UUID, Announced]:
    """Finds accounts whose state waits for a cool-down that has ended, the longest ago first.

    Args:
        connection: to the database.
        moment: when it must have ended; None: now.
        limit: the maximum number of accounts.
    """
    rows = await connection.fetch(SQL["find_cooled_accounts"], moment, limit)
    return dict(map(_announced, rows))


async def put_states(connection: Connection, states: Mapping[UUID, Announced]) -> None:
    """Writes the last announcements of accounts; those of accounts that are fine are deleted."""
    if fine := [user_id for user_id, last in states.items() if last.level == "fine"]:
        await connection.execute(SQL["delete_alert_states"], fine)
    rows = [
        (user_id, last.level, last.cools_until, *_waiting_columns(last.waiting))
        for user_id, last in states.items()
        if last.level != "fine"
    ]
    if rows:
        await connection.execute(SQL["upsert_alert_states"], *_columns(rows))


async def insert_alerts(connection: Connection, alerts: Sequence[NewAlert]) -> None:
    """Writes alerts, those of a user in their order."""
    if alerts:
        rows = [(*alert[:-1], orjson.dumps(alert.data).decode()) for alert in alerts]
        await connection.execute(SQL["insert_alerts"], *_columns(rows))


async def load_policies_before(
    connection: Connection, asked: Mapping[UUID, int]
) -> dict[UUID, Policy]:
    """Loads floors, thresholds and the frozen state of accounts that had a policy.

    Args:
        connection: to the database.
        asked: the number of the transaction before which to look, by account.
    """
    if not asked:
        return {}
    rows = await connection.fetch(SQL["load_policies_before"], list(asked), list(asked.values()))
    return {
        user_id: Policy(frozen, min_balance, alert_below=alert_below)
        for user_id, frozen, min_balance, alert_below in rows
    }


async def load_balances_after(
    connection: Connection, asked: Mapping[UUID, int]
) -> dict[UUID, tuple[int, int, int]]:
    """Loads the seq, balance and held credits of accounts that had an entry.

    Args:
        connection: to the database.
        asked: the number of the transaction after which to look, by account.
    """
    if not asked:
        return {}
    rows = await connection.fetch(SQL["load_balances_after"], list(asked), list(asked.values()))
    return {user_id: (seq, balance, held) for user_id, seq, balance, held in rows}


async def find_expiring(
    connection: Connection, days: int, after: tuple[datetime, UUID, int], limit: int
) -> list[ExpiringGrant]:
    """Reads the next grants that expire within some days.

    Args:
        connection: to the database.
        days: how soon.
        after: expiry, user and seq of the grant before them; they come in this order.
        limit: the maximum number of grants.
    """
    rows = await connection.fetch(SQL["find_expiring_grants"], days, *after, limit)
    return [ExpiringGrant(*row) for row in rows]


async def put_expiring(connection: Connection, grants: Sequence[ExpiringGrant]) -> None:
    """Records which expiry of grants was announced."""
    await connection.execute(
        SQL["upsert_expiring_alerts"], *_columns([grant[:3] for grant in grants])
    )


def _announced(row: asyncpg.Record) -> tuple[UUID, Announced]:
    user_id, level, cools_until, *waiting = row
    if waiting[0] is None:
        return user_id, Announced(level, cools_until)
    return user_id, Announced(level, cools_until, State(Change(*waiting[:4]), *waiting[4:]))


def _waiting_columns(state: State | None) -> tuple[object, ...]:
    if state is None:
        return _NOTHING_WAITS
    return (*state.change, state.balance, state.held, state.floor, state.alert_below)


def _columns(rows: Sequence[tuple[Any, ...]]) -> list[list[Any]]:
    return [list(column) for column in zip(*rows, strict=True)]
