"""The frozen values that travel between the servicer, the lanes, the rules and the store.

Amounts are whole credits as int, times are aware datetimes of the database's clock. Values of which
a batch makes many are named tuples: a frozen dataclass takes eight times as long.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, NamedTuple
from uuid import UUID

from credit_service.fields import BALANCE_MAX

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime, timedelta

    from credit_service.errors import CreditError
    from credit_service.rules.grant_values import Allowance, GrantChange
    from credit_service.rules.top_up_values import Decided

# User and seq, which together name an entry, and the hold that it made.
EntryId = tuple[UUID, int]

EntryType = Literal[
    "purchase",
    "spend",
    "refund",
    "grant",
    "reversal",
    "hold",
    "capture",
    "release",
    "expire",
    "adjustment",
    "lapse",
    "revocation",
]
HoldState = Literal["held", "captured", "released", "expired"]

# The priority of the pool, and of credits whose caller named none.
PRIORITY_DEFAULT = 50


# The first possible user in the order of users.
FIRST_USER = UUID(int=0)


def user_after(user_id: UUID) -> UUID | None:
    """Returns the next possible user in the order of users; None after the last one."""
    return UUID(int=user_id.int + 1) if user_id.int < 2**128 - 1 else None


def transaction_id(user_id: UUID | str, seq: int) -> str:
    """Makes the public id of an entry; it holds user and seq, so no index of ids is needed."""
    return f"{user_id}-{seq}"


def parse_transaction_id(text: str) -> EntryId | None:
    """Turns an id made by `transaction_id` back into user and seq; None for anything else."""
    user, _, digits = text.rpartition("-")
    if not (digits.isascii() and digits.isdigit() and len(digits) <= len(str(BALANCE_MAX))):
        return None
    try:
        user_id = UUID(user)
    except ValueError:
        return None
    seq = int(digits)
    return (user_id, seq) if transaction_id(user_id, seq) == text else None


class SpendLimits(NamedTuple):
    """The credits that may be spent in each minute, hour and day of UTC; None: no limit."""

    minute: int | None = None
    hour: int | None = None
    day: int | None = None


NO_LIMITS = SpendLimits()


class TopUp(NamedTuple):
    """An automatic purchase: below this many credits, buy the pack.

    Attributes:
        below: available credits.
        pack: the name of the pack in the bridge's catalogue.
        per_month: the maximum number of purchases in a calendar month of UTC.
    """

    below: int
    pack: str
    per_month: int


class Policy(NamedTuple):
    """What an account may do.

    Attributes:
        frozen: whether it may neither spend nor hold.
        min_balance: its own floor, in credits; None: the configured one.
        limits: what it may spend.
        allowance: its own free credits; None: the configured ones.
        alert_below: credits available below which its owner is alerted; None: as configured.
        top_up: when and what it buys automatically; None: nothing.
    """

    frozen: bool = False
    min_balance: int | None = None
    limits: SpendLimits = NO_LIMITS
    allowance: Allowance | None = None
    alert_below: int | None = None
    top_up: TopUp | None = None


class SpendCounters(NamedTuple):
    """What was spent in the minute, hour and day of UTC in which `counted_at` lies, in credits."""

    counted_at: datetime | None = None
    minute: int = 0
    hour: int = 0
    day: int = 0


class Account(NamedTuple):
    """What a user owns and may do. `last_updated` is None for a user without an account row.

    Attributes:
        next_hold_expiry: at or before the earliest expiry of the open holds; None without any.
        policy_changes: how often the policy was changed.
        top_up_changes: how often a request for a top-up was made or changed.
        in_grants: the part of the balance that grants hold; the rest is the pool.
        pinned: the part of `in_grants` that holds have set aside; it is part of `held` too.
        open_grants: how many grants spends and holds may draw on.
        grants_made: how many grants there ever were.
        next_lapse: at or before the earliest expiry of the open grants; None where none expires.
        allowance_until: until when no allowance is due; None where none was given.
        tx: the place in the feed of the last entry or change: the number of its transaction, or of
            an earlier one of the account where that is greater; 0 for one from before the feed.
        expiring: the next three times at which credits lapse, and how many; None where the
            recorded grants say it. Only a read of an account of which something is due sets it.
    """

    user_id: UUID
    balance: int = 0
    held: int = 0
    seq: int = 0
    last_updated: datetime | None = None
    open_holds: int = 0
    next_hold_expiry: datetime | None = None
    policy: Policy = Policy()
    counters: SpendCounters = SpendCounters()
    policy_changes: int = 0
    top_up_changes: int = 0
    in_grants: int = 0
    pinned: int = 0
    open_grants: int = 0
    grants_made: int = 0
    next_lapse: datetime | None = None
    allowance_until: datetime | None = None
    tx: int = 0
    expiring: tuple[tuple[datetime, int], ...] | None = None

    @property
    def available(self) -> int:
        """The available credits, which are compared with the floor."""
        return self.balance - self.held

    def moved_from(self, before: Account) -> bool:
        """Whether it differs only as entries and holds change it: no policy, grant or top-up."""
        return self.policy is before.policy and self[9:-2] == before[9:-2]

    def after(self, entry: Entry, counters: SpendCounters, tx: int) -> Account:
        """The account after its next entry, with its spend counters and place in the feed."""
        return Account(
            self.user_id,
            entry.balance_after,
            entry.held_after,
            entry.seq,
            entry.timestamp,
            self.open_holds,
            self.next_hold_expiry,
            self.policy,
            counters,
            *self[9:-2],
            tx,
            self.expiring,
        )


class Payment(NamedTuple):
    """The payment behind a purchase, as its provider names it."""

    ref: str
    amount_minor: int
    currency: str


class RequestIdentity(NamedTuple):
    """The values that make two calls the same request, in the order in which a difference is named.

    Attributes:
        call: the RPC.
        amount: credits as asked; None where the caller said "all" or named an operation.
        operation: the operation of a charge.
        quantity: the units of a charge or capture.
        transaction_id: the seq of the entry to refund.
        hold_id: the seq of the hold to capture or release.
        payment: the reference of the payment.
        expire_time: when the credits expire, as asked. This and what follows is compared only
            where there is no payment.
        valid_for: how long they are valid, as asked.
        priority: their priority.
        category: whether they are paid credits; None where that makes no difference.
    """

    call: str
    amount: int | None = None
    operation: str | None = None
    quantity: int | None = None
    transaction_id: int | None = None
    hold_id: int | None = None
    payment: str | None = None
    expire_time: datetime | None = None
    valid_for: timedelta | None = None
    priority: int = PRIORITY_DEFAULT
    category: bool | None = None


class Entry(NamedTuple):
    """An entry of the ledger.

    `requested_amount` is None where the caller asked for all or named an operation.
    `grant_changes` is what it changed in grants; only answers have it.
    """

    user_id: UUID
    seq: int
    type: EntryType
    call: str
    amount: int
    requested_amount: int | None
    balance_change: int
    held_change: int
    balance_after: int
    held_after: int
    floor: int | None
    description: str
    timestamp: datetime
    operation: str | None
    quantity: int | None
    unit_cost: int | None
    price_version: str | None
    reference: str
    metadata: Mapping[str, str]
    related_seq: int | None
    idempotency_key: str | None
    caller: str
    payment: Payment | None
    hold_seq: int | None = None
    grant_changes: tuple[GrantChange, ...] = ()

    def answers(self, call: str) -> RequestIdentity:
        """The request of a call that was answered with this entry and did not make it.

        Args:
            call: its RPC. It was a purchase by a payment that had been credited, the release of a
                hold that had ended (a ReleaseHold, or a CaptureHold of 0 credits), or a RevokeGrant
                of the grant that this entry made and of which nothing was left.
        """
        if call == "PurchaseCredits":
            ref = self.payment.ref if self.payment else None
            return RequestIdentity(call, amount=self.requested_amount, payment=ref)
        if call == "RevokeGrant":
            return RequestIdentity(call, transaction_id=self.seq)
        amount = 0 if call == "CaptureHold" else None
        return RequestIdentity(call, amount=amount, hold_id=self.hold_seq)

    def request(self) -> RequestIdentity:
        """The request of the call that made this entry."""
        priced = self.quantity is not None and self.call in {"SpendCredits", "HoldCredits"}
        settles = self.call in {"CaptureHold", "ReleaseHold"}
        return RequestIdentity(
            self.call,
            amount=self.requested_amount,
            operation=self.operation if priced else None,
            quantity=self.quantity,
            transaction_id=self.related_seq,
            hold_id=self.hold_seq if settles else None,
            payment=self.payment.ref if self.payment else None,
        )


class KeptKey(NamedTuple):
    """The key of a call that was answered with the entry of another call.

    Attributes:
        seq: the seq of that entry.
        call: the RPC of the call that used the key.
    """

    user_id: UUID
    key: str
    seq: int
    call: str


class Hold(NamedTuple):
    """Credits set aside, in their present state: held, captured, released or expired.

    Attributes:
        seq: the seq of the entry that made it.
        captured: credits taken; above zero for an expired hold that was captured late.
        settled_seq: the seq of the entry that ended it.
        captured_seq: the seq of the entry that took credits.
    """

    user_id: UUID
    seq: int
    state: HoldState
    amount: int
    captured: int
    created_at: datetime
    expires_at: datetime
    operation: str | None
    quantity: int | None
    unit_cost: int | None
    price_version: str | None
    reference: str
    settled_seq: int | None
    captured_seq: int | None


class PolicyChange(NamedTuple):
    """A change of a policy: who made it, when, and the policy since."""

    user_id: UUID
    change: int
    changed_at: datetime
    caller: str
    policy: Policy


class Usage(NamedTuple):
    """The sums of an operation on a day of UTC (YYYY-MM-DD), in credits and in entries.

    Lapses belong to no operation.
    """

    day: str
    operation: str
    spent: int
    refunded: int
    held: int
    spend_count: int
    refund_count: int
    hold_count: int
    lapsed: int = 0


class Spent(NamedTuple):
    """A spend or capture and how many of its credits have been given back."""

    entry: Entry
    refunded: int


class Purchased(NamedTuple):
    """The purchase of a payment. `entry` is None when its user was deleted since."""

    user_id: UUID
    seq: int
    amount: int
    entry: Entry | None


class Returned(NamedTuple):
    """The money and credits that all refunds and disputes of a payment return together.

    Money is in minor units of `currency`.

    Attributes:
        reversed_minor: the sum of their highest revisions; it may exceed what was paid.
        paid_minor: the sum that was paid.
    """

    reversed_minor: int
    paid_minor: int
    currency: str


class Reversal(NamedTuple):
    """A revision of a refund or dispute, as recorded.

    Attributes:
        seq: the seq of the entry that it made; None when it moved no credits.
        opens_ref: the reversal_ref, where no other revision of it was recorded before, else None.
            It is unique, so that two payments cannot both record a first revision.
        counted: how many of the credits that it returns had lapsed or been revoked; below zero
            where it counts fewer of them than the revisions before.
        entry: that entry; None also where it was not loaded.
    """

    reversal_ref: str
    revision: int
    payment_ref: str
    user_id: UUID
    seq: int | None
    reversed_minor: int
    paid_minor: int
    currency: str
    reason: str
    recorded_at: datetime
    caller: str
    opens_ref: str | None = None
    counted: int = 0
    entry: Entry | None = None


class Outcome(NamedTuple):
    """The answer to a command.

    Attributes:
        entry: the entry it made or, replayed, found; None for a command that makes none.
        account: the account afterwards.
        replayed: whether an earlier call had made the entry.
        hold: the hold it made or referred to, in its present state.
        parts: the answers to the spends of a command that has several.
        top_up: the request for a top-up that the command is about.
    """

    entry: Entry | None
    account: Account
    replayed: bool
    hold: Hold | None = None
    parts: tuple[Outcome | CreditError, ...] = ()
    top_up: Decided | None = None

    @property
    def late(self) -> bool:
        """Whether a hold was captured after it had expired."""
        entry = self.entry
        return entry is not None and entry.type == "capture" and entry.held_change == 0
