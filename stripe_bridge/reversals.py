"""Reverses the credits of refunded and disputed payments, and of plans that were changed."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Protocol

from stripe_bridge import dispute_rules, plan_change_rules, refund_rules
from stripe_bridge.apply_rule import apply_rule
from stripe_bridge.fields import child, id_of, optional_id
from stripe_bridge.model import Nothing, Settled, Unresolved

if TYPE_CHECKING:
    from stripe_bridge.catalog import Policy
    from stripe_bridge.credit_writes import CreditWrites
    from stripe_bridge.fields import Object
    from stripe_bridge.model import Basis, Reversal
    from stripe_bridge.payments import Payments
    from stripe_bridge.purchases import Purchases
    from stripe_bridge.stripe_api import StripeReads


class _Rule(Protocol):
    def __call__(self, obj: Object, /, *, basis: Basis) -> Reversal | Nothing: ...


class Reversals:
    """Reverses the purchases of refunded and disputed charges, and of credited lines.

    Every method raises as `Settler` does.
    """

    def __init__(
        self,
        stripe: StripeReads,
        payments: Payments,
        writes: CreditWrites,
        purchases: Purchases,
        policy: Policy,
    ) -> None:
        """Reverses through `writes`; credits a missing purchase through `purchases` first."""
        self._stripe = stripe
        self._payments = payments
        self._writes = writes
        self._purchases = purchases
        self._policy = policy

    async def refund(self, obj: Object, *, failed: bool = False) -> Settled:
        """Reverses the share of a refund; `failed`: it failed, despite its status."""
        charge = await self._payments.charge_of(obj)
        if charge is None:
            return Settled("nothing", "not_ours")
        return await self._refunded(obj, charge, failed=failed)

    async def uncaptured(self, intent: Object) -> Settled | None:
        """Reverses the part that a payment intent never received; None: it received all."""
        reversal = refund_rules.of_capture(intent)
        if reversal is None:
            return None
        async for refund in self._stripe.refunds(payment_intent=reversal.paid_by):
            same_amount = refund.get("amount") == reversal.reversed_minor
            if same_amount and await self._stripe.releases_capture(id_of(refund)):
                # Stripe shows the rest as a refund, which is settled under the refund's own id.
                return await self.refund(refund)
        if settled := await self._writes.reverse(reversal):
            return settled
        try:
            grant = await self._purchases.behind(reversal.paid_by, None)
            bought = await self._purchases.credit(grant)
        except Unresolved as problem:
            return await self._purchases.refunded_or(problem, intent_id=reversal.paid_by)
        if isinstance(grant, Nothing) or bought.outcome == "nothing":
            return bought
        return await self._writes.reverse(reversal) or bought

    async def dispute(self, obj: Object) -> Settled:
        """Reverses the share of a dispute."""
        charge = await self._payments.charge_of(obj)
        if charge is None:
            return Settled("nothing", "not_ours")
        return await self._reversed(obj, charge, dispute_rules.of_dispute)

    async def charge(self, obj: Object) -> Settled:
        """Reverses the share of every refund of a charge, all as Stripe shows them now.

        A refund that cannot be settled does not stop the others.
        """
        charge_id = id_of(obj)
        # Only an old event shows the invoice of a charge that has no payment intent.
        charge = {**await self._stripe.read(charge_id), "invoice": obj.get("invoice")}
        settled: list[Settled] = []
        unresolved: list[Unresolved] = []
        async for refund in self._stripe.refunds(charge=charge_id):
            try:
                settled.append(await self._refunded(refund, charge))
            except Unresolved as problem:
                unresolved.append(problem)
        if unresolved:
            raise unresolved[0]
        if not settled:
            return Settled("nothing", "no_refunds")
        return Settled.of_all(settled)

    async def part_payments(self, invoice: Object) -> list[Settled]:
        """Reverses the refunds and disputes of the payments of an invoice that has several.

        Before the invoice was paid in full there was nothing to reverse.
        """
        settled: list[Settled] = []
        payments = [each async for each in self._stripe.payments_of_invoice(id_of(invoice))]
        if len(payments) == 1:
            return settled
        for payment in payments:
            intent_id = optional_id(child(payment, "payment").get("payment_intent"))
            if intent_id is None:
                continue
            refunds = self._stripe.refunds(payment_intent=intent_id)
            settled += [await self.refund(refund) async for refund in refunds]
            disputes = self._stripe.disputes(payment_intent=intent_id)
            settled += [await self.dispute(dispute) async for dispute in disputes]
        return settled

    async def credit_lines(self, obj: Object) -> list[Settled]:
        """Reverses the credits that a paid invoice's credit lines give back of earlier invoices.

        A line that cannot be settled does not stop the others.
        """
        if self._policy.catalog.is_empty or not plan_change_rules.may_credit(obj):
            return []
        lines = await self._stripe.invoice_lines(id_of(obj))
        settled: list[Settled] = []
        unresolved: list[Unresolved] = []
        for line in plan_change_rules.listed_credit_lines(lines, self._policy):
            try:
                settled.append(await self._credited(line, lines))
            except Unresolved as problem:
                unresolved.append(problem)
        if unresolved:
            raise unresolved[0]
        return settled

    async def _credited(self, line: Object, lines: list[Object]) -> Settled:
        """Reverses the credits of one credit line; credits its purchase first if it is missing."""
        items = plan_change_rules.credited_by(line, lines)
        credited = await self._stripe.read(items.invoice_id)
        reversal = plan_change_rules.of_credit_line(
            line,
            items,
            credited=credited,
            lines=await self._stripe.invoice_lines(items.invoice_id),
            policy=self._policy,
        )
        if isinstance(reversal, Nothing):
            return Settled("nothing", reversal.reason)
        if settled := await self._writes.reverse(reversal):
            return settled
        if credited.get("status") in ("draft", "open"):
            raise Unresolved(
                "credited_invoice_unpaid",
                f"{id_of(line)} gives back a part of {items.invoice_id}, which is not paid yet.",
            )
        bought = await self._purchases.invoice(credited)
        # In a dry run the purchase is still missing, so only the purchase can be reported.
        return (
            bought
            if bought.outcome == "nothing"
            else await self._writes.reverse(reversal) or bought
        )

    async def _refunded(self, refund: Object, charge: Object, *, failed: bool = False) -> Settled:
        rule = partial(refund_rules.of_refund, failed=failed)
        try:
            return await self._reversed(refund, charge, rule)
        except refund_rules.CurrencyMismatch:
            # An old event may show the refund in another currency than Stripe does now.
            return await self._reversed(await self._stripe.read(id_of(refund)), charge, rule)

    async def _reversed(self, obj: Object, charge: Object, rule: _Rule) -> Settled:
        """Reverses the purchase that a charge paid for; credits it first if it is missing."""
        bases: dict[str, Basis] = {}
        intent_id = optional_id(charge.get("payment_intent"))
        if intent_id is not None:
            basis = bases[intent_id] = refund_rules.basis_of_intent(intent_id, charge)
            if settled := await self._reverse(obj, rule, basis):
                return settled
        # Read only now, because most purchases are known by their payment intent.
        paid = await self._payments.invoice_of_charge(charge)
        if paid is not None:
            lines = await self._payments.lines_of(paid.invoice)
            basis = refund_rules.basis_of_invoice(
                paid.invoice, lines, paid.contributed_minor, charge
            )
            bases[basis.paid_by] = basis
            if settled := await self._reverse(obj, rule, basis):
                return settled
        try:
            grant = await self._purchases.behind(intent_id, paid)
            bought = await self._purchases.credit(grant)
        except Unresolved as problem:
            invoice_id = None if paid is None else id_of(paid.invoice)
            return await self._purchases.refunded_or(
                problem, intent_id=intent_id, invoice_id=invoice_id
            )
        if isinstance(grant, Nothing) or bought.outcome == "nothing":
            return bought
        # In a dry run the purchase is still missing, so only the purchase can be reported.
        return await self._reverse(obj, rule, bases[grant.paid_by]) or bought

    async def _reverse(self, obj: Object, rule: _Rule, basis: Basis) -> Settled | None:
        """Reverses the share of an object; None: no purchase was made with its money."""

        def decided(obj: Object, _: list[Object] | None) -> Reversal | Nothing:
            return rule(obj, basis=basis)

        reversal = await apply_rule(self._stripe, decided, obj)
        if isinstance(reversal, Nothing):
            return Settled("nothing", reversal.reason)
        return await self._writes.reverse(reversal)
