"""Reads fields of Stripe's objects, whose shapes differ between API versions.

An absent value is read as None or empty; a malformed one raises `Unresolved`. No shape of JSON
raises anything else.
"""

from __future__ import annotations

import re
from typing import Any

from stripe_bridge.model import Unresolved

Object = dict[str, Any]

# The credit service takes keys of up to 128 characters, and "stripe:" is put before the id.
_ID = re.compile(r"[A-Za-z0-9_]{1,120}")
_CURRENCY = re.compile(r"[A-Za-z]{3}")

# The maximum of the credit service's contract: an int64.
MINOR_MAX = 2**63 - 1


def optional_id(value: object) -> str | None:
    """Reads a reference, which is an id or, when expanded, the object itself.

    Returns:
        The id; None for null or an absent field.

    Raises:
        Unresolved: id_malformed.
    """
    if isinstance(value, dict):
        value = value.get("id") or ""
    if value is None:
        return None
    if not isinstance(value, str) or not _ID.fullmatch(value):
        raise Unresolved("id_malformed", "An id in one of Stripe's objects is malformed.")
    return value


def id_of(obj: Object) -> str:
    """Reads the id of an object itself.

    Raises:
        Unresolved: id_malformed, also when it is absent.
    """
    return optional_id(obj) or ""


def child(obj: Object, *path: str) -> Object:
    """Follows fields to an inner object.

    Returns:
        The inner object; an empty one if it is absent, null or not an object. Metadata that a PHP
        program has rewritten may be `[]`.
    """
    for field in path:
        inner = obj.get(field)
        if not isinstance(inner, dict):
            return {}
        obj = inner
    return obj


def objects(items: object) -> list[Object]:
    """Keeps the objects of a list; anything else is an empty list."""
    if not isinstance(items, list):
        return []
    return [item for item in items if isinstance(item, dict)]


def whole_list(value: object) -> list[Object] | None:
    """Reads an embedded list.

    Returns:
        Its objects; None if the list is absent or Stripe says that there are more.
    """
    if not isinstance(value, dict) or not isinstance(value.get("data"), list):
        return None
    return None if value.get("has_more") else objects(value["data"])


def minor(obj: Object, field: str) -> int:
    """Reads an amount of money.

    Returns:
        Minor units of the object's currency, 0 to 2^63 - 1.

    Raises:
        Unresolved: amount_malformed.
    """
    value = obj.get(field)
    if type(value) is not int or not 0 <= value <= MINOR_MAX:
        raise Unresolved(
            "amount_malformed", f"{field} of {id_of(obj)} is not an amount of minor units."
        )
    return value


def currency(obj: Object) -> str:
    """Reads an object's currency.

    Returns:
        The three-letter code in lower case.

    Raises:
        Unresolved: currency_malformed.
    """
    value = obj.get("currency")
    if not isinstance(value, str) or not _CURRENCY.fullmatch(value):
        raise Unresolved(
            "currency_malformed", f"The currency of {id_of(obj)} is not a three-letter code."
        )
    return value.lower()
