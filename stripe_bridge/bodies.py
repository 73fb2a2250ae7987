"""Reads the bodies of requests, never more of them than fits: the limits of what may be sent."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from starlette.requests import Request


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """How much of everything.

    Attributes:
        body_bytes: that an event may have.
        requests_in_flight: events answered at the same time.
        arriving_bytes: that the bodies on their way may have together.
        read_seconds: how long a body may take to come.
        budget_seconds: how long a request may take in all; Stripe's Checkout lets a customer wait
            for 10 s.
        park_after_seconds: the age from which unresolved events are answered 200.
    """

    body_bytes: int = 1024 * 1024
    requests_in_flight: int = 1000
    arriving_bytes: int = 64 * 1024 * 1024
    read_seconds: float = 5.0
    budget_seconds: float = 8.0
    park_after_seconds: float = 24 * 60 * 60


class TooLarge(Exception):
    """The body has more bytes than it may."""


class TooMuch(Exception):
    """The bodies that are arriving have more bytes than they may have together."""


class Bodies:
    """Reads bodies, never holding more than so many bytes of those that are still arriving."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._held = 0

    async def read(self, request: Request, bytes_max: int) -> bytes:
        """Reads a body exactly as it came.

        Raises:
            TimeoutError: it did not come in time.
            ClientDisconnect: it never came as a whole.
            TooLarge, TooMuch: it is not read any further.
        """
        announced = request.headers.get("content-length", "")
        if announced.isdecimal() and int(announced) > bytes_max:
            raise TooLarge
        body = bytearray()
        try:
            async with (
                asyncio.timeout(self._limits.read_seconds),
                aclosing(request.stream()) as chunks,
            ):
                async for chunk in chunks:
                    if len(body) + len(chunk) > bytes_max:
                        raise TooLarge
                    if self._held + len(chunk) > self._limits.arriving_bytes:
                        raise TooMuch
                    self._held += len(chunk)
                    body += chunk
        finally:
            self._held -= len(body)
        return bytes(body)
