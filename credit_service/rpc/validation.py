"""What a field may look like. One function per kind of field: value in, checked value out.

Every function takes the field's name for the refusal and raises `InvalidRequest`.
"""

from __future__ import annotations

import re
import unicodedata
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING
from uuid import UUID

from credit_service.errors import InvalidRequest
from credit_service.rules.model import AMOUNT_MAX, BALANCE_MAX, Payment, parse_transaction_id

if TYPE_CHECKING:
    from collections.abc import Mapping

    from google.protobuf.duration_pb2 import Duration
    from google.protobuf.timestamp_pb2 import Timestamp

    from credit_service.v1 import credit_service_pb2 as pb

KEY_LENGTH_MAX = 128
DESCRIPTION_LENGTH_MAX = 500
REFERENCE_LENGTH_MAX = 255
PAYMENT_REF_LENGTH_MAX = 255
METADATA_PAIRS_MAX = 20
METADATA_BYTES_MAX = 4096
PAGE_SIZE_DEFAULT = 50
PAGE_SIZE_MAX = 1000
QUOTE_ITEMS_MAX = 100
TTL_DEFAULT = timedelta(minutes=15)
TTL_MIN = timedelta(seconds=1)
TTL_MAX = timedelta(hours=24)

_UUID = re.compile(r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")
_PRINTABLE_ASCII = re.compile(r"[ -~]+")
_OPERATION = re.compile(r"[a-z][a-z0-9_]{0,63}")
_CURRENCY = re.compile(r"[a-z]{3}")

_A_USER = "3f2b8c1e-9d4a-4f6b-8a57-0c1d2e3f4a5b"

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_SECONDS_MIN = int((datetime.min.replace(tzinfo=UTC) - _EPOCH).total_seconds())
_SECONDS_MAX = int((datetime.max.replace(tzinfo=UTC) - _EPOCH).total_seconds())


def user_id(text: str) -> UUID:
    """Checks a user's id: a UUID in its usual form of 36 characters."""
    if not text:
        raise InvalidRequest("user_id", "is missing.")
    if not _UUID.fullmatch(text):
        raise InvalidRequest("user_id", f"must be a UUID such as {_A_USER}.")
    return UUID(text)


def amount(value: int, field: str = "amount") -> int:
    """Checks a number of credits or of units: 1 to 10^12."""
    if not 1 <= value <= AMOUNT_MAX:
        raise InvalidRequest(field, f"must be 1 to {AMOUNT_MAX}, not {value}.")
    return value


def amount_or_none(value: int, field: str = "amount") -> int:
    """Checks a number of credits, of units, or of minor units of money: 0 to 10^12."""
    if not 0 <= value <= AMOUNT_MAX:
        raise InvalidRequest(field, f"must be 0 to {AMOUNT_MAX}, not {value}.")
    return value


def idempotency_key(text: str) -> str:
    """Checks a key: 1 to 128 printable ASCII characters."""
    if not text:
        raise InvalidRequest(
            "idempotency_key", "is missing; make one per intent, such as spend:<job>:<attempt>."
        )
    return _ascii("idempotency_key", text, KEY_LENGTH_MAX)


def description(text: str) -> str:
    """Checks a text for people: at most 500 characters, none of them a control character."""
    return _text("description", text, DESCRIPTION_LENGTH_MAX)


def reference(text: str) -> str:
    """Checks a caller's reference: at most 255 characters, none of them a control character."""
    return _text("reference", text, REFERENCE_LENGTH_MAX)


def metadata(pairs: Mapping[str, str]) -> dict[str, str]:
    """Checks a caller's facts: at most 20 pairs and 4 KiB together."""
    if not pairs:
        return {}
    if len(pairs) > METADATA_PAIRS_MAX:
        raise InvalidRequest(
            "metadata", f"has {len(pairs)} pairs; the maximum is {METADATA_PAIRS_MAX}."
        )
    size = 0
    for key, value in pairs.items():
        if not key:
            raise InvalidRequest("metadata", "has a pair without a key.")
        # PostgreSQL's jsonb takes no NUL, and nobody can read the others.
        _text("metadata", key, METADATA_BYTES_MAX)
        _text("metadata", value, METADATA_BYTES_MAX)
        size += len(key.encode()) + len(value.encode())
    if size > METADATA_BYTES_MAX:
        raise InvalidRequest("metadata", f"has {size} bytes; the maximum is {METADATA_BYTES_MAX}.")
    return dict(pairs)


def reason(text: str) -> str:
    """Checks why credits are given: as a description, but never empty."""
    if not text:
        raise InvalidRequest("reason", "is missing.")
    return _text("reason", text, DESCRIPTION_LENGTH_MAX)


def ttl(message: Duration | None) -> timedelta:
    """Checks how long to hold: 1 second to 24 hours; unset means 15 minutes."""
    if message is None:
        return TTL_DEFAULT
    seconds = message.seconds + message.nanos / 10**9
    if not TTL_MIN.total_seconds() <= seconds <= TTL_MAX.total_seconds():
        told = f"{seconds:,}".removesuffix(".0")
        raise InvalidRequest("ttl", f"must be 1 second to 24 hours, not {told} seconds.")
    return timedelta(seconds=message.seconds, microseconds=message.nanos // 1000)


def balance(value: int, field: str) -> int:
    """Checks a floor: -10^12 to 10^12 credits."""
    if abs(value) > AMOUNT_MAX:
        raise InvalidRequest(field, f"must be -{AMOUNT_MAX} to {AMOUNT_MAX}, not {value}.")
    return value


def limit(value: int, field: str) -> int:
    """Checks a spend limit: 0, for none, to 10^15 credits."""
    if not 0 <= value <= BALANCE_MAX:
        raise InvalidRequest(field, f"must be 0, for no limit, to {BALANCE_MAX}, not {value}.")
    return value


def payment(message: pb.Payment) -> Payment:
    """Checks the payment behind a purchase."""
    ref = provider_ref(message.ref, "payment.ref")
    if message.amount_minor < 0:
        raise InvalidRequest("payment.amount_minor", "must not be negative.")
    return Payment(ref, message.amount_minor, currency(message.currency, "payment.currency"))


def provider_ref(text: str, field: str) -> str:
    """Checks the id of a payment, refund or dispute: 1 to 255 printable ASCII characters."""
    if not text:
        raise InvalidRequest(field, "is missing.")
    return _ascii(field, text, PAYMENT_REF_LENGTH_MAX)


def currency(text: str, field: str) -> str:
    """Checks a currency: a three-letter ISO 4217 code in lower case."""
    if not _CURRENCY.fullmatch(text):
        raise InvalidRequest(field, "must be a three-letter code in lower case such as eur.")
    return text


def charge(message: pb.Charge, field: str) -> tuple[str, int]:
    """Checks priced work; whether the operation has a price is decided later, by the rules."""
    if not message.operation:
        raise InvalidRequest(f"{field}.operation", "is missing.")
    if not _OPERATION.fullmatch(message.operation):
        raise InvalidRequest(
            f"{field}.operation", "must be a name of the price list such as stem_separation."
        )
    quantity = message.quantity if message.HasField("quantity") else 1
    return message.operation, amount(quantity, f"{field}.quantity")


def transaction_seq(text: str, of: UUID, field: str) -> int | None:
    """Checks a transaction's id and returns its seq; None when it is another user's."""
    place = parse_transaction_id(text)
    if place is None:
        raise InvalidRequest(field, f"is not a transaction id such as {_A_USER}-7.")
    return place[1] if place[0] == of else None


def page_size(value: int, field: str) -> int:
    """Checks a page size; more than 1,000 counts as 1,000."""
    if value < 0:
        raise InvalidRequest(field, "must not be negative.")
    return min(value, PAGE_SIZE_MAX)


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


def _ascii(field: str, text: str, longest: int) -> str:
    if len(text) > longest:
        raise InvalidRequest(field, f"has {len(text)} characters; the maximum is {longest}.")
    if not _PRINTABLE_ASCII.fullmatch(text):
        raise InvalidRequest(field, "may hold only printable ASCII characters.")
    return text


def _text(field: str, text: str, longest: int) -> str:
    if len(text) > longest:
        raise InvalidRequest(field, f"has {len(text)} characters; the maximum is {longest}.")
    if not text.isprintable() and any(unicodedata.category(c) == "Cc" for c in text):
        raise InvalidRequest(field, "must not hold control characters.")
    return text
