"""The frozen values that travel between the servicer, the lanes, the rules and the store.

Amounts are whole credits as int, times are aware datetimes of the database's clock. What a batch
makes many of is a named tuple: a frozen dataclass takes eight times as long to make.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, NamedTuple
from uuid import UUID

from credit_service.fields import BALANCE_MAX

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime, timedelta

    from credit_service.errors import CreditError

# User and seq, which together name an entry, and the hold that it made.
EntryId = tuple[UUID, int]


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


class Account(NamedTuple):
    """What a user owns and may do. `last_updated` is None for a user without an account row.

    Attributes:
        next_hold_expiry: at or before the earliest expiry of the open holds; None without any.
        min_balance: the account's own floor; None where it follows the configuration.
        limit_per_minute: credits that may be spent in a minute of UTC; None: any number.
        counted_at: a time in the windows that the counters below belong to.
    """

    user_id: UUID
    balance: int = 0
    held: int = 0
    seq: int = 0
    last_updated: datetime | None = None
    open_holds: int = 0
    next_hold_expiry: datetime | None = None
    frozen: bool = False
    min_balance: int | None = None
    limit_per_minute: int | None = None
    limit_per_hour: int | None = None
    limit_per_day: int | None = None
    counted_at: datetime | None = None
    spent_this_minute: int = 0
    spent_this_hour: int = 0
    spent_this_day: int = 0
    policy_changes: int = 0

    @property
    def available(self) -> int:
        """What can be set against the floor, in credits."""
        return self.balance - self.held


class Payment(NamedTuple):
    """The payment behind a purchase, as its provider names it."""

    ref: str
    amount_minor: int
    currency: str


class Entry(NamedTuple):
    """One line of the book. `requested_amount` is None where the caller said "all" or a charge."""

    user_id: UUID
    seq: int
    type: str
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
    state: str
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
    """What an account may do since a change, and who changed it."""

    user_id: UUID
    change: int
    changed_at: datetime
    caller: str
    frozen: bool
    min_balance: int | None
    limit_per_minute: int | None
    limit_per_hour: int | None
    limit_per_day: int | None


class Usage(NamedTuple):
    """The sums of an operation on a day of UTC (YYYY-MM-DD), in credits and in entries."""

    day: str
    operation: str
    spent: int
    refunded: int
    held: int
    spend_count: int
    refund_count: int
    hold_count: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """A write that a caller asks for, already checked for its shape. `call` is its RPC."""

    call: ClassVar[str]
    user_id: UUID
    caller: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Keyed(Command):
    """A command that makes an entry and is known by its idempotency key."""

    idempotency_key: str
    description: str
    reference: str
    metadata: Mapping[str, str]
    validate_only: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Purchase(Keyed):
    """Adds `amount` credits for a payment (None: an operator's purchase without one)."""

    call = "PurchaseCredits"
    amount: int
    payment: Payment | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Reverse(Command):
    """Records the state of one refund or dispute of a payment.

    Money is in minor units of `currency`.
    """

    call = "ReversePurchase"
    payment_ref: str
    reversal_ref: str
    revision: int
    reversed_minor: int
    paid_minor: int
    currency: str
    reason: str
    validate_only: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Spend(Keyed):
    """Takes `amount` credits, or, where it is None, the price of `quantity` of `operation`."""

    call = "SpendCredits"
    amount: int | None
    operation: str | None
    quantity: int | None
    expected_cost: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Refund(Keyed):
    """Gives back `amount` of the spend at `spend_seq`; amount None: all that is left of it.

    Without `spend_seq` it is an operator's refund of no spend in particular.
    """

    call = "RefundCredits"
    spend_seq: int | None
    amount: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Grant(Keyed):
    """Gives `amount` credits without a payment."""

    call = "GrantCredits"
    amount: int


@dataclass(frozen=True, slots=True, kw_only=True)
class MakeHold(Keyed):
    """Sets credits aside, named as in `Spend`, for `ttl`."""

    call = "HoldCredits"
    amount: int | None
    operation: str | None
    quantity: int | None
    expected_cost: int | None
    ttl: timedelta


@dataclass(frozen=True, slots=True, kw_only=True)
class Capture(Keyed):
    """Takes the credits of a hold.

    `amount` credits (0 releases it), or `quantity` units at the hold's price, or, without either,
    all of it.
    """

    call = "CaptureHold"
    hold_seq: int
    amount: int | None
    quantity: int | None
    allow_overage: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Release(Keyed):
    """Gives up a hold."""

    call = "ReleaseHold"
    hold_seq: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Extend(Command):
    """Lets a hold end no earlier than `ttl` from now."""

    call = "ExtendHold"
    hold_seq: int
    ttl: timedelta


@dataclass(frozen=True, slots=True, kw_only=True)
class SetPolicy(Command):
    """Changes what an account may do; None leaves a part as it is. Limits: 0 means none."""

    call = "SetAccountPolicy"
    frozen: bool | None
    min_balance: int | None
    limits: tuple[int, int, int] | None


@dataclass(frozen=True, slots=True, kw_only=True)
class SpendTogether(Command):
    """Spends of one user, all or none."""

    call = "BatchSpendCredits"
    spends: tuple[Spend, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Expire(Command):
    """Records the holds of a user whose time has passed; the service's own command."""

    call = "expiry"


class Spent(NamedTuple):
    """A spend or capture and how many of its credits have been given back."""

    entry: Entry
    refunded: int


class Purchased(NamedTuple):
    """What a payment bought. `entry` is None when its user was deleted since."""

    user_id: UUID
    seq: int
    amount: int
    entry: Entry | None


class Reversal(NamedTuple):
    """A revision of a refund or dispute, as recorded.

    Attributes:
        seq: the seq of the entry that it made; None when it moved no credits.
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
    entry: Entry | None = None


class Outcome(NamedTuple):
    """The answer to a command.

    Attributes:
        entry: the entry it made or, replayed, found; None for a command that makes none.
        account: the account afterwards.
        replayed: whether an earlier call had made the entry.
        hold: the hold it made or referred to, in its present state.
        parts: the answers to the spends of a command that has several.
    """

    entry: Entry | None
    account: Account
    replayed: bool
    hold: Hold | None = None
    parts: tuple[Outcome | CreditError, ...] = ()

    @property
    def late(self) -> bool:
        """Whether a hold was captured after it had expired."""
        entry = self.entry
        return entry is not None and entry.type == "capture" and entry.held_change == 0
