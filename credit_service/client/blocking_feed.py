"""The calls of feed.py, blocking; written by scripts/blocking_calls.py."""

from __future__ import annotations

from typing import TYPE_CHECKING

from credit_service.client.blocking_connection import BlockingConnection

if TYPE_CHECKING:
    from collections.abc import Generator, Iterable

    from credit_service.v1 import credit_service_pb2 as pb


class BlockingFeedCalls(BlockingConnection):
    """The events of all accounts, as a stream."""

    def stream_transactions(
        self,
        *,
        cursor: str = "",
        types: Iterable[pb.TransactionType.ValueType] = (),
        page_size: int = 0,
    ) -> Generator[pb.StreamTransactionsResponse]:
        """Yields what happens to all accounts in batches; continues after the stream was cut.

        It has no end: leave the loop, or close the generator. Process the items of a batch, then
        store its `cursor`; a process that is killed in between gets the batch again. Items of one
        user come in order. A batch without items moves the cursor as well, and comes at least every
        ten seconds. `CursorFile` stores a cursor.

        Args:
            cursor: that of the last batch that was processed; empty: begin with the oldest entry.
            types: only entries of these types; none: all entries, and changes of policies and
                top-ups.
            page_size: the maximum number of items in a batch, 1,000 at most; 0: 500.

        Raises:
            InvalidRequest: the cursor is damaged, of another database or ahead of the feed.
            PermissionDenied: the caller's role may not read the feed.
        """
        return self.iterate(
            self._client.stream_transactions(cursor=cursor, types=types, page_size=page_size)
        )
