"""Which address a name leads to, and whether events may be sent there.

A URL is given by others, and a name server may answer as it likes. Without this check an endpoint
could make the relay send requests into the private network, or to a cloud's metadata service.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
import threading
from contextlib import suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    Address = ipaddress.IPv4Address | ipaddress.IPv6Address

# A translator sends these on to the IPv4 address in the last 32 bits (RFC 6052).
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
_IPV4 = 0xFFFFFFFF

# Ranges of special use, such as Teredo, that some releases of Python take for global ones.
_NOT_GLOBAL = tuple(
    ipaddress.ip_network(text)
    for text in (
        "192.0.0.0/24",
        "192.31.196.0/24",
        "192.52.193.0/24",
        "192.88.99.0/24",
        "192.175.48.0/24",
        "100::/64",
        "100:0:0:1::/64",
        "2001::/23",
        "2620:4f:8000::/48",
        "3fff::/20",
        "5f00::/16",
        "fec0::/10",
    )
)

_GLOBAL_IPV6 = ipaddress.IPv6Network("2000::/3")


# The maximum number of look-ups of an endpoint at a time; one that hangs cannot be ended.
_LOOKUPS_MAX = 4


class AddressRefusedError(Exception):
    """A name leads to no address to which events may be sent; the message says which."""


class NameUnknownError(Exception):
    """A name leads to no address at all."""


def reached(address: Address) -> list[Address]:
    """Finds where a packet to an address may arrive: there, or at an IPv4 address inside it."""
    if isinstance(address, ipaddress.IPv4Address):
        return [address]
    if address.ipv4_mapped is not None:
        return [address.ipv4_mapped]
    if address in _NAT64:
        return [ipaddress.IPv4Address(int(address) & _IPV4)]
    return [address] if address.sixtofour is None else [address, address.sixtofour]


def is_global(address: Address) -> bool:
    """Tells whether an address, and all that it leads to, can be reached from everywhere."""
    return all(
        one.is_global
        and not one.is_multicast
        and not one.is_reserved
        and (isinstance(one, ipaddress.IPv4Address) or one in _GLOBAL_IPV6)
        and not any(one in network for network in _NOT_GLOBAL)
        for one in reached(address)
    )


class Resolver:
    """Resolves names in threads of its own, so that a silent name server holds up nothing else."""

    def __init__(self) -> None:
        """Starts no thread yet."""
        self._free = asyncio.Semaphore(_LOOKUPS_MAX)

    async def resolve(
        self, host: str, port: int, *, private: bool, only_private: bool = False
    ) -> list[str]:
        """Resolves a name once.

        Args:
            host: a name or an address.
            port: where it is to be reached.
            private: whether addresses that are not globally routable are allowed.
            only_private: whether only those are allowed.

        Returns:
            The addresses to which events may be sent, in the order of preference.

        Raises:
            NameUnknownError: there is no such name, or no name server answers.
            AddressRefusedError: there are addresses, and none of them is allowed.
        """
        addresses = await self._look_up(host, port)
        allowed = [
            text
            for text in addresses
            if (private or is_global(_parsed(text)))
            and not (only_private and is_global(_parsed(text)))
        ]
        if not allowed:
            kind = "beyond the private network" if only_private else "not globally routable"
            raise AddressRefusedError(f"{host} leads to {', '.join(addresses)}, which is {kind}")
        return allowed

    async def _look_up(self, host: str, port: int) -> list[str]:
        with suppress(ValueError):
            return [str(ipaddress.ip_address(host))]
        loop = asyncio.get_running_loop()
        found: asyncio.Future[list[str]] = loop.create_future()

        def end(addresses: list[str], problem: Exception | None) -> None:
            self._free.release()
            if found.cancelled():
                return
            if problem is None:
                found.set_result(addresses)
            else:
                found.set_exception(NameUnknownError(f"{host} cannot be resolved: {problem}"))

        def look() -> None:
            addresses: list[str] = []
            problem = None
            try:
                places = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
                addresses = list(dict.fromkeys(str(place[4][0]) for place in places))
            except (OSError, UnicodeError) as error:
                problem = error
            # The loop may be closed by now, because nothing can end a look-up.
            with suppress(RuntimeError):
                loop.call_soon_threadsafe(end, addresses, problem)

        await self._free.acquire()
        try:
            threading.Thread(target=look, name="relay look-up", daemon=True).start()
        except RuntimeError as error:  # the system gives no more threads at the moment
            end([], error)
        return await found


def _parsed(text: str) -> Address:
    """Reads an address as `getaddrinfo` writes it, perhaps with the zone of a link."""
    return ipaddress.ip_address(text.partition("%")[0])
