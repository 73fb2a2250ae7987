"""The connection under CreditClient: deadlines, safe retries, keys, and errors made typed again."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Self, TypeVar
from uuid import uuid4

import grpc
from google.protobuf.timestamp_pb2 import Timestamp

from credit_service import status
from credit_service.errors import (
    CreditError,
    InternalError,
    LedgerUnavailable,
    OutcomeUnknown,
    Unavailable,
)
from credit_service.v1 import credit_service_pb2 as pb
from credit_service.v1 import credit_service_pb2_grpc as pb_grpc

if TYPE_CHECKING:
    from datetime import datetime
    from types import TracebackType

_Response = TypeVar("_Response")

DEADLINE_SECONDS = 5.0

# UNAVAILABLE is repeated (AIP-194), with the very same request and so the same key. CANCELLED too:
# a gRPC server that stops answers it to calls that come just then, without having looked at them.
_SERVICE_CONFIG = json.dumps(
    {
        "methodConfig": [
            {
                "name": [{"service": "credit_service.v1.CreditService"}],
                "retryPolicy": {
                    "maxAttempts": 5,
                    "initialBackoff": "0.1s",
                    "maxBackoff": "1s",
                    "backoffMultiplier": 2,
                    "retryableStatusCodes": ["UNAVAILABLE", "CANCELLED"],
                },
            }
        ]
    }
)


class Connection:
    """Makes calls: a read that gets no answer raises LedgerUnavailable, a write OutcomeUnknown."""

    def __init__(
        self,
        target: str,
        *,
        token: str | None = None,
        credentials: grpc.ChannelCredentials | None = None,
        deadline_seconds: float = DEADLINE_SECONDS,
    ) -> None:
        """Prepares the connection; it is made with the first call.

        Args:
            target: host:port of the service.
            token: the caller's bearer token, if it has one.
            credentials: TLS, from `grpc.ssl_channel_credentials`; None: plaintext.
            deadline_seconds: how long a call may take, its retries included.
        """
        options = (
            ("grpc.service_config", _SERVICE_CONFIG),
            ("grpc.initial_reconnect_backoff_ms", 200),
            ("grpc.max_reconnect_backoff_ms", 2_000),
            ("grpc.keepalive_time_ms", 30_000),
            ("grpc.keepalive_timeout_ms", 10_000),
        )
        self._channel = (
            grpc.aio.insecure_channel(target, options=options)
            if credentials is None
            else grpc.aio.secure_channel(target, credentials, options=options)
        )
        self.stub: pb_grpc.CreditServiceAsyncStub = pb_grpc.CreditServiceStub(self._channel)
        self.metadata = (("authorization", f"Bearer {token}"),) if token is not None else ()
        self._deadline_seconds = deadline_seconds

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
        await self._channel.close()

    async def read(
        self,
        method: grpc.aio.UnaryUnaryMultiCallable[Any, _Response],
        request: Any,
        seconds: float | None = None,
    ) -> _Response:
        """Makes a call that changes nothing, or may be repeated without a key."""
        try:
            return await self._call(method, request, seconds)
        except grpc.aio.AioRpcError as failure:
            raise typed(failure) from failure

    async def write(
        self, method: grpc.aio.UnaryUnaryMultiCallable[Any, _Response], request: Any
    ) -> _Response:
        """Makes a call that has an idempotency key."""
        try:
            return await self._call(method, request, None)
        except grpc.aio.AioRpcError as failure:
            error = typed(failure)
            if isinstance(error, (Unavailable, InternalError)):
                raise OutcomeUnknown(request.idempotency_key) from failure
            raise error from failure

    async def _call(
        self,
        method: grpc.aio.UnaryUnaryMultiCallable[Any, _Response],
        request: Any,
        seconds: float | None,
    ) -> _Response:
        # Waiting for a connection, within the deadline, rides out a restart of the service.
        return await method(
            request,
            timeout=seconds or self._deadline_seconds,
            metadata=self.metadata,
            wait_for_ready=True,
        )


def ask(
    request: pb.SpendCreditsRequest | pb.HoldCreditsRequest,
    operation: str | None,
    quantity: int,
    amount: int | None,
) -> None:
    """Puts what a spend or hold asks for into its request."""
    if (operation is None) == (amount is None):
        raise TypeError("name an operation or an amount, and not both")
    if operation is not None:
        request.charge.operation = operation
        request.charge.quantity = quantity
    if amount is not None:
        request.amount = amount


def timestamp(time: datetime | None) -> Timestamp | None:
    """Renders an aware datetime."""
    if time is None:
        return None
    if time.tzinfo is None:
        raise ValueError("a time needs its zone, such as datetime.now(UTC)")
    stamp = Timestamp()
    stamp.FromDatetime(time)
    return stamp


def key(given: str | None) -> str:
    """Takes the caller's key, or makes one."""
    return uuid4().hex if given is None else given


_NO_FINAL_ANSWER = (
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.CANCELLED,
)


def typed(failure: grpc.aio.AioRpcError) -> CreditError:
    """Makes the error of a failed call typed again."""
    error = status.parse(failure)
    if error is not None:
        return error
    return LedgerUnavailable() if failure.code() in _NO_FINAL_ANSWER else InternalError()
