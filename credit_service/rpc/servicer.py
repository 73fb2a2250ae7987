"""The servicer: reads requests and writes responses, one method per call. It decides nothing."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Literal

from credit_service import fields
from credit_service.errors import InvalidRequest, TransactionNotFound
from credit_service.ledger.reads import HistoryQuery
from credit_service.ledger.top_up_reads import has_top_ups
from credit_service.rpc import (
    access,
    call_log,
    page_tokens,
    requests,
    responses,
    single_calls,
    top_up_messages,
    validation,
)
from credit_service.rpc.batch_calls import BatchCalls
from credit_service.rpc.feed_calls import FeedCalls
from credit_service.rpc.grant_calls import GrantCalls
from credit_service.rpc.hold_calls import HoldCalls
from credit_service.rpc.many_calls import ManyCalls
from credit_service.rpc.operator_calls import OperatorCalls
from credit_service.rpc.top_up_calls import TopUpCalls
from credit_service.rules.commands import (
    Purchase,
    Refund,
    Reverse,
    SetPolicy,
)
from credit_service.v1 import credit_service_pb2 as pb

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable

    from google.protobuf.internal.containers import RepeatedCompositeFieldContainer

    from credit_service.ledger.feed import Feed
    from credit_service.ledger.ledger import Ledger
    from credit_service.ledger.watch import Watchers
    from credit_service.rpc.requests import Context
    from credit_service.rules.commands import PolicyPart
    from credit_service.rules.model import Account, Entry

# Leaves room in a message for the fields beside the entries.
PAGE_BYTES_MAX = 1024 * 1024 - 4096

# The maximum overhead of a message that is a field of another, in bytes.
_FIELD_BYTES = 8

REPORT_PERIOD_MAX = timedelta(days=31)

# The field of the request and the part of the policy that each of these means.
_POLICY_FIELDS: dict[
    int,
    tuple[
        Literal["frozen", "min_balance", "spend_limits", "allowance", "top_up", "alert_below"],
        PolicyPart,
    ],
] = {
    pb.POLICY_FIELD_FROZEN: ("frozen", "frozen"),
    pb.POLICY_FIELD_MIN_BALANCE: ("min_balance", "min_balance"),
    pb.POLICY_FIELD_SPEND_LIMITS: ("spend_limits", "limits"),
    pb.POLICY_FIELD_ALLOWANCE: ("allowance", "allowance"),
    pb.POLICY_FIELD_TOP_UP: ("top_up", "top_up"),
    pb.POLICY_FIELD_ALERT_BELOW: ("alert_below", "alert_below"),
}


class CreditServicer(
    GrantCalls, HoldCalls, BatchCalls, ManyCalls, OperatorCalls, TopUpCalls, FeedCalls
):
    """Answers the calls of the contract. Errors are raised; the server turns them into statuses."""

    def __init__(self, ledger: Ledger, watchers: Watchers, feed: Feed) -> None:
        self._ledger = ledger
        self._watchers = watchers
        self._feed = feed
        self._terms = ledger.terms
        self._prices = [
            pb.Price(operation=name, unit_cost=price.unit_cost, unit=price.unit)
            for name, price in sorted(self._terms.prices.prices.items())
        ]

    async def GetUserCredit(
        self, request: pb.GetUserCreditRequest, context: Context
    ) -> pb.GetUserCreditResponse:
        """Answers with the account, now or at a past time."""
        user_id = requests.user_id(request.user_id)
        size = fields.page_size(request.history_size, "history_size")
        if size > 0:
            access.CALLER.get().require(access.Right.READ_HISTORY)
        top_up = None
        if request.HasField("as_of"):
            time = validation.time(request.as_of, "as_of", round_up=False)
            account, newest, expiring = await self._ledger.reads.account_at(user_id, time, size)
        else:
            account, newest, expiring = await self._ledger.reads.account(user_id), [], []
            shows_top_ups = has_top_ups(account) and access.CALLER.get().may(
                access.Right.READ_HISTORY
            )
            if size > 0 or account.open_grants > 0 or shows_top_ups:
                reads = self._ledger.reads
                account, newest, expiring, status = await reads.account_with_entries(user_id, size)
                if shows_top_ups:
                    top_up = status
        response = pb.GetUserCreditResponse()
        credit = responses.user_credit(account, self._terms, expiring, response.credit)
        if top_up is not None:
            credit.top_up.CopyFrom(top_up_messages.status(top_up))
        if newest:
            _add_fitting(credit.transaction_history, newest)
        return response

    async def PurchaseCredits(
        self, request: pb.PurchaseCreditsRequest, context: Context
    ) -> pb.PurchaseCreditsResponse:
        """Adds credits that were paid for."""
        if not request.HasField("payment"):
            access.CALLER.get().require(access.Right.PURCHASE_WITHOUT_PAYMENT)
        command = Purchase(
            **requests.common(request),
            amount=fields.amount(request.amount),
            payment=validation.payment(request.payment) if request.HasField("payment") else None,
            life=validation.life(request),
            rollover=validation.rollover(request),
        )
        outcome = await requests.submit(self._ledger, command, context)
        return pb.PurchaseCreditsResponse(
            transaction=requests.transaction(request, outcome),
            credit=responses.user_credit(outcome.account, self._terms),
            replayed=outcome.replayed,
        )

    async def SpendCredits(
        self, request: pb.SpendCreditsRequest, context: Context
    ) -> pb.SpendCreditsResponse:
        """Spends credits for work."""
        command = single_calls.spend_command(request)
        outcome = await requests.submit(self._ledger, command, context)
        response = pb.SpendCreditsResponse()
        return single_calls.answer_spend(response, request, outcome, self._terms)

    async def RefundCredits(
        self, request: pb.RefundCreditsRequest, context: Context
    ) -> pb.RefundCreditsResponse:
        """Refunds a spend."""
        common = requests.common(request)
        amount = fields.amount(request.amount) if request.HasField("amount") else None
        seq = None
        if request.transaction_id:
            seq = requests.place(request.transaction_id, common["user_id"], "transaction_id")
        else:
            access.CALLER.get().require(access.Right.REFUND_WITHOUT_SPEND)
            if amount is None:
                raise InvalidRequest("amount", "is missing: without a spend there is no `all`.")
        command = Refund(**common, spend_seq=seq, amount=amount)
        outcome = await requests.submit(self._ledger, command, context)
        return pb.RefundCreditsResponse(
            transaction=requests.transaction(request, outcome),
            credit=responses.user_credit(outcome.account, self._terms),
            replayed=outcome.replayed,
        )

    async def ReversePurchase(
        self, request: pb.ReversePurchaseRequest, context: Context
    ) -> pb.ReversePurchaseResponse:
        """Reverses credits whose money went back."""
        payment_ref = fields.provider_ref(request.payment_ref, "payment_ref")
        reversal_ref = fields.provider_ref(request.reversal_ref, "reversal_ref")
        revision = fields.amount(request.revision, "revision")
        reversed_minor = fields.amount_or_none(request.reversed_minor, "reversed_minor")
        paid_minor = fields.amount(request.paid_minor, "paid_minor")
        currency = fields.currency(request.currency, "currency")
        reason = fields.reason(request.reason)
        user_id = await self._ledger.reads.payer(payment_ref)
        call_log.CALL.get().user = str(user_id)
        command = Reverse(
            user_id=user_id,
            caller=access.CALLER.get().name,
            payment_ref=payment_ref,
            reversal_ref=reversal_ref,
            revision=revision,
            reversed_minor=reversed_minor,
            paid_minor=paid_minor,
            currency=currency,
            reason=reason,
            validate_only=request.validate_only,
        )
        outcome = await requests.submit(self._ledger, command, context)
        return pb.ReversePurchaseResponse(
            transaction=requests.transaction(request, outcome) if outcome.entry else None,
            credit=responses.user_credit(outcome.account, self._terms),
            replayed=outcome.replayed,
        )

    async def SetAccountPolicy(
        self, request: pb.SetAccountPolicyRequest, context: Context
    ) -> pb.SetAccountPolicyResponse:
        """Changes what an account may do."""
        limits = request.spend_limits
        command = SetPolicy(
            user_id=fields.user_id(request.user_id),
            caller=access.CALLER.get().name,
            frozen=request.frozen if request.HasField("frozen") else None,
            min_balance=fields.balance(request.min_balance, "min_balance")
            if request.HasField("min_balance")
            else None,
            limits=(
                fields.limit(limits.per_minute, "spend_limits.per_minute"),
                fields.limit(limits.per_hour, "spend_limits.per_hour"),
                fields.limit(limits.per_day, "spend_limits.per_day"),
            )
            if request.HasField("spend_limits")
            else None,
            allowance=validation.allowance(request.allowance)
            if request.HasField("allowance")
            else None,
            top_up=top_up_messages.policy(request.top_up) if request.HasField("top_up") else None,
            alert_below=fields.balance(request.alert_below, "alert_below")
            if request.HasField("alert_below")
            else None,
            reset=_reset(request),
        )
        parts = (
            command.frozen,
            command.min_balance,
            command.limits,
            command.allowance,
            command.top_up,
            command.alert_below,
        )
        if not command.reset and all(part is None for part in parts):
            raise InvalidRequest("frozen", "is unset, and so is everything else to change.")
        outcome = await requests.submit(self._ledger, command, context)
        return pb.SetAccountPolicyResponse(
            credit=responses.user_credit(outcome.account, self._terms),
            policy=responses.policy(outcome.account.policy),
        )

    async def GetTransactionHistory(
        self, request: pb.GetTransactionHistoryRequest, context: Context
    ) -> pb.GetTransactionHistoryResponse:
        """Lists entries, a page at a time."""
        user_id = requests.user_id(request.user_id)
        size = fields.page_size(request.page_size, "page_size")
        related = request.related_transaction_id
        for value in request.types:
            if value not in responses.TYPE_NAMES:
                raise InvalidRequest("types", f"holds {value}, which is not a type of transaction.")
        query = HistoryQuery(
            user_id=user_id,
            page_size=size or validation.PAGE_SIZE_DEFAULT,
            newest=page_tokens.seq_of(request),
            types=[responses.TYPE_NAMES[value] for value in request.types] or None,
            start=validation.time(request.start_time, "start_time", round_up=True)
            if request.HasField("start_time")
            else None,
            end=validation.time(request.end_time, "end_time", round_up=True)
            if request.HasField("end_time")
            else None,
            reference=fields.reference(request.reference) or None,
            related_seq=requests.place(related, user_id, "related_transaction_id")
            if related
            else None,
            grant_seq=requests.grant_place(request.grant_id, user_id) if request.grant_id else None,
        )
        entries, onward = await self._ledger.reads.history(query)
        response = pb.GetTransactionHistoryResponse()
        added = _add_fitting(response.transactions, entries)
        if added < len(entries):
            onward = entries[added - 1].seq - 1
        if onward is not None:
            response.next_page_token = page_tokens.token(request, onward)
        return response

    async def GetTransaction(
        self, request: pb.GetTransactionRequest, context: Context
    ) -> pb.GetTransactionResponse:
        """Answers with one entry."""
        user_id = fields.user_id(request.user_id)
        entry: Entry | None
        match request.WhichOneof("lookup"):
            case "transaction_id":
                lookup = request.transaction_id
                seq = requests.place(lookup, user_id, "transaction_id")
                entry = await self._ledger.reads.entry_at(user_id, seq)
            case "idempotency_key":
                lookup = fields.idempotency_key(request.idempotency_key)
                entry = await self._ledger.reads.entry_under(user_id, lookup)
            case _:
                raise InvalidRequest(
                    "lookup", "is missing: name a transaction_id or an idempotency_key."
                )
        if entry is None:
            raise TransactionNotFound(lookup)
        return pb.GetTransactionResponse(transaction=responses.transaction(entry))

    async def ListPrices(
        self, request: pb.ListPricesRequest, context: Context
    ) -> pb.ListPricesResponse:
        """Lists the prices."""
        return pb.ListPricesResponse(prices=self._prices, price_version=self._terms.prices.version)

    async def QuoteCost(
        self, request: pb.QuoteCostRequest, context: Context
    ) -> pb.QuoteCostResponse:
        """Prices work before it is done."""
        user_id = fields.user_id(request.user_id) if request.user_id else None
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
            account = await self._ledger.reads.account(user_id)
            shortfall = self._terms.shortfall(account, total)
            response.available = account.available
            response.affordable = shortfall == 0
            response.shortfall = shortfall
        return response

    async def WatchUserCredit(
        self, request: pb.WatchUserCreditRequest, context: Context
    ) -> AsyncIterator[pb.WatchUserCreditResponse]:
        """Sends the account, and again whenever it changes."""
        user_id = fields.user_id(request.user_id)
        account = await self._ledger.reads.account(user_id)
        with self._watchers.watch(user_id) as watcher:
            last = await self._watched(account)
            seen = request.HasField("after_seq") and request.after_seq == last.seq
            # A change of policy has no seq, so it is unknown whether the caller has seen the last
            # one.
            if not seen or account.policy_changes:
                yield pb.WatchUserCreditResponse(credit=last)
            while True:
                credit = await self._watched(await watcher.next())
                if credit != last:
                    last = credit
                    yield pb.WatchUserCreditResponse(credit=credit)

    async def _watched(self, account: Account) -> pb.UserCredit:
        """Renders a state of an account; with grants it is read again, for its next lapses."""
        if account.open_grants == 0 and account.expiring is None:
            return responses.user_credit(account, self._terms)
        reads = self._ledger.reads
        account, _, expiring, _ = await reads.account_with_entries(account.user_id, 0)
        if account.expiring is not None:
            # Due expiries are recorded first, so that the state has a seq of its own.
            await self._watchers.recorded(account.user_id)
            account, _, expiring, _ = await reads.account_with_entries(account.user_id, 0)
        return responses.user_credit(account, self._terms, expiring)

    async def GetUsageReport(
        self, request: pb.GetUsageReportRequest, context: Context
    ) -> pb.GetUsageReportResponse:
        """Adds up the credits that were spent, refunded and held."""
        if not request.user_id:
            access.CALLER.get().require(access.Right.REPORT_ON_ALL_USERS)
        start, end = validation.period(
            request.start_time if request.HasField("start_time") else None,
            request.end_time if request.HasField("end_time") else None,
            REPORT_PERIOD_MAX,
        )
        user_id = fields.user_id(request.user_id) if request.user_id else None
        lines = await self._ledger.reads.usage(user_id, start, end)
        return pb.GetUsageReportResponse(lines=[responses.usage(line) for line in lines])


def _add_fitting(
    transactions: RepeatedCompositeFieldContainer[pb.CreditTransaction], entries: Iterable[Entry]
) -> int:
    """Adds as many entries as fit into an answer; with long metadata these are few.

    Returns:
        How many.
    """
    size = added = 0
    for entry in entries:
        transaction = responses.transaction(entry, into=transactions.add())
        size += transaction.ByteSize() + _FIELD_BYTES
        if size > PAGE_BYTES_MAX:
            del transactions[added]
            break
        added += 1
    return added


def _reset(request: pb.SetAccountPolicyRequest) -> tuple[PolicyPart, ...]:
    """Reads which parts of a policy return to the configured values; none may be set too."""
    parts: list[PolicyPart] = []
    for value in request.reset:
        if value not in _POLICY_FIELDS:
            raise InvalidRequest("reset", f"holds {value}, which is not a field of a policy.")
        field, part = _POLICY_FIELDS[value]
        if request.HasField(field):
            raise InvalidRequest("reset", f"holds {field}, which is also set; do one of the two.")
        parts.append(part)
    return tuple(parts)
