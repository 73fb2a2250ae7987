"""The calls of CreditClient that make, settle and show holds."""

from __future__ import annotations

from typing import TYPE_CHECKING

from credit_service.client.connection import Connection, ask, key
from credit_service.v1 import credit_service_pb2 as pb

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Mapping
    from datetime import timedelta
    from uuid import UUID


class HoldCalls(Connection):
    """Credits that are held before work and captured after it."""

    async def hold_credits(
        self,
        user_id: UUID | str,
        *,
        operation: str | None = None,
        quantity: int = 1,
        amount: int | None = None,
        ttl: timedelta | None = None,
        expected_cost: int | None = None,
        idempotency_key: str | None = None,
        description: str = "",
        reference: str = "",
        metadata: Mapping[str, str] | None = None,
        validate_only: bool = False,
    ) -> pb.HoldCreditsResponse:
        """Holds credits before work is done; `hold` does it for a whole piece of work.

        Args:
            user_id: who will pay.
            operation: an operation of the price list; the service prices it.
            quantity: units of the operation.
            amount: credits to hold, if no operation is named.
            ttl: how long, 1 second to 24 hours; None: 15 minutes.
            expected_cost: refuse any other cost than this.
            idempotency_key: the caller's key; None: one is made for this call.
            description: a text for people.
            reference: the caller's own reference, for example the job.
            metadata: the caller's own facts.
            validate_only: check everything, write nothing.

        Raises:
            InsufficientCredits: too few are available; `shortfall` says how many are missing.
            AccountFrozen: the account may not spend.
            AboveSpendLimit: it is more than the account may ever spend in a window.
            LimitReached: a spend limit, or too many open holds.
            PriceChanged: the cost is not `expected_cost`.
            OutcomeUnknown: no final answer came; do no work.
        """
        request = pb.HoldCreditsRequest(
            user_id=str(user_id),
            expected_cost=expected_cost,
            idempotency_key=key(idempotency_key),
            description=description,
            reference=reference,
            metadata=metadata,
            validate_only=validate_only,
        )
        ask(request, operation, quantity, amount)
        if ttl is not None:
            request.ttl.FromTimedelta(ttl)
        return await self.write(self.stub.HoldCredits, request)

    async def capture_hold(
        self,
        user_id: UUID | str,
        hold_id: str,
        *,
        amount: int | None = None,
        quantity: int | None = None,
        allow_overage: bool = False,
        idempotency_key: str | None = None,
        description: str = "",
        reference: str = "",
        metadata: Mapping[str, str] | None = None,
        validate_only: bool = False,
    ) -> pb.CaptureHoldResponse:
        """Captures a hold: takes its credits, or a part, and releases the rest.

        Args:
            user_id: who pays.
            hold_id: the hold.
            amount: credits to take, 0 releases the hold; None: all of it.
            quantity: units to take at the hold's price, instead of an amount.
            allow_overage: take more than is held, if the account can pay it.
            idempotency_key: the caller's key; None: one is made for this call.
            description: a text for people.
            reference: the caller's own reference, for example the job.
            metadata: the caller's own facts.
            validate_only: check everything, write nothing.

        Raises:
            HoldNotActive: it was captured or released before, as `state` says.
            HoldExpired: it expired, and the credits are gone.
            HoldNotFound: the user has no such hold.
            OutcomeUnknown: no final answer came; ask again with the key.
        """
        request = pb.CaptureHoldRequest(
            user_id=str(user_id),
            hold_id=hold_id,
            allow_overage=allow_overage,
            idempotency_key=key(idempotency_key),
            description=description,
            reference=reference,
            metadata=metadata,
            validate_only=validate_only,
        )
        if amount is not None and quantity is not None:
            raise TypeError("name an amount or a quantity, and not both")
        if amount is not None:
            request.amount = amount
        if quantity is not None:
            request.quantity = quantity
        return await self.write(self.stub.CaptureHold, request)

    async def release_hold(
        self,
        user_id: UUID | str,
        hold_id: str,
        *,
        idempotency_key: str | None = None,
        description: str = "",
        reference: str = "",
        metadata: Mapping[str, str] | None = None,
        validate_only: bool = False,
    ) -> pb.ReleaseHoldResponse:
        """Releases a hold; one that has ended without capture is answered as a repeat.

        Raises:
            HoldNotActive: it was captured.
            HoldNotFound: the user has no such hold.
            OutcomeUnknown: no final answer came; the hold expires by itself at the latest.
        """
        request = pb.ReleaseHoldRequest(
            user_id=str(user_id),
            hold_id=hold_id,
            idempotency_key=key(idempotency_key),
            description=description,
            reference=reference,
            metadata=metadata,
            validate_only=validate_only,
        )
        return await self.write(self.stub.ReleaseHold, request)

    async def extend_hold(
        self, user_id: UUID | str, hold_id: str, *, ttl: timedelta | None = None
    ) -> pb.Hold:
        """Extends a hold: it expires no earlier than `ttl` from now (None: 15 minutes).

        Raises:
            HoldExpired: it has expired.
            HoldNotActive: it was captured or released.
            HoldNotFound: the user has no such hold.
            OutcomeUnknown: no final answer came; repeat the call, which does no harm.
        """
        request = pb.ExtendHoldRequest(user_id=str(user_id), hold_id=hold_id)
        if ttl is not None:
            request.ttl.FromTimedelta(ttl)
        return (await self.write(self.stub.ExtendHold, request)).hold

    async def get_hold(self, user_id: UUID | str, hold_id: str) -> pb.Hold:
        """Reads a hold in its present state.

        Raises:
            HoldNotFound: the user has no such hold.
        """
        request = pb.GetHoldRequest(user_id=str(user_id), hold_id=hold_id)
        return (await self.read(self.stub.GetHold, request)).hold

    async def list_holds(
        self,
        user_id: UUID | str,
        *,
        state: pb.HoldState.ValueType = pb.HOLD_STATE_UNSPECIFIED,
        page_size: int = 0,
    ) -> AsyncGenerator[pb.Hold]:
        """Goes through the holds of a user, newest first, of one state or all."""
        request = pb.ListHoldsRequest(user_id=str(user_id), state=state, page_size=page_size)
        while True:
            page = await self.read(self.stub.ListHolds, request)
            for hold in page.holds:
                yield hold
            if not page.next_page_token:
                return
            request.page_token = page.next_page_token

    async def list_holds_page(
        self,
        user_id: UUID | str,
        *,
        state: pb.HoldState.ValueType = pb.HOLD_STATE_UNSPECIFIED,
        page_size: int = 0,
        page_token: str = "",
    ) -> pb.ListHoldsResponse:
        """Reads one page of the holds of a user, newest first, for pages that people turn.

        Args:
            user_id: whose holds.
            state: only holds of this state; HOLD_STATE_UNSPECIFIED: all.
            page_size: the maximum number of holds; 0: 50.
            page_token: the `next_page_token` of the page before; empty: the first page.

        Raises:
            InvalidRequest: the token was made for another user or another state.
            UserNotFound: the user is not known.
        """
        request = pb.ListHoldsRequest(
            user_id=str(user_id), state=state, page_size=page_size, page_token=page_token
        )
        return await self.read(self.stub.ListHolds, request)
