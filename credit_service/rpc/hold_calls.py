"""The servicer's calls for holds."""

from __future__ import annotations

from typing import TYPE_CHECKING

from credit_service import fields
from credit_service.errors import InvalidRequest
from credit_service.rpc import (
    access,
    page_tokens,
    requests,
    responses,
    single_calls,
    validation,
)
from credit_service.rules.commands import Extend, Release
from credit_service.v1 import credit_service_pb2 as pb
from credit_service.v1 import credit_service_pb2_grpc as pb_grpc

if TYPE_CHECKING:
    from credit_service.ledger.ledger import Ledger
    from credit_service.rpc.requests import Context
    from credit_service.rules.terms import Terms


class HoldCalls(pb_grpc.CreditServiceServicer):
    """Answers the calls that make, settle and show holds."""

    _ledger: Ledger
    _terms: Terms

    async def HoldCredits(
        self, request: pb.HoldCreditsRequest, context: Context
    ) -> pb.HoldCreditsResponse:
        """Holds credits for work."""
        command = single_calls.hold_command(request)
        outcome = await requests.submit(self._ledger, command, context)
        response = pb.HoldCreditsResponse()
        return single_calls.answer_hold(response, request, outcome, self._terms)

    async def CaptureHold(
        self, request: pb.CaptureHoldRequest, context: Context
    ) -> pb.CaptureHoldResponse:
        """Captures a hold."""
        command = single_calls.capture_command(request)
        outcome = await requests.submit(self._ledger, command, context)
        response = pb.CaptureHoldResponse()
        return single_calls.answer_capture(response, request, outcome, self._terms)

    async def ReleaseHold(
        self, request: pb.ReleaseHoldRequest, context: Context
    ) -> pb.ReleaseHoldResponse:
        """Releases a hold."""
        common = requests.common(request)
        command = Release(
            **common, hold_seq=requests.hold_place(request.hold_id, common["user_id"])
        )
        outcome = await requests.submit(self._ledger, command, context)
        return pb.ReleaseHoldResponse(
            transaction=requests.transaction(request, outcome),
            credit=responses.user_credit(outcome.account, self._terms),
            replayed=outcome.replayed,
            hold=responses.hold_of(outcome),
        )

    async def ExtendHold(
        self, request: pb.ExtendHoldRequest, context: Context
    ) -> pb.ExtendHoldResponse:
        """Extends a hold."""
        user_id = fields.user_id(request.user_id)
        command = Extend(
            user_id=user_id,
            caller=access.CALLER.get().name,
            hold_seq=requests.hold_place(request.hold_id, user_id),
            ttl=validation.ttl(request.ttl if request.HasField("ttl") else None),
        )
        outcome = await requests.submit(self._ledger, command, context)
        return pb.ExtendHoldResponse(hold=responses.hold_of(outcome))

    async def GetHold(self, request: pb.GetHoldRequest, context: Context) -> pb.GetHoldResponse:
        """Answers with a hold."""
        user_id = fields.user_id(request.user_id)
        seq = requests.hold_place(request.hold_id, user_id)
        return pb.GetHoldResponse(hold=responses.hold(await self._ledger.reads.hold(user_id, seq)))

    async def ListHolds(
        self, request: pb.ListHoldsRequest, context: Context
    ) -> pb.ListHoldsResponse:
        """Lists holds, a page at a time."""
        user_id = fields.user_id(request.user_id)
        size = fields.page_size(request.page_size, "page_size")
        state = None
        if request.state != pb.HOLD_STATE_UNSPECIFIED:
            state = responses.HOLD_STATE_NAMES.get(request.state)
            if state is None:
                raise InvalidRequest("state", f"is {request.state}, which is not a hold state.")
        holds, onward = await self._ledger.reads.holds(
            user_id,
            state=state,
            newest=page_tokens.seq_of(request),
            page_size=size or validation.PAGE_SIZE_DEFAULT,
        )
        return pb.ListHoldsResponse(
            holds=[responses.hold(hold) for hold in holds],
            next_page_token="" if onward is None else page_tokens.token(request, onward),
        )
