"""The servicer's calls for grants: credits without a payment, and credits that expire."""

from __future__ import annotations

from typing import TYPE_CHECKING

from credit_service import fields
from credit_service.rpc import access, page_tokens, requests, responses, validation
from credit_service.rules.commands import SERVICE, Expire, GiveCredits, RevokeGrant
from credit_service.v1 import credit_service_pb2 as pb
from credit_service.v1 import credit_service_pb2_grpc as pb_grpc

if TYPE_CHECKING:
    from collections.abc import Coroutine
    from typing import Any
    from uuid import UUID

    from credit_service.ledger.grant_reads import GrantPage
    from credit_service.ledger.ledger import Ledger
    from credit_service.rpc.requests import Context
    from credit_service.rules.terms import Terms


class GrantCalls(pb_grpc.CreditServiceServicer):
    """Answers the calls that grant credits, revoke and list grants, and report what is owed."""

    _ledger: Ledger
    _terms: Terms

    async def GrantCredits(
        self, request: pb.GrantCreditsRequest, context: Context
    ) -> pb.GrantCreditsResponse:
        """Gives credits without a payment."""
        command = GiveCredits(
            user_id=fields.user_id(request.user_id),
            idempotency_key=fields.idempotency_key(request.idempotency_key),
            description=fields.reason(request.reason),
            reference=fields.reference(request.reference),
            metadata=fields.metadata(request.metadata),
            validate_only=request.validate_only,
            caller=access.CALLER.get().name,
            amount=fields.amount(request.amount),
            life=validation.life(request),
            paid=validation.paid(request.category),
        )
        outcome = await requests.submit(self._ledger, command, context)
        return pb.GrantCreditsResponse(
            transaction=requests.transaction(request, outcome),
            credit=responses.user_credit(outcome.account, self._terms),
            replayed=outcome.replayed,
        )

    async def RevokeGrant(
        self, request: pb.RevokeGrantRequest, context: Context
    ) -> pb.RevokeGrantResponse:
        """Revokes what is left of a grant."""
        reasoned = requests.reasoned(request)
        seq = requests.grant_place(request.grant_id, reasoned["user_id"])
        if not access.CALLER.get().may(access.Right.REVOKE_ANY_GRANT):
            await self._require_own_purchase(reasoned["user_id"], seq)
        command = RevokeGrant(**reasoned, grant_seq=seq)
        outcome = await requests.submit(self._ledger, command, context)
        return pb.RevokeGrantResponse(
            transaction=requests.transaction(request, outcome),
            credit=responses.user_credit(outcome.account, self._terms),
            replayed=outcome.replayed,
        )

    async def _require_own_purchase(self, user_id: UUID, seq: int) -> None:
        """Refuses a grant that the caller did not purchase; an entry's caller never changes."""
        caller = access.CALLER.get()
        entry = await self._ledger.reads.entry_at(user_id, seq)
        if entry is None or entry.type != "purchase" or entry.caller != caller.name:
            caller.require(access.Right.REVOKE_ANY_GRANT)

    async def ListGrants(
        self, request: pb.ListGrantsRequest, context: Context
    ) -> pb.ListGrantsResponse:
        """Lists grants, a page at a time."""
        user_id = fields.user_id(request.user_id)
        size = fields.page_size(request.page_size, "page_size")
        page = await self._grants(request, user_id, size or validation.PAGE_SIZE_DEFAULT)
        if page.due:
            # Due expiries are recorded first, so that the grants are shown as they are now.
            expire = Expire(user_id=user_id, caller=SERVICE)
            await requests.submit(self._ledger, expire, context)
            page = await self._grants(request, user_id, size or validation.PAGE_SIZE_DEFAULT)
        token = "" if page.onward is None else page_tokens.token(request, page.onward)
        return pb.ListGrantsResponse(
            grants=[responses.grant(grant) for grant in page.grants], next_page_token=token
        )

    def _grants(
        self, request: pb.ListGrantsRequest, user_id: UUID, size: int
    ) -> Coroutine[Any, Any, GrantPage]:
        return self._ledger.reads.grants.page(
            user_id,
            closed=request.include_closed,
            newest=page_tokens.seq_of(request),
            page_size=size,
        )

    async def GetLiabilityReport(
        self, request: pb.GetLiabilityReportRequest, context: Context
    ) -> pb.GetLiabilityReportResponse:
        """Adds up the credits of all accounts."""
        as_of = None
        if request.HasField("as_of"):
            as_of = validation.time(request.as_of, "as_of", round_up=False)
        return responses.liability(*await self._ledger.reads.grants.liability(as_of))
