"""The gRPC channel under a client: its address, its options, and where none can be made."""

from __future__ import annotations

import ipaddress
import json
import os
import sys
from typing import TYPE_CHECKING

import grpc

if TYPE_CHECKING:
    from collections.abc import Sequence

# Calls are spread over all addresses of the target. `Connection` repeats them, because it knows
# what the service asks for; gRPC itself still repeats a call that no server has seen.
_SERVICE_CONFIG = json.dumps({"loadBalancingConfig": [{"round_robin": {}}]})

# A connection that has gone silent is given up after 15 seconds: 11 until the ping, 4 for its
# answer. The service takes a ping every 10 seconds. Without the third option the transport waits a
# minute for the answer, despite the second; without the last two gRPC sends no ping while no call
# runs, and at most two while a call only waits.
_OPTIONS = (
    ("grpc.service_config", _SERVICE_CONFIG),
    ("grpc.initial_reconnect_backoff_ms", 200),
    ("grpc.max_reconnect_backoff_ms", 2_000),
    ("grpc.keepalive_time_ms", 11_000),
    ("grpc.keepalive_timeout_ms", 4_000),
    ("grpc.http2.ping_timeout_ms", 4_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
)

_SCHEMES = ("dns:", "ipv4:", "ipv6:", "unix:", "xds:")


def target_of(target: str | Sequence[str]) -> str:
    """Renders one address or several as gRPC takes them.

    Args:
        target: host:port, several of them (with numeric hosts) in a list or with commas between
            them, or any target of gRPC's with its scheme.

    Raises:
        ValueError: several addresses of which one is a name, or of which only some are IPv6.
    """
    if isinstance(target, str) and target.startswith(_SCHEMES):
        return target
    given = target.split(",") if isinstance(target, str) else target
    addresses = [address.strip() for address in given]
    if not addresses or not all(addresses):
        raise ValueError(f"the target {target!r} names no address, such as localhost:50051")
    if len(addresses) == 1:
        return addresses[0]
    versions = {_ip_version(address) for address in addresses}
    if len(versions) > 1:
        raise ValueError(f"the addresses of {target!r} must be all IPv4 or all IPv6")
    return f"ipv{versions.pop()}:{','.join(addresses)}"


def _ip_version(address: str) -> int:
    host = address.rpartition(":")[0].strip("[]")
    try:
        return ipaddress.ip_address(host).version
    except ValueError:
        raise ValueError(
            f"{address!r} is not a numeric address with a port, as all of several must be;"
            " for replicas with a name use one name that resolves to all of them"
        ) from None


class _Process:
    """The process that uses gRPC, which does not survive a fork."""

    first_user: int | None = None


def require_usable_process() -> None:
    """Claims this process for gRPC.

    Raises:
        RuntimeError: it was forked from one that had a client, or its threads are green ones; gRPC
            would hang or crash.
    """
    _Process.first_user = _Process.first_user or os.getpid()
    if _Process.first_user != os.getpid():
        raise RuntimeError(
            "this process was forked from one that had made a credit client;"
            " make the first one after the fork"
        )
    library = _green_threads()
    if library is not None:
        raise RuntimeError(
            f"{library} has replaced the threads of this process, in which a credit client would"
            " hang; run it in a process without monkey patching, such as Celery's pools prefork"
            " and threads"
        )


def _green_threads() -> str | None:
    """Names the library that replaced the waiting functions of gRPC or of a thread's event loop."""
    gevent = sys.modules.get("gevent.monkey")
    if gevent is not None and any(map(gevent.is_module_patched, ("threading", "select"))):
        return "gevent"
    eventlet = sys.modules.get("eventlet.patcher")
    if eventlet is not None and any(map(eventlet.is_monkey_patched, ("thread", "select"))):
        return "eventlet"
    return None


def open_channel(
    target: str, credentials: grpc.ChannelCredentials | None, server_name: str | None
) -> grpc.aio.Channel:
    """Opens a channel in the running event loop; it connects with its first call."""
    require_usable_process()
    options: tuple[tuple[str, str | int], ...] = _OPTIONS
    if server_name is not None:
        options = (*options, ("grpc.ssl_target_name_override", server_name))
    if credentials is None:
        return grpc.aio.insecure_channel(target, options=options)
    return grpc.aio.secure_channel(target, credentials, options=options)
