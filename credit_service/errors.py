"""Everything that may go wrong for a caller, each with its reason and its facts.

The docstring of a class says what happened and what the caller does next. `status` carries these
errors across the wire in both directions, so a worker catches the same classes the service raises.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import ClassVar


@dataclass(eq=False)
class CreditError(Exception):
    """Any answer that is not OK. `reason` is its name on the wire, its fields are its facts."""

    reason: ClassVar[str]
    text: ClassVar[str]

    def __str__(self) -> str:
        """Says in one sentence what happened and what to do, with the figures."""
        return self.text.format(**vars(self))

    def __reduce__(self) -> tuple[type[CreditError], tuple[object, ...]]:
        """Lets a pool of processes hand it over, which sends errors pickled."""
        return type(self), tuple(getattr(self, field.name) for field in fields(self))


class Refusal(CreditError):
    """A definite no: nothing was written, and time alone will not change the answer."""


@dataclass(eq=False)
class InvalidRequest(Refusal):
    """A field is missing or malformed. Mend the call; `field` names the place."""

    reason = "INVALID_REQUEST"
    text = "{field}: {problem}"
    field: str
    problem: str


@dataclass(eq=False)
class InsufficientCredits(Refusal):
    """The credits are not there. Ask the user to buy `shortfall` more; do no work."""

    reason = "INSUFFICIENT_CREDITS"
    text = (
        "{required} credits are needed and {available} are available ({held} more are held); "
        "{shortfall} more must be bought first."
    )
    required: int
    available: int
    held: int
    shortfall: int


@dataclass(eq=False)
class PriceChanged(Refusal):
    """The cost is no longer the expected one. Show the new `cost` and ask again."""

    reason = "PRICE_CHANGED"
    text = "The cost is now {cost} credits (price list {price_version}); confirm it and call again."
    cost: int
    price_version: str


@dataclass(eq=False)
class AccountFrozen(Refusal):
    """The account is frozen: no spend and no hold. Ask an operator; do no work."""

    reason = "ACCOUNT_FROZEN"
    text = "The account is frozen; an operator must release it first."


@dataclass(eq=False)
class HoldNotActive(Refusal):
    """The hold has ended, as `state` says. CAPTURED means that the work is paid."""

    reason = "HOLD_NOT_ACTIVE"
    text = "The hold is {state} and no longer active."
    state: str


@dataclass(eq=False)
class HoldExpired(Refusal):
    """The hold expired and its credits are gone. The work cannot be paid from it."""

    reason = "HOLD_EXPIRED"
    text = "The hold has expired and its credits are no longer available."


@dataclass(eq=False)
class RefundExceedsSpend(Refusal):
    """More than is left of the spend. `refundable` credits can still be given back."""

    reason = "REFUND_EXCEEDS_SPEND"
    text = "Only {refundable} credits of this spend are left to refund."
    refundable: int


@dataclass(eq=False)
class BalanceLimitExceeded(Refusal):
    """The balance would leave the range the book can hold. Look for a wrong amount."""

    reason = "BALANCE_LIMIT_EXCEEDED"
    text = "The balance of {balance} would go beyond {limit}; check the amount."
    balance: int
    limit: int


class NotFound(Refusal):
    """The thing named does not exist for this user."""


@dataclass(eq=False)
class UserNotFound(NotFound):
    """The user is not in the user table. Check the id, or create the user first."""

    reason = "USER_NOT_FOUND"
    text = "There is no user {user_id}; check the id."
    user_id: str


@dataclass(eq=False)
class UserDeleted(NotFound):
    """The payment was credited to a user who has since been deleted. It is never credited again."""

    reason = "USER_DELETED"
    text = "Payment {payment_ref} was credited to a user who was deleted; nothing is left to do."
    payment_ref: str


@dataclass(eq=False)
class PaymentNotFound(NotFound):
    """No purchase was made for the payment. Credit it first, or find the right reference."""

    reason = "PAYMENT_NOT_FOUND"
    text = "No purchase was made for payment {payment_ref}."
    payment_ref: str


@dataclass(eq=False)
class TransactionNotFound(NotFound):
    """No such entry for this user. A write that left no entry did not happen."""

    reason = "TRANSACTION_NOT_FOUND"
    text = "This user has no transaction {lookup}."
    lookup: str


@dataclass(eq=False)
class HoldNotFound(NotFound):
    """No such hold for this user."""

    reason = "HOLD_NOT_FOUND"
    text = "This user has no hold {hold_id}."
    hold_id: str


class LimitReached(Refusal):
    """A limit of the account is reached; `retry_ms` tells when it may be worth another try."""

    retry_ms: int


@dataclass(eq=False)
class SpendLimitExceeded(LimitReached):
    """The account may spend no more in this window. Try again when the next one begins."""

    reason = "SPEND_LIMIT_EXCEEDED"
    text = (
        "The account may spend {limit} credits per {window} and has spent {spent}; the next"
        " {window} begins in {retry_seconds} s."
    )
    window: str
    limit: int
    spent: int
    retry_ms: int

    def __str__(self) -> str:
        """Says in one sentence what happened and what to do, with the figures."""
        return self.text.format(**vars(self), retry_seconds=-(-self.retry_ms // 1000))


@dataclass(eq=False)
class TooManyHolds(LimitReached):
    """The account has as many open holds as it may. Capture or release one, or wait."""

    reason = "TOO_MANY_HOLDS"
    text = "The account has {limit} open holds, which is the most; the next one may end by itself."
    limit: int
    retry_ms: int


class Conflict(Refusal):
    """A name that may mean one thing only already means another."""


@dataclass(eq=False)
class IdempotencyKeyReused(Conflict):
    """The key belongs to another request, which stays as it was. A mistake in the caller."""

    reason = "IDEMPOTENCY_KEY_REUSED"
    text = (
        "This idempotency key was used for transaction {transaction_id}, which differs in {field}; "
        "use a new key for a new intent."
    )
    field: str
    transaction_id: str


@dataclass(eq=False)
class PaymentReused(Conflict):
    """The payment was credited to another user or with another amount. A person must look."""

    reason = "PAYMENT_REUSED"
    text = "Payment {payment_ref} was already credited with another {field}."
    payment_ref: str
    field: str


@dataclass(eq=False)
class ReversalReused(Conflict):
    """This revision of the reversal was recorded with another `field`. A person must look."""

    reason = "REVERSAL_REUSED"
    text = "Reversal {reversal_ref} was already recorded with another {field}."
    reversal_ref: str
    field: str


@dataclass(eq=False)
class PaymentMismatch(Refusal):
    """An earlier reversal said that another sum was paid. A person must look."""

    reason = "PAYMENT_MISMATCH"
    text = (
        "An earlier reversal of payment {payment_ref} says that {paid_minor} {currency} was paid."
    )
    payment_ref: str
    paid_minor: int
    currency: str


@dataclass(eq=False)
class BatchAborted(Refusal):
    """Another item of the atomic batch was refused, so this one was not done either."""

    reason = "BATCH_ABORTED"
    text = "Another item of this atomic batch was refused; nothing of the batch was done."


class Unavailable(CreditError):
    """No final answer; the call may or may not have happened. Repeat it with the same key."""


@dataclass(eq=False)
class Overloaded(Unavailable):
    """Too many calls are waiting; this one was not started. Repeat it a little later."""

    reason = "OVERLOADED"
    text = "Too many calls are waiting; call again shortly with the same key."


@dataclass(eq=False)
class LedgerUnavailable(Unavailable):
    """The book cannot be reached or is busy. Repeat the call with the same key."""

    reason = "LEDGER_UNAVAILABLE"
    text = "The ledger cannot be reached; call again with the same key to learn the outcome."


@dataclass(eq=False)
class OutcomeUnknown(CreditError):
    """A write got no final answer: it may or may not have happened. Do no work.

    Raised by the client. Repeat the call with `key`, now or days later: it happens at most once,
    and the answer tells.
    """

    reason = "OUTCOME_UNKNOWN"
    text = "No final answer came; call again with the idempotency key {key} to learn the outcome."
    key: str


@dataclass(eq=False)
class AlreadyPaid(CreditError):
    """The job was done and paid before: its hold is captured. Do not do it again.

    Raised by the client. A job that is to run again after a refund takes a later attempt.
    """

    reason = "ALREADY_PAID"
    text = "Job {job} was paid before, by hold {hold_id}; there is nothing left to do."
    job: str
    hold_id: str


class AccessError(CreditError):
    """The caller may not do this."""


@dataclass(eq=False)
class Unauthenticated(AccessError):
    """No valid credentials came with the call."""

    reason = "UNAUTHENTICATED"
    text = "{problem}"
    problem: str


@dataclass(eq=False)
class PermissionDenied(AccessError):
    """The caller's role may not make this call."""

    reason = "PERMISSION_DENIED"
    text = "A caller with the role {role} may not {action}."
    role: str
    action: str


@dataclass(eq=False)
class InternalError(CreditError):
    """A fault in the service. Report it with the time; a write's outcome is told by its key."""

    reason = "INTERNAL"
    text = "The service failed on this call; the failure is logged."
