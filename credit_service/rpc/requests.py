"""The fields that the requests of several calls share, and their part of the responses."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypedDict

from asyncpg.pgproto import pgproto

from credit_service import fields
from credit_service.errors import (
    GrantNotFound,
    HoldNotFound,
    InvalidRequest,
    TransactionNotFound,
)
from credit_service.rpc import access, call_log, responses, validation
from credit_service.rules.commands import Charge

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any
    from uuid import UUID

    import grpc

    from credit_service.ledger.ledger import Ledger
    from credit_service.rules.commands import Command
    from credit_service.rules.model import Outcome
    from credit_service.v1 import credit_service_pb2 as pb

    Context = grpc.aio.ServicerContext[Any, Any]

    KeyedRequest = (
        pb.PurchaseCreditsRequest
        | pb.SpendCreditsRequest
        | pb.RefundCreditsRequest
        | pb.HoldCreditsRequest
        | pb.CaptureHoldRequest
        | pb.ReleaseHoldRequest
    )
    ReasonedRequest = pb.GrantCreditsRequest | pb.RevokeGrantRequest

# How long a write waits for its batch when the caller set no deadline or a longer one.
_WAIT_SECONDS_MAX = 10.0


class Common(TypedDict):
    """The fields of every keyed write."""

    user_id: UUID
    idempotency_key: str
    description: str
    reference: str
    metadata: Mapping[str, str]
    validate_only: bool
    caller: str


def user_id(text: str) -> UUID:
    """Reads the id of a user.

    Returns the driver's own kind of UUID, which is compared, hashed and sent without running Python
    code. A call does each of these several times.
    """
    return fields.user_id(text, pgproto.UUID)


def common(request: KeyedRequest) -> Common:
    """Reads the fields of every keyed write."""
    return {
        "user_id": user_id(request.user_id),
        "idempotency_key": fields.idempotency_key(request.idempotency_key),
        "description": fields.description(request.description),
        "reference": fields.reference(request.reference),
        "metadata": fields.metadata(request.metadata),
        "validate_only": request.validate_only,
        "caller": access.CALLER.get().name,
    }


def reasoned(request: ReasonedRequest) -> Common:
    """Reads the fields of a keyed write whose description is its reason."""
    return {
        "user_id": user_id(request.user_id),
        "idempotency_key": fields.idempotency_key(request.idempotency_key),
        "description": fields.reason(request.reason),
        "reference": fields.reference(request.reference),
        "metadata": fields.metadata(request.metadata),
        "validate_only": request.validate_only,
        "caller": access.CALLER.get().name,
    }


def charge(request: pb.SpendCreditsRequest | pb.HoldCreditsRequest | pb.BatchSpendItem) -> Charge:
    """Reads the cost of a spend or hold."""
    amount = operation = quantity = expected_cost = None
    match request.WhichOneof("price"):
        case "charge":
            operation, quantity = validation.charge(request.charge, "charge")
        case "amount":
            amount = fields.amount(request.amount)
        case _:
            raise InvalidRequest("price", "is missing: name a charge or an amount.")
    if request.HasField("expected_cost"):
        expected_cost = fields.amount(request.expected_cost, "expected_cost")
    return Charge(amount, operation, quantity, expected_cost)


def place(text: str, user_id: UUID, field: str) -> int:
    """Reads the id of an entry of this user."""
    seq = validation.transaction_seq(text, user_id, field)
    if seq is None:
        raise TransactionNotFound(text)
    return seq


def hold_place(text: str, user_id: UUID) -> int:
    """Reads the id of a hold of this user."""
    if not text:
        raise InvalidRequest("hold_id", "is missing.")
    seq = validation.transaction_seq(text, user_id, "hold_id")
    if seq is None:
        raise HoldNotFound(text)
    return seq


def grant_place(text: str, user_id: UUID) -> int:
    """Reads the id of a grant of this user."""
    if not text:
        raise InvalidRequest("grant_id", "is missing.")
    seq = validation.transaction_seq(text, user_id, "grant_id")
    if seq is None:
        raise GrantNotFound(text)
    return seq


def transaction(
    request: KeyedRequest | ReasonedRequest | pb.AdjustCreditsRequest | pb.ReversePurchaseRequest,
    outcome: Outcome,
    into: pb.CreditTransaction | None = None,
) -> pb.CreditTransaction:
    """Renders the entry for an answer, as `responses.transaction` does.

    An entry that was only validated has no id.
    """
    assert outcome.entry is not None  # noqa: S101  # a keyed command makes or finds one
    written = outcome.replayed or not request.validate_only
    return responses.transaction(outcome.entry, written=written, into=into)


def seconds_left(context: Context) -> float:
    """How long a call may wait for its batch."""
    remaining = context.time_remaining()
    return _WAIT_SECONDS_MAX if remaining is None else min(remaining, _WAIT_SECONDS_MAX)


async def submit(ledger: Ledger, command: Command, context: Context) -> Outcome:
    """Submits a command, and waits for no longer than its caller does."""
    outcome = await ledger.enqueue(command, seconds_left(context))
    if outcome.replayed:
        call_log.CALL.get().replayed = True
        if lacks_grant_changes(outcome):
            return await with_grant_changes(ledger, outcome)
    return outcome


def lacks_grant_changes(outcome: Outcome) -> bool:
    """Says whether a batch found the entry by its key, without the entry's changes to grants."""
    return outcome.replayed and outcome.entry is not None and outcome.account.grants_made > 0


async def with_grant_changes(ledger: Ledger, outcome: Outcome) -> Outcome:
    """Reads the entry of a repeated call again, with its changes to grants."""
    assert outcome.entry is not None  # noqa: S101  # lacks_grant_changes was asked
    entry = await ledger.reads.entry_at(outcome.account.user_id, outcome.entry.seq)
    return outcome._replace(entry=entry)
