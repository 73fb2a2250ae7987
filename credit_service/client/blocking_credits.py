"""The calls of credits.py, blocking; written by scripts/blocking_calls.py."""

from __future__ import annotations

from typing import TYPE_CHECKING

from credit_service.client.blocking_connection import BlockingConnection

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from datetime import datetime, timedelta
    from uuid import UUID

    from credit_service.v1 import credit_service_pb2 as pb


class BlockingCreditCalls(BlockingConnection):
    """Prices and quotes; purchases, corrections, spends, batches, refunds and reversals."""

    def list_prices(self) -> pb.ListPricesResponse:
        """Reads the price list."""
        return self.run(self._client.list_prices())

    def quote_cost(
        self,
        items: Mapping[str, int] | Sequence[tuple[str, int]],
        *,
        user_id: UUID | str | None = None,
    ) -> pb.QuoteCostResponse:
        """Prices work before it is done.

        Args:
            items: units by operation, or pairs of operation and units; a line for each.
            user_id: whose credits to look at; None: price only.
        """
        return self.run(self._client.quote_cost(items, user_id=user_id))

    def purchase_credits(
        self,
        user_id: UUID | str,
        amount: int,
        *,
        payment: pb.Payment | None,
        expire_time: datetime | None = None,
        valid_for: timedelta | None = None,
        priority: int | None = None,
        rollover: pb.Rollover | None = None,
        idempotency_key: str | None = None,
        description: str = "",
        reference: str = "",
        metadata: Mapping[str, str] | None = None,
        validate_only: bool = False,
    ) -> pb.PurchaseCreditsResponse:
        """Purchases credits: adds an amount that was paid for.

        Args:
            user_id: who gets them.
            amount: credits, 1 to 10^12.
            payment: the payment, which is credited once across all users and keys; only an operator
                may leave it out.
            expire_time: when what is left of the credits lapses (aware); None: see `valid_for`.
            valid_for: how long after the purchase it lapses, at most 3,653 days; None, and no
                `expire_time`: never.
            priority: when the credits are used, 0 first, 100 last; None: 50.
            rollover: how many credits of earlier purchases of a plan stay beside these; needs a
                payment and an expiry.
            idempotency_key: the caller's key; None: one is made for this call.
            description: a text for people.
            reference: the caller's own reference.
            metadata: the caller's own facts.
            validate_only: check everything, write nothing.

        Raises:
            PaymentReused: the payment was credited to another user or with another amount.
            UserNotFound: the user is not known.
            UserDeleted: the payment was credited to a user who was deleted.
            OutcomeUnknown: no final answer came.
        """
        return self.run(
            self._client.purchase_credits(
                user_id,
                amount,
                payment=payment,
                expire_time=expire_time,
                valid_for=valid_for,
                priority=priority,
                rollover=rollover,
                idempotency_key=idempotency_key,
                description=description,
                reference=reference,
                metadata=metadata,
                validate_only=validate_only,
            )
        )

    def adjust_credits(
        self,
        user_id: UUID | str,
        amount: int,
        *,
        reason: str,
        allow_debt: bool = False,
        idempotency_key: str | None = None,
        reference: str = "",
        metadata: Mapping[str, str] | None = None,
        validate_only: bool = False,
    ) -> pb.AdjustCreditsResponse:
        """Corrects a balance, up or down; only an operator may.

        Args:
            user_id: whose balance.
            amount: credits, -10^12 to 10^12 and not 0; below zero takes credits.
            reason: for people.
            allow_debt: let the balance pass the floor, also below zero.
            idempotency_key: the caller's key; None: one is made for this call.
            reference: the caller's own reference.
            metadata: the caller's own facts.
            validate_only: check everything, write nothing.

        Raises:
            InsufficientCredits: the balance would pass the floor, and `allow_debt` is not set.
            UserNotFound: the user is not known.
            OutcomeUnknown: no final answer came.
        """
        return self.run(
            self._client.adjust_credits(
                user_id,
                amount,
                reason=reason,
                allow_debt=allow_debt,
                idempotency_key=idempotency_key,
                reference=reference,
                metadata=metadata,
                validate_only=validate_only,
            )
        )

    def spend_credits(
        self,
        user_id: UUID | str,
        *,
        operation: str | None = None,
        quantity: int = 1,
        amount: int | None = None,
        expected_cost: int | None = None,
        idempotency_key: str | None = None,
        description: str = "",
        reference: str = "",
        metadata: Mapping[str, str] | None = None,
        validate_only: bool = False,
    ) -> pb.SpendCreditsResponse:
        """Spends credits before work is done: the price of an operation, or an amount.

        Args:
            user_id: who pays.
            operation: an operation of the price list; the service prices it.
            quantity: units of the operation.
            amount: credits to take, if no operation is named.
            expected_cost: refuse any other cost than this.
            idempotency_key: the caller's key, best `spend:<job>:<attempt>`, so that a job which is
                delivered twice pays once; None: one is made for this call.
            description: a text for people.
            reference: the caller's own reference, for example the job.
            metadata: the caller's own facts.
            validate_only: check everything, write nothing.

        Raises:
            InsufficientCredits: too few are available; `shortfall` says how many are missing.
            PriceChanged: the cost is not `expected_cost`.
            UserNotFound: the user is not known.
            OutcomeUnknown: no final answer came; do no work.
        """
        return self.run(
            self._client.spend_credits(
                user_id,
                operation=operation,
                quantity=quantity,
                amount=amount,
                expected_cost=expected_cost,
                idempotency_key=idempotency_key,
                description=description,
                reference=reference,
                metadata=metadata,
                validate_only=validate_only,
            )
        )

    def batch_spend_credits(
        self,
        items: Iterable[pb.BatchSpendItem],
        *,
        mode: pb.BatchMode.ValueType,
    ) -> list[pb.BatchSpendResult]:
        """Spends many times in one call; every item has its own key and its own result.

        `item_error` turns the status of a result into the error that a single spend would raise.

        Args:
            items: 1 to 1,000 spends.
            mode: BATCH_MODE_ATOMIC (one user, all or none) or BATCH_MODE_INDEPENDENT.

        Raises:
            InvalidRequest: the batch itself is malformed, or larger than 1 MiB.
            OutcomeUnknown: no final answer came; repeat the batch with the same keys.
        """
        return self.run(self._client.batch_spend_credits(items, mode=mode))

    def refund_credits(
        self,
        user_id: UUID | str,
        transaction_id: str | None,
        *,
        amount: int | None = None,
        idempotency_key: str | None = None,
        description: str = "",
        reference: str = "",
        metadata: Mapping[str, str] | None = None,
        validate_only: bool = False,
    ) -> pb.RefundCreditsResponse:
        """Refunds a spend, all that is left of it or `amount` credits.

        Args:
            user_id: who paid.
            transaction_id: the spend; only an operator may leave it out, and must name an amount.
            amount: credits to refund; None: all that is left.
            idempotency_key: the caller's key, best `refund:<job>:<attempt>`; None: one is made for
                this call.
            description: a text for people.
            reference: the caller's own reference, for example the job.
            metadata: the caller's own facts.
            validate_only: check everything, write nothing.

        Raises:
            RefundExceedsSpend: `refundable` credits are left of the spend.
            TransactionNotFound: the user has no such spend.
            OutcomeUnknown: no final answer came.
        """
        return self.run(
            self._client.refund_credits(
                user_id,
                transaction_id,
                amount=amount,
                idempotency_key=idempotency_key,
                description=description,
                reference=reference,
                metadata=metadata,
                validate_only=validate_only,
            )
        )

    def reverse_purchase(
        self,
        payment_ref: str,
        *,
        reversal_ref: str,
        revision: int,
        reversed_minor: int,
        paid_minor: int,
        currency: str,
        reason: str,
        validate_only: bool = False,
    ) -> pb.ReversePurchaseResponse:
        """Reverses the credits of a purchase whose money was refunded or disputed.

        Args:
            payment_ref: the payment of the purchase.
            reversal_ref: the refund or dispute.
            revision: of the refund or dispute, 1 or more; only the highest one counts.
            reversed_minor: the money that it has taken so far, in minor units.
            paid_minor: the money that was paid, in minor units.
            currency: of both, such as eur.
            reason: for people.
            validate_only: check everything, write nothing.

        Raises:
            PaymentNotFound: no purchase was made for the payment.
            UserDeleted: its user was deleted; no credits are left to reverse.
            ReversalReused: the revision was recorded with other figures.
            PaymentMismatch: an earlier reversal said that another sum was paid.
            OutcomeUnknown: no final answer came; repeat the call, which does no harm.
        """
        return self.run(
            self._client.reverse_purchase(
                payment_ref,
                reversal_ref=reversal_ref,
                revision=revision,
                reversed_minor=reversed_minor,
                paid_minor=paid_minor,
                currency=currency,
                reason=reason,
                validate_only=validate_only,
            )
        )
