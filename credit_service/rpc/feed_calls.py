"""The servicer's call that streams what happens to all accounts."""

from __future__ import annotations

import asyncio
from contextlib import contextmanager
from typing import TYPE_CHECKING

from credit_service import fields
from credit_service.errors import InvalidRequest, Overloaded
from credit_service.rpc import responses, top_up_messages
from credit_service.rpc.feed_cursors import Cursor
from credit_service.rules.feed_values import (
    BEGINNING,
    KIND_ADVANCED,
    KIND_ENTRY,
    KIND_POLICY,
    KIND_TOP_UP,
)
from credit_service.rules.top_up_values import TopUpChange
from credit_service.v1 import credit_service_pb2 as pb
from credit_service.v1 import credit_service_pb2_grpc as pb_grpc

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from credit_service.ledger.feed import Feed, Page, Value
    from credit_service.rpc.requests import Context
    from credit_service.rules.model import EntryType

# A reader that is up to date looks for new items ten times a second.
READERS_MAX = 64
_LOOK_AGAIN_SECONDS = 0.1

# The longest time without a response to a reader, even if nothing happens.
_SILENT_SECONDS_MAX = 10.0

_PAGE_SIZE = 500
_RESPONSE_BYTES_MAX = 1024 * 1024

_KINDS = (KIND_ENTRY, KIND_POLICY, KIND_TOP_UP, KIND_ADVANCED)
_KINDS_WITH_TYPES = (KIND_ENTRY, KIND_ADVANCED)


class FeedCalls(pb_grpc.CreditServiceServicer):
    """Answers the call that follows the feed."""

    _feed: Feed
    _feed_readers: int = 0

    async def StreamTransactions(
        self, request: pb.StreamTransactionsRequest, context: Context
    ) -> AsyncIterator[pb.StreamTransactionsResponse]:
        """Sends the items after the cursor, and then new items as they come."""
        size = fields.page_size(request.page_size, "page_size") or _PAGE_SIZE
        types = _types(request)
        cursor = Cursor.parse(request.cursor) if request.cursor else None
        place = BEGINNING if cursor is None else cursor.place
        kinds = _KINDS_WITH_TYPES if types else _KINDS
        loop = asyncio.get_running_loop()
        sent_at, caught_up = loop.time(), None
        with self._reading():
            while True:
                page = await self._feed.page(place, size, kinds=kinds, types=types)
                if cursor is not None:
                    _require_place_in(page, cursor)
                    cursor = None
                place = page.place
                if (
                    page.items
                    or page.caught_up != caught_up
                    or loop.time() - sent_at >= _SILENT_SECONDS_MAX
                ):
                    for response in _responses(page):
                        yield response
                    sent_at, caught_up = loop.time(), page.caught_up
                if page.caught_up or page.standing:
                    await asyncio.sleep(_LOOK_AGAIN_SECONDS)

    @contextmanager
    def _reading(self) -> Iterator[None]:
        """Counts a reader for the length of the block.

        Raises:
            Overloaded: this process has too many readers.
        """
        if self._feed_readers >= READERS_MAX:
            raise Overloaded
        self._feed_readers += 1
        try:
            yield
        finally:
            self._feed_readers -= 1


def _types(request: pb.StreamTransactionsRequest) -> list[EntryType] | None:
    for value in request.types:
        if value not in responses.TYPE_NAMES:
            raise InvalidRequest("types", f"holds {value}, which is not a type of transaction.")
    return [responses.TYPE_NAMES[value] for value in request.types] or None


def _require_place_in(page: Page, cursor: Cursor) -> None:
    if cursor.feed_id != page.feed_id:
        raise InvalidRequest("cursor", "is from another database; begin without a cursor.")
    if cursor.place.tx >= page.boundary:
        raise InvalidRequest("cursor", "is ahead of the feed; begin without a cursor.")


def _responses(page: Page) -> Iterator[pb.StreamTransactionsResponse]:
    """Renders a page as one response, or as several if the items are large."""
    response = pb.StreamTransactionsResponse()
    size, last = 0, None
    for place, value in page.items:
        item = _item(value)
        size += item.ByteSize()
        if last is not None and size > _RESPONSE_BYTES_MAX:
            response.cursor = str(Cursor(page.feed_id, last))
            yield response
            response, size = pb.StreamTransactionsResponse(), item.ByteSize()
        response.items.append(item)
        last = place
    response.cursor = str(Cursor(page.feed_id, page.place))
    response.caught_up = page.caught_up
    yield response


def _item(value: Value) -> pb.FeedItem:
    if isinstance(value, TopUpChange):
        return pb.FeedItem(top_up=top_up_messages.change(value))
    return responses.feed_item(value)
