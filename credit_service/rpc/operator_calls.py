"""The calls that only operators and auditors make: corrections of balances."""

from __future__ import annotations

from typing import TYPE_CHECKING

from credit_service import fields
from credit_service.rpc import access, requests, responses
from credit_service.rules.commands import Adjust
from credit_service.v1 import credit_service_pb2 as pb
from credit_service.v1 import credit_service_pb2_grpc as pb_grpc

if TYPE_CHECKING:
    from credit_service.ledger.ledger import Ledger
    from credit_service.rpc.requests import Context
    from credit_service.rules.terms import Terms


class OperatorCalls(pb_grpc.CreditServiceServicer):
    """Answers the calls that correct balances."""

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
