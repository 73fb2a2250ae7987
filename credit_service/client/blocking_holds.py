"""The calls of holds.py, blocking; written by scripts/blocking_calls.py."""

from __future__ import annotations

from typing import TYPE_CHECKING

from credit_service.client.blocking_connection import BlockingConnection
from credit_service.v1 import credit_service_pb2 as pb

if TYPE_CHECKING:
    from collections.abc import Generator, Mapping
    from datetime import timedelta
    from uuid import UUID


class BlockingHoldCalls(BlockingConnection):
    """Credits that are held before work and captured after it."""

    def hold_credits(
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
        return self.run(
            self._client.hold_credits(
                user_id,
                operation=operation,
                quantity=quantity,
                amount=amount,
                ttl=ttl,
                expected_cost=expected_cost,
                idempotency_key=idempotency_key,
                description=description,
                reference=reference,
                metadata=metadata,
                validate_only=validate_only,
            )
        )

    def capture_hold(
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
        return self.run(
            self._client.capture_hold(
                user_id,
                hold_id,
                amount=amount,
                quantity=quantity,
                allow_overage=allow_overage,
                idempotency_key=idempotency_key,
                description=description,
                reference=reference,
                metadata=metadata,
                validate_only=validate_only,
            )
        )

    def release_hold(
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
        return self.run(
            self._client.release_hold(
                user_id,
                hold_id,
                idempotency_key=idempotency_key,
                description=description,
                reference=reference,
                metadata=metadata,
                validate_only=validate_only,
            )
        )

    def extend_hold(
        self, user_id: UUID | str, hold_id: str, *, ttl: timedelta | None = None
    ) -> pb.Hold:
        """Extends a hold: it expires no earlier than `ttl` from now (None: 15 minutes).

        Raises:
            HoldExpired: it has expired.
            HoldNotActive: it was captured or released.
            HoldNotFound: the user has no such hold.
            OutcomeUnknown: no final answer came; repeat the call, which does no harm.
        """
        return self.run(self._client.extend_hold(user_id, hold_id, ttl=ttl))

    def get_hold(self, user_id: UUID | str, hold_id: str) -> pb.Hold:
        """Reads a hold in its present state.

        Raises:
            HoldNotFound: the user has no such hold.
        """
        return self.run(self._client.get_hold(user_id, hold_id))

    def list_holds(
        self,
        user_id: UUID | str,
        *,
        state: pb.HoldState.ValueType = pb.HOLD_STATE_UNSPECIFIED,
        page_size: int = 0,
    ) -> Generator[pb.Hold]:
        """Goes through the holds of a user, newest first, of one state or all."""
        return self.iterate(self._client.list_holds(user_id, state=state, page_size=page_size))

    def list_holds_page(
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
        return self.run(
            self._client.list_holds_page(
                user_id, state=state, page_size=page_size, page_token=page_token
            )
        )
