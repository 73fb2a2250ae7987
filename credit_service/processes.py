"""Running the server: in this process, or in several that share a port."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import signal
import socket
import time
from multiprocessing import connection
from typing import TYPE_CHECKING

import structlog

from credit_service.server import Settings, StartRefusedError, serve

if TYPE_CHECKING:
    from collections.abc import Callable
    from multiprocessing.process import BaseProcess

    Report = Callable[[], None]

_log = structlog.get_logger()

# Exit code of a process that will not start however often it is tried.
REFUSED = 2

_RESTART_PAUSE_SECONDS = 1.0


async def run_one(settings: Settings, started: Callable[[int], None]) -> None:
    """Serves until SIGTERM or SIGINT; a second one ends the process without draining.

    Args:
        settings: what the server is made of.
        started: told the port once calls are answered.

    Raises:
        StartRefusedError: as `serve` does.
    """
    stop = asyncio.Event()

    def on_signal() -> None:
        if stop.is_set():
            _log.error("told twice to stop, not draining")
            os._exit(1)
        stop.set()

    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_signal)

    async def tell(port: int) -> None:
        started(port)

    await serve(settings, stop, tell)


def run_many(
    count: int,
    listen: str,
    target: Callable[..., None],
    args: tuple[object, ...],
    started: Callable[[], None],
) -> None:
    """Runs `count` processes that share a port, replaces one that dies, and stops them all.

    They are spawned and not forked, for gRPC does not survive a fork; the kernel spreads
    connections over them (SO_REUSEPORT).

    Args:
        count: how many processes.
        listen: host:port they will share.
        target: run in each with its number, a function to call once it serves, and `args`.
        args: further arguments of `target`.
        started: called once all of them serve.

    Raises:
        StartRefusedError: the port is taken, or a process refused to start.
    """
    _require_free(listen)
    context = multiprocessing.get_context("spawn")
    ready = context.Semaphore(0)
    stopping = False

    def start(number: int) -> BaseProcess:
        process = context.Process(
            target=target, args=(number, ready.release, *args), name=f"credit-service {number}"
        )
        process.start()
        return process

    children = {number: start(number) for number in range(count)}

    def stop(_signal: int, _frame: object) -> None:
        nonlocal stopping
        stopping = True
        for child in children.values():
            if child.is_alive() and child.pid is not None:
                os.kill(child.pid, signal.SIGTERM)

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    waiting = count
    refused = False
    while children:
        connection.wait([child.sentinel for child in children.values()], timeout=0.2)
        while waiting and ready.acquire(block=False):
            waiting -= 1
            if waiting == 0:
                started()
        for number, child in list(children.items()):
            if child.is_alive():
                continue
            del children[number]
            if child.exitcode == REFUSED and not stopping:
                refused = True
                stop(signal.SIGTERM, None)
            if not stopping:
                _log.error("process died, starting another", process=number, exit=child.exitcode)
                time.sleep(_RESTART_PAUSE_SECONDS)
                children[number] = start(number)
    if refused:
        raise StartRefusedError("a process refused to start, so all were stopped; see above")


def _require_free(listen: str) -> None:
    """Refuses a port that somebody has, which sharing would otherwise do silently."""
    host, _, port = listen.rpartition(":")
    if port == "0":
        raise StartRefusedError("several processes need a port to share; CREDIT_LISTEN has port 0")
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host.strip("[]"), int(port), type=socket.SOCK_STREAM
        )[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except OSError as error:
        raise StartRefusedError(
            f"cannot listen on {listen}: {error.strerror}; choose another with CREDIT_LISTEN"
        ) from error
