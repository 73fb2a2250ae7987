"""Settles one of Stripe's objects, or one event about it, at the credit service.

Everything may be settled again, by several processes at once and in any order: purchases are known
by their payment, reversals by refund or dispute and revision.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Literal, TypeVar

from credit_service.client import Payment
from credit_service.errors import (
    IdempotencyKeyReused,
    PaymentMismatch,
    PaymentNotFound,
    PaymentReused,
    Refusal,
    ReversalReused,
    UserDeleted,
)
from stripe_bridge import grants, reversals
from stripe_bridge.fields import Object, child, id_of, optional_id, whole_list
from stripe_bridge.model import Grant, Needs, Nothing, Reversal, Unresolved
from stripe_bridge.stripe_api import StripeMissing

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable

    from credit_service.client import CreditClient
    from stripe_bridge.catalog import Policy
    from stripe_bridge.stripe_api import StripeReads

# The thin event that names an event which Stripe failed to make ("Handle irrecoverable events").
EVENT_NEVER_MADE = "v2.core.health.event_generation_failure.resolved"

# A dispute that took the whole payment, for its own currency tells no share of it.
IN_OTHER_CURRENCY = "reversal_in_other_currency"

Outcome = Literal["conflict", "committed", "replayed", "nothing"]
_GRAVEST_FIRST: tuple[Outcome, ...] = ("conflict", "committed", "replayed", "nothing")

_Decision = TypeVar("_Decision")


@dataclass(frozen=True, slots=True)
class Settled:
    """What came of it.

    Attributes:
        outcome: committed now; replayed, for it was there; nothing to write; or conflict: the
            credit service has other figures under that name, they stand, and a person must look.
        reason: a snake_case word that is counted and logged.
        refs: the payments and reversals it was about.
    """

    outcome: Outcome
    reason: str
    refs: tuple[str, ...] = ()


class Settler:
    """Decides what an object asks for, reading from Stripe what it lacks, and gets it written.

    Every method raises:
        Unresolved: the money is ours, and a person must act.
        StripeAway, StripeRefuses: an object had to be read and could not be.
        CreditError: the credit service gave no final answer, or does not let the bridge in.
    """

    def __init__(
        self,
        stripe: StripeReads,
        credits: CreditClient,  # noqa: A002  # the credit service, as the contract names it
        policy: Policy,
        *,
        validate_only: bool = False,
    ) -> None:
        """Settles at `credits`; with `validate_only` it finds out everything and writes nothing."""
        self._stripe = stripe
        self._credits = credits
        self._policy = policy
        self._validate_only = validate_only

    @property
    def validate_only(self) -> bool:
        """Whether it writes nothing."""
        return self._validate_only

    async def event(self, kind: str, obj: Object) -> Settled:
        """Settles a snapshot event of type `kind` about `obj`."""
        settle = _BY_EVENT_TYPE.get(kind)
        return Settled("nothing", "unknown_type") if settle is None else await settle(self, obj)

    async def thin_event(self, kind: str, *, event_id: str, object_id: str) -> Settled:
        """Settles a thin event, whose object is read as it now is.

        Args:
            kind: its type without `v1.`.
            event_id: `evt_...`.
            object_id: of the object it is about; empty where it names none.
        """
        if kind == EVENT_NEVER_MADE:
            impact = child(await self._stripe.thin_event(event_id), "data", "impact")
            about = impact.get("related_object_id") or impact.get("related_object")
            return await self.replay(optional_id(about) or "")
        if kind not in EVENT_TYPES:
            return Settled("nothing", "unknown_type")
        return await self.event(kind, await self._stripe.read(id_of({"id": object_id})))

    async def listed_event(self, event: Object) -> Settled:
        """Settles an event as Stripe's API shows it."""
        if event.get("account"):
            return Settled("nothing", "connected_account")
        return await self.event(str(event.get("type")), child(event, "data", "object"))

    async def replay(self, id: str) -> Settled:  # noqa: A002  # Stripe's own word
        """Reads an event or an object by its id and settles it, the object as it now is."""
        if not self._stripe.knows(id):
            return Settled("nothing", "unknown_object")
        if id.startswith("evt_"):
            return await self._replay_event(id)
        obj = await self._stripe.read(id)
        settle = _BY_OBJECT.get(str(obj.get("object")))
        return Settled("nothing", "unknown_object") if settle is None else await settle(self, obj)

    async def _replay_event(self, event_id: str) -> Settled:
        try:
            event = await self._stripe.read(event_id)
        except StripeMissing:
            event = await self._stripe.thin_event(event_id)
        if event.get("account"):
            return Settled("nothing", "connected_account")
        about = child(event, "related_object") or child(event, "data", "object")
        return await self.thin_event(
            str(event.get("type")).removeprefix("v1."),
            event_id=event_id,
            object_id=str(about.get("id") or ""),
        )

    async def session(self, obj: Object) -> Settled:
        """Grants what a Checkout Session paid for."""
        return await self._granted(await self._decided(self._of_session, obj))

    async def session_paid_later(self, obj: Object) -> Settled:
        """Grants what a Checkout Session paid for, whose delayed payment has succeeded."""
        unpaid = obj.get("payment_status") == "unpaid"
        return await self.session(await self._stripe.read(id_of(obj)) if unpaid else obj)

    async def session_failed(self, _: Object) -> Settled:
        """Grants nothing: the delayed payment of a Checkout Session has failed."""
        return Settled("nothing", "payment_failed")

    async def payment_intent(self, obj: Object) -> Settled:
        """Grants what a payment intent paid for, which its session may tell.

        One that is captured by hand succeeds without another event about its session.
        """
        decided = await self._decided(self._of_payment_intent, obj)
        if decided == grants.SESSION_DECIDES:
            return await self.payment(obj)
        return await self._granted(decided)

    async def payment(self, obj: Object) -> Settled:
        """Grants what a payment intent paid for, which its session or invoice may tell."""
        paid = [each async for each in self._paid_by({"payment_intent": id_of(obj)})]
        return await self._granted(await self._grant_behind(paid))

    async def invoice(self, obj: Object) -> Settled:
        """Grants what an invoice paid for."""
        return await self._granted(await self._decided(self._of_invoice, obj))

    async def refund(self, obj: Object, *, failed: bool = False) -> Settled:
        """Takes back what a refund holds; `failed` says that it failed, whatever its status."""
        charge = await self._charge_of(obj)
        return await self._reversed(obj, charge, partial(reversals.of_refund, failed=failed))

    async def dispute(self, obj: Object) -> Settled:
        """Takes back what a dispute holds."""
        return await self._reversed(obj, await self._charge_of(obj), reversals.of_dispute)

    async def charge(self, obj: Object) -> Settled:
        """Takes back what every refund of a charge holds."""
        refunds = whole_list(obj.get("refunds"))
        if refunds is None:
            refunds = [refund async for refund in self._stripe.refunds(charge=id_of(obj))]
        settled = [await self._reversed(each, obj, reversals.of_refund) for each in refunds]
        if not settled:
            return Settled("nothing", "no_refunds")
        gravest = min(settled, key=lambda each: _GRAVEST_FIRST.index(each.outcome))
        refs = dict.fromkeys(ref for each in settled for ref in each.refs)
        return Settled(gravest.outcome, gravest.reason, tuple(refs))

    def _of_session(self, session: Object, items: list[Object] | None) -> Grant | Nothing:
        return grants.of_session(session, line_items=items, policy=self._policy)

    def _of_payment_intent(self, intent: Object, _: list[Object] | None) -> Grant | Nothing:
        return grants.of_payment_intent(intent, policy=self._policy)

    def _of_invoice(self, invoice: Object, lines: list[Object] | None) -> Grant | Nothing:
        return grants.of_invoice(invoice, lines=lines, policy=self._policy)

    async def _decided(
        self, rule: Callable[[Object, list[Object] | None], _Decision], obj: Object
    ) -> _Decision:
        """Asks a rule about an object, and again with each thing that it says it needs."""
        lines: list[Object] | None = None
        read: set[tuple[str, str]] = set()
        while True:
            try:
                return rule(obj, lines)
            except Needs as needs:
                what, needed_id = needs.what, needs.id
            if (what, needed_id) in read:
                raise Unresolved(
                    "object_incomplete", f"Stripe does not tell {what} of {needed_id}."
                )
            read.add((what, needed_id))
            match what:
                case "line_items":
                    lines = await self._stripe.line_items(needed_id)
                case "invoice_lines":
                    lines = await self._stripe.invoice_lines(needed_id)
                case "customer":
                    obj = {**obj, "customer": await self._stripe.read(needed_id)}
                case _:
                    obj = await self._stripe.read(needed_id)

    async def _granted(self, grant: Grant | Nothing) -> Settled:
        if isinstance(grant, Nothing):
            return Settled("nothing", grant.reason)
        refs = (grant.payment_ref,)
        try:
            bought = await self._credits.purchase_credits(
                grant.user_id,
                grant.credits,
                payment=Payment(
                    ref=grant.payment_ref,
                    amount_minor=grant.amount_minor,
                    currency=grant.currency,
                ),
                idempotency_key=grant.payment_ref,
                reference=grant.source,
                validate_only=self._validate_only,
            )
        except UserDeleted:
            return Settled("nothing", "user_deleted", refs)
        except (PaymentReused, IdempotencyKeyReused) as conflict:
            return Settled("conflict", conflict.reason.lower(), refs)
        except Refusal as refusal:
            raise _unresolved(refusal) from refusal
        return Settled("replayed" if bought.replayed else "committed", "purchase", refs)

    async def _reversed(
        self, obj: Object, charge: Object | None, rule: Callable[..., Reversal | Nothing]
    ) -> Settled:
        """Reverses the purchase of a charge, and makes that first where nobody has."""

        async def reverse(paid: str) -> Settled | None:
            of_payment = partial(rule, charge=charge, payment_ref=f"stripe:{paid}")
            return await self._posted(await self._decided(lambda obj, _: of_payment(obj), obj))

        paid: list[str] = []
        async for each in self._paid_by(charge or {}):
            if settled := await reverse(each):
                return settled
            paid.append(each)
        grant = await self._grant_behind(paid)
        bought = await self._granted(grant)
        if isinstance(grant, Nothing) or bought.outcome == "nothing":
            return bought
        # Where nothing may be written, the purchase is still missing, and all that there is to say.
        return await reverse(grant.payment_ref.removeprefix("stripe:")) or bought

    async def _posted(self, reversal: Reversal | Nothing) -> Settled | None:
        """Posts a reversal; None where no purchase was made for its payment."""
        if isinstance(reversal, Nothing):
            return Settled("nothing", reversal.reason)
        refs = (reversal.payment_ref, reversal.reversal_ref)
        try:
            done = await self._credits.reverse_purchase(
                reversal.payment_ref,
                reversal_ref=reversal.reversal_ref,
                revision=reversal.revision,
                reversed_minor=reversal.reversed_minor,
                paid_minor=reversal.paid_minor,
                currency=reversal.currency,
                reason=reversal.reason,
                validate_only=self._validate_only,
            )
        except PaymentNotFound:
            return None
        except UserDeleted:
            return Settled("nothing", "user_deleted", refs)
        except (ReversalReused, PaymentMismatch) as conflict:
            return Settled("conflict", conflict.reason.lower(), refs)
        except Refusal as refusal:
            raise _unresolved(refusal) from refusal
        foreign = reversal.reason.endswith(reversals.OTHER_CURRENCY)
        reason = IN_OTHER_CURRENCY if foreign else "reversal"
        return Settled("replayed" if done.replayed else "committed", reason, refs)

    async def _charge_of(self, obj: Object) -> Object | None:
        """Finds the charge of a refund or dispute."""
        charge = obj.get("charge")
        if isinstance(charge, dict) and "amount" in charge:
            return charge
        charge_id = optional_id(charge)
        intent_id = optional_id(obj.get("payment_intent"))
        if charge_id is None and intent_id is not None:
            charge_id = optional_id((await self._stripe.read(intent_id)).get("latest_charge"))
        return None if charge_id is None else await self._stripe.read(charge_id)

    async def _paid_by(self, charge: Object) -> AsyncIterator[str]:
        """Yields what a charge paid and a purchase may be named after: an intent, an invoice.

        API versions since 2025-03-31 no longer tell the invoice of a charge. It is looked for last,
        so that a purchase which the intent names takes no call to Stripe.
        """
        invoice_id = optional_id(charge.get("invoice"))
        intent_id = optional_id(charge.get("payment_intent"))
        if invoice_id is not None:
            yield invoice_id
        if intent_id is None:
            return
        yield intent_id
        if invoice_id is None and (found := await self._stripe.invoice_paid_by(intent_id)):
            yield found

    async def _grant_behind(self, paid: Iterable[str]) -> Grant | Nothing:
        """Finds the grant of a payment, given the ids that `_paid_by` yields."""
        for paid_id in paid:
            if paid_id.startswith("in_"):
                found = await self._decided(self._of_invoice, await self._stripe.read(paid_id))
            else:
                found = await self._grant_of_intent(paid_id)
            if isinstance(found, Grant):
                return found
        return Nothing("not_ours")

    async def _grant_of_intent(self, intent_id: str) -> Grant | Nothing:
        async for session in self._stripe.sessions(payment_intent=intent_id):
            found = await self._decided(self._of_session, session)
            if isinstance(found, Grant):
                return found
        return await self._decided(self._of_payment_intent, await self._stripe.read(intent_id))


def _unresolved(refusal: Refusal) -> Unresolved:
    return Unresolved(refusal.reason.lower(), str(refusal))


_Settling = Callable[[Settler, Object], Awaitable[Settled]]

_BY_EVENT_TYPE: dict[str, _Settling] = {
    "checkout.session.completed": Settler.session,
    "checkout.session.async_payment_succeeded": Settler.session_paid_later,
    "checkout.session.async_payment_failed": Settler.session_failed,
    "payment_intent.succeeded": Settler.payment_intent,
    "invoice.paid": Settler.invoice,
    "refund.created": Settler.refund,
    "refund.updated": Settler.refund,
    "refund.failed": partial(Settler.refund, failed=True),
    "charge.refunded": Settler.charge,
    "charge.refund.updated": Settler.refund,
    "charge.dispute.created": Settler.dispute,
    "charge.dispute.updated": Settler.dispute,
    "charge.dispute.funds_withdrawn": Settler.dispute,
    "charge.dispute.funds_reinstated": Settler.dispute,
    "charge.dispute.closed": Settler.dispute,
}

# What the webhook endpoint subscribes to and the poller lists; a list takes 20 at most.
EVENT_TYPES = tuple(_BY_EVENT_TYPE)

_BY_OBJECT: dict[str, _Settling] = {
    "checkout.session": Settler.session,
    "payment_intent": Settler.payment,
    "invoice": Settler.invoice,
    "charge": Settler.charge,
    "refund": Settler.refund,
    "dispute": Settler.dispute,
}
