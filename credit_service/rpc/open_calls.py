"""The calls that are being answered: their number, and the size of their unsent answers.

A call is open until its answer has been sent, so a caller that does not read its answers uses up
its own share and not the memory of the process.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from contextvars import ContextVar
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from credit_service.errors import LedgerUnavailable, Overloaded
from credit_service.rpc import call_metrics
from credit_service.rpc.waiting_time import WaitingTime

if TYPE_CHECKING:
    import grpc

    Context = grpc.aio.ServicerContext[Any, Any]

# The maximum size of the answers that wait to be sent, in bytes; a longer answer may wait if it is
# the only one.
CONNECTION_UNSENT_BYTES_MAX = 4 * 1024 * 1024
PROCESS_UNSENT_BYTES_MAX = 256 * 1024 * 1024

# A call is admitted only while its connection has room for an answer of this length, so that few
# answers must be dropped.
_ANSWER_ROOM_BYTES = 1024 * 1024

# A connection is closed if a request or the reading of an answer takes longer than this.
SILENCE_SECONDS_MAX = 60.0

CONNECTION_STREAMS_MAX = 4096


@dataclass(slots=True, eq=False)
class OpenCall:
    """A call that is being answered.

    Attributes:
        peer: the connection it came by.
        task: answers it.
        streams: whether it is a stream, which has any number of answers.
        waits: the number of answers still to come; those of streams are not counted.
        items: the number of its items that are open; 0: it is a single call.
        unsent: bytes of its answers that wait to be sent.
        awaited_since: since when it waits for its caller to send the request or read an answer.
        given_up: whether it was ended because the service stops.
    """

    peer: str
    task: asyncio.Task[Any] | None
    streams: bool
    waits: int
    items: int = 0
    unsent: int = 0
    awaited_since: float | None = None
    given_up: bool = False

    def await_caller(self) -> None:
        """Notes that the call waits for its caller to send the request or read an answer."""
        self.awaited_since = time.monotonic()

    def heard(self) -> None:
        """Notes that the caller has sent or read it."""
        self.awaited_since = None


class OpenCalls:
    """Counts the calls of the process and of each connection, and ends them when it stops."""

    def __init__(self, calls_max: int) -> None:
        """Admits at most `calls_max` calls at the same time; streams are counted apart."""
        self._calls_max = calls_max
        self._closing = False
        self._calls: set[OpenCall] = set()
        self._streams: set[OpenCall] = set()
        self._open = 0
        self._streams_of: Counter[str] = Counter()
        self._unsent_of: Counter[str] = Counter()
        self._unsent = 0
        self._waiting = 0
        self._waiting_time = WaitingTime()
        self._idle = asyncio.Event()
        self._idle.set()
        call_metrics.OPEN_CALLS.set_function(lambda: self._open)
        call_metrics.OPEN_STREAMS.set_function(lambda: len(self._streams))
        call_metrics.UNSENT_BYTES.set_function(lambda: self._unsent)

    def admit(self, context: Context, *, streams: bool) -> OpenCall:
        """Admits a call and counts it until its answer has been sent.

        Args:
            context: of the call, which the running task answers.
            streams: whether it is a stream.

        Raises:
            Overloaded: the call would wait longer than its caller can, or the process or the
                connection has too many calls or unsent answers.
            LedgerUnavailable: the service is stopping.
        """
        if self._closing:
            raise LedgerUnavailable
        task = asyncio.current_task()
        assert task is not None  # noqa: S101  # gRPC answers every call in a task
        call = OpenCall(context.peer(), task, streams, waits=int(not streams))
        if streams:
            if self._streams_of[call.peer] >= CONNECTION_STREAMS_MAX:
                raise Overloaded
            self._streams_of[call.peer] += 1
            self._streams.add(call)
        else:
            self._require_room(call.peer, context.time_remaining())
            self._waiting += 1
            self._open += 1
            self._calls.add(call)
        call.await_caller()
        self._idle.clear()
        # One of gRPC's own callbacks would keep the context for ever: a circle that it never opens.
        task.add_done_callback(partial(self._done, call, context))
        return call

    def _require_room(self, peer: str, seconds_left: float | None) -> None:
        if self._open >= self._calls_max or self._is_full(peer, _ANSWER_ROOM_BYTES):
            raise Overloaded
        self._waiting_time.require(self._waiting, seconds_left)

    def admit_item(self, call: OpenCall, seconds_left: float) -> None:
        """Admits one of the calls of a CallMany, and counts it as `admit` does.

        The first takes the place of the CallMany itself.

        Raises:
            Overloaded: as `admit`.
        """
        if call.items > 0:
            self._require_room(call.peer, seconds_left)
            self._open += 1
            self._waiting += 1
            call.waits += 1
        call.items += 1

    def keep_unsent(self, call: OpenCall, size: int) -> None:
        """Counts the answer of a call, or of an item, until it has been sent.

        Args:
            call: as `admit` returned it.
            size: of the answer, in bytes.

        Raises:
            LedgerUnavailable: the connection or the process has too much to send already.
        """
        if self._is_full(call.peer, size):
            raise LedgerUnavailable
        self.count_unsent(call, size, admitted=True)

    def count_unsent(self, call: OpenCall, size: int, *, admitted: bool) -> None:
        """Counts the error of an item, which is short enough to be sent in any case.

        Args:
            call: the CallMany.
            size: of the error, in bytes.
            admitted: whether the item was admitted.
        """
        if admitted:
            self._stop_waiting(call, 1, answered=True)
        call.unsent += size
        self._unsent_of[call.peer] += size
        self._unsent += size

    def sent_items(self, call: OpenCall, admitted: int, size: int) -> None:
        """Notes that answers of items have been sent.

        Args:
            call: the CallMany.
            admitted: how many of the items had been admitted.
            size: of the answers, in bytes.
        """
        self._count_sent(call, size)
        # The call itself counts as one until it ends.
        gone = max(0, min(admitted, call.items - 1))
        call.items -= gone
        self._open -= gone

    def _count_sent(self, call: OpenCall, size: int) -> None:
        if size:
            call.unsent -= size
            self._unsent -= size
            _subtract(self._unsent_of, call.peer, size)

    def silent_peers(self) -> set[str]:
        """The connections that have waited for a caller longer than `SILENCE_SECONDS_MAX`."""
        limit = time.monotonic() - SILENCE_SECONDS_MAX
        return {
            call.peer
            for call in self._calls | self._streams
            if call.awaited_since is not None and call.awaited_since < limit
        }

    def _is_full(self, peer: str, size: int) -> bool:
        waiting = self._unsent_of.get(peer, 0)
        return (waiting > 0 and waiting + size > CONNECTION_UNSENT_BYTES_MAX) or (
            self._unsent > 0 and self._unsent + size > PROCESS_UNSENT_BYTES_MAX
        )

    def _stop_waiting(self, call: OpenCall, answers: int, *, answered: bool) -> None:
        for _ in range(min(answers, call.waits)):
            if answered:
                self._waiting_time.answered(self._waiting)
            self._waiting -= 1
            call.waits -= 1

    def _done(self, call: OpenCall, context: Context, _task: object) -> None:
        # The task's context and errors lead back to the call: a circle, which would keep the answer
        # in memory until the garbage collector finds it.
        call.task = None
        if call.streams:
            self._streams.discard(call)
            _subtract(self._streams_of, call.peer, 1)
        else:
            self._calls.discard(call)
            self._open -= max(1, call.items)
        # A call without a status had no answer: its caller has gone.
        self._stop_waiting(call, call.waits, answered=context.done())
        self._count_sent(call, call.unsent)
        if not self._calls and not self._streams:
            self._idle.set()

    def close(self) -> None:
        """Admits nothing more, and ends the streams, which would never end by themselves."""
        self._closing = True
        self._give_up(self._streams)

    def give_up(self) -> None:
        """Ends all calls that have no answer yet."""
        self._give_up(self._calls | self._streams)

    async def wait_idle(self, seconds: float) -> bool:
        """Waits until no call is open; False when that takes longer."""
        try:
            async with asyncio.timeout(seconds):
                await self._idle.wait()
        except TimeoutError:
            return False
        return True

    def peers(self) -> set[str]:
        """The connections that have open calls."""
        return {call.peer for call in self._calls | self._streams}

    @staticmethod
    def _give_up(calls: set[OpenCall]) -> None:
        for call in calls:
            has_answered = call.unsent > 0 and call.items == 0
            if not has_answered and call.task is not None and not call.given_up:
                call.given_up = True
                call.task.cancel()


@dataclass(frozen=True, slots=True)
class OpenItems:
    """The items of a CallMany, each counted as a call; the methods are those of `OpenCalls`."""

    calls: OpenCalls
    call: OpenCall

    def admit(self, seconds_left: float) -> None:
        """Admits an item."""
        self.calls.admit_item(self.call, seconds_left)

    def keep_unsent(self, size: int) -> None:
        """Counts the result of an item."""
        self.calls.keep_unsent(self.call, size)

    def count_unsent(self, size: int, *, admitted: bool) -> None:
        """Counts the error of an item."""
        self.calls.count_unsent(self.call, size, admitted=admitted)

    def sent(self, admitted: int, size: int) -> None:
        """Notes that results have been sent."""
        self.calls.sent_items(self.call, admitted, size)


# The items of the CallMany that the running task answers.
ITEMS: ContextVar[OpenItems] = ContextVar("items")


def _subtract(counts: Counter[str], name: str, number: int) -> None:
    counts[name] -= number
    if not counts[name]:
        del counts[name]
