"""What the bridge's parts hand to each other. Stripe's objects are plain dicts, as JSON has them.

Everything is named after Stripe's objects and never after events, so that two events about the same
money are the same call, in any order and at any time.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from uuid import UUID


@dataclass(frozen=True, slots=True)
class Grant:
    """Credits that were paid for.

    Attributes:
        payment_ref: `stripe:pi_...`, `stripe:in_...` or, for a free order, `stripe:cs_...`; it is
            the idempotency key too.
        user_id: who gets them.
        credits: how many, 1 to 10^12.
        amount_minor: what was paid, in minor units of the currency.
        currency: in lower case.
        source: the id of the object that told it.
    """

    payment_ref: str
    user_id: UUID
    credits: int
    amount_minor: int
    currency: str
    source: str


@dataclass(frozen=True, slots=True)
class Reversal:
    """Money that went back, as one refund or dispute now stands; absolute, not an increment.

    Attributes:
        payment_ref: of the purchase.
        reversal_ref: `stripe:re_...` or `stripe:du_...`.
        revision: the higher one holds.
        reversed_minor: what went back, in minor units of the charge's currency.
        paid_minor: the amount of the charge, which all its refunds add up to.
        currency: of the charge, in lower case.
        reason: a few words for people.
    """

    payment_ref: str
    reversal_ref: str
    revision: int
    reversed_minor: int
    paid_minor: int
    currency: str
    reason: str


@dataclass(frozen=True, slots=True)
class Nothing:
    """There is nothing to write. `reason` is a snake_case word that is counted and logged."""

    reason: str


class Unresolved(Exception):
    """The money is ours, and a person must act before it can be credited or taken.

    Attributes:
        reason: a snake_case word that is counted and logged.
        detail: a sentence for the operator, without anything personal.
    """

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail


class Needs(Exception):
    """An object lacks what decides; it must be read from Stripe.

    Attributes:
        what: session, line_items, invoice_lines (with their prices expanded), dispute or customer.
        id: of the object to read, or of the one whose list it is.
    """

    def __init__(self, what: str, id: str) -> None:  # noqa: A002  # Stripe's own word
        super().__init__(f"{what} of {id}")
        self.what = what
        self.id = id
