"""Errors to gRPC statuses and back: one table, used by the server and by the client.

The details are those of the standard error model (google.rpc, AIP-193): an `ErrorInfo` with the
reason and every figure, a `BadRequest` for a bad field, a `RetryInfo` where repeating helps.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING

import grpc
from google.protobuf import any_pb2, duration_pb2
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2, status_pb2

from credit_service import errors

if TYPE_CHECKING:
    from credit_service.v1 import credit_service_pb2 as pb

DOMAIN = "credit_service"

# The key under which gRPC libraries look for a google.rpc.Status.
DETAILS_KEY = "grpc-status-details-bin"

CODES: dict[type[errors.CreditError], grpc.StatusCode] = {
    errors.InvalidRequest: grpc.StatusCode.INVALID_ARGUMENT,
    errors.InsufficientCredits: grpc.StatusCode.FAILED_PRECONDITION,
    errors.AccountFrozen: grpc.StatusCode.FAILED_PRECONDITION,
    errors.HoldNotActive: grpc.StatusCode.FAILED_PRECONDITION,
    errors.HoldExpired: grpc.StatusCode.FAILED_PRECONDITION,
    errors.PriceChanged: grpc.StatusCode.FAILED_PRECONDITION,
    errors.RefundExceedsSpend: grpc.StatusCode.FAILED_PRECONDITION,
    errors.BalanceLimitExceeded: grpc.StatusCode.FAILED_PRECONDITION,
    errors.PaymentMismatch: grpc.StatusCode.FAILED_PRECONDITION,
    errors.AboveSpendLimit: grpc.StatusCode.FAILED_PRECONDITION,
    errors.TooManyGrants: grpc.StatusCode.FAILED_PRECONDITION,
    errors.TopUpNotOpen: grpc.StatusCode.FAILED_PRECONDITION,
    errors.FeedNotOffered: grpc.StatusCode.UNIMPLEMENTED,
    errors.UserNotFound: grpc.StatusCode.NOT_FOUND,
    errors.UserDeleted: grpc.StatusCode.NOT_FOUND,
    errors.PaymentNotFound: grpc.StatusCode.NOT_FOUND,
    errors.TransactionNotFound: grpc.StatusCode.NOT_FOUND,
    errors.HoldNotFound: grpc.StatusCode.NOT_FOUND,
    errors.GrantNotFound: grpc.StatusCode.NOT_FOUND,
    errors.TopUpNotFound: grpc.StatusCode.NOT_FOUND,
    errors.SpendLimitExceeded: grpc.StatusCode.RESOURCE_EXHAUSTED,
    errors.TooManyHolds: grpc.StatusCode.RESOURCE_EXHAUSTED,
    errors.IdempotencyKeyReused: grpc.StatusCode.ALREADY_EXISTS,
    errors.PaymentReused: grpc.StatusCode.ALREADY_EXISTS,
    errors.ReversalReused: grpc.StatusCode.ALREADY_EXISTS,
    errors.TopUpHasPayment: grpc.StatusCode.ALREADY_EXISTS,
    errors.BatchAborted: grpc.StatusCode.ABORTED,
    errors.Overloaded: grpc.StatusCode.UNAVAILABLE,
    errors.LedgerUnavailable: grpc.StatusCode.UNAVAILABLE,
    errors.Unauthenticated: grpc.StatusCode.UNAUTHENTICATED,
    errors.PermissionDenied: grpc.StatusCode.PERMISSION_DENIED,
    errors.InternalError: grpc.StatusCode.INTERNAL,
}

_BY_REASON = {error.reason: error for error in CODES}

_NO_ANSWER = (
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.CANCELLED,
)

# UNKNOWN without a reason of ours comes from a server or proxy that failed; it is not a refusal.
_FAILED = (grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN, grpc.StatusCode.DATA_LOSS)

_CODE_OF_NUMBER = {code.value[0]: code for code in grpc.StatusCode}

# How long a caller should wait before it repeats the call, in milliseconds.
RETRY_DELAY_MS: dict[type[errors.CreditError], int] = {
    errors.LedgerUnavailable: 1000,
}


@dataclass(frozen=True, slots=True)
class Rendered:
    """An error as gRPC sends it: the code, the sentence, and the trailing metadata."""

    code: grpc.StatusCode
    message: str
    trailing_metadata: tuple[tuple[str, bytes], ...]


def render(error: errors.CreditError) -> Rendered:
    """Turns an error into the code, sentence and details that a client receives."""
    status = to_status(error)
    trailing = ((DETAILS_KEY, status.SerializeToString()),)
    return Rendered(CODES[type(error)], status.message, trailing)


def to_status(error: errors.CreditError) -> status_pb2.Status:
    """Turns an error into a google.rpc.Status."""
    status = status_pb2.Status(code=CODES[type(error)].value[0], message=str(error))
    facts = {field.name: str(getattr(error, field.name)) for field in dataclasses.fields(error)}
    _attach(
        status,
        error_details_pb2.ErrorInfo(reason=error.reason, domain=DOMAIN, metadata=facts),
    )
    if isinstance(error, errors.InvalidRequest):
        violation = error_details_pb2.BadRequest.FieldViolation(
            field=error.field, description=error.problem, reason=error.reason
        )
        _attach(status, error_details_pb2.BadRequest(field_violations=[violation]))
    delay_ms = RETRY_DELAY_MS.get(type(error))
    if isinstance(error, errors.LimitReached | errors.Overloaded):
        delay_ms = error.retry_ms
    if delay_ms is not None:
        delay = duration_pb2.Duration()
        delay.FromMilliseconds(delay_ms)
        _attach(status, error_details_pb2.RetryInfo(retry_delay=delay))
    return status


def _attach(status: status_pb2.Status, detail: object) -> None:
    packed = any_pb2.Any()
    packed.Pack(detail)  # type: ignore[arg-type]  # every detail above is a message
    status.details.append(packed)


def typed(failure: grpc.aio.AioRpcError) -> errors.CreditError:
    """Turns a failed call into the error that the service raised, or else into one by its code."""
    return parse(failure) or by_code(failure.code(), failure.details() or "")


def parse(failure: grpc.aio.AioRpcError) -> errors.CreditError | None:
    """Turns a failed call back into the error that the service raised.

    Returns None where the failure carries no reason of this service: the transport failed, or
    another server answered. `by_code` makes an error from such a failure.
    """
    status = _sent_status(failure)
    return None if status is None else from_status(status)


def failure_of(item: pb.ItemStatus) -> grpc.aio.AioRpcError:
    """Turns the status of an item into the exception of a single call that fails with it."""
    trailing = grpc.aio.Metadata((DETAILS_KEY, item.SerializeToString()))
    code = _CODE_OF_NUMBER.get(item.code, grpc.StatusCode.UNKNOWN)
    return grpc.aio.AioRpcError(code, grpc.aio.Metadata(), trailing, item.message)


def retry_seconds(failure: grpc.aio.AioRpcError) -> float | None:
    """Returns how long the service asks to wait before a repeat; None where it does not say."""
    status = _sent_status(failure)
    retry = error_details_pb2.RetryInfo()
    for detail in status.details if status is not None else ():
        if detail.Unpack(retry):
            delay: duration_pb2.Duration = retry.retry_delay
            return delay.ToMilliseconds() / 1000
    return None


def _sent_status(failure: grpc.aio.AioRpcError) -> status_pb2.Status | None:
    sent = dict(failure.trailing_metadata() or ()).get(DETAILS_KEY)
    if not isinstance(sent, bytes):
        return None
    try:
        return status_pb2.Status.FromString(sent)
    except DecodeError:
        return None


def from_status(status: status_pb2.Status) -> errors.CreditError | None:
    """Turns a google.rpc.Status back into the error; None where it carries no reason of ours."""
    info = _error_info(status)
    if info is None:
        return None
    error = _BY_REASON.get(info.reason)
    if error is None:
        # A later release of the service has reasons that this one does not know.
        code = _CODE_OF_NUMBER.get(status.code, grpc.StatusCode.UNKNOWN)
        return by_code(code, status.message, info.reason, dict(info.metadata))
    facts: dict[str, object] = {}
    for field in dataclasses.fields(error):
        text = info.metadata.get(field.name, "")
        # Annotations are strings here, as in every module of `from __future__ import annotations`.
        facts[field.name] = int(text or 0) if field.type == "int" else text
    return error(**facts)


def by_code(
    code: grpc.StatusCode, message: str, reason: str = "", facts: dict[str, str] | None = None
) -> errors.CreditError:
    """Makes an error from a status without a known reason: a refusal, unless the call failed.

    Args:
        code: of the status.
        message: its sentence, for people.
        reason: the unknown reason; where there is none, the name of the code is used.
        facts: the figures that came with the reason.
    """
    if code in _NO_ANSWER:
        return errors.LedgerUnavailable()
    if code in _FAILED:
        return errors.InternalError()
    if code is grpc.StatusCode.UNAUTHENTICATED:
        return errors.Unauthenticated(message)
    return errors.UnknownRefusal(reason or code.name, message, facts or {})


def _error_info(status: status_pb2.Status) -> error_details_pb2.ErrorInfo | None:
    for detail in status.details:
        info = error_details_pb2.ErrorInfo()
        if detail.Unpack(info) and info.domain == DOMAIN:
            return info
    return None
