"""Finds which charge, payment intent and invoice belong together."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from stripe_bridge.fields import optional_id

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from stripe_bridge.fields import Object
    from stripe_bridge.stripe_api import StripeReads


@dataclass(frozen=True, slots=True)
class Intent:
    """A payment intent that a charge belongs to, by its id."""

    id: str


@dataclass(frozen=True, slots=True)
class Invoice:
    """An invoice that a charge paid, by its id."""

    id: str


class Payments:
    """Follows the references between what pays and what is paid.

    Every method raises StripeAway and StripeRefuses, and StripeMissing for an object that Stripe
    does not know.
    """

    def __init__(self, stripe: StripeReads) -> None:
        """Reads through `stripe`."""
        self._stripe = stripe

    async def charge_of(self, obj: Object) -> Object | None:
        """Finds the charge of a refund or dispute."""
        charge = obj.get("charge")
        if isinstance(charge, dict) and "amount" in charge:
            return charge
        charge_id = optional_id(charge)
        intent_id = optional_id(obj.get("payment_intent"))
        if charge_id is None and intent_id is not None:
            charge_id = optional_id((await self._stripe.read(intent_id)).get("latest_charge"))
        return None if charge_id is None else await self._stripe.read(charge_id)

    async def paid_by(self, charge: Object) -> AsyncIterator[Intent | Invoice]:
        """Yields what a purchase may be named after that a charge paid for.

        API versions since 2025-03-31 no longer show the invoice of a charge. It is looked for last,
        so that a purchase which the intent names takes no call to Stripe.
        """
        invoice_id = optional_id(charge.get("invoice"))
        intent_id = optional_id(charge.get("payment_intent"))
        if invoice_id is not None:
            yield Invoice(invoice_id)
        if intent_id is None:
            return
        yield Intent(intent_id)
        if invoice_id is None and (found := await self._stripe.invoice_paid_by(intent_id)):
            yield Invoice(found)
