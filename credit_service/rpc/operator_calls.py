"""The servicer's calls for operators and auditors: corrections, and lists over all accounts."""

from __future__ import annotations

from typing import TYPE_CHECKING

from credit_service import fields
from credit_service.ledger.account_listing import AccountQuery
from credit_service.rpc import access, page_tokens, requests, responses, validation
from credit_service.rules.commands import Adjust
from credit_service.rules.model import FIRST_USER
from credit_service.v1 import credit_service_pb2 as pb
from credit_service.v1 import credit_service_pb2_grpc as pb_grpc

if TYPE_CHECKING:
    from credit_service.ledger.ledger import Ledger
    from credit_service.rpc.requests import Context
    from credit_service.rules.terms import Terms


class OperatorCalls(pb_grpc.CreditServiceServicer):
    """Answers the calls that correct balances and list accounts."""

    _ledger: Ledger
    _terms: Terms

    async def AdjustCredits(
        self, request: pb.AdjustCreditsRequest, context: Context
    ) -> pb.AdjustCreditsResponse:
        """Corrects a balance, up or down."""
        command = Adjust(
            user_id=fields.user_id(request.user_id),
            idempotency_key=fields.idempotency_key(request.idempotency_key),
            description=fields.reason(request.reason),
            reference=fields.reference(request.reference),
            metadata=fields.metadata(request.metadata),
            validate_only=request.validate_only,
            caller=access.CALLER.get().name,
            amount=fields.correction(request.amount),
            allow_debt=request.allow_debt,
        )
        outcome = await requests.submit(self._ledger, command, context)
        return pb.AdjustCreditsResponse(
            transaction=requests.transaction(request, outcome),
            credit=responses.user_credit(outcome.account, self._terms),
            replayed=outcome.replayed,
        )

    async def ListAccounts(
        self, request: pb.ListAccountsRequest, context: Context
    ) -> pb.ListAccountsResponse:
        """Lists accounts, a page at a time."""
        size = fields.page_size(request.page_size, "page_size")
        query = AccountQuery(
            page_size=size or validation.PAGE_SIZE_DEFAULT,
            first=page_tokens.user_of(request) or FIRST_USER,
            in_debt=request.in_debt,
            frozen=request.frozen if request.HasField("frozen") else None,
            available_below=request.available_below
            if request.HasField("available_below")
            else None,
            changed_since=validation.time(request.changed_since, "changed_since", round_up=True)
            if request.HasField("changed_since")
            else None,
        )
        now, accounts, onward = await self._ledger.reads.accounts(query)
        return pb.ListAccountsResponse(
            accounts=[responses.user_credit(account, self._terms) for account in accounts],
            next_page_token="" if onward is None else page_tokens.user_token(request, onward),
            as_of=responses.timestamp(now),
        )
