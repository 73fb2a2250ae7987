"""The calls of CreditClient that read and watch accounts, set their policies and report."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import grpc

from credit_service import status
from credit_service.client.connection import REPORT_SECONDS, Connection, timestamp
from credit_service.client.retries import Pauses
from credit_service.errors import Unavailable
from credit_service.v1 import credit_service_pb2 as pb

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Iterable
    from datetime import datetime
    from uuid import UUID

_WATCH_PAUSE_SECONDS = 0.5
_WATCH_PAUSE_SECONDS_MAX = 5.0


class AccountCalls(Connection):
    """Balances, history, single entries, live balances, policies and reports."""

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
        grant_id: str = "",
    ) -> AsyncGenerator[pb.CreditTransaction]:
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
            grant_id=grant_id,
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
        """Reads one page of the entries of a user, newest first, for pages that people turn.

        Args:
            user_id: whose entries.
            page_size: the maximum number of entries; 0: 50.
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

    async def watch_user_credit(
        self, user_id: UUID | str, *, after_seq: int | None = None, take_up: bool = True
    ) -> AsyncGenerator[pb.UserCredit]:
        """Yields the account, and again whenever it changes; continues after the stream was cut.

        Args:
            user_id: whose account.
            after_seq: the last `seq` seen; None: begin with the account as it is.
            take_up: continue after the stream was cut; False: raise LedgerUnavailable then.

        Raises:
            UserNotFound: the user is not known.
        """
        request = pb.WatchUserCreditRequest(user_id=str(user_id), after_seq=after_seq)
        last: pb.UserCredit | None = None
        pauses = Pauses(_WATCH_PAUSE_SECONDS, _WATCH_PAUSE_SECONDS_MAX)
        while True:
            asked_seconds = None
            stream = self.stub.WatchUserCredit(request, metadata=self.metadata, wait_for_ready=True)
            try:
                async for response in stream:
                    pauses = Pauses(_WATCH_PAUSE_SECONDS, _WATCH_PAUSE_SECONDS_MAX)
                    # A change of policy has no seq, so the next stream begins with the account as
                    # it is.
                    request.ClearField("after_seq")
                    if response.credit != last:
                        last = response.credit
                        yield last
            except grpc.aio.AioRpcError as failure:
                error = status.typed(failure)
                if not take_up or not isinstance(error, Unavailable):
                    raise error from failure
                asked_seconds = status.retry_seconds(failure)
            finally:
                stream.cancel()
            await asyncio.sleep(pauses.next(asked_seconds))

    async def set_account_policy(
        self,
        user_id: UUID | str,
        *,
        frozen: bool | None = None,
        min_balance: int | None = None,
        spend_limits: pb.SpendLimits | None = None,
        reset: Iterable[pb.PolicyField.ValueType] = (),
        allowance: pb.Allowance | None = None,
        top_up: pb.TopUp | None = None,
        alert_below: int | None = None,
    ) -> pb.SetAccountPolicyResponse:
        """Changes what an account may do; None leaves a part as it is. Only an operator may.

        Args:
            user_id: whose account.
            frozen: whether it refuses spends and holds.
            min_balance: its own floor, in credits.
            spend_limits: all three of them; 0 means none.
            allowance: the free credits of every period; 0 credits: none.
            alert_below: its own threshold for alerts, in credits; at or below the floor: it is
                never low, only depleted.
            reset: the fields that return to the configured values; they cannot be set too.
            top_up: when and what the account buys by itself; switches top-up on if it was off.

        Raises:
            UserNotFound: the user is not known.
            OutcomeUnknown: no final answer came; repeat the call, which does no harm.
        """
        request = pb.SetAccountPolicyRequest(
            user_id=str(user_id),
            frozen=frozen,
            min_balance=min_balance,
            spend_limits=spend_limits,
            reset=list(reset),
            allowance=allowance,
            top_up=top_up,
            alert_below=alert_below,
        )
        return await self.write(self.stub.SetAccountPolicy, request)

    async def list_accounts(
        self,
        *,
        in_debt: bool = False,
        frozen: bool | None = None,
        available_below: int | None = None,
        changed_since: datetime | None = None,
        page_size: int = 0,
    ) -> AsyncGenerator[pb.UserCredit]:
        """Goes through accounts in the order of their users, reading a page when it is needed.

        Args:
            in_debt: only those with a balance below zero.
            frozen: only frozen ones; False: only those that are not; None: both.
            available_below: only those with fewer credits available.
            changed_since: only those that changed at this time (aware) or later.
            page_size: how many to read at once, 1,000 at most; 0: 50.
        """
        token = ""
        while True:
            page = await self.list_accounts_page(
                in_debt=in_debt,
                frozen=frozen,
                available_below=available_below,
                changed_since=changed_since,
                page_size=page_size,
                page_token=token,
            )
            for account in page.accounts:
                yield account
            token = page.next_page_token
            if not token:
                return

    async def list_accounts_page(
        self,
        *,
        in_debt: bool = False,
        frozen: bool | None = None,
        available_below: int | None = None,
        changed_since: datetime | None = None,
        page_size: int = 0,
        page_token: str = "",
    ) -> pb.ListAccountsResponse:
        """Reads one page of accounts, all of them as they were at its `as_of`.

        A page may be short or empty and still have a token: it looks at 10,000 accounts at most.

        Args:
            in_debt: only those with a balance below zero.
            frozen: only frozen ones; False: only those that are not; None: both.
            available_below: only those with fewer credits available.
            changed_since: only those that changed at this time (aware) or later.
            page_size: the maximum number of accounts; 0: 50.
            page_token: the `next_page_token` of the page before; empty: the first page.

        Raises:
            InvalidRequest: the token was made for other filters.
        """
        request = pb.ListAccountsRequest(
            in_debt=in_debt,
            frozen=frozen,
            available_below=available_below,
            changed_since=timestamp(changed_since),
            page_size=page_size,
            page_token=page_token,
        )
        return await self.read(self.stub.ListAccounts, request)

    async def get_usage_report(
        self, start_time: datetime, end_time: datetime, *, user_id: UUID | str | None = None
    ) -> list[pb.UsageLine]:
        """Adds up what was spent, refunded, held and lapsed, per day of UTC and operation.

        Args:
            start_time: from this time on (aware).
            end_time: until before this time (aware); 31 days later is the maximum.
            user_id: only this user; None: all.

        Raises:
            LedgerUnavailable: the database does not answer, or the report takes over a minute.
        """
        request = pb.GetUsageReportRequest(
            user_id="" if user_id is None else str(user_id),
            start_time=timestamp(start_time),
            end_time=timestamp(end_time),
        )
        report = await self.read(self.stub.GetUsageReport, request, REPORT_SECONDS)
        return list(report.lines)
