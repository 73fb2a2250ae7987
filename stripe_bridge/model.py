"""The values that the bridge's parts hand to each other. Stripe's objects are plain dicts.

Everything is named after Stripe's objects and never after events, so that two events about the same
money are the same call, in any order and at any time.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Literal, get_args

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime, timedelta
    from uuid import UUID

# committed: written now; replayed: written before; nothing: there is nothing to write; conflict:
# the credit service has recorded other figures under that name, which stay.
Outcome = Literal["conflict", "committed", "replayed", "nothing"]
_GRAVEST_FIRST = get_args(Outcome)


class Needed(StrEnum):
    """The objects that a rule may need from Stripe before it can decide."""

    SESSION = "session"
    LINE_ITEMS = "line_items"
    INVOICE_LINES = "invoice_lines"
    DISPUTE = "dispute"
    CUSTOMER = "customer"


class Notice(StrEnum):
    """Reasons for a person to look at a reversal although it is written."""

    OTHER_CURRENCY = "reversal_in_other_currency"
    PARTLY_RETURNED = "dispute_partly_returned"
    LOST_AND_RETURNED = "dispute_lost_and_returned"


def ref(stripe_id: str) -> str:
    """Makes the credit service's reference of one of Stripe's objects."""
    return f"stripe:{stripe_id}"


@dataclass(frozen=True, slots=True)
class Rollover:
    """Which earlier credits of a plan stay beside new ones.

    Attributes:
        series: names the plan's purchases.
        cap: how many of their credits stay.
    """

    series: str
    cap: int


@dataclass(frozen=True, slots=True)
class Life:
    """How long credits live; without `expire_time` and `valid_for` they live for ever.

    Attributes:
        expire_time: when they lapse, aware; None: see `valid_for`.
        valid_for: how long after their purchase they lapse; None: see `expire_time`.
        rollover: which earlier credits lapse when they come; None: none.
    """

    expire_time: datetime | None = None
    valid_for: timedelta | None = None
    rollover: Rollover | None = None


FOREVER = Life()


@dataclass(frozen=True, slots=True)
class Grant:
    """Credits that were paid for.

    Attributes:
        paid_by: the id of the payment: of a payment intent, an invoice or, for a free order, a
            Checkout Session.
        user_id: who gets them.
        credits: the number of them, 1 to 10^12.
        amount_minor: the money paid, in minor units of the currency.
        currency: a three-letter code in lower case.
        source: the id of the object that decided.
        life: how long they live.
    """

    paid_by: str
    user_id: UUID
    credits: int
    amount_minor: int
    currency: str
    source: str
    life: Life = FOREVER

    @property
    def payment_ref(self) -> str:
        """The payment's reference at the credit service; it is the idempotency key too."""
        return ref(self.paid_by)


@dataclass(frozen=True, slots=True)
class Basis:
    """The money paid for a purchase, and the part that one charge paid. Money is in minor units.

    Attributes:
        paid_by: the id of the purchase's payment, as in `Grant`.
        paid_minor: all that was paid.
        currency: of `paid_minor`, in lower case.
        contributed_minor: the part of `paid_minor` that the charge paid.
        charge_minor: the amount of the charge, which is the maximum of its refunds together.
        charge_currency: of `charge_minor`, in lower case.
    """

    paid_by: str
    paid_minor: int
    currency: str
    contributed_minor: int
    charge_minor: int
    charge_currency: str

    def share(self, of_charge: int) -> int:
        """Converts an amount of the charge, capped at all of it, to its share of `paid_minor`."""
        return self.contributed_minor * min(of_charge, self.charge_minor) // self.charge_minor


@dataclass(frozen=True, slots=True)
class Reversal:
    """How much of a purchase's money one refund or dispute took in all; not an increment.

    Attributes:
        paid_by: the id of the purchase's payment, as in `Grant`.
        caused_by: the id of the refund or dispute.
        revision: of the reversal; the highest one counts.
        reversed_minor: the amount refunded or disputed, in minor units of the currency.
        paid_minor: the amount paid, of which `reversed_minor` is a share.
        currency: of both, in lower case.
        reason: a few words for people.
        notice: why a person should look at it; None: there is no need.
    """

    paid_by: str
    caused_by: str
    revision: int
    reversed_minor: int
    paid_minor: int
    currency: str
    reason: str
    notice: Notice | None = None

    @property
    def payment_ref(self) -> str:
        """The payment's reference at the credit service."""
        return ref(self.paid_by)

    @property
    def reversal_ref(self) -> str:
        """The refund's or dispute's reference at the credit service."""
        return ref(self.caused_by)


@dataclass(frozen=True, slots=True)
class Nothing:
    """There is nothing to write.

    Attributes:
        reason: a snake_case word that is counted and logged.
        alerts: a listed price was paid and gives no credits, so a person should look.
    """

    reason: str
    alerts: bool = False


@dataclass(frozen=True, slots=True)
class Settled:
    """The result of settling an object.

    Attributes:
        outcome: what happened at the credit service.
        reason: a snake_case word that is counted and logged.
        refs: the references of its payments and reversals.
        alerts: a person should look.
    """

    outcome: Outcome
    reason: str
    refs: tuple[str, ...] = ()
    alerts: bool = False

    @classmethod
    def of_all(cls, settled: Sequence[Settled]) -> Settled:
        """Makes one result of several, at least one: the gravest outcome, all of the references."""
        gravest = min(settled, key=lambda each: _GRAVEST_FIRST.index(each.outcome))
        refs = dict.fromkeys(ref for each in settled for ref in each.refs)
        alerts = any(each.alerts for each in settled)
        return cls(gravest.outcome, gravest.reason, tuple(refs), alerts)


class Unresolved(Exception):
    """A payment for credits that a person must look at before it can be credited or reversed.

    Attributes:
        reason: a snake_case word that is counted and logged.
        detail: a sentence for the operator, without personal data.
    """

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail


class Needs(Exception):
    """An object lacks what a rule needs; it must be read from Stripe.

    Attributes:
        what: the object or list to read; invoice lines come with their prices expanded.
        id: of the object to read, or of the one whose list it is.
    """

    def __init__(self, what: Needed, id: str) -> None:  # noqa: A002  # Stripe's own word
        super().__init__(f"{what} of {id}")
        self.what = what
        self.id = id
