"""Running the server: in this process, or in several that share a port."""

from __future__ import annotations

import asyncio
import multiprocessing
import signal
import socket
import time
from multiprocessing import connection
from typing import TYPE_CHECKING

import structlog

from credit_service.runtime.start_errors import StartRefusedError
from credit_service.runtime.stop_signals import stop_on_signals
from credit_service.server import Settings, serve

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from multiprocessing.process import BaseProcess
    from multiprocessing.synchronize import Semaphore

    Report = Callable[[], None]

_log = structlog.get_logger()

# Exit code of a process that refuses to start, and would refuse again.
REFUSED = 2

_RESTART_PAUSE_SECONDS = 1.0
_POLL_SECONDS = 0.1


async def run_one(settings: Settings, started: Callable[[int], None]) -> None:
    """Serves until SIGTERM or SIGINT; a second one ends the process without draining.

    One of several processes ignores SIGINT, because a Ctrl-C reaches its parent too and must not
    count twice. It stops when its parent has ended.

    Args:
        settings: what the server is made of.
        started: called with the port once calls are answered.

    Raises:
        StartRefusedError: as `serve` does.
    """
    stop = asyncio.Event()
    parent = multiprocessing.parent_process()
    if parent is None:
        stop_on_signals(stop)
    else:
        stop_on_signals(stop, [signal.SIGTERM])
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        loop = asyncio.get_running_loop()
        sentinel = parent.sentinel

        def on_orphaned() -> None:
            loop.remove_reader(sentinel)
            _log.error("parent process is gone, stopping")
            stop.set()

        loop.add_reader(sentinel, on_orphaned)

    async def report(port: int) -> None:
        started(port)

    await serve(settings, stop, report)


def run_many(
    count: int,
    listen: Mapping[str, str],
    target: Callable[..., None],
    args: tuple[object, ...],
    started: Callable[[], None],
) -> bool:
    """Runs `count` processes that share their ports, replaces one that dies, and stops them all.

    They are spawned and not forked, because gRPC does not survive a fork. The kernel spreads
    connections over them (SO_REUSEPORT). Each drains when this process asks it to, or ends.

    Args:
        count: how many processes.
        listen: each host:port they will share, by the setting that names it.
        target: run in each with its number, a function to call once it serves, and `args`.
        args: further arguments of `target`.
        started: called once all of them serve.

    Returns:
        Whether all of them drained when they were stopped.

    Raises:
        StartRefusedError: a port is taken, or a process refused to start.
    """
    for setting, address in listen.items():
        _require_free(setting, address)
    context = multiprocessing.get_context("spawn")
    ready = context.Semaphore(0)
    children: dict[int, BaseProcess] = {}
    signalled: dict[int, int] = {}
    stops = 0

    def stop(_signal: int, _frame: object) -> None:
        nonlocal stops
        stops += 1

    def start(number: int) -> None:
        children[number] = context.Process(
            target=_run_child, args=(target, number, ready, *args), name=f"credit-service {number}"
        )
        children[number].start()
        signalled[number] = 0

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    for number in range(count):
        start(number)
    waiting = count
    refused = False
    drained = True
    while children:
        connection.wait([child.sentinel for child in children.values()], timeout=_POLL_SECONDS)
        while waiting and ready.acquire(block=False):
            waiting -= 1
            if waiting == 0:
                started()
        for number, child in list(children.items()):
            # Sent here and not by the handler, so that each signal reaches each process once.
            for _ in range(signalled[number], stops):
                child.terminate()
                signalled[number] += 1
            if child.is_alive():
                continue
            del children[number]
            # A process that was just starting has nothing to drain, and the signal ends it.
            if stops and child.exitcode not in (0, -signal.SIGTERM):
                drained = False
            if child.exitcode == REFUSED and not stops:
                refused = True
                stops = 1
            if not stops:
                _log.error("process died, starting another", process=number, exit=child.exitcode)
                time.sleep(_RESTART_PAUSE_SECONDS)
            if not stops:
                start(number)
    if refused:
        raise StartRefusedError("a process refused to start, so all were stopped; see above")
    return drained


def _run_child(target: Callable[..., None], number: int, ready: Semaphore, *args: object) -> None:
    target(number, ready.release, *args)


def _require_free(setting: str, address: str) -> None:
    """Refuses a port that is taken; SO_REUSEPORT would share it without an error."""
    host, _, port = address.rpartition(":")
    if port == "0":
        raise StartRefusedError(f"several processes need a port to share; {setting} has port 0")
    try:
        family, kind, protocol, _, place = socket.getaddrinfo(
            host.strip("[]"), int(port), type=socket.SOCK_STREAM
        )[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(place)
    except OSError as error:
        raise StartRefusedError(
            f"cannot listen on {address}: {error.strerror}; choose another with {setting} or end"
            " the program that has it"
        ) from error
