"""Every statement of the ledger, prepared as a lane keeps it, with its arguments."""

import json
import re
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from uuid import UUID, uuid4

import asyncpg

from credit_service.ledger import rows, store
from credit_service.rules.grant_values import Grant, GrantChange
from credit_service.rules.model import (
    Account,
    Entry,
    Hold,
    KeptKey,
    Payment,
    Policy,
    PolicyChange,
    Reversal,
)
from credit_service.rules.top_up_values import TopUpRequest


def arguments(user_id: UUID, newcomer: UUID, seq: int) -> dict[str, list[object]]:
    """Arguments for every statement, as a batch or a read about this user would give them."""
    now = datetime.now(UTC)
    early = datetime(2026, 1, 1, tzinfo=UTC) + timedelta(seconds=seq // 3)
    entry = Entry(
        user_id=user_id,
        seq=seq + 1,
        type="purchase",
        call="PurchaseCredits",
        amount=5,
        requested_amount=5,
        balance_change=5,
        held_change=0,
        balance_after=5,
        held_after=0,
        floor=None,
        description="it's",
        timestamp=now,
        operation=None,
        quantity=None,
        unit_cost=None,
        price_version=None,
        reference="",
        metadata={"a": "b"},
        related_seq=None,
        idempotency_key="new",
        caller="test",
        payment=Payment("pi_new", 1, "eur"),
    )
    hold = Hold(user_id, seq, "held", 5, 0, now, now, None, None, None, None, "", None, None)
    change = PolicyChange(user_id, 1, now, "test", Policy(frozen=True))
    reversal = Reversal(
        "re_new", 1, "pi_1", user_id, None, 1, 1, "eur", "refund", now, "test", "re_new"
    )
    granted = Grant(user_id, seq, 5, 5, expire_time=now)
    grant_change = GrantChange(user_id, seq, 1, None, 5, 0, 5, 0, now)
    top_up = TopUpRequest(user_id, 1, "p", "open", None, 0, "", "", now, now, None)
    three = [user_id] * 3
    return {
        "add_users": [[uuid4(), user_id]],
        "find_locked": [[user_id, newcomer]],
        "find_users": [[user_id, newcomer, uuid4()]],
        "get_account": [user_id],
        "lock_accounts": [[user_id, newcomer]],
        "insert_accounts": columns(Account(newcomer, 5, 0, 1, now)),
        "update_accounts": [*columns(Account(user_id, 5, 0, seq + 1, now)), [seq]],
        "move_accounts": [
            *rows.to_columns([rows.moved_row(Account(user_id, 5, 0, seq + 1, now))]),
            [seq],
        ],
        "load_holds": [three, [1, seq // 2, seq]],
        "load_due_holds": [[user_id, newcomer], now, 501],
        "load_next_expiries": [[user_id, newcomer], now],
        "upsert_holds": columns(hold),
        "list_holds": [user_id, seq, None, 50],
        "find_due_users": [5000, [newcomer]],
        "expired_unrecorded_at": [user_id, seq, early],
        "insert_policy_changes": columns(change),
        "insert_kept_keys": columns(KeptKey(user_id, "kept", seq, "ReleaseHold")),
        "changed_accounts": [[user_id, newcomer], [-1, -1], [0, 0], [now, now]],
        "list_known_accounts": [[user_id, newcomer]],
        "list_accounts": [UUID(int=0), 50],
        "find_accounts": [UUID(int=0), False, None, None, None, 50, 10_000],
        "find_faults": [[user_id]],
        "list_payments": [[user_id]],
        "load_reversals_of_payments": [["pi_1", "pi_2"]],
        "report_usage": [early, now],
        "find_writers": [store.WRITING],
        "read_feed": [1000, [0, 1, 2, 3, 4], 0, user_id, seq - 10, 0, 0, 0, 0],
        "find_feed_end": [],
        "measure_feed": [10_000],
        "find_feed_holder": [],
        "list_entries_by_time": [early, UUID(int=0), 0, now, 1000],
        "report_usage_of_user": [user_id, max(0, seq - 100), seq],
        "load_entries_by_key": [three, ["key 7", f"key {seq // 2}", "never used"], True],
        "load_entries": [three, [1, seq // 2, seq]],
        "load_refunds": [three, [1, 2, seq]],
        "load_purchases": [["pi_1", "pi_2", "pi_3"]],
        "load_reversals": [["re_1", "re_1", "re_2"], [1, 7, 1]],
        "load_returned": [["pi_1", "pi_2"]],
        "insert_reversals": columns(reversal),
        "insert_entries": rows.to_columns([rows.entry_row(entry, 1)]),
        "insert_purchases": [["pi_new"], [user_id], [seq + 1], [5], [1], ["eur"], [now]],
        "upsert_refunds": [[user_id, user_id], [2, 4], [1, 1], [1, 1]],
        "count_entries_before": [user_id, early],
        "list_entries": [user_id, seq, 0, None, None, None, 50, 10_000, None],
        "read_accounts": [[user_id, newcomer]],
        "find_newcomers": [[user_id, newcomer]],
        "upsert_allowances": [[user_id, newcomer], [now, now]],
        "load_due_grants": [[user_id, newcomer], now, 501],
        "settled_at": [user_id, seq - 2, now],
        "settled_accounts": [[user_id, newcomer], now, 3],
        "load_next_lapses": [[user_id, newcomer], now],
        "list_expiring": [user_id, 3],
        "list_expiring_at": [user_id, seq, early, 3],
        "list_grants": [user_id, seq, True, 50],
        "list_grant_changes": [user_id, [1, seq // 2, seq], 101],
        "report_lapsed": [early, now, user_id],
        "report_liability": [early],
        "upsert_grants": columns(granted),
        "insert_grant_changes": [*columns(grant_change), [1]],
        "load_top_ups": [[user_id, newcomer], [user_id], [1], ["pi_1", f"pi_{user_id}"]],
        "upsert_top_ups": columns(top_up),
        "upsert_top_up_counts": columns((user_id, 1, 0, None, None, 0)),
        "insert_top_up_changes": columns((user_id, 1, "turned_on", now, "t", *[None] * 10, 1)),
        "list_open_top_ups": [UUID(int=0), 51],
        "list_top_ups": [user_id, 2**63 - 1, False, 51],
        "load_grants": [
            *([user_id], [1]),
            *([user_id], [1]),
            *([user_id], [1]),
            [user_id],
            *([user_id], [1]),
            *([user_id], ["pro"]),
            *([user_id], [100]),
            now,
        ],
    }


def columns(value: tuple[object, ...]) -> list[object]:
    match value:
        case Account():
            row = rows.account_row(value)
        case PolicyChange():
            row = rows.policy_row(value, 1)
        case Reversal():
            row = rows.reversal_row(value)
        case Grant():
            row = rows.grant_row(value)
        case _:
            row = value
    return [[part] for part in row]


def literal(value: object, kind: str) -> str:
    if isinstance(value, (list, tuple)):
        return f"ARRAY[{', '.join(literal(item, kind[:-2]) for item in value)}]::{kind}"
    return "NULL" if value is None else "'{}'::{}".format(str(value).replace("'", "''"), kind)


class Session:
    """A connection that keeps every statement prepared, as a lane or the pool of the reads does."""

    def __init__(self, connection: asyncpg.Connection) -> None:
        self._connection = connection
        self._kinds: dict[str, list[str]] = {}

    async def prepare(self) -> None:
        for name, text in store.SQL.items():
            kinds = dict(re.findall(r"\$(\d+)::(\w+(?:\[\])?)", text))
            self._kinds[name] = [kinds[str(place)] for place in range(1, len(kinds) + 1)]
            listed = f"({', '.join(self._kinds[name])})" if self._kinds[name] else ""
            head = f"PREPARE {name} {listed} AS "
            await self._connection.execute(head + text)

    async def plan(self, name: str, values: list[object]) -> dict:
        """Runs a statement, rolls it back, and returns its plan with its rows and pages."""
        pairs = zip(values, self._kinds[name], strict=True)
        given = ", ".join(literal(value, kind) for value, kind in pairs)
        given = f"({given})" if given else ""
        transaction = self._connection.transaction()
        await transaction.start()
        try:
            told = await self._connection.fetchval(
                f"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) EXECUTE {name} {given}"
            )
        finally:
            await transaction.rollback()
        return json.loads(told)[0]["Plan"]


@asynccontextmanager
async def session(url: str, **settings: str) -> AsyncIterator[Session]:
    connection = await asyncpg.connect(url, server_settings=settings)
    try:
        made = Session(connection)
        await made.prepare()
        yield made
    finally:
        await connection.close()


def nodes(plan: dict) -> Iterator[dict]:
    yield plan
    for part in plan.get("Plans", ()):
        yield from nodes(part)


def pages_touched(plan: dict) -> int:
    return plan["Shared Hit Blocks"] + plan["Shared Read Blocks"]
