"""Settles one of Stripe's objects, or one event about it, at the credit service.

Settling may be repeated, by several processes at once and in any order, because a purchase is
identified by its payment, and a reversal by its refund or dispute and its revision.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

from stripe_bridge.credit_writes import CreditWrites
from stripe_bridge.fields import Object, child, id_of, optional_id
from stripe_bridge.model import Settled
from stripe_bridge.payments import Payments
from stripe_bridge.purchases import Purchases
from stripe_bridge.reversals import Reversals
from stripe_bridge.stripe_api import Kind, StripeMissing, kind_of

if TYPE_CHECKING:
    from credit_service.client import CreditClient
    from stripe_bridge.catalog import Policy
    from stripe_bridge.stripe_api import StripeReads

# The thin event about an event that Stripe failed to make ("Handle irrecoverable events").
EVENT_NEVER_MADE = "v2.core.health.event_generation_failure.resolved"


class Settler:
    """Decides what an object changes, reads from Stripe what it lacks, and writes the change.

    Every method raises:
        Unresolved: the payment is for credits, and a person must act.
        StripeAway, StripeRefuses: an object could not be read.
        CreditError: the credit service gave no final answer, or does not accept the bridge's token.
    """

    def __init__(
        self,
        stripe: StripeReads,
        credits: CreditClient,  # noqa: A002  # the credit service, as the contract names it
        policy: Policy,
        *,
        validate_only: bool = False,
    ) -> None:
        """Settles at `credits`; with `validate_only` it checks everything and writes nothing."""
        self._stripe = stripe
        self.validate_only = validate_only
        writes, payments = CreditWrites(credits, validate_only=validate_only), Payments(stripe)
        self.purchases = Purchases(stripe, payments, writes, policy)
        self.reversals = Reversals(stripe, payments, writes, self.purchases, policy)

    async def payment_intent(self, obj: Object) -> Settled:
        """Settles the amount a payment intent received, which may be less than it asked for."""
        uncaptured = await self.reversals.uncaptured(obj)
        return uncaptured or await self.purchases.payment_intent(obj)

    async def session_now(self, obj: Object) -> Settled:
        """Settles a session as it is now; its payment may have been captured in part."""
        settled = await self.purchases.session(obj)
        payment = obj.get("payment_intent")
        if settled.outcome not in ("committed", "replayed") or payment is None:
            return settled
        intent = payment if isinstance(payment, dict) else await self._stripe.read(str(payment))
        return await self.reversals.uncaptured(intent) or settled

    async def invoice(self, obj: Object) -> Settled:
        """Settles the purchase of an invoice, and the parts of earlier invoices that it gives back.

        A part payment may have been refunded or disputed while the invoice was still open.
        """
        bought = await self.purchases.invoice(obj)
        settled = [bought]
        if bought.outcome in ("committed", "replayed"):
            settled += await self.reversals.part_payments(obj)
        return Settled.of_all([*settled, *await self.reversals.credit_lines(obj)])

    async def event(self, kind: str, obj: Object) -> Settled:
        """Settles a snapshot event of type `kind` about `obj`."""
        settle = _BY_EVENT_TYPE.get(kind)
        return Settled("nothing", "unknown_type") if settle is None else await settle(self, obj)

    async def thin_event(self, kind: str, *, event_id: str, object_id: str) -> Settled:
        """Settles a thin event, whose object is read as it is now.

        Args:
            kind: its type without `v1.`.
            event_id: `evt_...`.
            object_id: of the object it is about; empty: it names none.
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
        """Reads an event or an object by its id and settles it; an object as it is now."""
        kind = kind_of(id)
        if kind is Kind.EVENT:
            return await self._replay_event(id)
        settle = None if kind is None else _BY_KIND.get(kind)
        if settle is None:
            return Settled("nothing", "unknown_object")
        return await settle(self, await self._stripe.read(id))

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


_Settling = Callable[[Settler, Object], Awaitable[Settled]]


def _session(settler: Settler, obj: Object) -> Awaitable[Settled]:
    return settler.purchases.session(obj)


def _session_paid_later(settler: Settler, obj: Object) -> Awaitable[Settled]:
    return settler.purchases.session_paid_later(obj)


async def _session_failed(_settler: Settler, _obj: Object) -> Settled:
    return Settled("nothing", "payment_failed")


def _session_now(settler: Settler, obj: Object) -> Awaitable[Settled]:
    return settler.session_now(obj)


def _payment_intent(settler: Settler, obj: Object) -> Awaitable[Settled]:
    return settler.payment_intent(obj)


async def _payment(settler: Settler, obj: Object) -> Settled:
    return await settler.reversals.uncaptured(obj) or await settler.purchases.payment(obj)


def _invoice(settler: Settler, obj: Object) -> Awaitable[Settled]:
    return settler.invoice(obj)


def _charge(settler: Settler, obj: Object) -> Awaitable[Settled]:
    return settler.reversals.charge(obj)


def _refund(settler: Settler, obj: Object) -> Awaitable[Settled]:
    return settler.reversals.refund(obj)


def _failed_refund(settler: Settler, obj: Object) -> Awaitable[Settled]:
    return settler.reversals.refund(obj, failed=True)


def _dispute(settler: Settler, obj: Object) -> Awaitable[Settled]:
    return settler.reversals.dispute(obj)


_BY_EVENT_TYPE: dict[str, _Settling] = {
    "checkout.session.completed": _session,
    "checkout.session.async_payment_succeeded": _session_paid_later,
    "checkout.session.async_payment_failed": _session_failed,
    "payment_intent.succeeded": _payment_intent,
    "invoice.paid": _invoice,
    "refund.created": _refund,
    "refund.updated": _refund,
    "refund.failed": _failed_refund,
    "charge.refunded": _charge,
    "charge.refund.updated": _refund,
    "charge.dispute.created": _dispute,
    "charge.dispute.updated": _dispute,
    "charge.dispute.funds_withdrawn": _dispute,
    "charge.dispute.funds_reinstated": _dispute,
    "charge.dispute.closed": _dispute,
}

# The events of the webhook endpoint and the poller; the maximum of a list is 20.
EVENT_TYPES = tuple(_BY_EVENT_TYPE)

_BY_KIND: dict[Kind, _Settling] = {
    Kind.SESSION: _session_now,
    Kind.PAYMENT_INTENT: _payment,
    Kind.INVOICE: _invoice,
    Kind.CHARGE: _charge,
    Kind.REFUND: _refund,
    Kind.DISPUTE: _dispute,
}
