"""CreditClient for workers, gateways and the bridge: deadlines, safe retries, keys, typed refusals.

Needs grpcio, protobuf and googleapis-common-protos, and nothing else. Credits are money, so a
worker fails closed: without an answer it does no work.

    async with CreditClient("localhost:50051", token=token) as client:
        try:
            spend = await client.spend_credits(
                user_id, operation="stem_separation", idempotency_key=f"spend:{job}:1"
            )
        except InsufficientCredits as refusal:
            tell_the_user(refusal.shortfall)
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from credit_service.client.accounts import AccountCalls, item_error
from credit_service.client.connection import ask, key, timestamp
from credit_service.client.holds import HoldCalls
from credit_service.v1 import credit_service_pb2 as pb

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable, Sequence
    from datetime import datetime
    from uuid import UUID

__all__ = ["CreditClient", "Payment", "item_error"]

Payment = pb.Payment


class CreditClient(HoldCalls, AccountCalls):
    """A connection to the credit service; one per process is enough, and it may be shared.

    Every method raises what the service refused as the classes of `credit_service.errors`. A read
    that gets no answer raises `LedgerUnavailable`, a write `OutcomeUnknown`.
    """

    async def get_user_credit(
        self,
        user_id: UUID | str,
        *,
        as_of: datetime | None = None,
        history_size: int = 0,
    ) -> pb.UserCredit:
        """Reads an account, now or as it was `as_of` a past time (aware), with its newest entries.

        Raises:
            UserNotFound: the user is not known.
        """
        request = pb.GetUserCreditRequest(
            user_id=str(user_id), as_of=timestamp(as_of), history_size=history_size
        )
        return (await self.read(self.stub.GetUserCredit, request)).credit

    async def purchase_credits(
        self,
        user_id: UUID | str,
        amount: int,
        *,
        payment: pb.Payment | None,
        idempotency_key: str | None = None,
        description: str = "",
        reference: str = "",
        metadata: Mapping[str, str] | None = None,
        validate_only: bool = False,
    ) -> pb.PurchaseCreditsResponse:
        """Adds `amount` credits that were paid for; None for `payment` is an operator's right.

        Args:
            user_id: who gets them.
            amount: credits, 1 to 10^12.
            payment: the payment, which is credited once over all users and keys.
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
        request = pb.PurchaseCreditsRequest(
            user_id=str(user_id),
            amount=amount,
            payment=payment,
            idempotency_key=key(idempotency_key),
            description=description,
            reference=reference,
            metadata=metadata,
            validate_only=validate_only,
        )
        return await self.write(self.stub.PurchaseCredits, request)

    async def spend_credits(
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
        """Takes credits before work is done: the price of an operation, or an amount.

        Args:
            user_id: who pays.
            operation: an operation of the price list; the service prices it.
            quantity: units of the operation.
            amount: credits to take, where no operation is named.
            expected_cost: refuse any other cost than this.
            idempotency_key: the caller's key, best `spend:<job>:<attempt>`, so that a job which is
                delivered twice pays once; None: one is made for this call.
            description: a text for people.
            reference: the caller's own reference, for example the job.
            metadata: the caller's own facts.
            validate_only: check everything, write nothing.

        Raises:
            InsufficientCredits: the credits are not there; `shortfall` tells how many.
            PriceChanged: the cost is not `expected_cost`.
            UserNotFound: the user is not known.
            OutcomeUnknown: no final answer came; do no work.
        """
        request = pb.SpendCreditsRequest(
            user_id=str(user_id),
            expected_cost=expected_cost,
            idempotency_key=key(idempotency_key),
            description=description,
            reference=reference,
            metadata=metadata,
            validate_only=validate_only,
        )
        ask(request, operation, quantity, amount)
        return await self.write(self.stub.SpendCredits, request)

    async def refund_credits(
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
        """Gives back a spend, all that is left of it or `amount` credits.

        Args:
            user_id: who paid.
            transaction_id: the spend; None is an operator's right and needs an amount.
            amount: credits to give back; None: all that is left.
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
        request = pb.RefundCreditsRequest(
            user_id=str(user_id),
            transaction_id=transaction_id or "",
            amount=amount,
            idempotency_key=key(idempotency_key),
            description=description,
            reference=reference,
            metadata=metadata,
            validate_only=validate_only,
        )
        return await self.write(self.stub.RefundCredits, request)

    async def get_transaction_history(
        self,
        user_id: UUID | str,
        *,
        page_size: int = 0,
        types: Iterable[pb.TransactionType.ValueType] = (),
        start_time: datetime | None = None,
        end_time: datetime | None = None,
        reference: str = "",
        related_transaction_id: str = "",
    ) -> AsyncIterator[pb.CreditTransaction]:
        """Goes through the entries of a user, newest first, reading a page when it is needed.

        Raises:
            UserNotFound: the user is not known.
        """
        request = pb.GetTransactionHistoryRequest(
            user_id=str(user_id),
            page_size=page_size,
            types=list(types),
            start_time=timestamp(start_time),
            end_time=timestamp(end_time),
            reference=reference,
            related_transaction_id=related_transaction_id,
        )
        while True:
            page = await self.read(self.stub.GetTransactionHistory, request)
            for transaction in page.transactions:
                yield transaction
            if not page.next_page_token:
                return
            request.page_token = page.next_page_token

    async def get_history_page(
        self,
        user_id: UUID | str,
        *,
        page_size: int = 0,
        page_token: str = "",
        types: Iterable[pb.TransactionType.ValueType] = (),
    ) -> pb.GetTransactionHistoryResponse:
        """Reads one page of the entries of a user, newest first, for pages of people.

        Args:
            user_id: whose entries.
            page_size: how many at most; 0: 50.
            page_token: the `next_page_token` of the page before; empty: the first page.
            types: only entries of these types; none: every entry that moved the balance.

        Raises:
            InvalidRequest: the token was made for another user or other types.
            UserNotFound: the user is not known.
        """
        request = pb.GetTransactionHistoryRequest(
            user_id=str(user_id), page_size=page_size, page_token=page_token, types=list(types)
        )
        return await self.read(self.stub.GetTransactionHistory, request)

    async def get_transaction(
        self,
        user_id: UUID | str,
        *,
        transaction_id: str | None = None,
        idempotency_key: str | None = None,
    ) -> pb.CreditTransaction:
        """Reads one entry, by its id or by the key of the call that made it.

        Raises:
            TransactionNotFound: the user has no such entry; a write with that key did not happen.
        """
        request = pb.GetTransactionRequest(user_id=str(user_id))
        if transaction_id is not None:
            request.transaction_id = transaction_id
        if idempotency_key is not None:
            request.idempotency_key = idempotency_key
        return (await self.read(self.stub.GetTransaction, request)).transaction

    async def list_prices(self) -> pb.ListPricesResponse:
        """Reads the price list."""
        return await self.read(self.stub.ListPrices, pb.ListPricesRequest())

    async def quote_cost(
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
        pairs = items.items() if isinstance(items, Mapping) else items
        request = pb.QuoteCostRequest(
            user_id="" if user_id is None else str(user_id),
            items=[pb.Charge(operation=name, quantity=units) for name, units in pairs],
        )
        return await self.read(self.stub.QuoteCost, request)
