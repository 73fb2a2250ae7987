"""An HTTP client for one address that keeps its connections, and can break them on request.

Ordinary clients hide the connection, which a fault must break.
"""

import asyncio
import contextlib
import time
from dataclasses import dataclass
from urllib.parse import urlsplit

import h11

_IDLE_SECONDS = 2.0  # servers close idle connections; a used one that is older is not trusted
_IDLE_CONNECTIONS = 256


@dataclass(slots=True, eq=False)
class _Connection:
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    protocol: h11.Connection
    idle_since: float = 0.0


class Cut(Exception):
    """The connection was broken on purpose before an answer was read."""


class Poster:
    """Posts to one URL."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self._host, self._port = parts.hostname or "127.0.0.1", parts.port or 80
        self._target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        self._idle: list[_Connection] = []

    async def post(
        self, body: bytes, headers: list[tuple[str, str]], *, cut: str | None = None
    ) -> tuple[int, bytes]:
        """Posts a body and returns status and body of the answer.

        Args:
            body: of the request.
            headers: beyond Host and Content-Length.
            cut: `sending` breaks in the middle of the request, `waiting` when it is sent.

        Raises:
            Cut: the connection was broken as `cut` asks.
            OSError: no connection, or it broke.
            h11.RemoteProtocolError: the answer is not HTTP, or it broke off.
        """
        connection = self._kept() or await self._opened()
        try:
            answer = await self._exchange(connection, body, headers, cut)
        except BaseException:
            connection.writer.transport.abort()
            raise
        if connection.protocol.our_state is h11.MUST_CLOSE or len(self._idle) > _IDLE_CONNECTIONS:
            connection.writer.close()
        else:
            connection.protocol.start_next_cycle()
            connection.idle_since = time.monotonic()
            self._idle.append(connection)
        return answer

    async def _exchange(
        self,
        connection: _Connection,
        body: bytes,
        headers: list[tuple[str, str]],
        cut: str | None,
    ) -> tuple[int, bytes]:
        protocol, writer = connection.protocol, connection.writer
        standing = [("Host", f"{self._host}:{self._port}"), ("Content-Length", str(len(body)))]
        request = h11.Request(method="POST", target=self._target, headers=[*standing, *headers])
        head = protocol.send(request) or b""
        rest = (protocol.send(h11.Data(data=body)) or b"") + (
            protocol.send(h11.EndOfMessage()) or b""
        )
        if cut == "sending":
            writer.write(head + rest[: len(rest) // 2])
            await writer.drain()
            raise Cut(cut)
        writer.write(head + rest)
        await writer.drain()
        if cut == "waiting":
            # Without this the reset would overtake the request in the receiver's buffer.
            await asyncio.sleep(0.01)
            raise Cut(cut)
        status, parts = 0, bytearray()
        while True:
            event = protocol.next_event()
            if event is h11.NEED_DATA:
                protocol.receive_data(await connection.reader.read(65536))
            elif isinstance(event, h11.Response):
                status = event.status_code
            elif isinstance(event, h11.Data):
                parts += event.data
            elif isinstance(event, h11.EndOfMessage):
                return status, bytes(parts)
            elif isinstance(event, h11.ConnectionClosed):
                raise ConnectionResetError("closed without an answer")

    def _kept(self) -> _Connection | None:
        while self._idle:
            connection = self._idle.pop()
            fresh = time.monotonic() - connection.idle_since < _IDLE_SECONDS
            if fresh and not connection.reader.at_eof():
                return connection
            connection.writer.close()
        return None

    async def _opened(self) -> _Connection:
        reader, writer = await asyncio.open_connection(self._host, self._port)
        return _Connection(reader, writer, h11.Connection(our_role=h11.CLIENT))

    async def close(self) -> None:
        """Closes the idle connections."""
        for connection in self._idle:
            connection.writer.close()
            with contextlib.suppress(OSError):
                await connection.writer.wait_closed()
        self._idle.clear()
