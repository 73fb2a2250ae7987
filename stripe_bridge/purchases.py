"""Credits the purchases of sessions, payment intents and invoices."""

from __future__ import annotations

from typing import TYPE_CHECKING

from stripe_bridge import invoice_rules, session_rules
from stripe_bridge.apply_rule import apply_rule
from stripe_bridge.fields import child, id_of, optional_id
from stripe_bridge.model import Grant, Nothing, Settled, Unresolved

if TYPE_CHECKING:
    from stripe_bridge.catalog import Policy
    from stripe_bridge.credit_writes import CreditWrites
    from stripe_bridge.fields import Object
    from stripe_bridge.payments import PaidInvoice, Payments
    from stripe_bridge.stripe_api import StripeReads


class Purchases:
    """Decides how many credits an object paid for, and credits them.

    Every method raises as `Settler` does.
    """

    def __init__(
        self, stripe: StripeReads, payments: Payments, writes: CreditWrites, policy: Policy
    ) -> None:
        """Credits the purchases that `policy` allows, through `writes`."""
        self._stripe = stripe
        self._payments = payments
        self._writes = writes
        self._policy = policy

    async def session(self, obj: Object) -> Settled:
        """Credits the purchase of a Checkout Session."""
        try:
            return await self.credit(await self._of_session(obj))
        except Unresolved as problem:
            intent_id = optional_id(obj.get("payment_intent"))
            return await self.refunded_or(problem, intent_id=intent_id)

    async def session_paid_later(self, obj: Object) -> Settled:
        """Credits the purchase of a Checkout Session after its delayed payment succeeded."""
        unpaid = obj.get("payment_status") == "unpaid"
        return await self.session(await self._stripe.read(id_of(obj)) if unpaid else obj)

    async def payment_intent(self, obj: Object) -> Settled:
        """Credits the purchase of a payment intent, which its session may describe.

        A payment intent that is captured by hand succeeds without another event of its session.
        """
        try:
            decided = await self._of_payment_intent(obj)
            if decided != session_rules.SESSION_DECIDES:
                return await self.credit(decided)
        except Unresolved as problem:
            return await self.refunded_or(problem, intent_id=id_of(obj))
        return await self.payment(obj)

    async def payment(self, obj: Object) -> Settled:
        """Credits the purchase of a payment intent, which its session or invoice may describe."""
        intent_id = id_of(obj)
        paid = await self._payments.invoice_of_intent(intent_id)
        try:
            return await self.credit(await self.behind(intent_id, paid))
        except Unresolved as problem:
            invoice_id = None if paid is None else id_of(paid.invoice)
            return await self.refunded_or(problem, intent_id=intent_id, invoice_id=invoice_id)

    async def invoice(self, obj: Object) -> Settled:
        """Credits the purchase of an invoice."""
        try:
            found = await self._of_invoice(obj)
            if isinstance(found, Nothing) and found.alerts and await self._is_of_checkout(obj):
                found = Nothing(found.reason)
            return await self.credit(found)
        except Unresolved as problem:
            return await self.refunded_or(problem, intent_id=None, invoice_id=id_of(obj))

    async def refunded_or(
        self, problem: Unresolved, *, intent_id: str | None, invoice_id: str | None = None
    ) -> Settled:
        """Settles a payment that could not be credited, if it was wholly refunded.

        Raises:
            Unresolved: `problem`, because it was not wholly refunded.
        """
        refunded = self._payments.all_refunded(intent_id=intent_id, invoice_id=invoice_id)
        if await refunded:
            return Settled("nothing", "refunded")
        raise problem

    async def credit(self, grant: Grant | Nothing) -> Settled:
        """Credits a grant."""
        if isinstance(grant, Nothing):
            return Settled("nothing", grant.reason, alerts=grant.alerts)
        return await self._writes.purchase(grant)

    async def behind(self, intent_id: str | None, paid: PaidInvoice | None) -> Grant | Nothing:
        """Finds the grant of a payment: of its session, of the intent itself or of its invoice."""
        if intent_id is not None:
            found = await self._behind_intent(intent_id)
            if isinstance(found, Grant):
                return found
        if paid is not None:
            found = await self._of_invoice(paid.invoice)
            if isinstance(found, Grant):
                return found
        return Nothing("not_ours")

    async def _is_of_checkout(self, invoice: Object) -> bool:
        """Returns whether a payment of an invoice is credited by its session or by itself."""
        async for payment in self._stripe.payments_of_invoice(id_of(invoice)):
            intent_id = optional_id(child(payment, "payment").get("payment_intent"))
            if intent_id is None:
                continue
            try:
                found = await self._behind_intent(intent_id)
            except Unresolved:
                # The event of the session raises the alert.
                return True
            if isinstance(found, Grant):
                return True
        return False

    async def _behind_intent(self, intent_id: str) -> Grant | Nothing:
        async for session in self._stripe.sessions(payment_intent=intent_id):
            found = await self._of_session(session)
            if isinstance(found, Grant):
                return found
        return await self._of_payment_intent(await self._stripe.read(intent_id))

    async def _of_session(self, session: Object) -> Grant | Nothing:
        def rule(obj: Object, items: list[Object] | None) -> Grant | Nothing:
            return session_rules.of_session(obj, line_items=items, policy=self._policy)

        return await apply_rule(self._stripe, rule, session)

    async def _of_payment_intent(self, intent: Object) -> Grant | Nothing:
        def rule(obj: Object, _: list[Object] | None) -> Grant | Nothing:
            return session_rules.of_payment_intent(obj, policy=self._policy)

        return await apply_rule(self._stripe, rule, intent)

    async def _of_invoice(self, invoice: Object) -> Grant | Nothing:
        def rule(obj: Object, lines: list[Object] | None) -> Grant | Nothing:
            return invoice_rules.of_invoice(obj, lines=lines, policy=self._policy)

        found = await apply_rule(self._stripe, rule, invoice)
        if isinstance(found, Grant) and not invoice_rules.shows_off_stripe(invoice):
            # Read only now, because most invoices of other products need no read.
            found = await apply_rule(self._stripe, rule, await self._stripe.read(found.paid_by))
        return found
