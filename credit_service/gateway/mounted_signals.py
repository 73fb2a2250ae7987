"""Reacts to SIGTERM and SIGINT in a program that the gateway is mounted in.

uvicorn does not tell a streaming response that the server stops, and waits for it to end. So the
first stream installs a handler in front of the program's own: it ends the streams, and the
program's handler does the rest.
"""

from __future__ import annotations

import contextlib
import signal
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable
    from types import FrameType

    _Handler = Callable[[int, FrameType | None], object]

_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class MountedSignals:
    """Calls a function before the handlers of SIGTERM and SIGINT, if the program has any."""

    def __init__(self) -> None:
        # By signal: our handler, and the one that was there before.
        self._chained: dict[int, tuple[_Handler, _Handler]] = {}

    def chain(self, loop: asyncio.AbstractEventLoop, stop: Callable[[], None]) -> None:
        """Calls `stop` in `loop` on a signal, before the program's own handler runs."""
        for number in _SIGNALS:
            before = signal.getsignal(number)
            if number in self._chained or not callable(before):
                # The default handler ends the process at once and needs no help.
                continue
            handler = _chained(loop, stop, before)
            try:
                signal.signal(number, handler)
            except ValueError:
                # Not the main thread: the program calls `Gateway.stop`.
                return
            self._chained[number] = handler, before

    def release(self) -> None:
        """Restores the program's handlers, unless it has set others in the meantime.

        Such a later handler may still call ours, which then calls the one before it.
        """
        for number, (handler, before) in self._chained.items():
            if signal.getsignal(number) is handler:
                with contextlib.suppress(ValueError):
                    signal.signal(number, before)
        self._chained.clear()


def _chained(
    loop: asyncio.AbstractEventLoop, stop: Callable[[], None], before: _Handler
) -> _Handler:
    def handler(number: int, frame: FrameType | None) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed
            loop.call_soon_threadsafe(stop)
        before(number, frame)

    return handler
