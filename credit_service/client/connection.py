"""The connection under CreditClient: deadlines, safe repeats, keys, and typed errors."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Self, TypeVar
from uuid import uuid4

import grpc
from google.protobuf.timestamp_pb2 import Timestamp

from credit_service import status
from credit_service.client.channel import open_channel, target_of
from credit_service.client.coalescing import Coalescing
from credit_service.client.retries import TRIES_MAX, Pauses, RetryBudget
from credit_service.errors import (
    InternalError,
    InvalidRequest,
    OutcomeUnknown,
    Unavailable,
)
from credit_service.v1 import credit_service_pb2_grpc as pb_grpc

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime, timedelta
    from types import TracebackType

    from google.protobuf.message import Message

    from credit_service.v1 import credit_service_pb2 as pb

_Response = TypeVar("_Response")

DEADLINE_SECONDS = 5.0

# The service gives a report a minute.
REPORT_SECONDS = 65.0

# The service's gRPC server refuses anything larger before the service sees it.
REQUEST_BYTES_MAX = 1024 * 1024

# UNAVAILABLE may be repeated (AIP-194), with the very same request and so the same key. CANCELLED
# too, because a gRPC server that stops or is overloaded answers it to calls it has not looked at.
_REPEATED = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED)


class Connection:
    """Makes calls: a read that gets no answer raises LedgerUnavailable, a write OutcomeUnknown."""

    def __init__(
        self,
        target: str | Sequence[str],
        *,
        token: str | None = None,
        credentials: grpc.ChannelCredentials | None = None,
        deadline_seconds: float = DEADLINE_SECONDS,
        server_name: str | None = None,
        coalesce: bool = True,
    ) -> None:
        """Prepares the connection; it is made by the first call, in that call's event loop.

        Args:
            target: host:port of the service; calls are spread over all addresses of the host.
                Several addresses, in a list or with commas between them, need numeric hosts.
            token: the caller's bearer token, if it has one.
            credentials: TLS, from `grpc.ssl_channel_credentials`; None: plaintext.
            deadline_seconds: how long a call may take, its repeats included.
            server_name: the name in the service's certificate, if it is not the target's host.
            coalesce: send spends, holds and captures that are in flight together as one request;
                each has the answer, the deadline and the repeats that it would have by itself.
                False: each is a request of its own.

        Raises:
            ValueError: the target is not an address.
        """
        self._target = target_of(target)
        self._credentials = credentials
        self._server_name = server_name
        self._deadline_seconds = deadline_seconds
        self.metadata = (("authorization", f"Bearer {token}"),) if token is not None else ()
        self._budget = RetryBudget()
        self._calls_in_flight = 0
        self._coalesce = coalesce
        self._loop: asyncio.AbstractEventLoop | None = None
        self._channel: grpc.aio.Channel
        self._stub: pb_grpc.CreditServiceAsyncStub
        self._coalescing: Coalescing | None = None
        self._closed = False

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Closes the connection; calls still running are cancelled."""
        self._closed = True
        loop, self._loop = self._loop, None
        if loop is asyncio.get_running_loop():
            if self._coalescing is not None:
                self._coalescing.close()
            await self._channel.close()

    @property
    def stub(self) -> pb_grpc.CreditServiceAsyncStub:
        """The calls as generated, on a channel of the running event loop.

        Raises:
            RuntimeError: the client is closed, or in use by another event loop, or gRPC would hang
                in this process.
        """
        loop = asyncio.get_running_loop()
        if self._loop is not loop:
            self._open(loop)
        return self._stub

    def _open(self, loop: asyncio.AbstractEventLoop) -> None:
        if self._closed:
            raise RuntimeError("this client is closed; make another one")
        # When a loop is closed, as by the end of `asyncio.run`, the next one may use the client.
        if self._loop is not None and not self._loop.is_closed():
            raise RuntimeError(
                "this client is in use by another event loop; make one for each loop,"
                " or share a BlockingCreditClient between threads"
            )
        self._channel = open_channel(self._target, self._credentials, self._server_name)
        self._stub = pb_grpc.CreditServiceStub(self._channel)
        if self._coalesce:
            self._coalescing = Coalescing(self._stub, self.metadata, self._make_singly)
        self._loop = loop

    async def read(
        self,
        method: grpc.aio.UnaryUnaryMultiCallable[Any, _Response],
        request: Message,
        seconds: float | None = None,
    ) -> _Response:
        """Makes a call that changes nothing, within `seconds` (None: the client's deadline)."""
        return await self._call(method, request, seconds or self._deadline_seconds)

    async def write(
        self, method: grpc.aio.UnaryUnaryMultiCallable[Any, _Response], request: Message
    ) -> _Response:
        """Makes a call that changes something, with an idempotency key or without one.

        Raises:
            OutcomeUnknown: no final answer came; `key` is empty if the request has none.
        """
        try:
            return await self._call(method, request, self._deadline_seconds)
        except (Unavailable, InternalError) as error:
            key = getattr(request, "idempotency_key", "")
            raise OutcomeUnknown(key) from error.__cause__

    async def _call(
        self,
        method: grpc.aio.UnaryUnaryMultiCallable[Any, _Response],
        request: Message,
        seconds: float,
    ) -> _Response:
        """Makes a call, and repeats it within its deadline and the client's budget of repeats."""
        size = request.ByteSize()
        if size > REQUEST_BYTES_MAX:
            problem = f"has {size} bytes; the maximum is {REQUEST_BYTES_MAX}."
            raise InvalidRequest("request", problem)
        loop = asyncio.get_running_loop()
        self._calls_in_flight += 1
        try:
            return await self._repeat(method, request, loop.time() + seconds)
        finally:
            self._calls_in_flight -= 1

    async def _repeat(
        self,
        method: grpc.aio.UnaryUnaryMultiCallable[Any, _Response],
        request: Message,
        deadline: float,
    ) -> _Response:
        loop = asyncio.get_running_loop()
        make = self._make_singly if self._coalescing is None else self._coalescing.call
        pauses = Pauses()
        tries = 0
        while True:
            tries += 1
            try:
                response = await make(method, request, deadline)
            except grpc.aio.AioRpcError as failure:
                # Its frames hold the item of a coalesced call, which holds the failure.
                failure.__traceback__ = None
                if failure.code() not in _REPEATED:
                    self._budget.succeeded(self._calls_in_flight)
                    raise status.typed(failure) from failure
                pause = pauses.next(status.retry_seconds(failure))
                affordable = self._budget.failed(self._calls_in_flight)
                if not affordable or tries == TRIES_MAX or loop.time() + pause >= deadline:
                    raise status.typed(failure) from failure
            else:
                self._budget.succeeded(self._calls_in_flight)
                return response
            await asyncio.sleep(pause)

    async def _make_singly(
        self,
        method: grpc.aio.UnaryUnaryMultiCallable[Any, _Response],
        request: Message,
        deadline: float,
    ) -> _Response:
        # Waiting for a connection, within the deadline, rides out a restart of the service.
        return await method(
            request,
            timeout=deadline - asyncio.get_running_loop().time(),
            metadata=self.metadata,
            wait_for_ready=True,
        )


def ask(
    request: pb.SpendCreditsRequest | pb.HoldCreditsRequest,
    operation: str | None,
    quantity: int,
    amount: int | None,
) -> None:
    """Puts the charge or the amount of a spend or hold into its request."""
    if (operation is None) == (amount is None):
        raise TypeError("name an operation or an amount, and not both")
    if operation is not None:
        request.charge.operation = operation
        request.charge.quantity = quantity
    if amount is not None:
        request.amount = amount


def expire(
    request: pb.PurchaseCreditsRequest | pb.GrantCreditsRequest,
    expire_time: datetime | None,
    valid_for: timedelta | None,
) -> None:
    """Puts the expiry of credits into the request that adds them."""
    if expire_time is not None and valid_for is not None:
        raise TypeError("name an expire_time or a valid_for, and not both")
    if expire_time is not None:
        request.expire_time.CopyFrom(_stamp(expire_time))
    if valid_for is not None:
        request.valid_for.FromTimedelta(valid_for)


def timestamp(time: datetime | None) -> Timestamp | None:
    """Renders an aware datetime."""
    return None if time is None else _stamp(time)


def _stamp(time: datetime) -> Timestamp:
    if time.tzinfo is None:
        raise ValueError("a time needs its zone, such as datetime.now(UTC)")
    stamp = Timestamp()
    stamp.FromDatetime(time)
    return stamp


def key(given: str | None) -> str:
    """Returns the caller's key, or a new one."""
    return uuid4().hex if given is None else given
