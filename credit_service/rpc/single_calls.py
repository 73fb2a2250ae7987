"""SpendCredits, HoldCredits and CaptureHold, as calls of their own and as items of CallMany.

Each has a function that turns a request into a command, and one that fills a response.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from credit_service import fields
from credit_service.rpc import requests, responses, validation
from credit_service.rules.commands import Capture, MakeHold, Spend

if TYPE_CHECKING:
    from collections.abc import Callable

    from credit_service.rules.commands import Command
    from credit_service.rules.model import Outcome
    from credit_service.rules.terms import Terms
    from credit_service.v1 import credit_service_pb2 as pb


def spend_command(request: pb.SpendCreditsRequest) -> Spend:
    """Reads a spend.

    Raises:
        InvalidRequest: a field is missing or wrong.
    """
    return Spend(**requests.common(request), charge=requests.charge(request))


def answer_spend(
    response: pb.SpendCreditsResponse,
    request: pb.SpendCreditsRequest,
    outcome: Outcome,
    terms: Terms,
) -> pb.SpendCreditsResponse:
    """Fills an empty response to a spend, and returns it."""
    _answer(response, request, outcome, terms)
    return response


def hold_command(request: pb.HoldCreditsRequest) -> MakeHold:
    """Reads a hold.

    Raises:
        InvalidRequest: a field is missing or wrong.
    """
    return MakeHold(
        **requests.common(request),
        charge=requests.charge(request),
        ttl=validation.ttl(request.ttl if request.HasField("ttl") else None),
    )


def answer_hold(
    response: pb.HoldCreditsResponse,
    request: pb.HoldCreditsRequest,
    outcome: Outcome,
    terms: Terms,
) -> pb.HoldCreditsResponse:
    """Fills an empty response to a hold, and returns it."""
    _answer(response, request, outcome, terms)
    if outcome.hold is not None:
        written = outcome.replayed or not request.validate_only
        response.hold.MergeFrom(responses.hold(outcome.hold, written=written))
    return response


def capture_command(request: pb.CaptureHoldRequest) -> Capture:
    """Reads a capture.

    Raises:
        InvalidRequest: a field is missing or wrong.
        HoldNotFound: the hold is another user's.
    """
    common = requests.common(request)
    amount = quantity = None
    match request.WhichOneof("part"):
        case "amount":
            amount = fields.amount_or_none(request.amount)
        case "quantity":
            quantity = fields.amount_or_none(request.quantity, "quantity") or None
            amount = None if quantity else 0
    return Capture(
        **common,
        hold_seq=requests.hold_place(request.hold_id, common["user_id"]),
        amount=amount,
        quantity=quantity,
        allow_overage=request.allow_overage,
    )


def answer_capture(
    response: pb.CaptureHoldResponse,
    request: pb.CaptureHoldRequest,
    outcome: Outcome,
    terms: Terms,
) -> pb.CaptureHoldResponse:
    """Fills an empty response to a capture, and returns it."""
    _answer(response, request, outcome, terms)
    if outcome.hold is not None:
        response.hold.MergeFrom(responses.hold(outcome.hold))
    response.late = outcome.late
    return response


@dataclass(frozen=True, slots=True)
class SingleCall:
    """A call that can be an item of CallMany.

    Attributes:
        method: its name.
        command: turns its request into a command.
        answer: fills an empty response, from its request, the outcome and the terms.
    """

    method: str
    command: Callable[[Any], Command]
    answer: Callable[[Any, Any, Outcome, Terms], Any]


def _answer(response: Any, request: Any, outcome: Outcome, terms: Terms) -> None:
    """Fills the fields that all of these responses share."""
    requests.transaction(request, outcome, response.transaction)
    responses.user_credit(outcome.account, terms, into=response.credit)
    response.replayed = outcome.replayed


# By the field of the item.
SINGLE_CALLS = {
    "spend": SingleCall("SpendCredits", spend_command, answer_spend),
    "hold": SingleCall("HoldCredits", hold_command, answer_hold),
    "capture": SingleCall("CaptureHold", capture_command, answer_capture),
}
