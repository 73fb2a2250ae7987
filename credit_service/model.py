"""The frozen values that travel between the servicer, the lanes, the rules and the store.

Amounts are whole credits as int, times are aware datetimes of the database's clock.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar
from uuid import UUID

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime

AMOUNT_MAX = 10**12
BALANCE_MAX = 10**15


def transaction_id(user_id: UUID, seq: int) -> str:
    """Names an entry for callers. It tells user and place, so no index of ids is needed."""
    return f"{user_id}-{seq}"


def parse_transaction_id(text: str) -> tuple[UUID, int] | None:
    """Turns a name made by `transaction_id` back into user and seq; None for anything else."""
    user, _, place = text.rpartition("-")
    if not (place.isascii() and place.isdigit() and len(place) <= len(str(BALANCE_MAX))):
        return None
    try:
        user_id = UUID(user)
    except ValueError:
        return None
    seq = int(place)
    return (user_id, seq) if transaction_id(user_id, seq) == text else None


@dataclass(frozen=True, slots=True)
class Account:
    """What a user owns. `last_updated` is None for a user who has no account row yet."""

    user_id: UUID
    balance: int = 0
    held: int = 0
    seq: int = 0
    last_updated: datetime | None = None

    @property
    def available(self) -> int:
        """What can be set against the floor, in credits."""
        return self.balance - self.held


@dataclass(frozen=True, slots=True)
class Payment:
    """The payment behind a purchase, as its provider names it."""

    ref: str
    amount_minor: int
    currency: str


@dataclass(frozen=True, slots=True)
class Entry:
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """A write that a caller asks for, already checked for its shape. `call` is its RPC."""

    call: ClassVar[str]
    user_id: UUID
    idempotency_key: str
    description: str
    reference: str
    metadata: Mapping[str, str]
    validate_only: bool
    caller: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Purchase(Command):
    """Adds `amount` credits for a payment (None: an operator's purchase without one)."""

    call = "PurchaseCredits"
    amount: int
    payment: Payment | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Spend(Command):
    """Takes `amount` credits, or, where it is None, the price of `quantity` of `operation`."""

    call = "SpendCredits"
    amount: int | None
    operation: str | None
    quantity: int | None
    expected_cost: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Refund(Command):
    """Gives back `amount` of the spend at `spend_seq`; amount None: all that is left of it.

    Without `spend_seq` it is an operator's refund of no spend in particular.
    """

    call = "RefundCredits"
    spend_seq: int | None
    amount: int | None


@dataclass(frozen=True, slots=True)
class Spent:
    """A spend and how many of its credits have been given back."""

    entry: Entry
    refunded: int


@dataclass(frozen=True, slots=True)
class Purchased:
    """What a payment bought. `entry` is None when its user was deleted since."""

    user_id: UUID
    seq: int
    amount: int
    entry: Entry | None


@dataclass(frozen=True, slots=True)
class Outcome:
    """The answer to a command: its entry, the account afterwards, and whether it was a repeat."""

    entry: Entry
    account: Account
    replayed: bool
