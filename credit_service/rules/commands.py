"""The writes that callers ask for, as values: checked for their shape, not yet decided."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal, NamedTuple

from credit_service.rules.model import PRIORITY_DEFAULT, RequestIdentity

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime, timedelta
    from uuid import UUID

    from credit_service.rules.grant_values import Allowance
    from credit_service.rules.model import Payment, TopUp
    from credit_service.rules.top_up_values import TopUpFailure, TopUpId


# The names of the fields of `Policy`.
PolicyPart = Literal["frozen", "min_balance", "limits", "allowance", "top_up", "alert_below"]


class Charge(NamedTuple):
    """What a spend or hold costs: `amount` credits, or the price of `quantity` of `operation`.

    Attributes:
        amount: credits; None where an operation is named.
        operation: a name of the price list; None where an amount is named.
        quantity: units of the operation; None where an amount is named.
        expected_cost: the credits that the caller expects it to cost; None: any number.
    """

    amount: int | None = None
    operation: str | None = None
    quantity: int | None = None
    expected_cost: int | None = None


class Life(NamedTuple):
    """When credits are used and when they expire, as asked.

    Attributes:
        expire_time: when they expire; None where `valid_for` says so, or never.
        valid_for: how long after their entry they expire; None where `expire_time` says so, or
            never.
        priority: 0, used first, to 100, used last.
    """

    expire_time: datetime | None = None
    valid_for: timedelta | None = None
    priority: int = PRIORITY_DEFAULT


UNDATED = Life()

# The caller on entries that the service makes by itself.
SERVICE = "credit_service"


class Rollover(NamedTuple):
    """Up to `cap` credits of the older open grants of a series stay beside the new one."""

    series: str
    cap: int


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

    @abstractmethod
    def request(self) -> RequestIdentity:
        """The values that make another call with this key the same request."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Purchase(Keyed):
    """Adds `amount` credits for a payment (None: an operator's purchase without one)."""

    call = "PurchaseCredits"
    amount: int
    payment: Payment | None
    life: Life = UNDATED
    rollover: Rollover | None = None

    def request(self) -> RequestIdentity:
        """See `Keyed`."""
        if self.payment is not None:
            # The payment decides, and the life that its first call gave remains.
            return RequestIdentity(self.call, amount=self.amount, payment=self.payment.ref)
        return RequestIdentity(self.call, amount=self.amount)._replace(**self.life._asdict())


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
    """Takes the credits of a charge."""

    call = "SpendCredits"
    charge: Charge

    def request(self) -> RequestIdentity:
        """See `Keyed`."""
        charge = self.charge
        return RequestIdentity(self.call, charge.amount, charge.operation, charge.quantity)


@dataclass(frozen=True, slots=True, kw_only=True)
class Refund(Keyed):
    """Gives back `amount` of the spend at `spend_seq`; amount None: all that is left of it.

    Without `spend_seq` it is an operator's refund of no spend in particular.
    """

    call = "RefundCredits"
    spend_seq: int | None
    amount: int | None

    def request(self) -> RequestIdentity:
        """See `Keyed`."""
        return RequestIdentity(self.call, amount=self.amount, transaction_id=self.spend_seq)


@dataclass(frozen=True, slots=True, kw_only=True)
class GiveCredits(Keyed):
    """Gives `amount` credits without a payment; with `paid` they count as paid credits."""

    call = "GrantCredits"
    amount: int
    life: Life = UNDATED
    paid: bool = False

    def request(self) -> RequestIdentity:
        """See `Keyed`."""
        asked = RequestIdentity(self.call, amount=self.amount, category=self.paid)
        return asked._replace(**self.life._asdict())


@dataclass(frozen=True, slots=True, kw_only=True)
class RevokeGrant(Keyed):
    """Takes the rest of the grant at `grant_seq` that no hold has set aside, once."""

    call = "RevokeGrant"
    grant_seq: int

    def request(self) -> RequestIdentity:
        """See `Keyed`."""
        return RequestIdentity(self.call, transaction_id=self.grant_seq)


@dataclass(frozen=True, slots=True, kw_only=True)
class Adjust(Keyed):
    """Adds `amount` credits as a correction, or takes them if it is below zero.

    `allow_debt` lets it pass the floor.
    """

    call = "AdjustCredits"
    amount: int
    allow_debt: bool

    def request(self) -> RequestIdentity:
        """See `Keyed`."""
        return RequestIdentity(self.call, amount=self.amount)


@dataclass(frozen=True, slots=True, kw_only=True)
class MakeHold(Keyed):
    """Holds the credits of a charge for `ttl`."""

    call = "HoldCredits"
    charge: Charge
    ttl: timedelta

    def request(self) -> RequestIdentity:
        """See `Keyed`."""
        charge = self.charge
        return RequestIdentity(self.call, charge.amount, charge.operation, charge.quantity)


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

    def request(self) -> RequestIdentity:
        """See `Keyed`."""
        return RequestIdentity(
            self.call, amount=self.amount, quantity=self.quantity, hold_id=self.hold_seq
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Release(Keyed):
    """Releases a hold."""

    call = "ReleaseHold"
    hold_seq: int

    def request(self) -> RequestIdentity:
        """See `Keyed`."""
        return RequestIdentity(self.call, hold_id=self.hold_seq)


@dataclass(frozen=True, slots=True, kw_only=True)
class Extend(Command):
    """Lets a hold end no earlier than `ttl` from now."""

    call = "ExtendHold"
    hold_seq: int
    ttl: timedelta


@dataclass(frozen=True, slots=True, kw_only=True)
class SetPolicy(Command):
    """Changes a policy; None leaves a part as it is. Limits: 0 means none.

    `reset` names the parts of the policy that return to the configured values.
    """

    call = "SetAccountPolicy"
    frozen: bool | None
    min_balance: int | None
    limits: tuple[int, int, int] | None
    allowance: Allowance | None = None
    top_up: TopUp | None = None
    alert_below: int | None = None
    reset: tuple[PolicyPart, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class NoteTopUp(Command):
    """Notes the payment of a request for a top-up."""

    call = "NoteTopUp"
    top_up: TopUpId
    payment_ref: str


@dataclass(frozen=True, slots=True, kw_only=True)
class FailTopUp(Command):
    """Records a failed try of a request for a top-up, or that it is not needed.

    Attributes:
        try_number: counts the tries of the request from 1; not used where it is not needed.
        reason: for people.
        link: where the user can pay; empty: nowhere in particular.
        failure: its result for the request.
        payment_ref: the payment that was cancelled; empty: none.
    """

    call = "FailTopUp"
    top_up: TopUpId
    try_number: int
    reason: str
    link: str
    failure: TopUpFailure
    payment_ref: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SpendTogether(Command):
    """Spends of one user, all or none.

    Attributes:
        refused: whether another item of the batch is malformed, so that none is carried out.
    """

    call = "BatchSpendCredits"
    spends: tuple[Spend, ...]
    refused: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Expire(Command):
    """Records the holds and grants of a user whose time has passed; the service's own command.

    Attributes:
        watched: whether the account is watched, which gives it the allowance that is due.
    """

    call = "expiry"
    watched: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Lapse(Command):
    """Lapses credits whose time has passed or that do not roll over; the service's own command."""

    call = "lapse"


@dataclass(frozen=True, slots=True, kw_only=True)
class TakeRevoked(Command):
    """Takes credits of a revoked grant that a hold has given up; the service's own command."""

    call = "revocation"


@dataclass(frozen=True, slots=True, kw_only=True)
class GiveAllowance(Command):
    """Gives an account the free credits of a period; the service's own command."""

    call = "allowance"
