"""The window: reads the form, renders the answer, one method per RPC. It decides nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypedDict

from credit_service import access, messages, observability, paging, validation
from credit_service.errors import InvalidRequest, TransactionNotFound
from credit_service.ledger import HistoryQuery
from credit_service.model import Purchase, Refund, Spend
from credit_service.v1 import credit_service_pb2 as pb
from credit_service.v1 import credit_service_pb2_grpc as pb_grpc

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any
    from uuid import UUID

    import grpc

    from credit_service.ledger import Ledger
    from credit_service.model import Command, Entry, Outcome

    Context = grpc.aio.ServicerContext[Any, Any]

# How long a write waits for its batch when the caller set no deadline or a longer one.
_WAIT_SECONDS_MAX = 10.0


class _Common(TypedDict):
    """What every write takes."""

    user_id: UUID
    idempotency_key: str
    description: str
    reference: str
    metadata: Mapping[str, str]
    validate_only: bool
    caller: str


class CreditServicer(pb_grpc.CreditServiceServicer):
    """Answers the calls of the contract. Errors are raised; the server turns them into statuses."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._terms = ledger.terms
        self._prices = [
            pb.Price(operation=name, unit_cost=price.unit_cost, unit=price.unit)
            for name, price in sorted(self._terms.prices.prices.items())
        ]

    async def GetUserCredit(
        self, request: pb.GetUserCreditRequest, context: Context
    ) -> pb.GetUserCreditResponse:
        """Answers with the account, now or at a past time."""
        user_id = validation.user_id(request.user_id)
        size = validation.page_size(request.history_size, "history_size")
        if size > 0:
            access.CALLER.get().require(access.HISTORY)
        if request.HasField("as_of"):
            time = validation.time(request.as_of, "as_of", round_up=False)
            account = await self._ledger.account_at(user_id, time)
        else:
            account = await self._ledger.account(user_id)
        newest = await self._ledger.newest_entries(account, size)
        return pb.GetUserCreditResponse(
            credit=messages.user_credit(account, self._terms.min_balance, newest)
        )

    async def PurchaseCredits(
        self, request: pb.PurchaseCreditsRequest, context: Context
    ) -> pb.PurchaseCreditsResponse:
        """Adds credits that were paid for."""
        if not request.HasField("payment"):
            access.CALLER.get().require(access.PURCHASE_WITHOUT_PAYMENT)
        command = Purchase(
            **_common(request),
            amount=validation.amount(request.amount),
            payment=validation.payment(request.payment) if request.HasField("payment") else None,
        )
        outcome = await self._submit(command, context)
        return pb.PurchaseCreditsResponse(
            transaction=_transaction(command, outcome),
            credit=messages.user_credit(outcome.account, self._terms.min_balance),
            replayed=outcome.replayed,
        )

    async def SpendCredits(
        self, request: pb.SpendCreditsRequest, context: Context
    ) -> pb.SpendCreditsResponse:
        """Takes credits for work."""
        common = _common(request)
        amount = operation = quantity = None
        match request.WhichOneof("price"):
            case "charge":
                operation, quantity = validation.charge(request.charge, "charge")
            case "amount":
                amount = validation.amount(request.amount)
            case _:
                raise InvalidRequest("price", "is missing: name a charge or an amount.")
        command = Spend(
            **common,
            amount=amount,
            operation=operation,
            quantity=quantity,
            expected_cost=validation.amount(request.expected_cost, "expected_cost")
            if request.HasField("expected_cost")
            else None,
        )
        outcome = await self._submit(command, context)
        return pb.SpendCreditsResponse(
            transaction=_transaction(command, outcome),
            credit=messages.user_credit(outcome.account, self._terms.min_balance),
            replayed=outcome.replayed,
        )

    async def RefundCredits(
        self, request: pb.RefundCreditsRequest, context: Context
    ) -> pb.RefundCreditsResponse:
        """Gives back a spend."""
        common = _common(request)
        amount = validation.amount(request.amount) if request.HasField("amount") else None
        seq = None
        if request.transaction_id:
            seq = _place(request.transaction_id, common["user_id"], "transaction_id")
        else:
            access.CALLER.get().require(access.REFUND_WITHOUT_SPEND)
            if amount is None:
                raise InvalidRequest("amount", "is missing: without a spend there is no `all`.")
        command = Refund(**common, spend_seq=seq, amount=amount)
        outcome = await self._submit(command, context)
        return pb.RefundCreditsResponse(
            transaction=_transaction(command, outcome),
            credit=messages.user_credit(outcome.account, self._terms.min_balance),
            replayed=outcome.replayed,
        )

    async def GetTransactionHistory(
        self, request: pb.GetTransactionHistoryRequest, context: Context
    ) -> pb.GetTransactionHistoryResponse:
        """Lists entries, a page at a time."""
        user_id = validation.user_id(request.user_id)
        size = validation.page_size(request.page_size, "page_size")
        related = request.related_transaction_id
        for value in request.types:
            if value not in messages.TYPE_NAMES:
                raise InvalidRequest("types", f"holds {value}, which is no type of transaction.")
        query = HistoryQuery(
            user_id=user_id,
            page_size=size or validation.PAGE_SIZE_DEFAULT,
            newest=paging.seq_of(request),
            types=[messages.TYPE_NAMES[value] for value in request.types] or None,
            start=validation.time(request.start_time, "start_time", round_up=True)
            if request.HasField("start_time")
            else None,
            end=validation.time(request.end_time, "end_time", round_up=True)
            if request.HasField("end_time")
            else None,
            reference=validation.reference(request.reference) or None,
            related_seq=_place(related, user_id, "related_transaction_id") if related else None,
        )
        entries, onward = await self._ledger.history(query)
        return pb.GetTransactionHistoryResponse(
            transactions=[messages.transaction(entry) for entry in entries],
            next_page_token="" if onward is None else paging.token(request, onward),
        )

    async def GetTransaction(
        self, request: pb.GetTransactionRequest, context: Context
    ) -> pb.GetTransactionResponse:
        """Answers with one entry."""
        user_id = validation.user_id(request.user_id)
        entry: Entry | None
        match request.WhichOneof("lookup"):
            case "transaction_id":
                lookup = request.transaction_id
                seq = _place(lookup, user_id, "transaction_id")
                entry = await self._ledger.entry_at(user_id, seq)
            case "idempotency_key":
                lookup = validation.idempotency_key(request.idempotency_key)
                entry = await self._ledger.entry_under(user_id, lookup)
            case _:
                raise InvalidRequest(
                    "lookup", "is missing: name a transaction_id or an idempotency_key."
                )
        if entry is None:
            raise TransactionNotFound(lookup)
        return pb.GetTransactionResponse(transaction=messages.transaction(entry))

    async def ListPrices(
        self, request: pb.ListPricesRequest, context: Context
    ) -> pb.ListPricesResponse:
        """Lists the prices."""
        return pb.ListPricesResponse(prices=self._prices, price_version=self._terms.prices.version)

    async def QuoteCost(
        self, request: pb.QuoteCostRequest, context: Context
    ) -> pb.QuoteCostResponse:
        """Prices work before it is done."""
        user_id = validation.user_id(request.user_id) if request.user_id else None
        if not 1 <= len(request.items) <= validation.QUOTE_ITEMS_MAX:
            raise InvalidRequest("items", f"must be 1 to {validation.QUOTE_ITEMS_MAX}.")
        lines = []
        for place, item in enumerate(request.items):
            field = f"items[{place}]"
            operation, quantity = validation.charge(item, field)
            lines.append(self._terms.prices.price(operation, quantity, field))
        total = sum(line.cost for line in lines)
        response = pb.QuoteCostResponse(
            lines=[
                pb.QuoteLine(
                    operation=line.operation,
                    quantity=line.quantity,
                    unit_cost=line.unit_cost,
                    cost=line.cost,
                )
                for line in lines
            ],
            total=total,
            price_version=self._terms.prices.version,
        )
        if user_id is not None:
            account = await self._ledger.account(user_id)
            shortfall = self._terms.shortfall(account, total)
            response.available = account.available
            response.affordable = shortfall == 0
            response.shortfall = shortfall
        return response

    async def _submit(self, command: Command, context: Context) -> Outcome:
        remaining = context.time_remaining()
        seconds = _WAIT_SECONDS_MAX if remaining is None else min(remaining, _WAIT_SECONDS_MAX)
        outcome = await self._ledger.submit(command, seconds)
        if outcome.replayed:
            observability.CALL.get().replayed = True
        return outcome


def _common(
    request: pb.PurchaseCreditsRequest | pb.SpendCreditsRequest | pb.RefundCreditsRequest,
) -> _Common:
    return {
        "user_id": validation.user_id(request.user_id),
        "idempotency_key": validation.idempotency_key(request.idempotency_key),
        "description": validation.description(request.description),
        "reference": validation.reference(request.reference),
        "metadata": validation.metadata(request.metadata),
        "validate_only": request.validate_only,
        "caller": access.CALLER.get().name,
    }


def _place(text: str, user_id: UUID, field: str) -> int:
    seq = validation.transaction_seq(text, user_id, field)
    if seq is None:
        raise TransactionNotFound(text)
    return seq


def _transaction(command: Command, outcome: Outcome) -> pb.CreditTransaction:
    written = outcome.replayed or not command.validate_only
    return messages.transaction(outcome.entry, written=written)
