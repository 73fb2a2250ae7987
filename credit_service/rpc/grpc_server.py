"""The gRPC server: its options, services and ports, the listener of health checks, the stop."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import grpc
import structlog
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection, reflection_pb2_grpc

from credit_service.rpc import sockets
from credit_service.rpc.interceptor import ANSWER_BYTES_MAX, MESSAGE_BYTES_MAX
from credit_service.rpc.open_calls import CONNECTION_STREAMS_MAX
from credit_service.runtime.start_errors import StartRefusedError
from credit_service.v1 import credit_service_pb2 as pb
from credit_service.v1 import credit_service_pb2_grpc as pb_grpc

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from grpc_health.v1.health import aio as health_aio

    from credit_service.rpc.interceptor import Interceptor
    from credit_service.rpc.open_calls import OpenCalls
    from credit_service.rpc.servicer import CreditServicer
    from credit_service.rpc.tls import ServerCertificate

_log = structlog.get_logger()

SERVICE_NAME = pb.DESCRIPTOR.services_by_name["CreditService"].full_name

# How long the last answers may take from gRPC to the network.
_LAST_REPLIES_SECONDS = 0.05
_STOP_SECONDS = 0.5

# How many calls, over all methods, may wait until Python accepts them. gRPC itself answers further
# calls CANCELLED without a reason. The limit only bounds the memory: 10 KB a call.
_UNACCEPTED_CALLS_MAX = 10_000

_SILENCE_POLL_SECONDS = 1.0

# How often a server that waits for its last calls closes the connections without calls.
_HANG_UP_SECONDS = 1.0


def server_options(
    *, share_port: bool, connection_age_seconds: float, calls_max: int
) -> list[tuple[str, int]]:
    """Gives the gRPC options of the service's server.

    Args:
        share_port: lets several processes listen on the port.
        calls_max: calls that are admitted at the same time.
        connection_age_seconds: after how long a client is asked to reconnect.

    Returns:
        Names and values as `grpc.aio.server` takes them.
    """
    return [
        ("grpc.so_reuseport", int(share_port)),
        ("grpc.max_receive_message_length", MESSAGE_BYTES_MAX),
        ("grpc.max_send_message_length", ANSWER_BYTES_MAX),
        ("grpc.server.max_pending_requests", _UNACCEPTED_CALLS_MAX),
        ("grpc.server.max_pending_requests_hard_limit", _UNACCEPTED_CALLS_MAX),
        # The maximum that a connection can have open; the service would refuse more.
        ("grpc.max_concurrent_streams", calls_max + CONNECTION_STREAMS_MAX),
        ("grpc.keepalive_time_ms", 30_000),
        ("grpc.keepalive_timeout_ms", 10_000),
        # A keepalive ping is subject to this timeout too, which is a minute by default.
        ("grpc.http2.ping_timeout_ms", 10_000),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
        ("grpc.max_connection_age_ms", int(connection_age_seconds * 1000)),
        ("grpc.max_connection_age_grace_ms", 30_000),
    ]


def make_server(
    servicer: CreditServicer,
    health: health_aio.HealthServicer,
    interceptor: Interceptor,
    options: list[tuple[str, int]],
) -> grpc.aio.Server:
    """Puts the services together: credits, health, reflection.

    Args:
        servicer: answers the calls of the contract.
        health: answers health checks.
        interceptor: what every call passes.
        options: as `server_options` gives them.
    """
    server = grpc.aio.server(interceptors=(interceptor,), options=options)
    services: Any = _Services(server)
    pb_grpc.add_CreditServiceServicer_to_server(servicer, services)
    health_pb2_grpc.add_HealthServicer_to_server(health, services)
    described = (SERVICE_NAME, health_pb2.DESCRIPTOR.services_by_name["Health"].full_name)
    reflection_pb2_grpc.add_ServerReflectionServicer_to_server(  # type: ignore[no-untyped-call]
        reflection.aio.ReflectionServicer(described), services
    )
    return server


class _Services:
    """The server as generated code sees it: it finds methods by name and registers none.

    gRPC runs a task for every registered method, which waits for the method's next call, and checks
    all of these tasks at every call. That costs 0.5 us per method of the server.
    """

    def __init__(self, server: grpc.aio.Server) -> None:
        """Takes the server of the services."""
        self.add_generic_rpc_handlers = server.add_generic_rpc_handlers

    def add_registered_method_handlers(self, _service: str, _handlers: object) -> None:
        """Does nothing: the generated code has added the same handlers as generic ones."""


def bind(
    server: grpc.aio.Server, listen: str, certificate: ServerCertificate | None, *, setting: str
) -> int:
    """Gives the server a port.

    Args:
        server: not yet started.
        listen: host:port; port 0 takes any free one.
        certificate: the server's certificate; None: no TLS.
        setting: the name of the port's setting, for the refusal.

    Returns:
        The port.

    Raises:
        StartRefusedError: the port is taken, or the address is not one of this machine's.
    """
    try:
        if certificate is None:
            return server.add_insecure_port(listen)
        return server.add_secure_port(listen, certificate.credentials())
    except RuntimeError as error:
        raise StartRefusedError(
            f"cannot listen on {listen}: the port is taken or the address is not of this machine;"
            f" choose another with {setting} or end the program that has it"
        ) from error


@asynccontextmanager
async def health_listener(
    listen: str, health: health_aio.HealthServicer, *, share_port: bool
) -> AsyncIterator[None]:
    """Answers health checks, and nothing else, on a port of their own for the length of the block.

    Args:
        listen: host:port.
        health: answers them.
        share_port: lets several processes listen on the port.

    Raises:
        StartRefusedError: the port is taken.
    """
    server = grpc.aio.server(options=(("grpc.so_reuseport", int(share_port)),))
    health_pb2_grpc.add_HealthServicer_to_server(health, server)
    bind(server, listen, None, setting="CREDIT_HEALTH_LISTEN")
    await server.start()
    try:
        yield
    finally:
        await server.stop(0.5)


async def close_silent_connections(open_calls: OpenCalls, port: int) -> None:
    """Closes, once a second, the connections whose callers neither send nor read.

    Args:
        open_calls: of the server.
        port: where it listens.
    """
    while True:
        await asyncio.sleep(_SILENCE_POLL_SECONDS)
        silent = open_calls.silent_peers()
        if silent:
            _log.warning("closing silent connections", connections=sorted(silent))
            await asyncio.to_thread(sockets.hang_up_on, port, silent)


async def drain(server: grpc.aio.Server, open_calls: OpenCalls, port: int, seconds: float) -> None:
    """Refuses new calls, ends the streams, lets the other calls end, and closes the connections.

    Args:
        server: running.
        open_calls: its calls.
        port: where it listens.
        seconds: how long calls in flight may take to end; then they are UNAVAILABLE.
    """
    open_calls.close()
    sockets.stop_listening(port)
    end = asyncio.get_running_loop().time() + seconds
    while not await open_calls.wait_idle(min(_HANG_UP_SECONDS, seconds)):
        # Callers without a call in flight can find another server.
        await asyncio.to_thread(sockets.hang_up, port, open_calls.peers())
        if asyncio.get_running_loop().time() >= end:
            open_calls.give_up()
            await open_calls.wait_idle(_LAST_REPLIES_SECONDS)
            break
    await asyncio.sleep(_LAST_REPLIES_SECONDS)
    await asyncio.to_thread(sockets.hang_up, port, set())
    await server.stop(_STOP_SECONDS)
