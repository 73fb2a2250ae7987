"""Calls that are in flight together go to the service as one request, CallMany.

No timer holds a call back. A call that finds nothing in flight goes at once, by itself. While
requests wait for an answer, further calls gather, and they go together when one is answered: the
more calls there are, the larger the requests.
"""

from __future__ import annotations

import asyncio
from copy import copy
from functools import partial
from math import ceil
from typing import TYPE_CHECKING, Any, TypeVar

import grpc

from credit_service import status
from credit_service.client.call_queue import CallQueue, Group, Item
from credit_service.errors import InternalError, Unavailable
from credit_service.v1 import credit_service_pb2 as pb

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from google.protobuf.message import Message

    from credit_service.v1 import credit_service_pb2_grpc as pb_grpc

_Response = TypeVar("_Response")

# The maximum number of requests without any answer. Below it, the waiting calls are sent once they
# are a quarter of the calls in flight: a straggler waits for others instead of going by itself.
REQUESTS_MAX = 4

# A request without an answer for this long, as when all its accounts are locked, is not counted.
_SLOW_SECONDS = 0.1

# The longest time that an item can state, which is more than a month.
_MILLISECONDS_MAX = 2**32 - 1

# After the service has refused CallMany, as one without it does, calls are made singly for this
# long.
_SINGLY_SECONDS = 300.0

_KINDS: dict[type[Message], str] = {
    pb.SpendCreditsRequest: "spend",
    pb.HoldCreditsRequest: "hold",
    pb.CaptureHoldRequest: "capture",
}


class Coalescing:
    """Makes the calls of a connection, each with the answer or failure it would have by itself.

    Each call that waits here has a caller who waits for it, and is forgotten when the caller goes.
    """

    def __init__(
        self,
        stub: pb_grpc.CreditServiceAsyncStub,
        metadata: Sequence[tuple[str, str]],
        call_singly: Callable[[Any, Any, float], Awaitable[Any]],
    ) -> None:
        """Begins without any call.

        Args:
            stub: of a channel of the running event loop.
            metadata: goes with each request.
            call_singly: makes a single call, given what `call` is given.
        """
        self._stub = stub
        self._metadata = metadata
        self._call_singly = call_singly
        self._loop = asyncio.get_running_loop()
        self._queue = CallQueue()
        self._requests = 0
        self._calls = 0
        self._tasks: set[asyncio.Task[grpc.aio.AioRpcError | None]] = set()
        self._flush_is_due = False
        self._went_together = False
        self._singly_until = 0.0

    def close(self) -> None:
        """Cancels all calls."""
        for item in self._queue.withdraw_all():
            item.answer.cancel()
        for task in self._tasks:
            task.cancel()

    async def call(
        self,
        method: grpc.aio.UnaryUnaryMultiCallable[Any, _Response],
        request: Any,  # of any call
        deadline: float,
    ) -> _Response:
        """Makes a call once, by itself or together with others.

        Args:
            method: the single call.
            request: that of the single call.
            deadline: by the clock of the event loop.

        Raises:
            AioRpcError: the error that the single call would have raised.
        """
        kind = _KINDS.get(type(request))
        if kind is None or request.validate_only or self._loop.time() < self._singly_until:
            single: _Response = await self._call_singly(method, request, deadline)
            return single
        item = Item(kind, request, request.user_id.lower(), deadline, self._loop.create_future())
        # After a request of many its callers may all call again at the same moment.
        at_once = self._queue.is_idle and not self._went_together
        self._queue.add(item)
        if at_once:
            self._begin(self._queue.take())
        else:
            answer: _Response | None = await self._answer_to(item)
            if answer is not None:
                return answer
        try:
            answer = await self._call_singly(method, request, deadline)
        finally:
            if item.group is not None:
                self._end(item.group, None)
        return answer

    async def _answer_to(self, item: Item) -> Any:  # the response of any call
        """Waits for the response to a call; None: the caller is to make it singly."""
        self._flush_soon()
        try:
            async with asyncio.timeout_at(item.deadline):
                return await item.answer
        except TimeoutError:
            self._give_up(item)
            raise _failure(grpc.StatusCode.DEADLINE_EXCEEDED, "no answer came in time") from None
        except asyncio.CancelledError:
            self._give_up(item)
            raise

    def _give_up(self, item: Item) -> None:
        """Withdraws a call that is not sent; a sent one stays, because others share its request.

        When no caller is left, the whole request is cancelled, and the service drops the calls that
        it has not begun.
        """
        group = item.group
        if group is None:
            self._queue.withdraw(item)
        elif group.task is None:
            self._end(group, None)
        else:
            group.callers -= 1
            if not group.callers:
                group.task.cancel()

    def _flush_soon(self) -> None:
        """Sends the waiting calls once all tasks that can run now have run: they may add some."""
        if not self._flush_is_due and self._may_flush():
            self._flush_is_due = True
            self._loop.call_soon(self._flush)

    def _may_flush(self) -> bool:
        ready = self._queue.ready
        return 0 < ready >= self._calls / REQUESTS_MAX and self._requests < REQUESTS_MAX

    def _flush(self) -> None:
        self._flush_is_due = False
        while self._may_flush():
            group = self._queue.take()
            if not group.items:
                return
            self._begin(group)
            if group.size == 1:
                group.items[0].answer.set_result(None)
            else:
                group.task = self._loop.create_task(self._exchange(group))
                group.task.add_done_callback(partial(self._exchanged, group))
                self._tasks.add(group.task)

    def _begin(self, group: Group) -> None:
        self._requests += 1
        self._calls += group.size
        self._went_together = group.size > 1
        group.slow = self._loop.call_later(_SLOW_SECONDS, self._stop_counting, group)

    def _stop_counting(self, group: Group) -> None:
        """Makes room for another request, because this one is answered, has ended, or is slow."""
        if group.slow is not None:
            group.slow.cancel()
            group.slow = None
            self._requests -= 1
            self._calls -= group.size
        self._flush_soon()

    async def _exchange(self, group: Group) -> grpc.aio.AioRpcError | None:
        """Sends a group, and answers its calls as their results come.

        Returns:
            The error of the calls without a result; None: the service refused the request as a
            whole, and the calls are to be made singly.
        """
        now = self._loop.time()
        request = pb.CallManyRequest()
        for index, item in group.items.items():
            milliseconds = min(max(1, ceil((item.deadline - now) * 1000)), _MILLISECONDS_MAX)
            request.items.add(index=index, timeout_ms=milliseconds, **{item.kind: item.request})
        seconds = max(item.deadline for item in group.items.values()) - now
        try:
            async for response in self._stub.CallMany(
                request, timeout=seconds, metadata=self._metadata, wait_for_ready=True
            ):
                for result in response.results:
                    self._answer(group, result)
                self._stop_counting(group)
        except grpc.aio.AioRpcError as failure:
            if isinstance(status.typed(failure), Unavailable | InternalError):
                return failure
            self._make_calls_singly()
            return None
        return _failure(grpc.StatusCode.UNAVAILABLE, "a result is missing")

    def _answer(self, group: Group, result: pb.CallManyResult) -> None:
        kind = result.WhichOneof("result")
        item = group.items.pop(result.index, None) if kind is not None else None
        if kind is None or item is None:
            return
        self._queue.answered(item)
        if item.answer.done():
            return
        group.callers -= 1
        given = getattr(result, kind)
        if kind == "error":
            item.answer.set_exception(status.failure_of(given))
            return
        # A part of a message keeps the whole message in memory.
        response = type(given)()
        response.CopyFrom(given)
        item.answer.set_result(response)

    def _make_calls_singly(self) -> None:
        """Makes the calls that wait, and those of the next minutes, singly."""
        self._singly_until = self._loop.time() + _SINGLY_SECONDS
        for item in self._queue.withdraw_all():
            item.answer.set_result(None)

    def _exchanged(self, group: Group, task: asyncio.Task[grpc.aio.AioRpcError | None]) -> None:
        self._tasks.discard(task)
        if task.cancelled():
            self._end(group, asyncio.CancelledError())
        else:
            self._end(group, task.exception() or task.result())

    def _end(self, group: Group, failure: BaseException | None) -> None:
        """Ends a group. Calls without an answer fail; without a failure they are made singly."""
        for item in group.items.values():
            self._queue.answered(item)
            if item.answer.done():
                continue
            if failure is None:
                item.answer.set_result(None)
            elif isinstance(failure, asyncio.CancelledError):
                item.answer.cancel()
            else:
                # A copy, because each caller's traceback is added to what it raises.
                item.answer.set_exception(copy(failure))
        group.items.clear()
        self._stop_counting(group)


def _failure(code: grpc.StatusCode, problem: str) -> grpc.aio.AioRpcError:
    return grpc.aio.AioRpcError(code, grpc.aio.Metadata(), grpc.aio.Metadata(), problem)
