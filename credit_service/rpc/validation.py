"""Reads the messages that a request consists of; plain values are in `fields`.

Raises `InvalidRequest` with the name of the field.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from credit_service import fields
from credit_service.errors import InvalidRequest
from credit_service.rules.model import Payment, parse_transaction_id

if TYPE_CHECKING:
    from uuid import UUID

    from google.protobuf.duration_pb2 import Duration
    from google.protobuf.timestamp_pb2 import Timestamp

    from credit_service.v1 import credit_service_pb2 as pb

PAGE_SIZE_DEFAULT = 50
QUOTE_ITEMS_MAX = 100
TTL_DEFAULT = timedelta(minutes=15)
TTL_MIN = timedelta(seconds=1)
TTL_MAX = timedelta(hours=24)

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_SECONDS_MIN = int((datetime.min.replace(tzinfo=UTC) - _EPOCH).total_seconds())
_SECONDS_MAX = int((datetime.max.replace(tzinfo=UTC) - _EPOCH).total_seconds())


def ttl(message: Duration | None) -> timedelta:
    """Checks how long to hold: 1 second to 24 hours; unset means 15 minutes."""
    if message is None:
        return TTL_DEFAULT
    seconds = message.seconds + message.nanos / 10**9
    if not TTL_MIN.total_seconds() <= seconds <= TTL_MAX.total_seconds():
        written = f"{seconds:,}".removesuffix(".0")
        raise InvalidRequest("ttl", f"must be 1 second to 24 hours, not {written} seconds.")
    return timedelta(seconds=message.seconds, microseconds=message.nanos // 1000)


def payment(message: pb.Payment) -> Payment:
    """Checks the payment behind a purchase."""
    ref = fields.provider_ref(message.ref, "payment.ref")
    if message.amount_minor < 0:
        raise InvalidRequest("payment.amount_minor", "must not be negative.")
    return Payment(ref, message.amount_minor, fields.currency(message.currency, "payment.currency"))


def charge(message: pb.Charge, field: str) -> tuple[str, int]:
    """Checks priced work; whether the operation has a price is decided later, by the rules."""
    operation = fields.operation(message.operation, f"{field}.operation")
    quantity = message.quantity if message.HasField("quantity") else 1
    return operation, fields.amount(quantity, f"{field}.quantity")


def transaction_seq(text: str, of: UUID, field: str) -> int | None:
    """Checks a transaction's id and returns its seq; None when it is another user's."""
    place = parse_transaction_id(text)
    if place is None:
        raise InvalidRequest(field, f"is not a transaction id such as {fields.A_USER}-7.")
    return place[1] if place[0] == of else None


def time(stamp: Timestamp, field: str, *, round_up: bool) -> datetime:
    """Checks a time; the book counts in microseconds, so anything finer is rounded."""
    if not (_SECONDS_MIN <= stamp.seconds <= _SECONDS_MAX and 0 <= stamp.nanos < 10**9):
        raise InvalidRequest(field, "is not a time between the years 1 and 9999.")
    microseconds = stamp.nanos // 1000
    try:
        whole = _EPOCH + timedelta(seconds=stamp.seconds, microseconds=microseconds)
        return whole + timedelta(microseconds=1) if round_up and stamp.nanos % 1000 else whole
    except OverflowError:
        raise InvalidRequest(field, "is not a time between the years 1 and 9999.") from None


def period(
    start: Timestamp | None, end: Timestamp | None, longest: timedelta
) -> tuple[datetime, datetime]:
    """Checks a stretch of time: both ends set, the first before the second, and not too long."""
    if start is None:
        raise InvalidRequest("start_time", "is missing.")
    if end is None:
        raise InvalidRequest("end_time", "is missing.")
    first = time(start, "start_time", round_up=True)
    last = time(end, "end_time", round_up=True)
    if not timedelta() < last - first <= longest:
        raise InvalidRequest(
            "end_time", f"must be after start_time, by {longest.days} days at most."
        )
    return first, last
