"""The time limit of a test, which pytest-timeout sets and which must end a test that hangs.

An exception from a signal's handler is lost when uvloop calls the handler, so the task that the
loop runs for is cancelled instead. A test that goes on in spite of that is ended with its process.
"""

import asyncio
import faulthandler
import os
import signal
import sys

import pytest
import uvloop
from kit.waiting import patience

_GRACE_SECONDS = 20
_STRIKES = 3


class Loop(uvloop.Loop):
    """An event loop that knows which task it is run for."""

    task = None

    def run_until_complete(self, future):
        self.task = asyncio.ensure_future(future, loop=self)
        return super().run_until_complete(self.task)


def pytest_asyncio_loop_factories(config, item):
    return {"uvloop": Loop}


@pytest.hookimpl(tryfirst=True)
def pytest_timeout_set_timer(item, settings):
    _set_timer(item, settings.timeout)
    return True


def _set_timer(item, seconds):
    """Ends the test `item` after `seconds`: first by an error in it, at last with its process."""
    strikes = 0

    def strike(_signal, _frame):
        nonlocal strikes
        strikes += 1
        message = f"{item.nodeid} took longer than {seconds:.0f} s"
        print(f"\n{message}; the tasks and threads:", file=sys.stderr)
        loop = asyncio._get_running_loop()
        for task in asyncio.all_tasks(loop) if loop else ():
            task.print_stack(file=sys.stderr)
        faulthandler.dump_traceback(file=sys.__stderr__)
        if strikes == _STRIKES:
            _print_captured(item)
            os._exit(1)
        if loop is None or asyncio.current_task(loop) is not None:
            raise TimeoutError(message)
        loop.task.cancel(message)

    def cancel():
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, signal.SIG_DFL)

    item.cancel_timeout = cancel
    signal.signal(signal.SIGALRM, strike)
    signal.setitimer(signal.ITIMER_REAL, seconds, patience(_GRACE_SECONDS))


def _print_captured(item):
    capture = item.config.pluginmanager.getplugin("capturemanager")
    capture.suspend_global_capture()
    print(*capture.read_global_capture(), file=sys.stderr, flush=True)
