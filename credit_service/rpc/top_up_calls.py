"""The servicer's calls for top-ups: the requests for the bridge to charge, and the results."""

from __future__ import annotations

from typing import TYPE_CHECKING

from credit_service import fields
from credit_service.errors import InvalidRequest, TopUpNotFound
from credit_service.rpc import access, page_tokens, requests, top_up_messages, validation
from credit_service.rules.commands import FailTopUp, NoteTopUp
from credit_service.rules.model import FIRST_USER
from credit_service.rules.top_up_values import parse_top_up_id
from credit_service.v1 import credit_service_pb2 as pb
from credit_service.v1 import credit_service_pb2_grpc as pb_grpc

if TYPE_CHECKING:
    from uuid import UUID

    from credit_service.ledger.ledger import Ledger
    from credit_service.rpc.requests import Context
    from credit_service.rules.model import Outcome
    from credit_service.rules.top_up_values import Decided, TopUpId


class TopUpCalls(pb_grpc.CreditServiceServicer):
    """Answers the calls that list requests for top-ups, note payments and record failures."""

    _ledger: Ledger

    async def ListTopUps(
        self, request: pb.ListTopUpsRequest, context: Context
    ) -> pb.ListTopUpsResponse:
        """Lists requests, a page at a time."""
        reads = self._ledger.reads.top_ups
        size = fields.page_size(request.page_size, "page_size") or validation.PAGE_SIZE_DEFAULT
        token = ""
        if request.user_id:
            user_id = fields.user_id(request.user_id)
            found, number = await reads.page(
                user_id,
                open_only=request.open_only,
                newest=page_tokens.seq_of(request),
                page_size=size,
            )
            if number is not None:
                token = page_tokens.token(request, number)
        elif not request.open_only:
            raise InvalidRequest("open_only", "must be set if no user_id is.")
        else:
            first = page_tokens.user_of(request) or FIRST_USER
            found, onward = await reads.open_page(first, size)
            if onward is not None:
                token = page_tokens.user_token(request, onward)
        return pb.ListTopUpsResponse(
            top_ups=[top_up_messages.top_up(each) for each in found], next_page_token=token
        )

    async def NoteTopUp(
        self, request: pb.NoteTopUpRequest, context: Context
    ) -> pb.NoteTopUpResponse:
        """Notes the payment of a request."""
        user_id = fields.user_id(request.user_id)
        command = NoteTopUp(
            user_id=user_id,
            caller=access.CALLER.get().name,
            top_up=_place(request.top_up_id, user_id),
            payment_ref=fields.provider_ref(request.payment_ref, "payment_ref"),
        )
        decided = _decided(await requests.submit(self._ledger, command, context))
        return pb.NoteTopUpResponse(
            top_up=top_up_messages.top_up(decided.request), needed=decided.needed
        )

    async def FailTopUp(
        self, request: pb.FailTopUpRequest, context: Context
    ) -> pb.FailTopUpResponse:
        """Records a failed try of a request."""
        user_id = fields.user_id(request.user_id)
        failure = top_up_messages.FAILURES.get(request.failure)
        if failure is None:
            raise InvalidRequest("failure", "must be TRY_AGAIN, GIVEN_UP or NOT_NEEDED.")
        command = FailTopUp(
            user_id=user_id,
            caller=access.CALLER.get().name,
            top_up=_place(request.top_up_id, user_id),
            try_number=_try_number(request, failure),
            reason=fields.reason(request.reason),
            link=fields.link(request.link, "link"),
            failure=failure,
            payment_ref=fields.provider_ref(request.payment_ref, "payment_ref")
            if request.payment_ref
            else "",
        )
        outcome = await requests.submit(self._ledger, command, context)
        decided = _decided(outcome)
        return pb.FailTopUpResponse(
            top_up=top_up_messages.top_up(decided.request),
            off=top_up_messages.off(decided.off),
            replayed=outcome.replayed,
        )


def _place(text: str, user_id: UUID) -> TopUpId:
    """Reads the id of a request of this user."""
    if not text:
        raise InvalidRequest("top_up_id", "is missing.")
    found = parse_top_up_id(text)
    if found is None:
        raise InvalidRequest("top_up_id", "is not the id of a request for a top-up.")
    if found.user_id != user_id:
        raise TopUpNotFound(text)
    return found


def _try_number(request: pb.FailTopUpRequest, failure: str) -> int:
    if failure != "not_needed" and request.try_number < 1:
        raise InvalidRequest("try_number", f"must be 1 or more, not {request.try_number}.")
    return request.try_number


def _decided(outcome: Outcome) -> Decided:
    assert outcome.top_up is not None  # noqa: S101  # the command is about a request
    return outcome.top_up
