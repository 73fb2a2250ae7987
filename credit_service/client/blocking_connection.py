"""The connection under BlockingCreditClient: CreditClient in the event loop of a thread."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Self, TypeVar

from credit_service.client.channel import require_usable_process
from credit_service.client.connection import DEADLINE_SECONDS
from credit_service.client.credit_client import CreditClient
from credit_service.client.loop_thread import LoopThread

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Coroutine, Generator, Sequence
    from types import TracebackType

    import grpc

_Result = TypeVar("_Result")


class BlockingConnection:
    """Runs the asynchronous client's calls and waits for them."""

    def __init__(
        self,
        target: str | Sequence[str],
        *,
        token: str | None = None,
        credentials: grpc.ChannelCredentials | None = None,
        deadline_seconds: float = DEADLINE_SECONDS,
        server_name: str | None = None,
        coalesce: bool = True,
    ) -> None:
        """Takes what `CreditClient` takes, and starts the thread.

        Raises:
            ValueError: the target is not an address.
            RuntimeError: this process was forked from one that had made a client, or its threads
                are gevent's or eventlet's.
        """
        require_usable_process()
        self._client = CreditClient(
            target,
            token=token,
            credentials=credentials,
            deadline_seconds=deadline_seconds,
            server_name=server_name,
            coalesce=coalesce,
        )
        self._thread = LoopThread()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Closes the connection and ends the thread."""
        self._thread.close(self._client.close())

    def run(self, call: Coroutine[Any, Any, _Result]) -> _Result:
        """Runs a coroutine of the asynchronous client and waits for its result.

        Raises:
            RuntimeError: the client is closed, or this process was forked after it was made.
        """
        return self._thread.run(call)

    def iterate(self, items: AsyncGenerator[_Result, None]) -> Generator[_Result, None, None]:
        """Yields what an asynchronous generator of the client yields, waiting for each item."""
        try:
            while True:
                try:
                    item = self.run(_next(items))
                except _ExhaustedError:
                    return
                yield item
        finally:
            # Not waited for, because the garbage collector may be what closes the generator.
            self._thread.start(items.aclose())


class _ExhaustedError(Exception):
    """The generator has no more items; a task cannot raise StopAsyncIteration."""


async def _next(items: AsyncGenerator[_Result, None]) -> _Result:
    try:
        return await anext(items)
    except StopAsyncIteration:
        raise _ExhaustedError from None
