"""Reacts to SIGTERM and SIGINT in a program that the gateway is mounted in.

uvicorn does not tell a streaming response that the server stops, and waits for it to end. So the
first stream installs a handler in front of the program's own: it ends the streams, and the
program's handler does the rest.
"""

from __future__ import annotations

import contextlib
import signal
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable
    from types import FrameType

_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class StopSignals:
    """Calls a function before the handlers of SIGTERM and SIGINT, if the program has any."""

    def __init__(self) -> None:
        self._before: dict[int, Any] = {}

    def chain(self, loop: asyncio.AbstractEventLoop, stop: Callable[[], None]) -> None:
        """Calls `stop` in `loop` on a signal, before the program's own handler runs."""

        def handler(number: int, frame: FrameType | None) -> None:
            with contextlib.suppress(RuntimeError):  # the loop is closed
                loop.call_soon_threadsafe(stop)
            self._before[number](number, frame)

        for number in _SIGNALS:
            if number in self._before or not callable(signal.getsignal(number)):
                # The default handler ends the process at once and needs no help.
                continue
            self._before[number] = signal.getsignal(number)
            try:
                signal.signal(number, handler)
            except ValueError:
                # Not the main thread: the program calls `Gateway.stop`.
                del self._before[number]
                return
            self._handler = handler

    def release(self) -> None:
        """Restores the program's handlers, unless it has set others in the meantime."""
        for number, before in self._before.items():
            if signal.getsignal(number) is self._handler:
                with contextlib.suppress(ValueError):
                    signal.signal(number, before)
        self._before.clear()
