"""The maker of alerts, run by a test, and the alerts that are in the ledger."""

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from uuid import UUID

import orjson
from kit.databases import Database
from kit.services import TERMS
from kit.waiting import eventually
from model.alerts import Seen

from credit_service.database.postgres import Address
from credit_service.ledger.feed import Feed
from credit_service.ledger.read_connections import ReadPool
from credit_service.relay.alerts import READER, Alerts
from credit_service.relay.lease import Lease, Reader
from credit_service.rules.feed_values import KIND_ENTRY, KIND_POLICY
from credit_service.rules.terms import Terms

# Below ten credits an account is low.
LOW_TERMS = replace(TERMS, alert_below=10)

# How long the lease of a killed process keeps the others waiting.
WORKER_LEASE_SECONDS = 1.0


@dataclass(frozen=True)
class Made:
    """An alert as it is in the ledger.

    Attributes:
        change: the seq of its entry, or "p" and the number of its policy change.
    """

    type: str
    change: int | str | None
    data: dict


@asynccontextmanager
async def making(
    pool: ReadPool, lease: Lease, terms: Terms, cool_down: timedelta, expiring_days: int = 7
) -> AsyncIterator[asyncio.Task]:
    """Makes alerts under a lease for the length of the block, or until the task is cancelled."""
    feed = Feed(pool)
    reader = await Reader.claim(pool, READER, lease.fence, await feed.end())
    alerts = Alerts(
        pool,
        feed,
        terms,
        cool_down=cool_down,
        expiring_days=expiring_days,
        walk_rest_seconds=0.1,
    )
    task = asyncio.create_task(alerts.run(reader))
    try:
        yield task
    finally:
        task.cancel()
        await asyncio.wait({task})


@asynccontextmanager
async def making_alerts(
    database: Database,
    *,
    terms: Terms = LOW_TERMS,
    cool_down: timedelta = timedelta(hours=1),
    expiring_days: int = 7,
) -> AsyncIterator[asyncio.Task]:
    """Makes alerts for the length of the block, or until the yielded task is cancelled."""
    pool = ReadPool(Address(database.service_url), 2)
    await pool.open()
    try:

        async def take() -> Lease | None:
            return await Lease.take(pool, "test")

        lease = await eventually(take)
        async with making(pool, lease, terms, cool_down, expiring_days) as task:
            yield task
        await lease.give_back()
    finally:
        await pool.close()


async def alerts_of(database: Database, user_id: UUID) -> list[Made]:
    """The alerts of a user, in order."""
    rows = await database.fetch(
        "SELECT type, data FROM credit_alerts WHERE user_id = $1 ORDER BY tx, alert", user_id
    )
    return [_made(kind, orjson.loads(data)) for kind, data in rows]


async def announced_of(database: Database, user_id: UUID) -> list[tuple[str, int | str | None]]:
    """The types of the alerts of a user, and the changes behind them."""
    return [(made.type, made.change) for made in await alerts_of(database, user_id)]


async def all_is_read(database: Database) -> None:
    """Waits until everything now in the ledger has been compared."""

    async def reader_is_past() -> bool:
        (behind,) = await database.fetch(
            """
            SELECT max(item.tx) > reader.tx AS behind FROM credit_relay_readers AS reader, (
                SELECT tx FROM credit_transactions UNION ALL SELECT tx FROM credit_policy_changes
            ) AS item WHERE reader.reader = 'alerts' GROUP BY reader.tx
            """
        ) or [(False,)]
        return not behind[0]

    await eventually(reader_is_past)


async def nothing_waits(database: Database) -> None:
    """Waits until no alert waits for a cool-down any more."""

    async def none() -> bool:
        return not await database.fetch(
            "SELECT FROM credit_alert_states WHERE waiting_tx IS NOT NULL"
        )

    await eventually(none)


async def histories(database: Database, terms: Terms) -> dict[UUID, list[Seen]]:
    """The states of each account for the model: after each transaction and each policy change.

    Times are in microseconds; policy changes have negative numbers.
    """
    rows = await database.fetch(
        """
        SELECT user_id, tx, $1::bigint AS kind, seq AS number, timestamp AS time,
            balance_after - held_after AS available, NULL AS frozen, NULL AS min_balance,
            NULL AS alert_below
        FROM credit_transactions
        UNION ALL
        SELECT user_id, tx, $2, change, changed_at, NULL, frozen, min_balance, alert_below
        FROM credit_policy_changes
        ORDER BY user_id, tx, kind, number
        """,
        KIND_ENTRY,
        KIND_POLICY,
    )
    seen: dict[UUID, list[Seen]] = defaultdict(list)
    user_id, state = None, {}
    for row, following in zip(rows, [*rows[1:], None], strict=True):
        if row["user_id"] != user_id:
            user_id, state = row["user_id"], _unseen(terms)
        if row["kind"] == KIND_ENTRY:
            state = state | {"available": row["available"], "entries": row["number"]}
        else:
            own = {"floor": row["min_balance"], "alert_below": row["alert_below"]}
            configured = _unseen(terms)
            state = state | {
                name: configured[name] if value is None else value for name, value in own.items()
            }
            state = state | {"frozen": row["frozen"]}
        number = row["number"] if row["kind"] == KIND_ENTRY else -row["number"]
        made = Seen(time=_microseconds(row["time"]), number=number, **state)
        goes_on = following is not None and all(
            row[name] == following[name] for name in ("user_id", "tx", "kind")
        )
        if row["kind"] == KIND_POLICY or not goes_on:
            seen[user_id].append(made)
    return seen


def _unseen(terms: Terms) -> dict:
    return {
        "available": 0,
        "floor": terms.min_balance,
        "alert_below": terms.alert_below,
        "frozen": False,
        "entries": 0,
    }


def _made(kind: str, data: dict) -> Made:
    if data.get("policy_change") is not None:
        return Made(kind, f"p{data['policy_change']}", data)
    return Made(kind, data.get("seq"), data)


def _microseconds(time) -> int:
    return round(time.timestamp() * 1_000_000)
