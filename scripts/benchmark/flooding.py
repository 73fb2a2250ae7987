"""The load of a flood: spends sent at a given rate, over a minimal client of HTTP/2.

A client of gRPC needs about as much processor time per call as the service does, so a flood from
such clients would take the processors from the very service that it must overload. Here a call
costs a tenth of that, as if the callers had machines of their own.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import struct
import time
from collections import deque
from functools import cache
from typing import TYPE_CHECKING, Any

import grpc
from google.rpc import error_details_pb2, status_pb2

from benchmark.calls import DEADLINE_SECONDS, SERVICE, key
from credit_service import status
from credit_service.v1 import credit_service_pb2 as pb

if TYPE_CHECKING:
    from benchmark.calls import Users
    from benchmark.plan import Outcome, Plan

# RFC 9113.
_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_DATA, _HEADERS, _RST_STREAM, _SETTINGS, _PING, _WINDOW_UPDATE = 0, 1, 3, 4, 6, 8
_ACK = _END_STREAM = 1
_END_HEADERS = 4
_HEADER_TABLE_SIZE, _MAX_CONCURRENT_STREAMS, _INITIAL_WINDOW_SIZE = 1, 3, 4
_WINDOW, _WINDOW_MAX = 65_535, 2**31 - 1
# gRPC's own setting: binary metadata may be sent as it is instead of as base64.
_TRUE_BINARY_METADATA = 0xFE03
_HEAD_BYTES = 9
_LENGTH_PREFIX_MAX = 127

# How much of the window is given back at a time.
_READ_BYTES = 1024 * 1024

_STATUS = b"\x0bgrpc-status"
_DETAILS = b"\x17grpc-status-details-bin"

# How long after its deadline a call may be ended.
_LAST_ANSWERS_SECONDS = 10.0

# Calls that are due within this time are sent together, because a timer for each would cost more
# than the call.
_PAUSE_SECONDS_MIN = 0.002

_CODES = {str(code.value[0]): code.name for code in grpc.StatusCode}


async def flood(plan: Plan, users: Users, outcome: Outcome) -> None:
    """Spends at the plan's rate, regardless of earlier calls, and waits until each has ended."""
    assert plan.rate is not None  # noqa: S101  # a flood comes at a rate
    host, _, port = plan.target.rpartition(":")
    loop = asyncio.get_running_loop()
    end = plan.start_at + plan.seconds
    connections = []
    for _ in range(plan.connections):
        _, made = await loop.create_connection(
            lambda: _Connection(plan.target, outcome, end), host, int(port)
        )
        connections.append(made)
    due = plan.start_at
    while (due := due + random.expovariate(plan.rate)) < end:
        if (pause := due - time.monotonic()) > 0:
            await asyncio.sleep(max(pause, _PAUSE_SECONDS_MIN))
        request = pb.SpendCreditsRequest(user_id=users.draw(), amount=1, idempotency_key=key())
        outcome.begun += 1
        random.choice(connections).call(request.SerializeToString(), due)  # noqa: S311
    given_up = loop.time() + DEADLINE_SECONDS + _LAST_ANSWERS_SECONDS
    for connection in connections:
        await connection.finish(given_up)


class _Connection(asyncio.Protocol):
    """Makes spends on a connection and notes how each ends."""

    def __init__(self, authority: str, outcome: Outcome, end: float) -> None:
        fields = {
            ":method": "POST",
            ":scheme": "http",
            ":path": f"{SERVICE}SpendCredits",
            ":authority": authority,
            "te": "trailers",
            "content-type": "application/grpc",
            "grpc-timeout": f"{DEADLINE_SECONDS * 1000:.0f}m",
        }
        self._head = b"".join(_literal(name, value) for name, value in fields.items())
        self._outcome = outcome
        self._end = end
        self._stream = -1
        self._due: dict[int, float] = {}
        self._unsent: deque[tuple[bytes, float]] = deque()
        self._streams_max = 100
        self._window = _WINDOW
        self._received = bytearray()
        self._read = 0
        self._finishing = False
        self._finished = asyncio.Event()
        self._transport: asyncio.Transport

    def call(self, request: bytes, due: float) -> None:
        """Makes a call, as soon as the connection has room for it."""
        self._unsent.append((request, due))
        self._send()

    async def finish(self, deadline: float) -> None:
        """Waits until all calls have ended; those that have not by the loop time have failed."""
        self._finishing = True
        self._look_finished()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout_at(deadline):
                await self._finished.wait()
        self._transport.close()
        for _ in range(len(self._due) + len(self._unsent)):
            self._failed("no answer")

    def connection_made(self, transport: Any) -> None:
        self._transport = transport
        settings = {
            _HEADER_TABLE_SIZE: 0,
            _INITIAL_WINDOW_SIZE: _WINDOW_MAX,
            _TRUE_BINARY_METADATA: 1,
        }
        wanted = b"".join(struct.pack(">HI", *each) for each in settings.items())
        more = struct.pack(">I", _WINDOW_MAX - _WINDOW)
        transport.write(
            _PREFACE + _frame(_SETTINGS, 0, 0, wanted) + _frame(_WINDOW_UPDATE, 0, 0, more)
        )

    def data_received(self, data: bytes) -> None:
        self._received += data
        place = 0
        while len(self._received) >= place + _HEAD_BYTES:
            size = int.from_bytes(self._received[place : place + 3], "big")
            start = place + _HEAD_BYTES
            if len(self._received) < start + size:
                break
            kind, flags = self._received[place + 3 : place + 5]
            stream = int.from_bytes(self._received[place + 5 : start], "big")
            self._frame_received(kind, flags, stream, bytes(self._received[start : start + size]))
            place = start + size
        del self._received[:place]
        self._send()
        self._look_finished()

    def connection_lost(self, _error: Exception | None) -> None:
        self._streams_max = 0
        self._finished.set()

    def _look_finished(self) -> None:
        if self._finishing and not self._due and not self._unsent:
            self._finished.set()

    def _send(self) -> None:
        frames = []
        while self._unsent and len(self._due) < self._streams_max:
            request, due = self._unsent[0]
            message = b"\0" + struct.pack(">I", len(request)) + request
            if len(message) > self._window:
                break
            self._unsent.popleft()
            self._window -= len(message)
            self._stream += 2
            self._due[self._stream] = due
            frames.append(_frame(_HEADERS, _END_HEADERS, self._stream, self._head))
            frames.append(_frame(_DATA, _END_STREAM, self._stream, message))
        if frames:
            self._transport.write(b"".join(frames))

    def _frame_received(self, kind: int, flags: int, stream: int, payload: bytes) -> None:
        if kind == _SETTINGS and not flags & _ACK:
            said = dict(struct.iter_unpack(">HI", payload))
            self._streams_max = said.get(_MAX_CONCURRENT_STREAMS, self._streams_max)
            self._transport.write(_frame(_SETTINGS, _ACK, 0, b""))
        elif kind == _PING and not flags & _ACK:
            self._transport.write(_frame(_PING, _ACK, 0, payload))
        elif kind == _WINDOW_UPDATE and stream == 0:
            self._window += int.from_bytes(payload, "big")
        elif kind == _DATA:
            self._read += len(payload)
            if self._read > _READ_BYTES:
                self._transport.write(_frame(_WINDOW_UPDATE, 0, 0, struct.pack(">I", self._read)))
                self._read = 0
        elif kind == _RST_STREAM or (kind == _HEADERS and flags & _END_STREAM):
            due = self._due.pop(stream, None)
            if due is not None:
                self._ended(due, payload if kind == _HEADERS else b"")

    def _ended(self, due: float, trailers: bytes) -> None:
        now = time.monotonic()
        code = _code(trailers)
        if code == "OK":
            self._outcome.answered += now <= self._end
            self._outcome.waited_us.append(round((now - due) * 1_000_000))
        elif code is None:
            self._failed("DEADLINE_EXCEEDED" if now >= due + DEADLINE_SECONDS else "reset")
        else:
            self._failed(f"{code} {_reason(trailers)}".strip())

    def _failed(self, name: str) -> None:
        self._outcome.failed[name] = self._outcome.failed.get(name, 0) + 1


def _code(trailers: bytes) -> str | None:
    """Reads the code; None: the stream was reset without one."""
    _, found, rest = trailers.partition(_STATUS)
    return _CODES[rest[1 : 1 + rest[0]].decode()] if found else None


def _reason(trailers: bytes) -> str:
    """Reads why the service refused, and notes if it does not say when to come back."""
    _, found, rest = trailers.partition(_DETAILS)
    return _refusal(_string(rest)) if found else ""


@cache
def _refusal(details: bytes) -> str:
    # A leading byte of 0 says that the value is binary and not base64.
    sent = status_pb2.Status.FromString(details.removeprefix(b"\0"))
    error = status.from_status(sent)
    name = "" if error is None else error.reason
    says_when = any(detail.Is(error_details_pb2.RetryInfo.DESCRIPTOR) for detail in sent.details)
    return name if says_when else f"{name} without RetryInfo"


def _string(field: bytes) -> bytes:
    """Reads a string that is not compressed (RFC 7541, 5.1 and 5.2)."""
    size, place = field[0], 1
    if size == _LENGTH_PREFIX_MAX:
        shift = 0
        while True:
            size += (field[place] & 0x7F) << shift
            shift += 7
            place += 1
            if field[place - 1] < 0x80:  # noqa: PLR2004
                break
    return field[place : place + size]


def _frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, stream) + payload


def _literal(name: str, value: str) -> bytes:
    """A header field without compression (RFC 7541, 6.2.2); both shorter than 127 bytes."""
    return b"\0" + b"".join(bytes([len(text)]) + text.encode() for text in (name, value))
