"""Reads the messages that a request consists of; plain values are in `fields`.

Raises `InvalidRequest` with the name of the field.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from credit_service import fields
from credit_service.errors import InvalidRequest
from credit_service.rules.commands import Life, Rollover
from credit_service.rules.grant_values import Allowance, AllowancePeriod
from credit_service.rules.grants import LIFE_MAX
from credit_service.rules.model import Payment, parse_transaction_id
from credit_service.v1 import credit_service_pb2 as pb

if TYPE_CHECKING:
    from uuid import UUID

    from google.protobuf.duration_pb2 import Duration
    from google.protobuf.timestamp_pb2 import Timestamp

PAGE_SIZE_DEFAULT = 50
QUOTE_ITEMS_MAX = 100
TTL_DEFAULT = timedelta(minutes=15)
TTL_MIN = timedelta(seconds=1)
TTL_MAX = timedelta(hours=24)
VALID_FOR_MIN = timedelta(seconds=1)

PERIODS: dict[pb.AllowancePeriod.ValueType, AllowancePeriod] = {
    pb.ALLOWANCE_PERIOD_DAY: "day",
    pb.ALLOWANCE_PERIOD_WEEK: "week",
    pb.ALLOWANCE_PERIOD_MONTH: "month",
}

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_SECONDS_MIN = int((datetime.min.replace(tzinfo=UTC) - _EPOCH).total_seconds())
_SECONDS_MAX = int((datetime.max.replace(tzinfo=UTC) - _EPOCH).total_seconds())


def ttl(message: Duration | None) -> timedelta:
    """Checks how long to hold: 1 second to 24 hours; unset means 15 minutes."""
    if message is None:
        return TTL_DEFAULT
    return _duration(message, "ttl", TTL_MIN, TTL_MAX, "24 hours")


def life(request: pb.PurchaseCreditsRequest | pb.GrantCreditsRequest) -> Life:
    """Checks when credits are used and expire; the rules decide whether the expiry lies ahead."""
    expire_time = valid_for = None
    match request.WhichOneof("life"):
        case "expire_time":
            expire_time = time(request.expire_time, "expire_time", round_up=False)
        case "valid_for":
            valid_for = _duration(
                request.valid_for, "valid_for", VALID_FOR_MIN, LIFE_MAX, "3,653 days"
            )
        case _:
            pass
    if request.HasField("priority"):
        return Life(expire_time, valid_for, fields.priority(request.priority))
    return Life(expire_time, valid_for)


def rollover(request: pb.PurchaseCreditsRequest) -> Rollover | None:
    """Checks which earlier grants a purchase limits; only a payment with an expiry may."""
    if not request.HasField("rollover"):
        return None
    if not request.HasField("payment"):
        raise InvalidRequest("rollover", "needs a payment.")
    if request.WhichOneof("life") is None:
        raise InvalidRequest("rollover", "needs an expire_time or a valid_for.")
    message = request.rollover
    return Rollover(
        fields.series(message.series, "rollover.series"),
        fields.amount_or_none(message.cap, "rollover.cap"),
    )


def paid(category: pb.GrantCategory.ValueType) -> bool:
    """Checks a category: whether credits count as paid for; unset means that they do not."""
    if category not in pb.GrantCategory.values():
        raise InvalidRequest("category", f"is {category}, which is not a category of a grant.")
    return category == pb.GRANT_CATEGORY_PAID


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


def allowance(message: pb.Allowance) -> Allowance:
    """Checks an allowance; with 0 credits there is none, and the period does not matter."""
    amount = fields.amount_or_none(message.amount, "allowance.amount")
    period = PERIODS.get(message.period)
    if period is None:
        if amount or message.period != pb.ALLOWANCE_PERIOD_UNSPECIFIED:
            raise InvalidRequest("allowance.period", "must be DAY, WEEK or MONTH.")
        period = "month"
    if not 0 <= message.carry_over <= fields.CARRY_OVER_MAX:
        raise InvalidRequest(
            "allowance.carry_over",
            f"must be 0 to {fields.CARRY_OVER_MAX}, not {message.carry_over}.",
        )
    return Allowance(amount, period, message.carry_over)


def _duration(
    message: Duration, field: str, shortest: timedelta, longest: timedelta, longest_words: str
) -> timedelta:
    # As whole nanoseconds: a float cannot tell ten years from ten years and a nanosecond.
    nanos = message.seconds * 10**9 + message.nanos
    if not _nanos(shortest) <= nanos <= _nanos(longest):
        seconds = f"{message.seconds + message.nanos / 10**9:,}".removesuffix(".0")
        raise InvalidRequest(field, f"must be 1 second to {longest_words}, not {seconds} seconds.")
    return timedelta(seconds=message.seconds, microseconds=message.nanos // 1000)


def _nanos(whole: timedelta) -> int:
    return whole // timedelta(microseconds=1) * 1000


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
