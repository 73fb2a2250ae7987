"""Accounts and entries as rows of an export, and the rows as CSV or JSON lines."""

from __future__ import annotations

import csv
import io
from datetime import UTC, datetime
from enum import Enum, StrEnum, auto
from typing import TYPE_CHECKING

import orjson

from credit_service.rules.model import transaction_id

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from credit_service.rules.model import Account, Entry
    from credit_service.rules.terms import Terms

Row = tuple[object, ...]


class What(StrEnum):
    """What is exported."""

    ACCOUNTS = "accounts"
    TRANSACTIONS = "transactions"


class Format(StrEnum):
    """How it is written."""

    CSV = "csv"
    JSONL = "jsonl"
    PARQUET = "parquet"


class Kind(Enum):
    """The type of a column's values; each may be None."""

    TEXT = auto()
    NUMBER = auto()
    FLAG = auto()
    TIME = auto()
    TEXTS = auto()


ACCOUNT_COLUMNS = {
    "user_id": Kind.TEXT,
    "balance": Kind.NUMBER,
    "held": Kind.NUMBER,
    "available": Kind.NUMBER,
    "min_balance": Kind.NUMBER,
    "frozen": Kind.FLAG,
    "limit_per_minute": Kind.NUMBER,
    "limit_per_hour": Kind.NUMBER,
    "limit_per_day": Kind.NUMBER,
    "seq": Kind.NUMBER,
    "last_updated": Kind.TIME,
    "as_of": Kind.TIME,
}
TRANSACTION_COLUMNS = {
    "id": Kind.TEXT,
    "user_id": Kind.TEXT,
    "seq": Kind.NUMBER,
    "type": Kind.TEXT,
    "amount": Kind.NUMBER,
    "balance_change": Kind.NUMBER,
    "held_change": Kind.NUMBER,
    "balance_after": Kind.NUMBER,
    "held_after": Kind.NUMBER,
    "description": Kind.TEXT,
    "timestamp": Kind.TIME,
    "operation": Kind.TEXT,
    "quantity": Kind.NUMBER,
    "unit_cost": Kind.NUMBER,
    "price_version": Kind.TEXT,
    "reference": Kind.TEXT,
    "metadata": Kind.TEXTS,
    "related_transaction_id": Kind.TEXT,
    "hold_id": Kind.TEXT,
    "idempotency_key": Kind.TEXT,
    "caller": Kind.TEXT,
    "payment_ref": Kind.TEXT,
    "payment_amount_minor": Kind.NUMBER,
    "payment_currency": Kind.TEXT,
}


COLUMNS = {What.ACCOUNTS: ACCOUNT_COLUMNS, What.TRANSACTIONS: TRANSACTION_COLUMNS}


def account_row(account: Account, now: datetime, terms: Terms) -> Row:
    """The row of an account as it was at a moment."""
    limits = account.policy.limits
    return (
        str(account.user_id),
        account.balance,
        account.held,
        account.available,
        terms.floor(account),
        account.policy.frozen,
        *limits,
        account.seq,
        account.last_updated,
        now,
    )


def transaction_row(entry: Entry) -> Row:
    """The row of an entry."""
    user_id, related, hold = str(entry.user_id), entry.related_seq, entry.hold_seq
    return (
        transaction_id(user_id, entry.seq),
        user_id,
        entry.seq,
        entry.type,
        entry.amount,
        entry.balance_change,
        entry.held_change,
        entry.balance_after,
        entry.held_after,
        entry.description,
        entry.timestamp,
        entry.operation,
        entry.quantity,
        entry.unit_cost,
        entry.price_version,
        entry.reference,
        entry.metadata,
        None if related is None else transaction_id(user_id, related),
        None if hold is None else transaction_id(user_id, hold),
        entry.idempotency_key,
        entry.caller,
        *(entry.payment or (None, None, None)),
    )


def shown_time(moment: datetime) -> str:
    """Writes a time as RFC 3339 does, in UTC with microseconds."""
    return f"{moment.astimezone(UTC).replace(tzinfo=None).isoformat(timespec='microseconds')}Z"


def head(format_: Format, columns: Mapping[str, Kind]) -> bytes:
    """What comes before the first row."""
    return _csv([tuple(columns)]) if format_ is Format.CSV else b""


def text(format_: Format, columns: Mapping[str, Kind], rows: Sequence[Row]) -> bytes:
    """Rows as they are written."""
    if format_ is Format.CSV:
        return _csv([[_cell(value) for value in row] for row in rows])
    option = orjson.OPT_APPEND_NEWLINE | orjson.OPT_PASSTHROUGH_DATETIME
    return b"".join(
        orjson.dumps(dict(zip(columns, row, strict=True)), shown_time, option) for row in rows
    )


def _csv(rows: Iterable[Sequence[object]]) -> bytes:
    written = io.StringIO(newline="")
    csv.writer(written, lineterminator="\n").writerows(rows)
    return written.getvalue().encode()


def _cell(value: object) -> object:
    """Writes a value into a CSV cell: nothing and {} as empty, true and false as JSON does."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, dict):
        return orjson.dumps(value).decode() if value else ""
    return shown_time(value) if isinstance(value, datetime) else value
