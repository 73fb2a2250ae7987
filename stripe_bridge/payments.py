"""Finds which charge, payment intent and invoice belong together."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from stripe_bridge.fields import child, id_of, minor, optional_id, whole_list
from stripe_bridge.model import Unresolved
from stripe_bridge.stripe_api import StripeAway, StripeMissing, StripeRefuses

if TYPE_CHECKING:
    from stripe_bridge.fields import Object
    from stripe_bridge.stripe_api import StripeReads


class PaidInvoice(NamedTuple):
    """An invoice, and the part of it that a payment paid, in minor units; None: not shown."""

    invoice: Object
    contributed_minor: int | None


class Payments:
    """Follows the references between charges, payment intents and invoices.

    Every method raises StripeAway and StripeRefuses, and StripeMissing for an object that Stripe
    does not know.
    """

    def __init__(self, stripe: StripeReads) -> None:
        """Reads through `stripe`."""
        self._stripe = stripe

    async def charge_of(self, obj: Object) -> Object | None:
        """Reads the charge of a refund or dispute; None: it names none.

        The charge is read even if the object contains it, because an old event contains an old one.
        """
        charge_id = optional_id(obj.get("charge"))
        intent_id = optional_id(obj.get("payment_intent"))
        if charge_id is None and intent_id is not None:
            charge_id = optional_id((await self._stripe.read(intent_id)).get("latest_charge"))
        return None if charge_id is None else await self._stripe.read(charge_id)

    async def invoice_of_intent(self, intent_id: str) -> PaidInvoice | None:
        """Finds the invoice that a payment intent paid; None: it paid none.

        Raises:
            Unresolved: several_invoices: it paid more than one, so a refund could be of either.
        """
        paid = [each async for each in self._stripe.invoice_payments_of(intent_id)]
        invoices = {optional_id(each.get("invoice")) or "" for each in paid}
        if not invoices:
            return None
        if len(invoices) > 1:
            raise Unresolved("several_invoices", f"{intent_id} paid more than one invoice.")
        return PaidInvoice(await self._stripe.read(invoices.pop()), _sum(paid))

    async def invoice_of_charge(self, charge: Object) -> PaidInvoice | None:
        """Finds the invoice that a charge paid; None: it paid none.

        Since API version 2025-03-31 the charge does not show it, but the payment intent leads to
        it. A charge without a payment intent may name it in an old event.

        Raises:
            Unresolved: several_invoices.
        """
        intent_id = optional_id(charge.get("payment_intent"))
        if intent_id is not None:
            return await self.invoice_of_intent(intent_id)
        invoice_id = optional_id(charge.get("invoice"))
        if invoice_id is None:
            return None
        payments = [
            each
            async for each in self._stripe.payments_of_invoice(invoice_id)
            if optional_id(child(each, "payment").get("charge")) == id_of(charge)
        ]
        contributed = _sum(payments) if payments else None
        return PaidInvoice(await self._stripe.read(invoice_id), contributed)

    async def lines_of(self, invoice: Object) -> list[Object]:
        """Finds all lines of an invoice that was read."""
        shown = whole_list(invoice.get("lines"))
        return await self._stripe.invoice_lines(id_of(invoice)) if shown is None else shown

    async def all_refunded(self, *, intent_id: str | None, invoice_id: str | None) -> bool:
        """Returns whether all the money of an intent or of an invoice's payments was refunded.

        Money of which Stripe cannot show a refund now counts as not refunded, so that a person
        looks at it.
        """
        try:
            if invoice_id is None:
                return intent_id is not None and await self._intent_refunded(intent_id)
            paid = [each async for each in self._stripe.payments_of_invoice(invoice_id)]
            for each in paid:
                by_intent = optional_id(child(each, "payment").get("payment_intent"))
                if by_intent is None or not await self._intent_refunded(by_intent):
                    return False
        except (StripeAway, StripeRefuses, StripeMissing):
            return False
        return bool(paid)

    async def _intent_refunded(self, intent_id: str) -> bool:
        charge_id = optional_id((await self._stripe.read(intent_id)).get("latest_charge"))
        if charge_id is None:
            return False
        return (await self._stripe.read(charge_id)).get("refunded") is True


def _sum(payments: list[Object]) -> int:
    return sum(minor(each, "amount_paid") for each in payments)
