"""The row of webhooks: how fast one relay sends a ledger, beside an endpoint that hangs."""

from __future__ import annotations

import asyncio
import sys
import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

from benchmark import book
from benchmark.children import BenchmarkError, Child
from benchmark.lines import Line, at_least

if TYPE_CHECKING:
    from collections.abc import Iterator

    from benchmark.testbed import Testbed

_DATABASE = "webhooks"
_USERS, _ENTRIES = 2_000, 10
_PER_SECOND = 500
_SECRET = "whsec_" + "QUJDREVGR0hJSktMTU5PUFFSU1RVVldYWVo="  # of this row alone
_ANSWER = b"HTTP/1.1 204 No Content\r\n\r\n"
_END_SECONDS = 300.0

_ENDPOINTS = """
[[endpoint]]
name = "quick"
url = "http://127.0.0.1:{quick}/"
secrets = ["{secret}"]
types = ["*"]
start = "beginning"

[[endpoint]]
name = "slow"
url = "http://127.0.0.1:{slow}/"
secrets = ["{secret}"]
types = ["*"]
start = "beginning"
"""


def relay(testbed: Testbed) -> list[Line]:
    """Measures one relay with two endpoints, of which one never answers."""
    testbed.add_database(_DATABASE)
    testbed.fill(1, _USERS, _ENTRIES, _DATABASE)
    found: list[float] = []
    for turn in range(testbed.extent.turns):
        testbed.say(f"webhooks, turn {turn + 1}")
        found.append(_turn(testbed, turn))
    found.sort()
    return [
        Line(
            row="webhooks",
            measured="webhooks to a receiver on loopback, one endpoint beside it hangs",
            value=found[len(found) // 2],
            unit="/s",
            target=at_least(_PER_SECOND),
            note=f"turns {found[0]:,.0f}/s to {found[-1]:,.0f}/s; {_USERS * _ENTRIES:,} events",
        )
    ]


def _turn(testbed: Testbed, turn: int) -> float:
    """Sends the whole ledger once; returns events a second, from the first one on."""
    asyncio.run(book.forget_readers(book.database_url(testbed.cluster.owner_url, _DATABASE)))
    with _receivers() as (quick, slow):
        file = testbed.directory / "endpoints.toml"
        file.write_text(_ENDPOINTS.format(quick=quick.port, slow=slow.port, secret=_SECRET))
        command = [sys.executable, "-m", "credit_service", "relay"]
        settings = {
            "CREDIT_DATABASE_URL": book.database_url(testbed.cluster.service_url, _DATABASE),
            "CREDIT_WEBHOOKS": str(file),
            "CREDIT_WEBHOOKS_PRIVATE": "true",
        }
        log = testbed.directory / f"relay-{turn}.log"
        with Child("the relay", command, log, **settings):
            return quick.rate(_USERS * _ENTRIES)


class _Receiver:
    """Counts requests; answers at once, or never."""

    def __init__(self, *, answers: bool) -> None:
        self.port = 0
        self._answers = answers
        self._count = 0
        self._first = self._last = 0.0
        self._open: set[asyncio.StreamWriter] = set()

    async def listen(self) -> asyncio.Server:
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        return server

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._open.add(writer)
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                size = head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0]
                await reader.readexactly(int(size))
                self._last = time.monotonic()
                self._first = self._first or self._last
                self._count += 1
                if self._answers:
                    writer.write(_ANSWER)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            self._open.discard(writer)
            writer.close()

    def close(self) -> None:
        """Breaks all connections."""
        for writer in self._open:
            writer.transport.abort()

    def rate(self, events: int) -> float:
        """Waits until this number of events has come; returns the events a second."""
        deadline = time.monotonic() + _END_SECONDS
        while self._count < events:
            if time.monotonic() > deadline:
                raise BenchmarkError(f"only {self._count} of {events} webhooks came")
            time.sleep(0.05)
        return events / (self._last - self._first)


@contextmanager
def _receivers() -> Iterator[tuple[_Receiver, _Receiver]]:
    """Runs two receivers in a thread, one of which never answers."""
    made = _Receiver(answers=True), _Receiver(answers=False)
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    servers = [
        asyncio.run_coroutine_threadsafe(receiver.listen(), loop).result() for receiver in made
    ]
    try:
        yield made
    finally:
        for server in servers:
            loop.call_soon_threadsafe(server.close)
        for receiver in made:
            loop.call_soon_threadsafe(receiver.close)
        asyncio.run_coroutine_threadsafe(asyncio.sleep(0.1), loop).result()
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()
