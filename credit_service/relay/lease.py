"""The lease: it decides which process sends.

It is a row of the database with a time at which it runs out, by the database's clock. A process
that hangs or is cut off loses it. It may still believe for a moment that it has the lease, so
everything that it writes names its fence, a number that rises whenever the lease changes hands.
"""

from __future__ import annotations

import asyncio
import time
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import structlog

from credit_service.errors import LedgerUnavailable
from credit_service.ledger.read_connections import StatementOutdatedError
from credit_service.relay import store

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from credit_service.ledger.read_connections import ReadPool
    from credit_service.rules.feed_values import Place

_log = structlog.get_logger()

LEASE_SECONDS = 10.0

# How long before the end of the lease this process stops relying on it.
_MARGIN = 0.2


class LeaseLostError(Exception):
    """Another process has the lease, or may have it by now."""


class Lease:
    """This process's turn to send.

    Attributes:
        fence: the number that everything written under it names.
    """

    def __init__(self, pool: ReadPool, fence: int, seconds: float, taken: float) -> None:
        """Takes the findings of `take`; `taken` is by the clock of `time.monotonic`."""
        self.fence = fence
        self._pool = pool
        self._seconds = seconds
        self._safe_until = taken + seconds * (1 - _MARGIN)

    @classmethod
    async def take(
        cls, pool: ReadPool, holder: str, seconds: float = LEASE_SECONDS
    ) -> Lease | None:
        """Takes the lease if it is free or has run out.

        Args:
            pool: connections to the database.
            holder: a name for this process, which `relay status` shows.
            seconds: how long it lasts without being renewed.

        Returns:
            The lease; None while another process has it.

        Raises:
            LedgerUnavailable: the database is away.
        """
        taken = time.monotonic()
        async with pool.lend() as connection:
            fence = await store.take_lease(connection, holder, seconds)
        return None if fence is None else cls(pool, fence, seconds, taken)

    async def keep(self) -> None:
        """Renews the lease until it is lost.

        Raises:
            LeaseLostError: another process has it, or the database was away for too long.
        """
        while True:
            await asyncio.sleep(self._seconds / 4)
            asked = time.monotonic()
            try:
                async with asyncio.timeout(max(0, self._safe_until - asked)):
                    async with self._pool.lend() as connection:
                        kept = await store.renew_lease(connection, self.fence, self._seconds)
            except (LedgerUnavailable, StatementOutdatedError, TimeoutError):
                if time.monotonic() >= self._safe_until:
                    raise LeaseLostError from None
                continue
            if not kept:
                raise LeaseLostError
            self._safe_until = asked + self._seconds * (1 - _MARGIN)

    async def give_back(self) -> None:
        """Lets another process have it at once; if the database is away, it runs out by itself."""
        try:
            async with self._pool.lend() as connection:
                await store.end_lease(connection, self.fence)
        except (LedgerUnavailable, StatementOutdatedError):
            _log.warning("lease not given back, so it runs out by itself")


class Reader:
    """A reader of the feed whose place is kept in the database.

    Attributes:
        place: how far it has read, as written in the database.
    """

    def __init__(self, pool: ReadPool, name: str, fence: int, place: Place) -> None:
        """Takes the findings of `claim`."""
        self.place = place
        self._pool = pool
        self._name = name
        self._fence = fence

    @classmethod
    async def claim(cls, pool: ReadPool, name: str, fence: int, beginning: Place) -> Reader:
        """Makes a reader this process's own; from now on no other process can move it.

        Args:
            pool: connections to the database.
            name: the reader's name.
            fence: the fence of the lease.
            beginning: where it begins if it is new.

        Raises:
            LeaseLostError: a process with a later lease has it.
            LedgerUnavailable: the database is away.
        """
        async with pool.lend() as connection:
            place = await store.claim_reader(connection, name, fence, beginning)
        if place is None:
            raise LeaseLostError
        return cls(pool, name, fence, place)

    @asynccontextmanager
    async def writing(self) -> AsyncIterator[store.Connection]:
        """Opens a transaction in which this process is sure to be the one that sends.

        Raises:
            LeaseLostError: another process has taken the reader over.
            LedgerUnavailable: the database is away.
        """
        before = self.place
        try:
            async with (
                self._pool.lend() as connection,
                connection.transaction(isolation="read_committed"),
            ):
                if not await store.lock_reader(connection, self._name, self._fence):
                    raise LeaseLostError
                yield connection
        except BaseException:
            self.place = before
            raise

    async def move(self, connection: store.Connection, place: Place) -> None:
        """Moves the reader on, never back; call it within `writing`, at its end."""
        await store.move_reader(connection, self._name, place)
        self.place = max(self.place, place)
