"""CreditClient for workers, gateways and the bridge: deadlines, safe retries, keys, typed refusals.

Needs grpcio, protobuf and googleapis-common-protos, and nothing else. Credits are money, so a
worker fails closed: without an answer it does no work.

    async with CreditClient("localhost:50051", token=token) as client:
        try:
            spend = await client.spend_credits(
                user_id, operation="stem_separation", idempotency_key=f"spend:{job}:1"
            )
        except InsufficientCredits as refusal:
            tell_the_user(refusal.shortfall)
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Self, TypeVar
from uuid import UUID, uuid4

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
    from collections.abc import AsyncIterator, Iterable, Mapping
    from datetime import datetime
    from types import TracebackType

_Response = TypeVar("_Response")

DEADLINE_SECONDS = 5.0

# UNAVAILABLE alone is repeated (AIP-194), with the very same request and so the same key.
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
                    "retryableStatusCodes": ["UNAVAILABLE"],
                },
            }
        ]
    }
)

_MESSAGE_BYTES_MAX = 1024 * 1024


class CreditClient:
    """A connection to the credit service; one per process is enough, and it may be shared.

    Every method raises what the service refused as the classes of `credit_service.errors`. A read
    that gets no answer raises `LedgerUnavailable`, a write `OutcomeUnknown`.
    """

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
            ("grpc.keepalive_time_ms", 30_000),
            ("grpc.keepalive_timeout_ms", 10_000),
            ("grpc.max_receive_message_length", _MESSAGE_BYTES_MAX),
        )
        self._channel = (
            grpc.aio.insecure_channel(target, options=options)
            if credentials is None
            else grpc.aio.secure_channel(target, credentials, options=options)
        )
        self._stub: pb_grpc.CreditServiceAsyncStub = pb_grpc.CreditServiceStub(self._channel)
        self._metadata = (("authorization", f"Bearer {token}"),) if token is not None else ()
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

    async def get_user_credit(
        self,
        user_id: UUID | str,
        *,
        as_of: datetime | None = None,
        history_size: int = 0,
    ) -> pb.UserCredit:
        """Reads an account, now or as it was `as_of` a past time (aware), with its newest entries.

        Raises:
            UserNotFound: the user is not known.
        """
        request = pb.GetUserCreditRequest(
            user_id=str(user_id), as_of=_timestamp(as_of), history_size=history_size
        )
        return (await self._read(self._stub.GetUserCredit, request)).credit

    async def purchase_credits(
        self,
        user_id: UUID | str,
        amount: int,
        *,
        payment: pb.Payment | None,
        idempotency_key: str | None = None,
        description: str = "",
        reference: str = "",
        metadata: Mapping[str, str] | None = None,
        validate_only: bool = False,
    ) -> pb.PurchaseCreditsResponse:
        """Adds `amount` credits that were paid for; None for `payment` is an operator's right.

        Args:
            user_id: who gets them.
            amount: credits, 1 to 10^12.
            payment: the payment, which is credited once over all users and keys.
            idempotency_key: the caller's key; None: one is made for this call.
            description: a text for people.
            reference: the caller's own reference.
            metadata: the caller's own facts.
            validate_only: check everything, write nothing.

        Raises:
            PaymentReused: the payment was credited to another user or with another amount.
            UserNotFound: the user is not known.
            UserDeleted: the payment was credited to a user who was deleted.
            OutcomeUnknown: no final answer came.
        """
        request = pb.PurchaseCreditsRequest(
            user_id=str(user_id),
            amount=amount,
            payment=payment,
            idempotency_key=_key(idempotency_key),
            description=description,
            reference=reference,
            metadata=metadata,
            validate_only=validate_only,
        )
        return await self._write(self._stub.PurchaseCredits, request)

    async def spend_credits(
        self,
        user_id: UUID | str,
        *,
        operation: str | None = None,
        quantity: int = 1,
        amount: int | None = None,
        expected_cost: int | None = None,
        idempotency_key: str | None = None,
        description: str = "",
        reference: str = "",
        metadata: Mapping[str, str] | None = None,
        validate_only: bool = False,
    ) -> pb.SpendCreditsResponse:
        """Takes credits before work is done: the price of an operation, or an amount.

        Args:
            user_id: who pays.
            operation: an operation of the price list; the service prices it.
            quantity: units of the operation.
            amount: credits to take, where no operation is named.
            expected_cost: refuse any other cost than this.
            idempotency_key: the caller's key, best `spend:<job>:<attempt>`, so that a job which is
                delivered twice pays once; None: one is made for this call.
            description: a text for people.
            reference: the caller's own reference, for example the job.
            metadata: the caller's own facts.
            validate_only: check everything, write nothing.

        Raises:
            InsufficientCredits: the credits are not there; `shortfall` tells how many.
            PriceChanged: the cost is not `expected_cost`.
            UserNotFound: the user is not known.
            OutcomeUnknown: no final answer came; do no work.
        """
        if (operation is None) == (amount is None):
            raise TypeError("name an operation or an amount, and not both")
        request = pb.SpendCreditsRequest(
            user_id=str(user_id),
            expected_cost=expected_cost,
            idempotency_key=_key(idempotency_key),
            description=description,
            reference=reference,
            metadata=metadata,
            validate_only=validate_only,
        )
        if operation is not None:
            request.charge.operation = operation
            request.charge.quantity = quantity
        if amount is not None:
            request.amount = amount
        return await self._write(self._stub.SpendCredits, request)

    async def refund_credits(
        self,
        user_id: UUID | str,
        transaction_id: str | None,
        *,
        amount: int | None = None,
        idempotency_key: str | None = None,
        description: str = "",
        reference: str = "",
        metadata: Mapping[str, str] | None = None,
        validate_only: bool = False,
    ) -> pb.RefundCreditsResponse:
        """Gives back a spend, all that is left of it or `amount` credits.

        Args:
            user_id: who paid.
            transaction_id: the spend; None is an operator's right and needs an amount.
            amount: credits to give back; None: all that is left.
            idempotency_key: the caller's key, best `refund:<job>:<attempt>`; None: one is made for
                this call.
            description: a text for people.
            reference: the caller's own reference, for example the job.
            metadata: the caller's own facts.
            validate_only: check everything, write nothing.

        Raises:
            RefundExceedsSpend: `refundable` credits are left of the spend.
            TransactionNotFound: the user has no such spend.
            OutcomeUnknown: no final answer came.
        """
        request = pb.RefundCreditsRequest(
            user_id=str(user_id),
            transaction_id=transaction_id or "",
            amount=amount,
            idempotency_key=_key(idempotency_key),
            description=description,
            reference=reference,
            metadata=metadata,
            validate_only=validate_only,
        )
        return await self._write(self._stub.RefundCredits, request)

    async def get_transaction_history(
        self,
        user_id: UUID | str,
        *,
        page_size: int = 0,
        types: Iterable[pb.TransactionType.ValueType] = (),
        start_time: datetime | None = None,
        end_time: datetime | None = None,
        reference: str = "",
        related_transaction_id: str = "",
    ) -> AsyncIterator[pb.CreditTransaction]:
        """Goes through the entries of a user, newest first, reading a page when it is needed.

        Raises:
            UserNotFound: the user is not known.
        """
        request = pb.GetTransactionHistoryRequest(
            user_id=str(user_id),
            page_size=page_size,
            types=list(types),
            start_time=_timestamp(start_time),
            end_time=_timestamp(end_time),
            reference=reference,
            related_transaction_id=related_transaction_id,
        )
        while True:
            page = await self._read(self._stub.GetTransactionHistory, request)
            for transaction in page.transactions:
                yield transaction
            if not page.next_page_token:
                return
            request.page_token = page.next_page_token

    async def get_transaction(
        self,
        user_id: UUID | str,
        *,
        transaction_id: str | None = None,
        idempotency_key: str | None = None,
    ) -> pb.CreditTransaction:
        """Reads one entry, by its id or by the key of the call that made it.

        Raises:
            TransactionNotFound: the user has no such entry; a write with that key did not happen.
        """
        request = pb.GetTransactionRequest(user_id=str(user_id))
        if transaction_id is not None:
            request.transaction_id = transaction_id
        if idempotency_key is not None:
            request.idempotency_key = idempotency_key
        return (await self._read(self._stub.GetTransaction, request)).transaction

    async def list_prices(self) -> pb.ListPricesResponse:
        """Reads the price list."""
        return await self._read(self._stub.ListPrices, pb.ListPricesRequest())

    async def quote_cost(
        self, items: Mapping[str, int], *, user_id: UUID | str | None = None
    ) -> pb.QuoteCostResponse:
        """Prices work before it is done.

        Args:
            items: units by operation.
            user_id: whose credits to look at; None: price only.
        """
        request = pb.QuoteCostRequest(
            user_id="" if user_id is None else str(user_id),
            items=[pb.Charge(operation=name, quantity=units) for name, units in items.items()],
        )
        return await self._read(self._stub.QuoteCost, request)

    async def _read(
        self, method: grpc.aio.UnaryUnaryMultiCallable[Any, _Response], request: Any
    ) -> _Response:
        try:
            return await self._call(method, request)
        except grpc.aio.AioRpcError as failure:
            raise _error(failure) from failure

    async def _write(
        self, method: grpc.aio.UnaryUnaryMultiCallable[Any, _Response], request: Any
    ) -> _Response:
        try:
            return await self._call(method, request)
        except grpc.aio.AioRpcError as failure:
            error = _error(failure)
            if isinstance(error, (Unavailable, InternalError)):
                raise OutcomeUnknown(request.idempotency_key) from failure
            raise error from failure

    async def _call(
        self, method: grpc.aio.UnaryUnaryMultiCallable[Any, _Response], request: Any
    ) -> _Response:
        # Waiting for a connection, within the deadline, rides out a restart of the service.
        return await method(
            request,
            timeout=self._deadline_seconds,
            metadata=self._metadata,
            wait_for_ready=True,
        )


def _timestamp(time: datetime | None) -> Timestamp | None:
    if time is None:
        return None
    if time.tzinfo is None:
        raise ValueError("a time needs its zone, such as datetime.now(UTC)")
    stamp = Timestamp()
    stamp.FromDatetime(time)
    return stamp


def _key(given: str | None) -> str:
    return uuid4().hex if given is None else given


_NO_FINAL_ANSWER = (
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.CANCELLED,
)


def _error(failure: grpc.aio.AioRpcError) -> CreditError:
    error = status.parse(failure)
    if error is not None:
        return error
    return LedgerUnavailable() if failure.code() in _NO_FINAL_ANSWER else InternalError()
