"""The call of CreditClient that follows what happens to all accounts."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import grpc

from credit_service import status
from credit_service.client.connection import Connection
from credit_service.client.retries import Pauses
from credit_service.errors import Unavailable
from credit_service.v1 import credit_service_pb2 as pb

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Iterable

_PAUSE_SECONDS = 0.5
_PAUSE_SECONDS_MAX = 5.0

# The service sends a response at least every 10 seconds. A stream that is silent for longer is
# broken somewhere on the way.
_SILENT_SECONDS = 30.0


class FeedCalls(Connection):
    """The events of all accounts, as a stream."""

    async def stream_transactions(
        self,
        *,
        cursor: str = "",
        types: Iterable[pb.TransactionType.ValueType] = (),
        page_size: int = 0,
    ) -> AsyncGenerator[pb.StreamTransactionsResponse]:
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
        request = pb.StreamTransactionsRequest(
            cursor=cursor, types=list(types), page_size=page_size
        )
        pauses = Pauses(_PAUSE_SECONDS, _PAUSE_SECONDS_MAX)
        while True:
            asked_seconds = None
            stream = self.stub.StreamTransactions(
                request, metadata=self.metadata, wait_for_ready=True
            )
            try:
                while batch := await _next(stream):
                    pauses = Pauses(_PAUSE_SECONDS, _PAUSE_SECONDS_MAX)
                    yield batch
                    # A caller that asks for the next batch has finished with this one.
                    request.cursor = batch.cursor
            except TimeoutError:
                pass
            except grpc.aio.AioRpcError as failure:
                error = status.typed(failure)
                if not isinstance(error, Unavailable):
                    raise error from failure
                asked_seconds = status.retry_seconds(failure)
            finally:
                stream.cancel()
            await asyncio.sleep(pauses.next(asked_seconds))


async def _next(
    stream: grpc.aio.UnaryStreamCall[pb.StreamTransactionsRequest, pb.StreamTransactionsResponse],
) -> pb.StreamTransactionsResponse | None:
    """Waits for the next batch; None after the last one of a service that stops.

    Raises:
        TimeoutError: none came for too long.
    """
    async with asyncio.timeout(_SILENT_SECONDS):
        batch = await stream.read()
    return batch if isinstance(batch, pb.StreamTransactionsResponse) else None
