"""The state of a batch: the part of the book that it needs, as loaded and then as decided."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import timedelta
from functools import lru_cache
from types import MappingProxyType
from typing import TYPE_CHECKING

from credit_service.errors import BalanceLimitExceeded, UserNotFound
from credit_service.fields import BALANCE_MAX
from credit_service.rules.commands import Command, Keyed
from credit_service.rules.model import (
    Account,
    Entry,
    EntryId,
    Hold,
    Payment,
    PolicyChange,
    Purchased,
    Reversal,
    Spent,
)

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime
    from uuid import UUID

    from credit_service.rules.model import EntryType
    from credit_service.rules.pricing import PriceList

_NOTHING: Mapping[str, str] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Terms:
    """What the configuration decides.

    Attributes:
        prices: the price list.
        min_balance: the floor of an account without one of its own, in credits.
        open_holds: how many holds an account may have open.
    """

    prices: PriceList
    min_balance: int
    open_holds: int = 100

    def floor(self, account: Account) -> int:
        """What a spend or hold must leave available, in credits."""
        return self.min_balance if account.min_balance is None else account.min_balance

    def shortfall(self, account: Account, cost: int) -> int:
        """How many credits the account lacks to pay `cost` and keep the floor; 0 if none."""
        return max(0, cost + self.floor(account) - account.available)


@dataclass(slots=True)
class BatchState:
    """The book as a batch sees it.

    Attributes:
        now: the time of the batch, by the database's clock.
        accounts: the account of every known user of the batch; zero where there is no row yet.
        by_key: entries under the batch's keys.
        spends: entries that refunds refer to, by user and seq.
        purchases: what the batch's payments bought before, by payment.
        holds: the holds that commands refer to, and all open ones of accounts with a due hold.
        ended: the entries that ended holds, by user and the hold's seq.
        posted: the new entries, in order.
        touched: the users whose account rows change.
        refunded: spends whose refunded sum changed.
        bought: payments that this batch credits.
        changed_holds: holds that were made or changed.
        policy_changes: changes of what accounts may do.
        reversals: all recorded reversals of the batch's payments, and all revisions of those that
            the batch names.
        new_reversals: reversals that this batch records.
    """

    now: datetime
    accounts: dict[UUID, Account]
    by_key: dict[tuple[UUID, str], Entry] = field(default_factory=dict)
    spends: dict[EntryId, Spent] = field(default_factory=dict)
    purchases: dict[str, Purchased] = field(default_factory=dict)
    holds: dict[EntryId, Hold] = field(default_factory=dict)
    ended: dict[EntryId, Entry] = field(default_factory=dict)
    posted: list[Entry] = field(default_factory=list)
    touched: set[UUID] = field(default_factory=set)
    refunded: dict[EntryId, Spent] = field(default_factory=dict)
    bought: dict[str, Purchased] = field(default_factory=dict)
    changed_holds: dict[EntryId, Hold] = field(default_factory=dict)
    policy_changes: list[PolicyChange] = field(default_factory=list)
    reversals: dict[tuple[str, int], Reversal] = field(default_factory=dict)
    new_reversals: list[Reversal] = field(default_factory=list)

    def account(self, user_id: UUID) -> Account:
        """Finds an account.

        Raises:
            UserNotFound: the user is unknown.
        """
        account = self.accounts.get(user_id)
        if account is None:
            raise UserNotFound(str(user_id))
        return account

    def entry(
        self,
        command: Command,
        *,
        kind: EntryType,
        amount: int,
        balance_change: int = 0,
        held_change: int = 0,
        requested_amount: int | None = None,
        floor: int | None = None,
        operation: str | None = None,
        quantity: int | None = None,
        unit_cost: int | None = None,
        price_version: str | None = None,
        related_seq: int | None = None,
        payment: Payment | None = None,
        hold_seq: int | None = None,
        description: str = "",
        reference: str = "",
    ) -> Entry:
        """Makes the next entry of the command's user; `post` takes it into the book.

        A keyed command brings key, metadata, description and reference along.

        Raises:
            BalanceLimitExceeded: the balance would leave the range of the book.
        """
        account = self.accounts[command.user_id]
        metadata: Mapping[str, str] = _NOTHING
        key = None
        if isinstance(command, Keyed):
            key, metadata = command.idempotency_key, command.metadata
            description, reference = command.description, command.reference
        balance_after = account.balance + balance_change
        if abs(balance_after) > BALANCE_MAX:
            raise BalanceLimitExceeded(account.balance, BALANCE_MAX)
        return Entry(
            user_id=command.user_id,
            seq=account.seq + 1,
            type=kind,
            call=command.call,
            amount=amount,
            requested_amount=requested_amount,
            balance_change=balance_change,
            held_change=held_change,
            balance_after=balance_after,
            held_after=account.held + held_change,
            floor=floor,
            description=description,
            timestamp=self.time_for(account),
            operation=operation,
            quantity=quantity,
            unit_cost=unit_cost,
            price_version=price_version,
            reference=reference,
            metadata=metadata,
            related_seq=related_seq,
            idempotency_key=key,
            caller=command.caller,
            payment=payment,
            hold_seq=account.seq + 1 if kind == "hold" else hold_seq,
        )

    def time_for(self, account: Account) -> datetime:
        """The time of the batch, but never before the account's last change."""
        last = account.last_updated
        return last if last is not None and last > self.now else self.now

    def post(self, entry: Entry, *, counted: int = 0, expires_at: datetime | None = None) -> None:
        """Takes an entry into the book as this batch sees it.

        Args:
            entry: the entry.
            counted: credits that count against the spend limits.
            expires_at: when the hold ends that the entry makes.
        """
        user_id = entry.user_id
        account = self.accounts[user_id]
        open_holds, next_expiry = account.open_holds, account.next_hold_expiry
        if expires_at is not None:
            open_holds += 1
            next_expiry = expires_at if next_expiry is None else min(next_expiry, expires_at)
        elif entry.held_change < 0:
            open_holds -= 1
            if open_holds == 0:
                next_expiry = None
        counted_at = account.counted_at
        spent = account.spent_this_minute, account.spent_this_hour, account.spent_this_day
        if counted:
            counted_at = self.now
            minute, hour, day = spent_in_windows(account, self.now)
            spent = minute + counted, hour + counted, day + counted
        self.accounts[user_id] = Account(
            user_id,
            entry.balance_after,
            entry.held_after,
            entry.seq,
            entry.timestamp,
            open_holds,
            next_expiry,
            account.frozen,
            account.min_balance,
            account.limit_per_minute,
            account.limit_per_hour,
            account.limit_per_day,
            counted_at,
            *spent,
            account.policy_changes,
        )
        self.touched.add(user_id)
        self.posted.append(entry)
        if entry.idempotency_key is not None:
            self.by_key[user_id, entry.idempotency_key] = entry
        self.spends[user_id, entry.seq] = Spent(entry, refunded=0)
        if entry.type == "refund" and entry.related_seq is not None:
            settled = user_id, entry.related_seq
            given_back = self.spends[settled]
            given_back = given_back._replace(refunded=given_back.refunded + entry.amount)
            self.spends[settled] = self.refunded[settled] = given_back
        if entry.payment is not None:
            bought = Purchased(user_id, entry.seq, entry.amount, entry)
            self.purchases[entry.payment.ref] = self.bought[entry.payment.ref] = bought

    def take_back(self, account: Account, *, touched: bool, posted: int) -> None:
        """Undoes spends posted for one user since a moment.

        Args:
            account: the account as it was then.
            touched: whether its row had already changed then.
            posted: how many entries were posted then.
        """
        for entry in self.posted[posted:]:
            self.by_key.pop((entry.user_id, entry.idempotency_key or ""))
            self.spends.pop((entry.user_id, entry.seq))
        del self.posted[posted:]
        self.accounts[account.user_id] = account
        if not touched:
            self.touched.discard(account.user_id)

    def put_hold(self, hold: Hold) -> None:
        """Takes a hold, made or changed, into the book as this batch sees it."""
        hold_id = hold.user_id, hold.seq
        self.holds[hold_id] = self.changed_holds[hold_id] = hold

    def put_reversal(self, reversal: Reversal) -> None:
        """Takes a recorded reversal into the book as this batch sees it."""
        self.reversals[reversal.reversal_ref, reversal.revision] = reversal
        self.new_reversals.append(reversal)

    def put_policy(self, account: Account, change: PolicyChange) -> None:
        """Takes a changed policy into the book as this batch sees it."""
        self.accounts[account.user_id] = account
        self.touched.add(account.user_id)
        self.policy_changes.append(change)


_MINUTE, _HOUR, _DAY = timedelta(minutes=1), timedelta(hours=1), timedelta(days=1)


@lru_cache(maxsize=4)  # every command of a batch asks for those of the same time
def windows(now: datetime) -> tuple[tuple[str, datetime, timedelta], ...]:
    """The windows of UTC that a time lies in: name, beginning and length."""
    minute = now.replace(second=0, microsecond=0)
    hour = minute.replace(minute=0)
    return (
        ("minute", minute, _MINUTE),
        ("hour", hour, _HOUR),
        ("day", hour.replace(hour=0), _DAY),
    )


def spent_in_windows(account: Account, now: datetime) -> tuple[int, int, int]:
    """What the account has spent in the present minute, hour and day of UTC, in credits."""
    counted_at = account.counted_at
    if counted_at is None:
        return 0, 0, 0
    (_, minute, _), (_, hour, _), (_, day, _) = windows(now)
    return (
        account.spent_this_minute if counted_at >= minute else 0,
        account.spent_this_hour if counted_at >= hour else 0,
        account.spent_this_day if counted_at >= day else 0,
    )
