"""An HTTP/2 client that sends gRPC requests by hand and gives the server no room for answers."""

import asyncio
import contextlib
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_DATA, _HEADERS, _RST_STREAM, _SETTINGS, _PING, _GOAWAY = 0, 1, 3, 4, 6, 7
_END_STREAM, _ACK, _END_HEADERS = 1, 1, 4
_INTERNAL_ERROR = 2
_MAX_CONCURRENT_STREAMS, _INITIAL_WINDOW_SIZE = 3, 4


class SilentReader:
    """A client whose streams have a window of 0: it takes heads and trailers, but no answers.

    It answers the server's settings and pings, so its connection looks alive.

    Attributes:
        ended: calls that have ended; here these are the refused ones.
        streams_max: how many streams the server allows at the same time; None: not announced yet.
        closed: set when the server has closed the connection.
    """

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer
        self._stream = -1
        self._ended: set[int] = set()
        self.streams_max: int | None = None
        self.closed = asyncio.Event()

    def start(self) -> None:
        no_room = struct.pack(">HI", _INITIAL_WINDOW_SIZE, 0)
        self._writer.write(_PREFACE + _frame(_SETTINGS, 0, 0, no_room))

    @property
    def ended(self) -> int:
        # A stream that is refused before its request was sent ends twice: by trailers and a reset.
        return len(self._ended)

    async def call(self, path: str, request: bytes | None) -> None:
        """Sends a call.

        Args:
            path: `/package.Service/Method`.
            request: its message; None: it is never sent.
        """
        self._stream += 2
        fields = {
            ":method": "POST",
            ":scheme": "http",
            ":path": path,
            ":authority": "localhost",
            "te": "trailers",
            "content-type": "application/grpc",
        }
        head = b"".join(_literal(name, value) for name, value in fields.items())
        self._writer.write(_frame(_HEADERS, _END_HEADERS, self._stream, head))
        if request is not None:
            message = b"\0" + struct.pack(">I", len(request)) + request
            self._writer.write(_frame(_DATA, _END_STREAM, self._stream, message))
        await self._writer.drain()

    async def go_away(self) -> None:
        """Sends GOAWAY with an error of the client's own."""
        reason = struct.pack(">II", 0, _INTERNAL_ERROR) + b"gone"
        self._writer.write(_frame(_GOAWAY, 0, 0, reason))
        await self._writer.drain()

    async def read(self) -> None:
        """Reads from the server until it closes the connection."""
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                head = await self._reader.readexactly(9)
                kind, flags = head[3], head[4]
                payload = await self._reader.readexactly(int.from_bytes(head[:3], "big"))
                if kind == _SETTINGS and not flags & _ACK:
                    said = dict(struct.iter_unpack(">HI", payload))
                    self.streams_max = said.get(_MAX_CONCURRENT_STREAMS, self.streams_max)
                    self._writer.write(_frame(_SETTINGS, _ACK, 0, b""))
                elif kind == _PING and not flags & _ACK:
                    self._writer.write(_frame(_PING, _ACK, 0, payload))
                elif kind == _RST_STREAM or (kind == _HEADERS and flags & _END_STREAM):
                    self._ended.add(int.from_bytes(head[5:9], "big"))
        self.closed.set()


@asynccontextmanager
async def silent_reader(port: int) -> AsyncIterator[SilentReader]:
    """Connects to a port of this machine for the length of the block."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    client = SilentReader(reader, writer)
    client.start()
    reading = asyncio.create_task(client.read())
    try:
        yield client
    finally:
        reading.cancel()
        await asyncio.wait({reading})
        writer.transport.abort()


def _frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, stream) + payload


def _literal(name: str, value: str) -> bytes:
    """A header field without compression (RFC 7541, 6.2.2); both shorter than 127 bytes."""
    return b"\0" + b"".join(bytes([len(text)]) + text.encode() for text in (name, value))
