"""A receiver of webhooks on a real socket, which records requests and answers as a test chooses."""

import asyncio
import contextlib
import json
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from standardwebhooks import Webhook

SECRET = "whsec_" + "QUJDREVGR0hJSktMTU5PUFFSU1RVVldYWVo="

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


def answer(status: int, *headers: str) -> bytes:
    """An answer without a body."""
    lines = [f"HTTP/1.1 {status} X", "Content-Length: 0", *headers]
    return ("\r\n".join(lines) + "\r\n\r\n").encode()


@dataclass(frozen=True)
class Delivered:
    """A request as it came in.

    Attributes:
        headers: by their names in lower case.
        event: the body, after its signature was verified.
    """

    head: str
    headers: dict[str, str]
    event: dict[str, object]

    @property
    def id(self) -> str:
        return self.headers["webhook-id"]

    @property
    def user(self) -> str:
        return self.event["data"]["user_id"]

    @property
    def seq(self) -> int:
        return self.event["data"]["seq"]


@dataclass
class Receiver:
    """The requests received, and the answer to the next one.

    Attributes:
        got: every request.
        taken: the requests that were answered with 200.
        reply: makes the answer to a request; it may wait, or break the connection.
        in_flight_max: how many requests were open at the same time.
        overlapping: users with two requests open at the same time.
    """

    port: int = 0
    got: list[Delivered] = field(default_factory=list)
    taken: list[Delivered] = field(default_factory=list)
    reply: Callable[[Delivered], Awaitable[bytes]] | None = None
    in_flight_max: int = 0
    overlapping: set[str] = field(default_factory=set)
    open_users: list[str] = field(default_factory=list)

    def seqs(self, user: object) -> list[int]:
        """The seqs of a user's events that were taken, in the order in which they came first."""
        return list(dict.fromkeys(one.seq for one in self.taken if one.user == str(user)))

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            lines = head.split("\r\n")
            pairs = (line.split(": ", 1) for line in lines[1:] if line)
            headers = {name.lower(): value for name, value in pairs}
            body = await reader.readexactly(int(headers["content-length"]))
            event = json.loads(body)
            Webhook(SECRET).verify(body, headers)
            await self._answer(Delivered(head, headers, event), writer)

    async def _answer(self, request: Delivered, writer: asyncio.StreamWriter) -> None:
        self.got.append(request)
        user = request.event["data"].get("user_id", "")
        if user in self.open_users:
            self.overlapping.add(user)
        self.open_users.append(user)
        self.in_flight_max = max(self.in_flight_max, len(self.open_users))
        try:
            said = OK if self.reply is None else await self.reply(request)
        finally:
            self.open_users.remove(user)
        if said.startswith(b"HTTP/1.1 2"):
            self.taken.append(request)
        writer.write(said)
        await writer.drain()


@asynccontextmanager
async def receiver(
    context: ssl.SSLContext | None = None, host: str = "127.0.0.1", port: int = 0
) -> AsyncIterator[Receiver]:
    """Runs a receiver for the length of the block; with a context it speaks TLS."""
    made = Receiver()
    async with listening(made.handle, context, host, port) as made.port:
        yield made


@asynccontextmanager
async def listening(
    handle: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]],
    context: ssl.SSLContext | None = None,
    host: str = "127.0.0.1",
    port: int = 0,
) -> AsyncIterator[int]:
    """Listens for the length of the block, and closes all connections after it; yields the port."""
    tasks: set[asyncio.Task[None]] = set()

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        tasks.add(task)
        try:
            with contextlib.suppress(OSError, asyncio.IncompleteReadError):
                await handle(reader, writer)
        finally:
            tasks.discard(task)
            writer.close()
            with contextlib.suppress(OSError, asyncio.CancelledError):
                await writer.wait_closed()

    server = await asyncio.start_server(connected, host, port, ssl=context)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
