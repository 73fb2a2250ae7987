"""Values of top-ups as messages of the contract, and the other way round."""

from __future__ import annotations

from typing import TYPE_CHECKING

from credit_service import fields
from credit_service.errors import InvalidRequest
from credit_service.rpc.responses import timestamp, top_up_policy
from credit_service.rules.model import TopUp, transaction_id
from credit_service.v1 import credit_service_pb2 as pb

if TYPE_CHECKING:
    from credit_service.rules.top_up_values import (
        TopUpChange,
        TopUpChangeKind,
        TopUpFailure,
        TopUpOff,
        TopUpRequest,
        TopUpState,
    )
    from credit_service.rules.top_ups import TopUpStatus

STATES: dict[TopUpState, pb.TopUpState.ValueType] = {
    "open": pb.TOP_UP_STATE_OPEN,
    "succeeded": pb.TOP_UP_STATE_SUCCEEDED,
    "failed": pb.TOP_UP_STATE_FAILED,
    "not_needed": pb.TOP_UP_STATE_NOT_NEEDED,
}
FAILURES: dict[pb.TopUpFailure.ValueType, TopUpFailure] = {
    pb.TOP_UP_FAILURE_TRY_AGAIN: "try_again",
    pb.TOP_UP_FAILURE_GIVEN_UP: "given_up",
    pb.TOP_UP_FAILURE_NOT_NEEDED: "not_needed",
}
KINDS: dict[TopUpChangeKind, pb.TopUpChangeKind.ValueType] = {
    "requested": pb.TOP_UP_CHANGE_KIND_REQUESTED,
    "noted": pb.TOP_UP_CHANGE_KIND_NOTED,
    "failed": pb.TOP_UP_CHANGE_KIND_FAILED,
    "succeeded": pb.TOP_UP_CHANGE_KIND_SUCCEEDED,
    "not_needed": pb.TOP_UP_CHANGE_KIND_NOT_NEEDED,
    "turned_off": pb.TOP_UP_CHANGE_KIND_TURNED_OFF,
    "turned_on": pb.TOP_UP_CHANGE_KIND_TURNED_ON,
}
_OFF: dict[TopUpOff | None, pb.TopUpOff.ValueType] = {
    None: pb.TOP_UP_OFF_UNSPECIFIED,
    "failures": pb.TOP_UP_OFF_FAILURES,
    "reversal": pb.TOP_UP_OFF_REVERSAL,
}


def policy(message: pb.TopUp) -> TopUp:
    """Checks the top-up policy of an account; the service does not know the packs."""
    if not 1 <= message.charges_per_month <= fields.CHARGES_PER_MONTH_MAX:
        raise InvalidRequest(
            "top_up.charges_per_month",
            f"must be 1 to {fields.CHARGES_PER_MONTH_MAX}, not {message.charges_per_month}.",
        )
    return TopUp(
        fields.amount(message.below, "top_up.below"),
        fields.pack(message.pack, "top_up.pack"),
        message.charges_per_month,
    )


def off(value: TopUpOff | None) -> pb.TopUpOff.ValueType:
    """Renders why top-up is off."""
    return _OFF[value]


def top_up(value: TopUpRequest) -> pb.TopUpRequest:
    """Renders a request."""
    return pb.TopUpRequest(
        id=str(value.id),
        user_id=str(value.user_id),
        pack=value.pack,
        state=STATES[value.state],
        payment_ref=value.payment_ref or "",
        tries=value.tries,
        reason=value.reason,
        link=value.link,
        create_time=timestamp(value.created_at),
        update_time=timestamp(value.changed_at),
        transaction_id="" if value.seq is None else transaction_id(value.user_id, value.seq),
    )


def change(value: TopUpChange) -> pb.TopUpChange:
    """Renders a change."""
    return pb.TopUpChange(
        user_id=str(value.user_id),
        change=value.change,
        kind=KINDS[value.kind],
        timestamp=timestamp(value.changed_at),
        caller=value.caller,
        top_up=None if value.request is None else top_up(value.request),
        off=off(value.off),
    )


def status(value: TopUpStatus) -> pb.TopUpStatus:
    """Renders the top-ups of an account."""
    return pb.TopUpStatus(
        policy=None if value.policy is None else top_up_policy(value.policy),
        off=off(value.counts.off),
        charges_this_month=value.charges,
        failures=value.counts.failures,
        open=None if value.open is None else top_up(value.open),
    )
