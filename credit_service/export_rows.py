"""Accounts and entries as rows of an export, and the rows as CSV or JSON lines."""

from __future__ import annotations

import csv
import io
from datetime import UTC
from enum import StrEnum
from typing import TYPE_CHECKING

import orjson

from credit_service.rules.model import transaction_id

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from credit_service.rules.model import Account, Entry
    from credit_service.rules.terms import Terms

Row = tuple[object, ...]

ACCOUNT_COLUMNS = (
    "user_id",
    "balance",
    "held",
    "available",
    "min_balance",
    "frozen",
    "limit_per_minute",
    "limit_per_hour",
    "limit_per_day",
    "seq",
    "last_updated",
    "as_of",
)
TRANSACTION_COLUMNS = (
    "id",
    "user_id",
    "seq",
    "type",
    "amount",
    "balance_change",
    "held_change",
    "balance_after",
    "held_after",
    "description",
    "timestamp",
    "operation",
    "quantity",
    "unit_cost",
    "price_version",
    "reference",
    "metadata",
    "related_transaction_id",
    "hold_id",
    "idempotency_key",
    "caller",
    "payment_ref",
    "payment_amount_minor",
    "payment_currency",
)


class Format(StrEnum):
    """How it is written."""

    CSV = "csv"
    JSONL = "jsonl"


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
        shown_time(account.last_updated),
        shown_time(now),
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
        shown_time(entry.timestamp),
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


def shown_time(moment: datetime | None) -> str | None:
    """Writes a time as RFC 3339 does, in UTC with microseconds."""
    if moment is None:
        return None
    return f"{moment.astimezone(UTC).replace(tzinfo=None).isoformat(timespec='microseconds')}Z"


def head(format_: Format, columns: Sequence[str]) -> bytes:
    """What comes before the first row."""
    return _csv([columns]) if format_ is Format.CSV else b""


def text(format_: Format, columns: Sequence[str], rows: Sequence[Row]) -> bytes:
    """Rows as they are written."""
    if format_ is Format.CSV:
        return _csv([[_cell(value) for value in row] for row in rows])
    return b"".join(
        orjson.dumps(dict(zip(columns, row, strict=True)), option=orjson.OPT_APPEND_NEWLINE)
        for row in rows
    )


def _csv(rows: Sequence[Sequence[object]]) -> bytes:
    written = io.StringIO(newline="")
    csv.writer(written, lineterminator="\n").writerows(rows)
    return written.getvalue().encode()


def _cell(value: object) -> object:
    """Writes a value into a CSV cell: nothing and {} as empty, true and false as JSON does."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, dict):
        return orjson.dumps(value).decode() if value else ""
    return value
