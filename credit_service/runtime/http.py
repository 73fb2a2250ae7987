"""uvicorn inside our programs: on a given socket, without signal handlers, with time limits."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from typing import TYPE_CHECKING, Any

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from credit_service.runtime.start_errors import StartRefusedError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

_BACKLOG = 2048
_HEAD_SECONDS = 10.0
_WRITE_SECONDS = 30.0
# Longer than a proxy keeps a connection, so that it never sends into one that is being closed.
_KEEP_ALIVE_SECONDS = 75


@contextlib.contextmanager
def bound(listen: str, *, setting: str) -> Iterator[socket.socket]:
    """Listens on host:port for the length of the block.

    Args:
        listen: host:port; port 0 takes any free one.
        setting: the name of its setting, which the refusal names.

    Raises:
        StartRefusedError: the port is taken, or the address is not one of this machine's.
    """
    host, _, port = listen.rpartition(":")
    family = socket.AF_INET6 if "[" in host else socket.AF_INET
    # Without TCP by its name asyncio leaves Nagle's algorithm on, which costs 40 ms an answer.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host.strip("[]"), int(port)))
        listener.listen(_BACKLOG)
    except OSError as error:
        listener.close()
        raise StartRefusedError(
            f"cannot listen on {listen}: {error.strerror}; choose another with {setting} or end"
            " the program that has it"
        ) from error
    with listener:
        yield listener


@contextlib.asynccontextmanager
async def serving(app: Any, listener: socket.socket, *, drain_seconds: int) -> AsyncIterator[None]:
    """Serves an ASGI app for the length of the block, then answers the requests still open.

    Args:
        app: the ASGI app; its lifespan is not run.
        listener: where requests come in.
        drain_seconds: how long requests may still take at the end.
    """
    server = _Server(
        uvicorn.Config(
            app,
            http=_Connection,
            ws="none",
            lifespan="off",
            log_config=None,
            # The routes log the faults of a request, without its contents.
            log_level="critical",
            access_log=False,
            proxy_headers=False,
            server_header=False,
            timeout_keep_alive=_KEEP_ALIVE_SECONDS,
            timeout_graceful_shutdown=drain_seconds,
        )
    )
    running = asyncio.create_task(server.serve(sockets=[listener]))
    listening = asyncio.create_task(server.listening.wait())
    await asyncio.wait({running, listening}, return_when=asyncio.FIRST_COMPLETED)
    listening.cancel()
    try:
        yield
    finally:
        server.should_exit = True
        await running


class _Connection(H11Protocol):
    """A connection that is closed when the other side takes too long.

    uvicorn waits forever for the head of the first request, for the rest of a head that has begun,
    and for a client that reads nothing of its answer.
    """

    _waiting: asyncio.TimerHandle | None = None
    _writing: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._wait_for_head()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self._has_request:
            self._wait_no_more()
        elif self._waiting is None:
            self._wait_for_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._wait_no_more()
        self._written()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        super().pause_writing()
        # Closing would wait until the client has read the rest.
        self._writing = self.loop.call_later(_WRITE_SECONDS, self.transport.abort)

    def resume_writing(self) -> None:
        self._written()
        super().resume_writing()

    def _written(self) -> None:
        if self._writing is not None:
            self._writing.cancel()
            self._writing = None

    @property
    def _has_request(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _wait_for_head(self) -> None:
        self._waiting = self.loop.call_later(_HEAD_SECONDS, self.transport.close)

    def _wait_no_more(self) -> None:
        if self._waiting is not None:
            self._waiting.cancel()
            self._waiting = None


class _Server(uvicorn.Server):
    """uvicorn inside a program of its own, whose signals it leaves alone."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.listening = asyncio.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.listening.set()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield
