"""Reads the bodies of requests within limits, and defines these limits."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from starlette.requests import Request


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """The limits of requests.

    Attributes:
        body_bytes: the maximum size of an event.
        requests_in_flight: the maximum number of events that are settled at the same time.
        arriving_bytes: the maximum size of all bodies that are being read, together.
        read_seconds: how long a body may take to arrive.
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
    """The body is larger than its maximum."""


class TooMuch(Exception):
    """The bodies that are being read exceed their maximum together."""


class Bodies:
    """Reads bodies, and never holds more than `arriving_bytes` of unfinished ones."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._held = 0

    async def read(self, request: Request, bytes_max: int) -> bytes:
        """Reads a body and returns its exact bytes.

        Raises:
            TimeoutError: it did not arrive in time.
            ClientDisconnect: the client went away before its end.
            TooLarge, TooMuch: it exceeds a limit.
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
