"""The sockets of a gRPC server, which are closed in good order when it stops.

gRPC's own stop answers CANCELLED, without a reason, to calls that arrive at that moment. A caller
whose connection is closed instead sees UNAVAILABLE. gRPC has no call for that, but its sockets are
file descriptors of this process.
"""

from __future__ import annotations

import contextlib
import os
import socket
import stat
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


def stop_listening(port: int) -> None:
    """Closes the sockets of this process that listen on a port; new connections are refused.

    gRPC goes on to accept from the descriptor and would log an error if that failed. So a listener
    whose address is not known to any client takes its place.
    """
    for descriptor, copy in _sockets(port):
        if _listens(copy):
            with socket.create_server(("127.0.0.1", 0)) as unknown:
                unknown.setblocking(False)
                os.dup2(unknown.fileno(), descriptor, inheritable=False)


def hang_up(port: int, spared: set[str]) -> None:
    """Closes the connections that were made to a port, after what was written to them.

    Args:
        port: where they were accepted.
        spared: the peers, as gRPC names them, whose connections stay.
    """
    spared_ports = {int(peer.rpartition(":")[2]) for peer in spared}
    _close(port, lambda peer: peer[1] not in spared_ports)


def hang_up_on(port: int, peers: set[str]) -> None:
    """Closes the connections of some peers.

    Args:
        port: where they were accepted.
        peers: as gRPC names them.
    """
    addresses = {unquote(peer).partition(":")[2] for peer in peers}
    _close(port, lambda peer: _address(peer[0], peer[1]) in addresses)


def _close(port: int, closes: Callable[[Any], bool]) -> None:
    for _, copy in _sockets(port):
        with contextlib.suppress(OSError):  # it is gone
            if not _listens(copy) and closes(copy.getpeername()):
                copy.shutdown(socket.SHUT_RDWR)


def _address(host: str, port: int) -> str:
    """Writes an address as gRPC does, which shows an IPv4 client of an IPv6 socket as IPv4."""
    host = host.removeprefix("::ffff:")
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _listens(copy: socket.socket) -> bool:
    return bool(copy.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))


def _sockets(port: int) -> Iterator[tuple[int, socket.socket]]:
    """Yields the descriptor and a copy of every internet socket that is bound to a port."""
    for entry in Path("/dev/fd").iterdir():
        with contextlib.suppress(OSError):  # it is gone
            descriptor = int(entry.name)
            number = os.dup(descriptor)
            if not stat.S_ISSOCK(os.fstat(number).st_mode):
                os.close(number)
                continue
            with socket.socket(fileno=number) as copy:
                internet = copy.family in (socket.AF_INET, socket.AF_INET6)
                if internet and copy.getsockname()[1] == port:
                    yield descriptor, copy
