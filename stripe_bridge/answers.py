"""What the webhook answers Stripe: one table of everything that may come of an event.

Stripe repeats whatever is not answered 2xx, for up to three days, so 2xx means: committed, or
nothing to do ("Receive Stripe events in your webhook endpoint"). The other statuses are all the
same to Stripe; they tell people and counters what is wrong.
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

# The header for whoever may ask again.
RETRY_AFTER = {"Retry-After": "2"}


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer to a webhook request.

    Attributes:
        status: of HTTP.
        outcome: committed, replayed, nothing and conflict as `Settled` has them; parked:
            unresolved, and too old for Stripe to repeat it; refused: no event of Stripe's;
            unresolved: a person must act first; unavailable: time mends it; failed: time does not.
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
        """What Stripe shows in its list of deliveries; a refusal tells a stranger nothing."""
        match self.outcome:
            case "refused":
                return error_body("refused", "This is no event that Stripe signed for us.")
            case "unresolved":
                return error_body(self.reason, "A person must act; the bridge's log says how.")
            case "unavailable":
                return error_body(self.reason, "Not now; send it again.")
            case "failed":
                return error_body("failed", "The failure is logged.")
        return {"outcome": self.outcome, "reason": self.reason}


def error_body(reason: str, message: str) -> dict[str, object]:
    """Makes the body of an answer that is no success."""
    return {"error": {"reason": reason, "message": message}}


def of_refusal(refusal: Refusal) -> Answer:
    """Answers what is no event of Stripe's."""
    return Answer(refusal.status, "refused", refusal.reason, alerts=refusal.alerts)


def of_settled(settled: Settled) -> Answer:
    """Answers an event that has been settled; a conflict too, because no repetition ends it."""
    return Answer(200, settled.outcome, settled.reason, alerts=settled.alerts)


def is_bug(error: Exception) -> bool:
    """Tells whether an error is none that settling is known to raise."""
    known = (Unresolved, StripeAway, StripeRefuses, CreditError, TimeoutError)
    return not isinstance(error, known)


def of_error(error: Exception, *, age_seconds: float, park_after_seconds: float) -> Answer:
    """Answers an event that could not be settled.

    Args:
        error: what `Settler` raised.
        age_seconds: how long ago the event happened.
        park_after_seconds: from this age on, what only a person resolves is answered 200: Stripe
            gives up an endpoint that goes on failing, and reconcile finds the object again.
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
            # Whatever else the credit service refuses, the settler has made something of it.
            answer = Answer(500, "failed", error.reason.lower(), str(error), alerts=True)
        case _:
            # Its text might hold anything, so only its kind is shown.
            answer = Answer(500, "failed", "bug", type(error).__name__, alerts=True)
    return answer
