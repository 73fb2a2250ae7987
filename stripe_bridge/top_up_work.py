"""The work on one request for a top-up in one round, step by step.

Before each step, all facts that decide it are read from Stripe and from the credit service.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING
from uuid import UUID

import structlog

from credit_service.errors import NotFound, PaymentReused, TopUpHasPayment, TopUpNotOpen
from credit_service.v1 import credit_service_pb2 as pb
from stripe_bridge import metrics, top_up_rules
from stripe_bridge.fields import child
from stripe_bridge.model import Unresolved, ref
from stripe_bridge.stripe_api import Kind, StripeRefuses, kind_of
from stripe_bridge.top_up_payments import Declined, StateChanged, Wanted
from stripe_bridge.top_up_rules import Payment, Situation, Step

if TYPE_CHECKING:
    from google.protobuf.timestamp_pb2 import Timestamp

    from credit_service.client import CreditClient
    from stripe_bridge.catalog import Policy
    from stripe_bridge.fields import Object
    from stripe_bridge.settle import Settler
    from stripe_bridge.top_up_payments import TopUpPayments

_log = structlog.get_logger()

# Every step makes progress, so more steps mean that others keep changing the request.
_STEPS_MAX = 10


@dataclass(frozen=True, slots=True)
class Worked:
    """The result of a round for one request.

    Attributes:
        top_up: the request as the round has read it.
        outcome: waiting, credited, try_again, given_up, not_needed, closed, unresolved or away.
        reason: a snake_case word; empty if the outcome needs none.
        detail: a sentence for the operator; may be empty.
        payment: the id of the payment intent; empty: there is none.
    """

    top_up: pb.TopUpRequest
    outcome: str
    reason: str = ""
    detail: str = ""
    payment: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Charging:
    """The parts that charge top-ups.

    Attributes:
        credit_service: keeps the requests.
        payments: charges at Stripe.
        settler: credits the purchases.
        policy: with the packs and the limits of purchases.
        retry_after: the pause between a failed try and the next one.
    """

    credit_service: CreditClient
    payments: TopUpPayments
    settler: Settler
    policy: Policy
    retry_after: timedelta


class TopUpWork:
    """The work on one request in one round."""

    def __init__(self, top_up: pb.TopUpRequest, charging: Charging) -> None:
        """Works on `top_up` with the parts of `charging`."""
        self._top_up = top_up
        self._credit_service = charging.credit_service
        self._payments = charging.payments
        self._settler = charging.settler
        self._policy = charging.policy
        self._retry_after = charging.retry_after
        self._pack = charging.policy.catalog.pack(top_up.pack)
        self._tries = top_up.tries
        self._was_due = False
        self._payment = top_up.payment_ref.removeprefix(ref(""))

    async def done(self) -> Worked:
        """Does what can be done now.

        Raises:
            StripeAway, StripeRefuses, Unresolved, CreditError: the next round tries again.
        """
        if self._payment and kind_of(self._payment) is not Kind.PAYMENT_INTENT:
            # An operator has noted this payment, and takes care of it.
            return self._worked("waiting", "other_payment")
        self._was_due = self._is_due()
        if not self._was_due:
            if not self._payment:
                return self._worked("waiting", "retry_later")
            # Stripe is not read here, because many requests may wait.
            is_open, is_needed = await self._noted()
            if is_open and is_needed:
                return self._worked("waiting", "retry_later")
        elif not self._payment and (problem := await self._find_or_make()):
            return await self._record(problem)
        for _ in range(_STEPS_MAX):
            if worked := await self._step():
                return worked
        return self._worked("waiting", "contended")

    async def _find_or_make(self) -> str | None:
        """Finds or makes the payment intent; returns why that is impossible."""
        problem = top_up_rules.unsellable(self._pack, self._policy)
        if problem or self._pack is None:
            return problem
        try:
            self._payment = await self._payments.find_or_make(self._wanted(), self._pack)
        except Declined as declined:
            return declined.reason
        return None

    async def _step(self) -> Worked | None:
        """Does the next step; None: there may be another one in this round."""
        payment = self._payment
        intent = await self._payments.read(payment)
        state, link = top_up_rules.payment_of(intent), await self._payments.links(intent)
        unpaid = state is Payment.UNPAID
        card = await self._payments.card_of(intent) if unpaid else None
        # This comes last, because the balance must decide right before the charge.
        is_open, is_needed = await self._noted()
        if self._payment != payment:
            await self._cancel(payment)
            return None
        now = Situation(
            is_open=is_open,
            is_needed=is_needed,
            # The time of the last change does not decide this, because a note is a change too.
            is_due=self._was_due and self._top_up.tries == self._tries,
            payment=state,
            was_declined=bool(intent.get("last_payment_error")),
            link=link,
        )
        worked: Worked | None = None
        match top_up_rules.next_step(now):
            case Step.WAIT:
                worked = self._worked("waiting" if is_open else "closed", state.name.lower())
            case Step.CREDIT:
                worked = await self._credit(intent)
            case Step.CONFIRM:
                worked = await self._charge(intent, card)
            case Step.CLOSE_LINK:
                await self._payments.close_links(intent)
            case Step.CANCEL:
                await self._cancel(payment)
            case Step.NOT_NEEDED:
                worked = await self._close(pb.TOP_UP_FAILURE_NOT_NEEDED, "not_needed")
            case Step.PAID_BY_LINK:
                worked = await self._close(pb.TOP_UP_FAILURE_NOT_NEEDED, "paid_by_link")
            case Step.GIVE_UP:
                reason = top_up_rules.decline_reason(child(intent, "last_payment_error"))
                url = await self._payments.link_to_pay(intent)
                worked = await self._close(pb.TOP_UP_FAILURE_GIVEN_UP, reason, url)
        return worked

    async def _noted(self) -> tuple[bool, bool]:
        """Notes the payment; returns whether the request is open, and whether it is needed now.

        If another payment was noted before, that one is the request's from now on.
        """
        try:
            noted = await self._credit_service.note_top_up(
                self._top_up.user_id, self._top_up.id, ref(self._payment)
            )
        except TopUpHasPayment as other:
            self._payment = other.payment_ref.removeprefix(ref(""))
            return True, False
        except (TopUpNotOpen, PaymentReused, NotFound):
            return False, False
        self._top_up = noted.top_up
        return noted.top_up.state == pb.TOP_UP_STATE_OPEN, noted.needed

    async def _charge(self, intent: Object, card: str | None) -> Worked | None:
        if card is None:
            return await self._fail("no_card", intent)
        key = f"{self._top_up.id}:{self._top_up.tries + 1}"
        try:
            await self._payments.confirm(intent, card, key=key)
        except Declined as declined:
            return await self._fail(declined.reason, intent)
        except StateChanged:
            pass
        return None

    async def _credit(self, intent: Object) -> Worked:
        settled = await self._settler.payment_intent(intent)
        if settled.outcome in ("committed", "replayed"):
            return self._worked("credited", settled.reason)
        # It was paid but not credited: the user was deleted, or the ledger has other figures.
        return self._worked("unresolved", settled.reason, f"{self._payment} is not credited.")

    async def _fail(self, reason: str, intent: Object) -> Worked | None:
        """Records a failed try with a link to pay; None: the payment has changed since."""
        url = await self._link(intent)
        if top_up_rules.is_last(self._top_up.tries):
            try:
                await self._payments.cancel(self._payment)
            except StateChanged:
                return None
        return await self._record(reason, url)

    async def _record(self, reason: str, url: str = "") -> Worked:
        """Records a failed try; the payment must be cancelled before the last one is recorded."""
        last = top_up_rules.is_last(self._top_up.tries)
        failure = pb.TOP_UP_FAILURE_GIVEN_UP if last else pb.TOP_UP_FAILURE_TRY_AGAIN
        return await self._close(failure, reason, url)

    async def _link(self, intent: Object) -> str:
        if self._pack is None or top_up_rules.unsellable(self._pack, self._policy):
            return ""
        try:
            return await self._payments.open_link(self._wanted(), self._pack, intent)
        except (StripeRefuses, Unresolved) as problem:
            # A pack whose price Stripe does not sell must not hide the failure.
            metrics.ALERTS.labels("stripe_refuses").inc()
            _log.error("top-up without a link", top_up=self._top_up.id, problem=str(problem))
            return ""

    async def _close(
        self, failure: pb.TopUpFailure.ValueType, reason: str, url: str = ""
    ) -> Worked:
        try:
            await self._credit_service.fail_top_up(
                self._top_up.user_id,
                self._top_up.id,
                self._top_up.tries + 1,
                reason=reason,
                failure=failure,
                link=url,
                payment_ref=ref(self._payment) if self._payment else "",
            )
        except (TopUpNotOpen, NotFound):
            return self._worked("closed", reason)
        except TopUpHasPayment:
            return self._worked("waiting", "contended")
        return self._worked(_OUTCOMES[failure], reason)

    async def _cancel(self, payment: str) -> None:
        """Cancels an intent, unless it was paid or cancelled before; the next step sees that."""
        with suppress(StateChanged):
            await self._payments.cancel(payment)

    def _is_due(self) -> bool:
        if not self._top_up.tries:
            return True
        return datetime.now(UTC) - _time(self._top_up.update_time) >= self._retry_after

    def _wanted(self) -> Wanted:
        top_up = self._top_up
        return Wanted(top_up.id, UUID(top_up.user_id), _time(top_up.create_time))

    def _worked(self, outcome: str, reason: str, detail: str = "") -> Worked:
        return Worked(self._top_up, outcome, reason, detail, self._payment)


_OUTCOMES = {
    pb.TOP_UP_FAILURE_TRY_AGAIN: "try_again",
    pb.TOP_UP_FAILURE_GIVEN_UP: "given_up",
    pb.TOP_UP_FAILURE_NOT_NEEDED: "not_needed",
}


def _time(moment: Timestamp) -> datetime:
    return moment.ToDatetime(UTC)
