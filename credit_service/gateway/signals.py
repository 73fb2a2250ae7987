"""Hears that the process is to end, as a guest in somebody else's program.

uvicorn tells a streaming response nothing when it stops, and waits for it. So the first stream puts
a handler before that of the program: it ends the streams, and the program's own does the rest.
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


class Signals:
    """Chains a function onto the handlers of SIGTERM and SIGINT, where the program has any."""

    def __init__(self) -> None:
        self._before: dict[int, Any] = {}

    def chain(self, loop: asyncio.AbstractEventLoop, told: Callable[[], None]) -> None:
        """Lets `told` run in `loop` on a signal, before what the program does about it."""

        def handler(number: int, frame: FrameType | None) -> None:
            with contextlib.suppress(RuntimeError):  # the loop is closed
                loop.call_soon_threadsafe(told)
            self._before[number](number, frame)

        for number in _SIGNALS:
            if number in self._before or not callable(signal.getsignal(number)):
                # The default ends the process at once, and needs no help.
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
        """Puts the program's handlers back, unless it has set others meanwhile."""
        for number, before in self._before.items():
            if signal.getsignal(number) is self._handler:
                with contextlib.suppress(ValueError):
                    signal.signal(number, before)
        self._before.clear()
