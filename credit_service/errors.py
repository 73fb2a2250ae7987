"""Every error that a caller can get, each with its reason and its figures.

The docstring of a class says what happened and what the caller should do next. `status` turns these
errors into gRPC statuses and back, so a worker catches the same classes that the service raises.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import ClassVar


@dataclass(eq=False)
class CreditError(Exception):
    """Any answer other than OK. `reason` is its name on the wire; its fields are the figures."""

    reason: ClassVar[str]
    text: ClassVar[str]

    def __str__(self) -> str:
        """Says in one sentence what happened and what to do, with the figures."""
        return self.text.format(**vars(self))

    def __reduce__(self) -> tuple[type[CreditError], tuple[object, ...]]:
        """Makes the error picklable, so that a process pool can pass it on."""
        return type(self), tuple(getattr(self, field.name) for field in fields(self))


class Refusal(CreditError):
    """A definite no: nothing was written, and the same call would be refused again.

    Something must change first: the request, the account or the price. Only a `LimitReached` can
    also end by itself; its `retry_ms` says when.
    """


@dataclass(eq=False)
class UnknownRefusal(Refusal):
    """A refusal that this version of the client does not know, or that of a proxy. Do no work.

    Made by the client. `reason` is the service's reason, or the name of the status code where the
    answer has none; `facts` are the figures that came with it, as text.
    """

    text = "{message}"
    reason: str  # type: ignore[misc]  # of the answer, not of the class
    message: str
    facts: dict[str, str]


@dataclass(eq=False)
class InvalidRequest(Refusal):
    """A field is missing or malformed. Correct the request; `field` is the path of the field."""

    reason = "INVALID_REQUEST"
    text = "{field}: {problem}"
    field: str
    problem: str


@dataclass(eq=False)
class InsufficientCredits(Refusal):
    """Too few credits are available. Do no work; the user must buy `shortfall` more first."""

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
    """The cost is not the expected one. Show the new `cost` to the user and ask again."""

    reason = "PRICE_CHANGED"
    text = "The cost is now {cost} credits (price list {price_version}); confirm it and call again."
    cost: int
    price_version: str


@dataclass(eq=False)
class AccountFrozen(Refusal):
    """The account is frozen and cannot spend or hold. Do no work; ask an operator."""

    reason = "ACCOUNT_FROZEN"
    text = "The account is frozen; an operator must unfreeze it first."


@dataclass(eq=False)
class HoldNotActive(Refusal):
    """The hold has already ended, as `state` says. CAPTURED means that the work is paid."""

    reason = "HOLD_NOT_ACTIVE"
    text = "The hold is {state} and no longer active."
    state: str


@dataclass(eq=False)
class HoldExpired(Refusal):
    """The hold has expired and its credits are gone. It can no longer pay for the work."""

    reason = "HOLD_EXPIRED"
    text = "The hold has expired and its credits are no longer available."


@dataclass(eq=False)
class RefundExceedsSpend(Refusal):
    """The refund is larger than what is left of the spend, which is `refundable` credits."""

    reason = "REFUND_EXCEEDS_SPEND"
    text = "Only {refundable} credits of this spend can still be refunded."
    refundable: int


@dataclass(eq=False)
class BalanceLimitExceeded(Refusal):
    """The balance would pass the limit of what an account can hold. Check the amount."""

    reason = "BALANCE_LIMIT_EXCEEDED"
    text = "The balance is {balance} credits and would pass the limit of {limit}; check the amount."
    balance: int
    limit: int


@dataclass(eq=False)
class TooManyGrants(Refusal):
    """The account has `limit` open grants, the maximum. Grant without an expiry, or later."""

    reason = "TOO_MANY_GRANTS"
    text = (
        "The account has {limit} open grants, which is the maximum; grant the credits without an"
        " expiry, or wait until grants are used up or lapse."
    )
    limit: int


@dataclass(eq=False)
class FeedNotOffered(Refusal):
    """The book is distributed over several servers, which have no common order of transactions."""

    reason = "FEED_NOT_OFFERED"
    text = (
        "The book is distributed over a cluster and has no feed of all transactions; read an"
        " account by WatchUserCredit and GetTransactionHistory, and the book by"
        " `credit-service export`."
    )


class NotFound(Refusal):
    """What the request names does not exist for this user."""


@dataclass(eq=False)
class UserNotFound(NotFound):
    """The user is not in `auth.users`. Check the id, or create the user first."""

    reason = "USER_NOT_FOUND"
    text = "There is no user {user_id}; check the id."
    user_id: str


@dataclass(eq=False)
class UserDeleted(NotFound):
    """The payment was credited to a user who has been deleted. It is never credited again."""

    reason = "USER_DELETED"
    text = "Payment {payment_ref} was credited to a user who was deleted; nothing is left to do."
    payment_ref: str


@dataclass(eq=False)
class PaymentNotFound(NotFound):
    """No purchase was made for the payment. Credit it first, or check its reference."""

    reason = "PAYMENT_NOT_FOUND"
    text = "No purchase was made for payment {payment_ref}."
    payment_ref: str


@dataclass(eq=False)
class TransactionNotFound(NotFound):
    """The user has no such entry. A write that left no entry did not happen."""

    reason = "TRANSACTION_NOT_FOUND"
    text = "This user has no transaction {lookup}."
    lookup: str


@dataclass(eq=False)
class HoldNotFound(NotFound):
    """The user has no such hold."""

    reason = "HOLD_NOT_FOUND"
    text = "This user has no hold {hold_id}."
    hold_id: str


@dataclass(eq=False)
class GrantNotFound(NotFound):
    """The user has no such grant. Credits without an expiry or priority are not a grant."""

    reason = "GRANT_NOT_FOUND"
    text = "This user has no grant {grant_id}."
    grant_id: str


@dataclass(eq=False)
class TopUpNotFound(NotFound):
    """The user has no such request for a top-up. A payment made for it must be cancelled."""

    reason = "TOP_UP_NOT_FOUND"
    text = "This user has no request {top_up_id} for a top-up."
    top_up_id: str


@dataclass(eq=False)
class TopUpNotOpen(Refusal):
    """The request for a top-up has ended, as `state` says. Do not charge it; cancel its payment."""

    reason = "TOP_UP_NOT_OPEN"
    text = "The request for a top-up is {state} and no longer open."
    state: str


@dataclass(eq=False)
class AboveSpendLimit(Refusal):
    """The work costs more than the account may spend in a whole window. Waiting does not help."""

    reason = "ABOVE_SPEND_LIMIT"
    text = (
        "{required} credits at once are more than the account may spend per {window}, which is"
        " {limit}; waiting does not help: make it smaller, or let an operator raise the limit."
    )
    required: int
    window: str
    limit: int


class LimitReached(Refusal):
    """The account has reached a limit. In `retry_ms` milliseconds a retry may succeed."""

    retry_ms: int


@dataclass(eq=False)
class SpendLimitExceeded(LimitReached):
    """The spend is more than is left of this window. Try again when the next one begins."""

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
    """The account has the maximum number of open holds. Capture or release one, or wait."""

    reason = "TOO_MANY_HOLDS"
    text = (
        "The account has {limit} open holds, which is the maximum; capture or release one, or wait"
        " until one expires."
    )
    limit: int
    retry_ms: int


class Conflict(Refusal):
    """A key, payment or reversal is already in use for something else."""


@dataclass(eq=False)
class IdempotencyKeyReused(Conflict):
    """The key belongs to another request, which is unchanged. The caller has a bug."""

    reason = "IDEMPOTENCY_KEY_REUSED"
    text = (
        "This idempotency key was used for transaction {transaction_id}, which differs in {field}; "
        "use a new key for a new request."
    )
    field: str
    transaction_id: str


@dataclass(eq=False)
class PaymentReused(Conflict):
    """The payment was recorded with another `field`, such as another user. A person must decide."""

    reason = "PAYMENT_REUSED"
    text = "Payment {payment_ref} was already recorded with another {field}."
    payment_ref: str
    field: str


@dataclass(eq=False)
class ReversalReused(Conflict):
    """The reversal was recorded before with another `field`. A person must decide."""

    reason = "REVERSAL_REUSED"
    text = "Reversal {reversal_ref} was already recorded with another {field}."
    reversal_ref: str
    field: str


@dataclass(eq=False)
class TopUpHasPayment(Conflict):
    """Payment `payment_ref` was noted for the request for a top-up. Go on with that one."""

    reason = "TOP_UP_HAS_PAYMENT"
    text = "This request for a top-up has payment {payment_ref}, which is not the one you name."
    payment_ref: str


@dataclass(eq=False)
class PaymentMismatch(Refusal):
    """An earlier reversal of the payment names another sum as paid. A person must decide."""

    reason = "PAYMENT_MISMATCH"
    text = (
        "An earlier reversal of payment {payment_ref} says that {paid_minor} minor units of"
        " {currency} were paid; both must name the same sum."
    )
    payment_ref: str
    paid_minor: int
    currency: str


@dataclass(eq=False)
class BatchAborted(Refusal):
    """Another item of the atomic batch was refused, so this one was not carried out."""

    reason = "BATCH_ABORTED"
    text = "Another item of this atomic batch was refused, so nothing was written."


class Unavailable(CreditError):
    """No final answer: the call may or may not have happened. Repeat it with the same key."""


@dataclass(eq=False)
class Overloaded(Unavailable):
    """Too many calls are waiting, so this one was not started. Repeat it in `retry_ms` ms."""

    reason = "OVERLOADED"
    text = "Too many calls are waiting; call again shortly with the same key."
    retry_ms: int = 200


@dataclass(eq=False)
class LedgerUnavailable(Unavailable):
    """The ledger cannot be reached or is busy. Repeat the call with the same key."""

    reason = "LEDGER_UNAVAILABLE"
    text = "The ledger cannot be reached; call again with the same key to learn the outcome."


@dataclass(eq=False)
class OutcomeUnknown(CreditError):
    """A write got no final answer: it may or may not have happened. Do no work.

    Raised by the client. Repeat the call with `key`, now or days later: it happens at most once,
    and the answer says whether it had happened before. `key` is empty where the call has none (a
    batch, a reversal, a policy, an extension): repeat the very same call, which does no harm.
    """

    reason = "OUTCOME_UNKNOWN"
    text = "No final answer came; call again with the idempotency key {key} to learn the outcome."
    key: str

    def __str__(self) -> str:
        """Says in one sentence what happened and what to do."""
        if self.key:
            return super().__str__()
        return "No final answer came; make the same call again to learn the outcome."


@dataclass(eq=False)
class AlreadyPaid(CreditError):
    """The job was already done and paid: its hold is captured. Do not do it again.

    Raised by the client. To run a job again after a refund, use a later attempt.
    """

    reason = "ALREADY_PAID"
    text = "Job {job} was already paid by hold {hold_id}; there is nothing left to do."
    job: str
    hold_id: str


class AccessError(CreditError):
    """The caller is not allowed to do this."""


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
    """The service failed. Report it with the time; repeat a write with its key to learn more."""

    reason = "INTERNAL"
    text = "The service failed on this call; the failure is logged."
