"""The signals that stop a program: the first stops it in order, a second ends it at once."""

from __future__ import annotations

import asyncio
import os
import signal
from typing import TYPE_CHECKING

import structlog

if TYPE_CHECKING:
    from collections.abc import Collection

_log = structlog.get_logger()

# The exit code of a process that ended without stopping in order.
_ENDED_AT_ONCE = 1


def stop_on_signals(
    stop: asyncio.Event, numbers: Collection[int] = (signal.SIGTERM, signal.SIGINT)
) -> None:
    """Sets `stop` on the first of these signals, and ends the process on a second one.

    It is called in the event loop of the main thread. A signal after `stop` was set for another
    reason counts as the second one.

    Args:
        stop: the program stops in order when it is set.
        numbers: the signals.
    """

    def on_signal() -> None:
        if stop.is_set():
            _log.error("second stop signal, not draining")
            os._exit(_ENDED_AT_ONCE)
        stop.set()

    loop = asyncio.get_running_loop()
    for number in numbers:
        loop.add_signal_handler(number, on_signal)
