"""What a field may look like: value in, checked value out. Every edge asks the same functions.

A function raises `InvalidRequest` with the name of the field; one that ends in `_or_none` answers
None instead. Nothing here knows how a value was sent.
"""

from __future__ import annotations

import re
import unicodedata
from typing import TYPE_CHECKING
from uuid import UUID

from credit_service.errors import InvalidRequest

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

# Credits in one movement, and in a balance. Both are exact in a double, for JavaScript's sake.
AMOUNT_MAX = 10**12
BALANCE_MAX = 10**15

KEY_LENGTH_MAX = 128
DESCRIPTION_LENGTH_MAX = 500
REFERENCE_LENGTH_MAX = 255
PAYMENT_REF_LENGTH_MAX = 255
METADATA_PAIRS_MAX = 20
METADATA_BYTES_MAX = 4096
PAGE_SIZE_MAX = 1000
PRIORITY_MAX = 100
CARRY_OVER_MAX = 12
SERIES_LENGTH_MAX = 64
LINK_LENGTH_MAX = 2048
CHARGES_PER_MONTH_MAX = 1000

A_USER = "3f2b8c1e-9d4a-4f6b-8a57-0c1d2e3f4a5b"

_UUID = re.compile(r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")
_PRINTABLE_ASCII = re.compile(r"[ -~]+")
_OPERATION = re.compile(r"[a-z][a-z0-9_]{0,63}")
_CURRENCY = re.compile(r"[a-z]{3}")
_PACK = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}")


def uuid_or_none(value: object) -> UUID | None:
    """Reads a UUID in its usual form of 36 characters; None: the value is something else."""
    return UUID(value) if isinstance(value, str) and _UUID.fullmatch(value) else None


def user_id(text: str, kind: Callable[[str], UUID] = UUID) -> UUID:
    """Checks a user's id: a UUID in its usual form of 36 characters.

    Args:
        text: the value as it was sent.
        kind: makes the UUID from it.
    """
    if not text:
        raise InvalidRequest("user_id", "is missing.")
    if not _UUID.fullmatch(text):
        raise InvalidRequest("user_id", f"must be a UUID such as {A_USER}.")
    return kind(text)


def is_operation(name: str) -> bool:
    """Tells whether it can be an operation's name: lower case, digits and _, at most 64."""
    return _OPERATION.fullmatch(name) is not None


def operation(name: str, field: str) -> str:
    """Checks the name of an operation; the price list decides whether it has a price."""
    if not name:
        raise InvalidRequest(field, "is missing.")
    if not is_operation(name):
        raise InvalidRequest(field, "must be a name of the price list such as stem_separation.")
    return name


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


def correction(value: int) -> int:
    """Checks a signed number of credits: -10^12 to 10^12, but not 0."""
    if value == 0 or abs(value) > AMOUNT_MAX:
        raise InvalidRequest(
            "amount", f"must be -{AMOUNT_MAX} to {AMOUNT_MAX} and not 0, not {value}."
        )
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
        # PostgreSQL's jsonb cannot store NUL, and the other control characters are unreadable.
        _text("metadata", key, METADATA_BYTES_MAX)
        _text("metadata", value, METADATA_BYTES_MAX)
        size += len(key.encode()) + len(value.encode())
    if size > METADATA_BYTES_MAX:
        raise InvalidRequest("metadata", f"has {size} bytes; the maximum is {METADATA_BYTES_MAX}.")
    return dict(pairs)


def reason(text: str) -> str:
    """Checks why credits are given: like a description, but never empty."""
    if not text:
        raise InvalidRequest("reason", "is missing.")
    return _text("reason", text, DESCRIPTION_LENGTH_MAX)


def balance(value: int, field: str) -> int:
    """Checks a floor: -10^12 to 10^12 credits."""
    if abs(value) > AMOUNT_MAX:
        raise InvalidRequest(field, f"must be -{AMOUNT_MAX} to {AMOUNT_MAX}, not {value}.")
    return value


def limit(value: int, field: str) -> int:
    """Checks a spend limit: 0 (no limit) to 10^15 credits."""
    if not 0 <= value <= BALANCE_MAX:
        raise InvalidRequest(field, f"must be 0, for no limit, to {BALANCE_MAX}, not {value}.")
    return value


def priority(value: int) -> int:
    """Checks a priority: 0 (used first) to 100 (used last)."""
    if not 0 <= value <= PRIORITY_MAX:
        raise InvalidRequest("priority", f"must be 0 to {PRIORITY_MAX}, not {value}.")
    return value


def series(text: str, field: str) -> str:
    """Checks the name of a series of purchases: 1 to 64 printable ASCII characters."""
    if not text:
        raise InvalidRequest(field, "is missing.")
    return _ascii(field, text, SERIES_LENGTH_MAX)


def pack(text: str, field: str) -> str:
    """Checks the id of a credit pack; only the bridge knows whether the pack exists."""
    if not _PACK.fullmatch(text):
        raise InvalidRequest(field, "must be 1 to 64 characters of a-z, 0-9, _ and -.")
    return text


def link(text: str, field: str) -> str:
    """Checks an address for people, of http or https, or none: at most 2,048 characters."""
    if text and not text.startswith(("https://", "http://")):
        raise InvalidRequest(field, "must be an http or https address.")
    return _ascii(field, text, LINK_LENGTH_MAX) if text else ""


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


def page_size(value: int, field: str) -> int:
    """Checks a page size; more than 1,000 counts as 1,000."""
    if value < 0:
        raise InvalidRequest(field, "must not be negative.")
    return min(value, PAGE_SIZE_MAX)


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
