"""The webhook's answers to Stripe: one table of all results of an event.

Stripe repeats an event for up to three days until the answer is 2xx, so 2xx means: committed, or
nothing to do ("Receive Stripe events in your webhook endpoint"). Stripe treats all other statuses
alike; they show people and metrics what is wrong.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from credit_service.errors import (
    CreditError,
    InternalError,
    OutcomeUnknown,
    Unavailable,
)
from stripe_bridge.model import Unresolved
from stripe_bridge.stripe_api import StripeAway, StripeRefuses

if TYPE_CHECKING:
    from stripe_bridge.model import Settled
    from stripe_bridge.webhook import Refusal

Outcome = Literal[
    "committed", "replayed", "nothing", "conflict", "parked",
    "refused", "unresolved", "unavailable", "failed",
]  # fmt: skip

# The header of an answer after which the caller may ask again.
RETRY_AFTER = {"Retry-After": "2"}


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer to a webhook request.

    Attributes:
        status: of HTTP.
        outcome: committed, replayed, nothing and conflict as in `Settled`; parked: unresolved,
            and too old for Stripe to repeat it; refused: not an event from Stripe; unresolved: a
            person must act first; unavailable: a later try may succeed; failed: a later try will
            fail too.
        reason: a snake_case word that is counted and logged.
        problem: a sentence for the log.
        alerts: a person must look.
        closes: the connection cannot be used again.
    """

    status: int
    outcome: Outcome
    reason: str
    problem: str = ""
    alerts: bool = False
    closes: bool = False

    @property
    def body(self) -> dict[str, object]:
        """The text in Stripe's list of deliveries; a refusal reveals nothing to strangers."""
        match self.outcome:
            case "refused":
                return error_body("refused", "This is not an event that Stripe signed for us.")
            case "unresolved":
                return error_body(self.reason, "A person must act; the bridge's log says how.")
            case "unavailable":
                return error_body(self.reason, "Not now; send it again.")
            case "failed":
                return error_body("failed", "The failure is logged.")
        return {"outcome": self.outcome, "reason": self.reason}


def error_body(reason: str, message: str) -> dict[str, object]:
    """Makes the body of an answer that is not a success."""
    return {"error": {"reason": reason, "message": message}}


def of_refusal(refusal: Refusal) -> Answer:
    """Answers a request that is not an event from Stripe."""
    return Answer(refusal.status, "refused", refusal.reason, alerts=refusal.alerts)


def of_settled(settled: Settled) -> Answer:
    """Answers an event that was settled, or is in conflict, which no repeat would resolve."""
    return Answer(200, settled.outcome, settled.reason, alerts=settled.alerts)


def is_bug(error: Exception) -> bool:
    """Returns whether an error is not among those that settling is documented to raise."""
    known = (Unresolved, StripeAway, StripeRefuses, CreditError, TimeoutError)
    return not isinstance(error, known)


def of_error(error: Exception, *, age_seconds: float, park_after_seconds: float) -> Answer:
    """Answers an event that could not be settled.

    Args:
        error: what `Settler` raised.
        age_seconds: how long ago the event happened.
        park_after_seconds: from this age on, an event that only a person can resolve is answered
            200, because Stripe disables an endpoint that keeps failing; reconcile finds it again.
    """
    match error:
        case Unresolved() if age_seconds >= park_after_seconds:
            answer = Answer(200, "parked", error.reason, error.detail)
        case Unresolved():
            answer = Answer(422, "unresolved", error.reason, error.detail, alerts=True)
        case StripeAway():
            answer = Answer(503, "unavailable", "stripe_away", str(error))
        case TimeoutError():
            answer = Answer(503, "unavailable", "out_of_time", str(error))
        case Unavailable() | OutcomeUnknown() | InternalError():
            answer = Answer(503, "unavailable", error.reason.lower(), str(error))
        case StripeRefuses():
            answer = Answer(500, "failed", "stripe_refuses", str(error), alerts=True)
        case CreditError():
            # The settler turns every other refusal of the credit service into a result.
            answer = Answer(500, "failed", error.reason.lower(), str(error), alerts=True)
        case _:
            # Its text may hold personal data, so only its kind is shown.
            answer = Answer(500, "failed", "bug", type(error).__name__, alerts=True)
    return answer
