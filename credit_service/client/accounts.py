"""The calls of CreditClient for many spends at once, for watching, and for operators."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import grpc
from google.rpc import status_pb2

from credit_service import status
from credit_service.client.connection import Connection, key, timestamp, typed
from credit_service.errors import CreditError, InternalError, Unavailable
from credit_service.v1 import credit_service_pb2 as pb

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Iterable, Mapping
    from datetime import datetime
    from uuid import UUID

_WATCH_PAUSE_SECONDS = 0.5
_REPORT_SECONDS = 65.0


class AccountCalls(Connection):
    """Batches, grants, policies, live balances and reports."""

    async def batch_spend_credits(
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
            InvalidRequest: the batch itself is malformed.
            LedgerUnavailable: no answer came; repeat the batch with the same keys.
        """
        request = pb.BatchSpendCreditsRequest(items=list(items), mode=mode)
        return list((await self.read(self.stub.BatchSpendCredits, request)).results)

    async def grant_credits(
        self,
        user_id: UUID | str,
        amount: int,
        *,
        reason: str,
        idempotency_key: str | None = None,
        reference: str = "",
        metadata: Mapping[str, str] | None = None,
        validate_only: bool = False,
    ) -> pb.GrantCreditsResponse:
        """Gives credits without a payment; an operator's right.

        Raises:
            UserNotFound: the user is not known.
            OutcomeUnknown: no final answer came.
        """
        request = pb.GrantCreditsRequest(
            user_id=str(user_id),
            amount=amount,
            reason=reason,
            idempotency_key=key(idempotency_key),
            reference=reference,
            metadata=metadata,
            validate_only=validate_only,
        )
        return await self.write(self.stub.GrantCredits, request)

    async def reverse_purchase(
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
        """Takes back credits of a purchase, as one refund or dispute of its payment stands now.

        Args:
            payment_ref: the payment of the purchase.
            reversal_ref: the refund or dispute.
            revision: the higher one holds; 1 or more.
            reversed_minor: money that went back by it, in minor units.
            paid_minor: money that was paid, in minor units.
            currency: of both, such as eur.
            reason: for people.
            validate_only: check everything, write nothing.

        Raises:
            PaymentNotFound: no purchase was made for the payment.
            UserDeleted: its user was deleted; nothing is left to take.
            ReversalReused: the revision was recorded with other figures.
            PaymentMismatch: an earlier reversal said that another sum was paid.
            LedgerUnavailable: no answer came; repeat it, which does no harm.
        """
        request = pb.ReversePurchaseRequest(
            payment_ref=payment_ref,
            reversal_ref=reversal_ref,
            revision=revision,
            reversed_minor=reversed_minor,
            paid_minor=paid_minor,
            currency=currency,
            reason=reason,
            validate_only=validate_only,
        )
        return await self.read(self.stub.ReversePurchase, request)

    async def set_account_policy(
        self,
        user_id: UUID | str,
        *,
        frozen: bool | None = None,
        min_balance: int | None = None,
        spend_limits: pb.SpendLimits | None = None,
    ) -> pb.SetAccountPolicyResponse:
        """Changes what an account may do; None leaves a part as it is. An operator's right.

        Raises:
            UserNotFound: the user is not known.
            LedgerUnavailable: no answer came; repeat it, which does no harm.
        """
        request = pb.SetAccountPolicyRequest(
            user_id=str(user_id), frozen=frozen, min_balance=min_balance, spend_limits=spend_limits
        )
        return await self.read(self.stub.SetAccountPolicy, request)

    async def watch_user_credit(
        self, user_id: UUID | str, *, after_seq: int | None = None, take_up: bool = True
    ) -> AsyncGenerator[pb.UserCredit]:
        """Yields the account, and again whenever it changes; a cut stream is taken up again.

        Args:
            user_id: whose account.
            after_seq: the last `seq` seen; None: begin with the account as it is.
            take_up: False: a cut stream raises LedgerUnavailable instead.

        Raises:
            UserNotFound: the user is not known.
        """
        request = pb.WatchUserCreditRequest(user_id=str(user_id), after_seq=after_seq)
        last: pb.UserCredit | None = None
        while True:
            stream = self.stub.WatchUserCredit(request, metadata=self.metadata, wait_for_ready=True)
            try:
                async for response in stream:
                    # A change of policy has no seq, so a stream taken up again begins with the
                    # account as it is.
                    request.ClearField("after_seq")
                    if response.credit != last:
                        last = response.credit
                        yield last
            except grpc.aio.AioRpcError as failure:
                refused = typed(failure)
                if not take_up or not isinstance(refused, Unavailable):
                    raise refused from failure
            finally:
                stream.cancel()
            await asyncio.sleep(_WATCH_PAUSE_SECONDS)

    async def get_usage_report(
        self, start_time: datetime, end_time: datetime, *, user_id: UUID | str | None = None
    ) -> list[pb.UsageLine]:
        """Adds up what was spent, given back and held, per day of UTC and operation.

        Args:
            start_time: from this time on.
            end_time: until before this time, 31 days later at most.
            user_id: only this user; None: all.

        Raises:
            LedgerUnavailable: the database is away, or the report takes longer than a minute.
        """
        request = pb.GetUsageReportRequest(
            user_id="" if user_id is None else str(user_id),
            start_time=timestamp(start_time),
            end_time=timestamp(end_time),
        )
        report = await self.read(self.stub.GetUsageReport, request, _REPORT_SECONDS)
        return list(report.lines)


def item_error(result: pb.BatchSpendResult) -> CreditError | None:
    """Turns the result of an item into the error of a single spend; None where it is OK."""
    if result.status.code == 0:
        return None
    told = status_pb2.Status.FromString(result.status.SerializeToString())
    return status.from_status(told) or InternalError()
