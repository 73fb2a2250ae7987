"""CreditClient for blocking workers: threads, process pools, Celery and the like.

One event loop in a thread of its own runs the asynchronous client, so there is one implementation
of the rules. Make the first one after a fork, not before it: gRPC does not survive one.

    with BlockingCreditClient("localhost:50051", token=token) as client:
        with client.hold(user_id, "stem_separation", job=job) as held:
            separate(song)
"""

from __future__ import annotations

import asyncio
import os
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, ClassVar, Self, TypeVar

from credit_service.client.credits import CreditClient

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Coroutine, Iterator
    from types import TracebackType

    from credit_service.client.held_work import HeldWork
    from credit_service.v1 import credit_service_pb2 as pb

_Result = TypeVar("_Result")


class BlockingHold:
    """A hold around a piece of blocking work.

    Attributes:
        hold: the hold.
        attempt: the attempt that made the hold.
    """

    def __init__(self, client: BlockingCreditClient, work: HeldWork) -> None:
        self._client = client
        self._work = work
        self.hold = work.hold
        self.attempt = work.attempt

    @property
    def captured(self) -> pb.CaptureHoldResponse | None:
        """The answer to the capture, once made."""
        return self._work.captured

    def capture(
        self,
        amount: int | None = None,
        *,
        quantity: int | None = None,
        allow_overage: bool = False,
    ) -> pb.CaptureHoldResponse:
        """Takes the credits of the hold, as `HeldWork.capture` does."""
        return self._client.run(
            self._work.capture(amount, quantity=quantity, allow_overage=allow_overage)
        )


class BlockingCreditClient:
    """Has every method of `CreditClient`, blocking; may be shared by threads.

    What yields there is an ordinary iterator here.
    """

    # The process that made the first one. In one forked from it calls would hang, or crash.
    _process: ClassVar[int | None] = None

    def __init__(self, target: str, **options: Any) -> None:
        """Takes what `CreditClient` takes."""
        BlockingCreditClient._process = BlockingCreditClient._process or os.getpid()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(
            target=self._loop.run_forever, name="credit client", daemon=True
        )
        self._thread.start()
        try:
            self._client = self.run(_make(target, options))
        except BaseException:
            self._end_thread()
            raise

    def run(self, call: Coroutine[Any, Any, _Result]) -> _Result:
        """Runs a coroutine of the asynchronous client and waits for its result.

        Raises:
            RuntimeError: this process was forked from one that had made a client.
        """
        if self._process != os.getpid():
            call.close()
            raise RuntimeError(
                "this process was forked from one that had made a BlockingCreditClient;"
                " make the first one after the fork"
            )
        running = asyncio.run_coroutine_threadsafe(call, self._loop)
        try:
            return running.result()
        except BaseException:
            # The thread was interrupted, as by Ctrl-C or the time limit of a task queue.
            running.cancel()
            raise

    def __getattr__(self, name: str) -> Any:
        # The name first: a half-made one has no `_client`, and looking for it would not end.
        if name.startswith("_") or not callable(method := getattr(self._client, name)):
            raise AttributeError(name)

        def call(*args: Any, **kwargs: Any) -> Any:
            made = method(*args, **kwargs)
            return self._iterate(made) if hasattr(made, "__anext__") else self.run(made)

        return call

    def _iterate(self, items: AsyncGenerator[_Result, None]) -> Iterator[_Result]:
        try:
            while True:
                try:
                    item = self.run(_next(items))
                except _Exhausted:
                    return
                yield item
        finally:
            # Not waited for: whoever drops the iterator may be the garbage collector.
            if not self._loop.is_closed():
                asyncio.run_coroutine_threadsafe(items.aclose(), self._loop)

    @contextmanager
    def hold(self, *args: Any, **kwargs: Any) -> Iterator[BlockingHold]:
        """Holds credits around a piece of work, as `CreditClient.hold` does; same arguments."""
        work = self._client.hold(*args, **kwargs)
        self.run(work.__aenter__())
        try:
            yield BlockingHold(self, work)
        except BaseException as error:
            self.run(work.__aexit__(type(error), error, error.__traceback__))
            raise
        self.run(work.__aexit__(None, None, None))

    def close(self) -> None:
        """Closes the connection and ends the thread."""
        self.run(_end(self._client))
        self._end_thread()

    def _end_thread(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


class _Exhausted(Exception):  # stands in for StopAsyncIteration, which no future takes
    """The iterator has no more items."""


async def _make(target: str, options: dict[str, Any]) -> CreditClient:
    return CreditClient(target, **options)


async def _end(client: CreditClient) -> None:
    """Closes the client and ends what other threads still wait for, an endless watch included."""
    await client.close()
    others = asyncio.all_tasks() - {asyncio.current_task()}
    for task in others:
        task.cancel()
    await asyncio.gather(*others, return_exceptions=True)
    await asyncio.get_running_loop().shutdown_asyncgens()


async def _next(items: AsyncGenerator[_Result, None]) -> _Result:
    try:
        return await anext(items)
    except StopAsyncIteration:
        raise _Exhausted from None
