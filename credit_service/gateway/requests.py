"""Reads what a page sent: query parameters and small JSON bodies.

Unknown names are refused, so a page cannot send a `user_id`: the user is always the one who asks.
"""

from __future__ import annotations

import asyncio
import re
from contextlib import aclosing
from datetime import UTC, date, datetime, timedelta
from typing import TYPE_CHECKING, Any

import orjson
from starlette.requests import ClientDisconnect

from credit_service.fields import AMOUNT_MAX
from credit_service.gateway.problems import Problem, invalid

if TYPE_CHECKING:
    from starlette.requests import Request

BODY_BYTES_MAX = 16 * 1024
BODY_SECONDS = 5.0
PAGE_SIZE_DEFAULT = 50
PAGE_SIZE_MAX = 200
USAGE_DAYS_MAX = 31
_USAGE_DAYS_DEFAULT = 30
_CURSOR_LENGTH_MAX = 512
_KEY = re.compile("[!-~]{1,128}")


class Query:
    """The query parameters of a request, each of which must be known."""

    def __init__(self, request: Request, *known: str) -> None:
        """Refuses parameters that are not among `known`."""
        self._values: dict[str, list[str]] = {}
        for name, value in request.query_params.multi_items():
            if name not in known:
                raise invalid(name[:64], "is not a parameter of this address.")
            self._values.setdefault(name, []).append(value)

    def one(self, name: str) -> str | None:
        """Reads a parameter that may appear once; None: it is absent."""
        values = self._values.get(name, [])
        if len(values) > 1:
            raise invalid(name, "came twice.")
        return values[0] if values else None

    def all(self, name: str) -> list[str]:
        """Reads a parameter that may appear several times."""
        return self._values.get(name, [])

    def limit(self) -> int:
        """Reads the maximum number of items of a page."""
        text = self.one("limit")
        if text is None:
            return PAGE_SIZE_DEFAULT
        if not re.fullmatch("[0-9]{1,3}", text) or not 1 <= int(text) <= PAGE_SIZE_MAX:
            raise invalid("limit", f"must be 1 to {PAGE_SIZE_MAX}.")
        return int(text)

    def cursor(self) -> str:
        """Reads the cursor of a page; empty: the first page."""
        text = self.one("cursor") or ""
        if len(text) > _CURSOR_LENGTH_MAX:
            raise invalid("cursor", "was not given by this address.")
        return text

    def days(self) -> tuple[date, date]:
        """Reads the first and the last day of a report; by default the last 30 days of UTC."""
        last = self._day("to") or datetime.now(UTC).date()
        first = self._day("from") or last - timedelta(days=_USAGE_DAYS_DEFAULT - 1)
        if first > last:
            raise invalid("from", "is later than `to`.")
        if last - first >= timedelta(days=USAGE_DAYS_MAX):
            raise invalid("from", f"is more than {USAGE_DAYS_MAX} days before the end of `to`.")
        return first, last

    def _day(self, name: str) -> date | None:
        text = self.one(name)
        if text is None:
            return None
        try:
            if not re.fullmatch(r"[12][0-9]{3}-[0-9]{2}-[0-9]{2}", text):
                raise ValueError
            return date.fromisoformat(text)
        except ValueError:
            raise invalid(name, "must be a day such as 2026-11-28.") from None


def idempotency_key(request: Request) -> str:
    """Reads the header that names one intent of the user."""
    key = request.headers.get("idempotency-key", "")
    if not _KEY.fullmatch(key):
        raise invalid("Idempotency-Key", "must have 1 to 128 printable characters, no spaces.")
    return key


async def json_object(request: Request, *known: str) -> dict[str, Any]:
    """Reads the body: a JSON object that has only known fields.

    Raises:
        Problem: 400, 408, 413 or 415.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise Problem("UNSUPPORTED_MEDIA_TYPE")
    try:
        fields = orjson.loads(await _body(request))
    except orjson.JSONDecodeError:
        raise invalid("body", "is not JSON.") from None
    if not isinstance(fields, dict):
        raise invalid("body", "must be a JSON object.")
    for name in fields:
        if name not in known:
            raise invalid(name[:64], "is not a field of this request.")
    return fields


async def no_body(request: Request) -> None:
    """Reads the body of a request that needs none: nothing, or an empty JSON object."""
    if request.headers.get("content-length", "0") != "0" or "transfer-encoding" in request.headers:
        await json_object(request)


async def _body(request: Request) -> bytes:
    announced = request.headers.get("content-length", "")
    # The rest of the body is not read, so the connection cannot be used again.
    too_large = Problem("TOO_LARGE", headers={"Connection": "close"}, bytes_max=BODY_BYTES_MAX)
    if announced.isdecimal() and int(announced) > BODY_BYTES_MAX:
        raise too_large
    body = bytearray()
    try:
        async with asyncio.timeout(BODY_SECONDS), aclosing(request.stream()) as chunks:
            async for chunk in chunks:
                if len(body) + len(chunk) > BODY_BYTES_MAX:
                    raise too_large
                body += chunk
    except TimeoutError:
        raise Problem("TOO_SLOW", headers={"Connection": "close"}) from None
    except ClientDisconnect:
        raise invalid("body", "did not come as a whole.") from None
    return bytes(body)


def text(fields: dict[str, Any], name: str, *, length_max: int) -> str:
    """Reads a text, which must be present."""
    value = fields.get(name)
    if not isinstance(value, str) or not 1 <= len(value) <= length_max:
        raise invalid(name, f"must be a text of 1 to {length_max} characters.")
    return value


def amount(fields: dict[str, Any], name: str, where: str, default: int) -> int:
    """Reads a whole number of at least 1; `where` names its place in a refusal."""
    value = fields.get(name, default)
    if type(value) is not int or not 1 <= value <= AMOUNT_MAX:
        raise invalid(where, f"must be a whole number, 1 to {AMOUNT_MAX}.")
    return value


def flag(fields: dict[str, Any], name: str) -> bool:
    """Reads true or false; a missing field is false."""
    value = fields.get(name, False)
    if type(value) is not bool:
        raise invalid(name, "must be true or false.")
    return value


def charges(fields: dict[str, Any], *, items_max: int) -> list[tuple[str, int]]:
    """Reads the items of a quote: operations and their quantities, in order."""
    items = fields.get("items")
    if not isinstance(items, list) or not 1 <= len(items) <= items_max:
        raise invalid("items", f"must be a list of 1 to {items_max}.")
    read = []
    for place, item in enumerate(items):
        where = f"items[{place}]"
        if not isinstance(item, dict) or item.keys() - {"operation", "quantity"}:
            raise invalid(where, "must hold operation and quantity, and nothing else.")
        operation = item.get("operation")
        if not isinstance(operation, str):
            raise invalid(f"{where}.operation", "must be a text.")
        read.append((operation, amount(item, "quantity", f"{where}.quantity", 1)))
    return read
