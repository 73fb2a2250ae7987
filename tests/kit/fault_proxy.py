"""A proxy between the service and PostgreSQL that breaks the line at a chosen message.

It frames the client's messages, and knows the text of each prepared statement that is executed, so
that a fault strikes "the second COMMIT" or "the first lock" and not some packet.
"""

import asyncio
import contextlib
import re
import shutil
import struct
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from urllib.parse import parse_qs, quote, urlsplit

from kit.waiting import patience

# The statements of a lane's transaction, in their order.
BEGIN = "^BEGIN"
LOCK = "FOR NO KEY UPDATE$"
LOAD_KEYS = "AS asked \\(user_id, key\\)"
UPDATE = "^UPDATE user_credits"
INSERT = "^INSERT INTO credit_transactions"
COMMIT = "^COMMIT"

_SOCKET = ".s.PGSQL.5432"
_QUERY, _PARSE, _BIND, _SYNC = b"Q", b"P", b"B", b"S"
_READY_FOR_QUERY = b"Z\0\0\0\5"
_CHUNK = 1 << 16


class Kind(StrEnum):
    """What the fault does at a message."""

    CUT_BEFORE = "cut before"  # the database never gets it
    CUT_AFTER = "cut after"  # the database gets it, but the client gets no answer
    SWALLOW = "swallow the reply"  # the database has answered, the answer gets lost
    HOLD = "hold"  # it stays on its way until it is released


class _Met(asyncio.Event):
    """Set when a fault has struck. One that strikes nothing fails its test, which does not hang."""

    async def wait(self) -> bool:
        async with asyncio.timeout(patience(30)):
            return await super().wait()


@dataclass(eq=False)
class Fault:
    """A fault that waits for the n-th matching message, and strikes `times` messages from there."""

    statement: str
    kind: Kind
    nth: int
    times: int
    met: _Met = field(default_factory=_Met)
    released: asyncio.Event = field(default_factory=asyncio.Event)
    seen: int = 0

    def meets(self, sql: str) -> bool:
        """Counts a message; returns whether the fault strikes it."""
        if not re.search(self.statement, sql, re.MULTILINE):
            return False
        self.seen += 1
        return self.nth <= self.seen < self.nth + self.times

    def release(self) -> None:
        """Lets a held message go on."""
        self.released.set()


@dataclass(eq=False)
class _Link:
    """A client's connection and the one made for it to the database."""

    client_reader: asyncio.StreamReader
    client: asyncio.StreamWriter
    server_reader: asyncio.StreamReader
    server: asyncio.StreamWriter
    statements: dict[bytes, str] = field(default_factory=dict)
    swallowing: bool = False

    def cut(self) -> None:
        self.client.transport.abort()
        # Forwarded bytes are still delivered, so a COMMIT on its way is carried out.
        self.server.close()

    def sql_of(self, kind: bytes, body: bytes) -> str | None:
        """The text that a message executes; None for a message that executes nothing."""
        if kind == _QUERY:
            return body[:-1].decode()
        if kind == _PARSE:
            name, sql, _ = body.split(b"\0", 2)
            self.statements[name] = sql.decode()
        if kind == _BIND:
            _, name, _ = body.split(b"\0", 2)
            return self.statements.get(name)
        return None


class FaultProxy:
    """Listens on a Unix socket of its own; `url` leads through it to the same database."""

    def __init__(self, url: str, directory: Path) -> None:
        parts = urlsplit(url)
        self._sockets = parse_qs(parts.query).get("host")
        self._host, self._port = parts.hostname, parts.port
        login = parts.netloc.rpartition("@")[0]
        self.url = parts._replace(
            netloc=f"{login}@" if login else "", query=f"host={quote(str(directory))}"
        ).geturl()
        self._faults: list[Fault] = []
        self._links: set[_Link] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._flowing = asyncio.Event()
        self._flowing.set()

    def on(self, statement: str, kind: Kind, *, nth: int = 1, times: int = 1) -> Fault:
        """Plans a fault for the n-th execution, from now, of a statement (an expression for it)."""
        fault = Fault(statement, kind, nth, times)
        self._faults.append(fault)
        return fault

    def forget(self) -> None:
        """Drops all planned faults and releases held messages."""
        for fault in self._faults:
            fault.release()
        self._faults.clear()

    def black_hole(self) -> None:
        """Silently lets nothing through in either direction, not even new connections."""
        self._flowing.clear()

    def heal(self) -> None:
        """Drops all faults and lets everything through again, stuck messages included."""
        self.forget()
        self._flowing.set()

    def cut_all(self) -> None:
        """Cuts every connection."""
        for link in self._links:
            link.cut()

    def accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(self._join(reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _join(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await self._flowing.wait()
            server_reader, server = await self._connect()
            link = _Link(reader, writer, server_reader, server)
            self._links.add(link)
            try:
                back = asyncio.create_task(self._to_client(link))
                with contextlib.suppress(OSError, asyncio.IncompleteReadError):
                    await self._to_server(link)
                # A network that swallows everything also swallows the end of a connection.
                await self._flowing.wait()
                link.cut()
                await back
            finally:
                back.cancel()
                link.cut()
                self._links.discard(link)
        except OSError:
            pass
        finally:
            writer.transport.abort()

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        if self._sockets:
            return await asyncio.open_unix_connection(str(Path(self._sockets[0]) / _SOCKET))
        return await asyncio.open_connection(self._host, self._port)

    async def _to_server(self, link: _Link) -> None:
        head = await link.client_reader.readexactly(4)
        start = head + await link.client_reader.readexactly(struct.unpack("!I", head)[0] - 4)
        await self._send(link.server, start)
        while True:
            kind, message = await _message(link.client_reader)
            sql = link.sql_of(kind, message[5:])
            if sql is None:
                await self._send(link.server, message)
                continue
            while kind not in (_QUERY, _SYNC):
                kind, part = await _message(link.client_reader)
                message += part
            if not await self._pass(link, sql, message):
                return

    async def _pass(self, link: _Link, sql: str, message: bytes) -> bool:
        """Forwards the message of a statement, unless a fault strikes; False ends the link."""
        struck = [fault for fault in self._faults if fault.meets(sql)]
        for fault in struck:
            fault.met.set()
            if fault.kind is Kind.HOLD:
                await fault.released.wait()
            elif fault.kind is Kind.CUT_BEFORE:
                return False
            elif fault.kind is Kind.SWALLOW:
                link.swallowing = True
        await self._send(link.server, message)
        return all(fault.kind is not Kind.CUT_AFTER for fault in struck)

    async def _to_client(self, link: _Link) -> None:
        with contextlib.suppress(OSError):
            while chunk := await link.server_reader.read(_CHUNK):
                if not link.swallowing:
                    await self._send(link.client, chunk)
                elif chunk[-6:-1] == _READY_FOR_QUERY:
                    break
        link.cut()

    async def _send(self, writer: asyncio.StreamWriter, message: bytes) -> None:
        await self._flowing.wait()
        if writer.is_closing():
            raise ConnectionResetError
        writer.write(message)
        await writer.drain()

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


async def _message(reader: asyncio.StreamReader) -> tuple[bytes, bytes]:
    head = await reader.readexactly(5)
    return head[:1], head + await reader.readexactly(struct.unpack("!I", head[1:])[0] - 4)


@asynccontextmanager
async def fault_proxy(url: str) -> AsyncIterator[FaultProxy]:
    """Runs a proxy in front of the database of `url`, a socket directory or a TCP address."""
    directory = Path(tempfile.mkdtemp(prefix="fault-proxy-"))
    proxy = FaultProxy(url, directory)
    server = await asyncio.start_unix_server(proxy.accept, str(directory / _SOCKET))
    try:
        yield proxy
    finally:
        server.close()
        await proxy.close()
        await server.wait_closed()
        shutil.rmtree(directory)
