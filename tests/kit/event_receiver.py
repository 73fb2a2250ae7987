"""A receiver of webhooks in a process of its own, which notes each event before it takes it.

It can be killed at any moment: an event noted in a whole line may have been taken, and no other
was. Arguments: the port, the file of notes, and N, where one of N requests fails (0: none).
"""

import asyncio
import re
import sys
from typing import BinaryIO

import orjson

_HEAD_END = b"\r\n\r\n"
_LENGTH = re.compile(rb"content-length: (\d+)", re.IGNORECASE)
_ID = re.compile(rb"webhook-id: (\S+)", re.IGNORECASE)
_TAKEN = b"HTTP/1.1 204 No Content\r\n\r\n"
_FAILED = b"HTTP/1.1 500 Failed\r\nContent-Length: 0\r\n\r\n"

FAILED = "failed"


class Receiver(asyncio.Protocol):
    """One connection of the relay."""

    count = 0

    def __init__(self, notes: BinaryIO, one_fails_of: int) -> None:
        self._notes = notes
        self._one_fails_of = one_fails_of
        self._received = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._received += data
        while (end := self._received.find(_HEAD_END)) >= 0:
            head, body = self._received[:end], end + len(_HEAD_END)
            length = _LENGTH.search(head)
            name = _ID.search(head)
            assert length is not None
            assert name is not None
            following = body + int(length[1])
            if len(self._received) < following:
                return
            event = orjson.loads(self._received[body:following])
            self._received = self._received[following:]
            self._transport.write(self._answer(name[1].decode(), event))

    def _answer(self, name: str, event: dict) -> bytes:
        Receiver.count += 1
        if self._one_fails_of and Receiver.count % self._one_fails_of == 0:
            self._notes.write(f"{FAILED}\n".encode())
            return _FAILED
        data = event["data"]
        about = [data.get(field) for field in ("seq", "idempotency_key", "balance_after")]
        self._notes.write(orjson.dumps([data["user_id"], *about, event["type"], name]) + b"\n")
        return _TAKEN


async def main(port: int, notes: str, one_fails_of: int) -> None:
    """Receives until it is killed."""
    with open(notes, "ab", buffering=0) as file:  # noqa: ASYNC230, PTH123  # before it listens
        server = await asyncio.get_running_loop().create_server(
            lambda: Receiver(file, one_fails_of), "127.0.0.1", port
        )
        print("receives", flush=True)
        await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]), sys.argv[2], int(sys.argv[3])))
