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
from stripe_bridge.settle import IN_OTHER_CURRENCY
from stripe_bridge.stripe_api import StripeAway, StripeRefuses

if TYPE_CHECKING:
    from stripe_bridge.settle import Settled

Outcome = Literal[
    "committed", "replayed", "nothing", "conflict", "parked",
    "refused", "unresolved", "unavailable", "failed",
]  # fmt: skip

# The header for whoever may ask again.
RETRY_AFTER = {"Retry-After": "2"}

_A_PERSON_MUST_ACT = {"conflict", "unresolved", "failed"}


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
    """

    status: int
    outcome: Outcome
    reason: str
    problem: str = ""

    @property
    def alerts(self) -> bool:
        """Tells whether a person must look."""
        return (
            self.outcome in _A_PERSON_MUST_ACT
            # Signed by Stripe and out of time: the clock of this machine is wrong.
            or self.reason == "signature_timestamp"
            or (self.outcome == "committed" and self.reason == IN_OTHER_CURRENCY)
        )

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


def of_settled(settled: Settled) -> Answer:
    """Answers an event that has been settled; a conflict too, for no repetition mends it."""
    return Answer(200, settled.outcome, settled.reason)


def of_error(error: Exception, *, age_seconds: float, park_after_seconds: float) -> Answer:
    """Answers an event that could not be settled.

    Args:
        error: what `Settler` raised.
        age_seconds: how long ago the event happened.
        park_after_seconds: from this age on, what only a person resolves is answered 200: Stripe
            gives up an endpoint that goes on failing, and reconcile finds the object again.
    """
    if isinstance(error, Unresolved):
        parked = age_seconds >= park_after_seconds
        outcome: Outcome = "parked" if parked else "unresolved"
        return Answer(200 if parked else 422, outcome, error.reason, error.detail)
    match error:
        case StripeAway():
            mended_by_time, reason = True, "stripe_away"
        case TimeoutError():
            mended_by_time, reason = True, "out_of_time"
        case StripeRefuses():
            mended_by_time, reason = False, "stripe_refuses"
        case CreditError():
            # Whatever else the credit service refuses, the settler has made something of it.
            mended_by_time = isinstance(error, (Unavailable, OutcomeUnknown, InternalError))
            reason = error.reason.lower()
        case _:
            # Its text might hold anything, so only its kind is told.
            return Answer(500, "failed", "bug", type(error).__name__)
    if mended_by_time:
        return Answer(503, "unavailable", reason, str(error))
    return Answer(500, "failed", reason, str(error))
