"""The service's answers as JSON for the user: an allow-list, field by field.

Never sent: caller, idempotency key, metadata, reference, payment.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

from credit_service.v1 import credit_service_pb2 as pb

if TYPE_CHECKING:
    from collections.abc import Iterable

    from google.protobuf.timestamp_pb2 import Timestamp

Json = dict[str, object]

TYPES = {
    name.removeprefix("TRANSACTION_TYPE_").lower(): value
    for name, value in pb.TransactionType.items()
    if value != pb.TRANSACTION_TYPE_UNSPECIFIED
}
_BY_STAFF = {
    pb.TRANSACTION_TYPE_GRANT,
    pb.TRANSACTION_TYPE_REVOCATION,
    pb.TRANSACTION_TYPE_ADJUSTMENT,
}
_TYPE_NAMES = {value: name for name, value in TYPES.items()}
_STATES = {value: name.removeprefix("HOLD_STATE_").lower() for name, value in pb.HoldState.items()}

# The account of a user whom the service does not know yet.
NO_ACCOUNT = pb.UserCredit()


def time(moment: datetime) -> str:
    """Writes a time as RFC 3339 does, in UTC with milliseconds."""
    return f"{moment.astimezone(UTC).isoformat(timespec='milliseconds')[:23]}Z"


def _stamp(stamp: Timestamp) -> str:
    text = datetime.fromtimestamp(stamp.seconds, UTC).isoformat()
    return f"{text[:19]}.{stamp.nanos // 1_000_000:03}Z"


def spendable(credit: pb.UserCredit) -> int:
    """Computes how many credits a spend may take now; 0 if the account is frozen."""
    return 0 if credit.frozen else max(0, credit.available - credit.min_balance)


def low(credit: pb.UserCredit) -> bool:
    """Whether credits are low; false for a frozen account, because credits would not help it."""
    threshold = credit.HasField("alert_below") and not credit.frozen
    return threshold and credit.available < credit.alert_below


def account(credit: pb.UserCredit) -> Json:
    """Renders an account."""
    return {
        "balance": credit.balance,
        "held": credit.held,
        "available": credit.available,
        "spendable": spendable(credit),
        "min_balance": credit.min_balance,
        "alert_below": credit.alert_below if credit.HasField("alert_below") else None,
        "low": low(credit),
        "frozen": credit.frozen,
        "seq": credit.seq,
        "updated_at": _stamp(credit.last_updated) if credit.HasField("last_updated") else None,
        "expiring": [
            {"amount": lapsing.amount, "at": _stamp(lapsing.expire_time)}
            for lapsing in credit.expiring
        ],
    }


def transaction(entry: pb.CreditTransaction, *, grant_descriptions: bool) -> Json:
    """Renders an entry; if the staff made it, the description may be a note of theirs."""
    shown = grant_descriptions or entry.type not in _BY_STAFF
    priced = entry.quantity > 0
    return {
        "id": entry.id,
        "seq": entry.seq,
        "type": _TYPE_NAMES.get(entry.type, "other"),
        "amount": entry.amount,
        "balance_change": entry.balance_change,
        "held_change": entry.held_change,
        "balance_after": entry.balance_after,
        "held_after": entry.held_after,
        "description": entry.description if shown else "",
        "timestamp": _stamp(entry.timestamp),
        "operation": entry.operation or None,
        "quantity": entry.quantity if priced else None,
        "unit_cost": entry.unit_cost if priced else None,
        "related_transaction_id": entry.related_transaction_id or None,
        "hold_id": entry.hold_id or None,
    }


def hold(held: pb.Hold) -> Json:
    """Renders a hold."""
    return {
        "id": held.id,
        "state": _STATES[held.state],
        "amount": held.amount,
        "operation": held.operation or None,
        "quantity": held.quantity or None,
        "created_at": _stamp(held.create_time),
        "expires_at": _stamp(held.expire_time),
    }


def prices(listed: pb.ListPricesResponse) -> Json:
    """Renders the price list."""
    return {
        "items": [
            {"operation": price.operation, "unit_cost": price.unit_cost, "unit": price.unit}
            for price in listed.prices
        ],
        "price_version": listed.price_version,
    }


def quote(quoted: pb.QuoteCostResponse, credit: pb.UserCredit) -> Json:
    """Renders a quote, with what the account can spend."""
    free = credit.available - credit.min_balance
    return {
        "lines": [
            {
                "operation": line.operation,
                "quantity": line.quantity,
                "unit_cost": line.unit_cost,
                "cost": line.cost,
            }
            for line in quoted.lines
        ],
        "total": quoted.total,
        "price_version": quoted.price_version,
        "spendable": spendable(credit),
        "affordable": not credit.frozen and quoted.total <= free,
        "shortfall": max(0, quoted.total - free),
    }


def usage(lines: Iterable[pb.UsageLine]) -> list[Json]:
    """Renders the lines of a usage report."""
    return [
        {
            "date": line.day,
            "operation": line.operation or None,
            "spent": line.spent,
            "refunded": line.refunded,
            "held": line.held,
            "count": line.spend_count,
        }
        for line in lines
    ]
