"""A name server that knows one name with several addresses, as replicas behind a name have."""

import asyncio
import ipaddress
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

NAME = "replicas.test"

_HEADER = struct.Struct("!HHHHHH")
_ANSWERED = 0x8580  # a response, authoritative, recursion asked for and available
_A = 1
_TTL_SECONDS = 1


class _Names(asyncio.DatagramProtocol):
    def __init__(self, addresses: list[str]) -> None:
        self._addresses = [ipaddress.IPv4Address(address).packed for address in addresses]

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    def datagram_received(self, data: bytes, addr: object) -> None:
        number, _, _, _, _, _ = _HEADER.unpack_from(data)
        end = data.index(b"\0", _HEADER.size) + 5
        question = data[_HEADER.size : end]
        (kind,) = struct.unpack_from("!H", question, len(question) - 4)
        known = question[:-4] == _encoded(NAME)
        found = self._addresses if kind == _A and known else []
        # Each answer refers to the name in the question by its place in the packet.
        records = [
            struct.pack("!HHHIH", 0xC000 + _HEADER.size, _A, 1, _TTL_SECONDS, len(address))
            + address
            for address in found
        ]
        header = _HEADER.pack(number, _ANSWERED, 1, len(records), 0, 0)
        self._transport.sendto(header + question + b"".join(records), addr)


def _encoded(name: str) -> bytes:
    return b"".join(bytes([len(part)]) + part.encode() for part in name.split(".")) + b"\0"


@asynccontextmanager
async def name_server(addresses: list[str]) -> AsyncIterator[str]:
    """Runs the name server; yields its own address, for a target such as dns://ADDRESS/NAME:PORT."""
    loop = asyncio.get_running_loop()
    transport, _ = await loop.create_datagram_endpoint(
        lambda: _Names(addresses), local_addr=("127.0.0.1", 0)
    )
    try:
        yield f"127.0.0.1:{transport.get_extra_info('sockname')[1]}"
    finally:
        transport.close()
