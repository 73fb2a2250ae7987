"""An event loop in a thread of its own, where other threads run coroutines and wait for them."""

from __future__ import annotations

import asyncio
import os
import queue
import threading
from concurrent.futures import CancelledError
from typing import TYPE_CHECKING, Any, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

_Result = TypeVar("_Result")

# An exception that another thread sets, such as the time limit of a task queue, reaches a thread
# only while it runs Python code. A thread that waits for an answer does so this often.
_WAKE_SECONDS = 1.0


class LoopThread:
    """Runs until `close`; any other thread may use it."""

    def __init__(self) -> None:
        self._process = os.getpid()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(
            target=self._loop.run_forever, name="credit client", daemon=True
        )
        self._thread.start()

    def run(self, coroutine: Coroutine[Any, Any, _Result]) -> _Result:
        """Runs a coroutine and waits for its result; it is cancelled if the wait is interrupted.

        Raises:
            RuntimeError: the loop is closed, or this process was forked from the one that has it,
                or this is its own thread.
            CancelledError: the loop was closed during the call.
        """
        call = _Call(coroutine)
        try:
            self._require_usable()
            self.post(call.start)
            ended = self._wait_for(call)
        except BaseException:
            # The wait was interrupted, as by Ctrl-C or by the time limit of a task queue.
            if not self.post(call.give_up):
                coroutine.close()
            raise
        if ended.cancelled():
            raise CancelledError("the client was closed during the call")
        return ended.result()

    def _require_usable(self) -> None:
        if self._process != os.getpid():
            raise RuntimeError(
                "this process was forked from one that had made a credit client;"
                " make the first one after the fork"
            )
        if self._loop.is_closed():
            raise RuntimeError("this client is closed; make another one")
        if self._thread is threading.current_thread():
            raise RuntimeError("a blocking call in the thread of the client would never end")

    def _wait_for(self, call: _Call[_Result]) -> asyncio.Task[_Result]:
        while True:
            try:
                return call.ended.get(timeout=_WAKE_SECONDS)
            except queue.Empty:
                if not self._thread.is_alive():
                    raise CancelledError("the client was closed during the call") from None

    def post(self, callback: Callable[[], object]) -> bool:
        """Has the loop call something soon, without waiting; False if it never will."""
        if self._process != os.getpid():
            return False
        try:
            self._loop.call_soon_threadsafe(callback)
        except RuntimeError:  # it is closed
            return False
        return True

    def start(self, coroutine: Coroutine[Any, Any, object]) -> None:
        """Runs a coroutine without waiting for it."""
        call = _Call(coroutine)
        if not self.post(call.start):
            coroutine.close()

    def close(self, last: Coroutine[Any, Any, object]) -> None:
        """Runs a last coroutine, cancels all others, an endless watch included, and ends."""
        if self._thread.is_alive():
            self.run(_end_all(last))
            self.post(self._loop.stop)
            self._thread.join()
        else:
            last.close()
        self._loop.close()


class _Call(Generic[_Result]):
    """A coroutine in the loop, and the thread that waits for it."""

    def __init__(self, coroutine: Coroutine[Any, Any, _Result]) -> None:
        self._coroutine = coroutine
        self._task: asyncio.Task[_Result] | None = None
        # It is written in C, unlike the locks of `concurrent.futures`: a thread that is interrupted
        # inside those would keep one, and the loop would wait for it for ever.
        self.ended: queue.SimpleQueue[asyncio.Task[_Result]] = queue.SimpleQueue()

    def start(self) -> None:
        """Starts the coroutine; called in the loop."""
        self._task = asyncio.get_running_loop().create_task(self._coroutine)
        self._task.add_done_callback(self.ended.put)

    def give_up(self) -> None:
        """Cancels the coroutine, unless it has ended; called in the loop."""
        if self._task is None:
            self._coroutine.close()
        else:
            self._task.cancel()
            self._task.add_done_callback(_forget)


def _forget(task: asyncio.Task[Any]) -> None:
    """Retrieves the error of a task, so that asyncio does not log that nothing retrieved it."""
    if not task.cancelled():
        task.exception()


async def _end_all(last: Coroutine[Any, Any, object]) -> None:
    await last
    others = asyncio.all_tasks() - {asyncio.current_task()}
    for task in others:
        task.cancel()
    await asyncio.gather(*others, return_exceptions=True)
    await asyncio.get_running_loop().shutdown_asyncgens()
