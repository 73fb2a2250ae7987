"""A proxy before the service whose connections can go silent, as behind a forgetful firewall."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

_CHUNK = 1 << 16


class SilentProxy:
    """Listens on a port of its own; `target` leads through it to the service."""

    def __init__(self, port: int) -> None:
        self._service_port = port
        self._silent: set[asyncio.StreamWriter] = set()
        self._open: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self.target = ""
        self.given_up = 0

    def go_silent(self) -> None:
        """From now on the open connections swallow everything, in both directions."""
        self._silent |= self._open

    async def accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_connection("127.0.0.1", self._service_port)
        self._open.add(writer)
        ways = [
            asyncio.create_task(self._forward(reader, back, writer)),
            asyncio.create_task(self._forward(there, writer, writer)),
        ]
        self._tasks.update(ways)
        try:
            # The client has closed it; or the service has, and the client must be notified.
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
            self.given_up += writer in self._silent and ways[0].done()
            if writer in self._silent:
                await ways[0]
        finally:
            self._open.discard(writer)
            for end in (writer, back):
                end.close()
            for way in ways:
                way.cancel()
                self._tasks.discard(way)

    async def _forward(
        self, reader: asyncio.StreamReader, to: asyncio.StreamWriter, link: asyncio.StreamWriter
    ) -> None:
        with contextlib.suppress(OSError):
            while chunk := await reader.read(_CHUNK):
                if link not in self._silent:
                    to.write(chunk)
                    await to.drain()


@asynccontextmanager
async def silent_proxy(port: int) -> AsyncIterator[SilentProxy]:
    """Runs a proxy before the service on that port."""
    proxy = SilentProxy(port)
    server = await asyncio.start_server(proxy.accept, "127.0.0.1", 0)
    proxy.target = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
    try:
        yield proxy
    finally:
        server.close()
        for task in proxy._tasks:
            task.cancel()
