"""The operators' commands for the relay: show it, send dead events again, try an endpoint."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from credit_service.fields import uuid_or_none
from credit_service.ledger.feed import Feed
from credit_service.relay import parked_store, store
from credit_service.relay.events import event_time, trial
from credit_service.relay.relay import reader_name
from credit_service.rules.feed_values import (
    BEGINNING,
    KIND_ADVANCED,
    KIND_ALERT,
    KIND_ENTRY,
    KIND_POLICY,
    KIND_TOP_UP,
    Place,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Mapping
    from datetime import datetime

    from credit_service.ledger.read_connections import ReadPool
    from credit_service.relay.endpoints import Endpoint
    from credit_service.relay.parked_store import Listed
    from credit_service.relay.sender import Attempt

_PAGE = 1_000

_KINDS = {
    "": KIND_ENTRY,
    "p": KIND_POLICY,
    "t": KIND_TOP_UP,
    "a": KIND_ALERT,
    "f": KIND_ADVANCED,
}
_SIGNS = {kind: sign for sign, kind in _KINDS.items()}
_ID = re.compile(
    r"(?P<tx>[0-9]{1,18})\.(?P<user>[^.]+)\.(?P<sign>[ptaf]?)(?P<number>[0-9]{1,18})(\..*)?"
)


class UnknownError(Exception):
    """There is no such endpoint or event; the message says which."""


async def test(endpoint: Endpoint, now: datetime, *, private: bool) -> Attempt:
    """Sends an event of type relay.test to an endpoint, once.

    Args:
        endpoint: the endpoint.
        now: the time.
        private: whether addresses that are not globally routable are allowed.
    """
    from credit_service.relay.sender import Sender  # noqa: PLC0415  # as in relay.py

    sender = Sender(endpoint, private=private, connections=1)
    try:
        return await sender.send(trial(endpoint.name, now))
    finally:
        await sender.close()


class Operator:
    """Reads and changes the relay's state in the database, beside a relay that runs."""

    def __init__(
        self, pool: ReadPool, endpoints: Mapping[str, Endpoint], say: Callable[[str], None]
    ) -> None:
        """Takes connections, the endpoints by name, and the function that prints a line."""
        self._pool = pool
        self._endpoints = endpoints
        self._say = say

    async def show(self, endpoint: str | None, *, events: bool) -> None:
        """Prints the state of one endpoint or of all.

        Args:
            endpoint: its name; None: all.
            events: whether to list dead events and some of those that are parked.

        Raises:
            UnknownError: there is no such endpoint.
            LedgerUnavailable: the database is away.
        """
        if endpoint is not None:
            self._require(endpoint)
        async with self._pool.lend() as connection:
            holder = await store.show_lease(connection)
            readers = {reader.name: reader for reader in await store.list_readers(connection)}
        if holder is None or holder.seconds <= 0:
            self._say("no relay runs")
        else:
            self._say(f"relay {holder.name} sends, lease {holder.fence}")
        for name in sorted(self._endpoints) if endpoint is None else [endpoint]:
            reader = readers.get(reader_name(name))
            place = None if reader is None else reader.place
            await self._show_one(self._endpoints[name], place, events=events)

    async def _show_one(self, endpoint: Endpoint, place: Place | None, *, events: bool) -> None:
        name = endpoint.name
        async with self._pool.lend() as connection:
            counts = await parked_store.count_parked(connection, name)
        self._say(
            f"{name}: {endpoint.shown_url}, {await self._lag(place)},"
            f" {counts.parked} parked, {counts.dead} dead"
        )
        if not events:
            return
        async for page in self._listed(name, dead=True):
            for listed in page:
                self._say(f"  dead {_shown(listed)}")
        async for page in self._listed(name, dead=False):
            for listed in page:
                self._say(f"  parked {_shown(listed)}")
            break

    async def _lag(self, place: Place | None) -> str:
        if place is None:
            return "has not begun"
        page = await Feed(self._pool).page(place, 1)
        if page.standing:
            return "waits for `credit-service feed advance`"
        if not page.items:
            return "has everything"
        since = event_time(page.items[0][1])
        return f"is at {since.isoformat(timespec='seconds')}"

    async def retry(self, endpoint: str, event: str | None) -> None:
        """Lets dead events be sent again, or one event that is dead or parked.

        Args:
            endpoint: its name.
            event: the webhook-id of one event; None: all that are dead.

        Raises:
            UnknownError: there is no such endpoint or event.
            LedgerUnavailable: the database is away.
        """
        self._require(endpoint)
        if event is not None:
            place = _place(event)
            async with self._pool.lend() as connection:
                if place is None or not await parked_store.revive_parked(
                    connection, endpoint, place
                ):
                    raise UnknownError(f"{endpoint} has no event {event} that is dead or parked")
            self._say("1 event is sent again")
            return
        count = 0
        async for page in self._listed(endpoint, dead=True):
            async with self._pool.lend() as connection:
                for listed in page:
                    count += await parked_store.revive_parked(connection, endpoint, listed.place)
        self._say(f"{count} events are sent again")

    def _require(self, endpoint: str) -> None:
        if endpoint not in self._endpoints:
            raise UnknownError(f"there is no endpoint {endpoint} in the file")

    async def _listed(self, endpoint: str, *, dead: bool) -> AsyncIterator[list[Listed]]:
        after = BEGINNING
        while True:
            async with self._pool.lend() as connection:
                page = await parked_store.list_parked(
                    connection, endpoint, dead=dead, after=after, limit=_PAGE
                )
            if page:
                yield page
            if len(page) < _PAGE:
                return
            after = page[-1].place


def _shown(listed: Listed) -> str:
    place = listed.place
    sign = _SIGNS[place.kind]
    name = f"{place.tx}.{place.user_id}.{sign}{place.number}.{listed.type}"
    since = (listed.dead_at or listed.parked_at).isoformat(timespec="seconds")
    return f"{name} since {since}, {listed.tries} tries: {listed.problem or 'follows another'}"


def _place(text: str) -> Place | None:
    match = _ID.fullmatch(text)
    user_id = uuid_or_none(match["user"]) if match else None
    if match is None or user_id is None:
        return None
    return Place(int(match["tx"]), user_id, _KINDS[match["sign"]], int(match["number"]))
