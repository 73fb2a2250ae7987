"""Stripe's customer of a user, and the card that is saved with it.

A customer belongs to the user that its metadata names. A search shows a new customer only after a
while, and Stripe keeps an idempotency key for at least a day, so one of the two always finds the
customer.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from stripe_bridge.fields import child, optional_id
from stripe_bridge.metadata import USER_KEY
from stripe_bridge.stripe_api import StripeMissing, stripe_errors

if TYPE_CHECKING:
    from uuid import UUID

    import stripe


async def find_customer(client: stripe.StripeClient, user_id: UUID) -> str | None:
    """Finds the customer of a user; None: Stripe has none.

    Raises:
        StripeAway, StripeRefuses: there is no answer, or the key may not read customers.
    """
    with stripe_errors("customer"):
        # A UUID needs no quoting in a query.
        found = await client.v1.customers.search_async(
            {"query": f"metadata['{USER_KEY}']:'{user_id}'", "limit": 1}
        )
    return found.data[0].id if found.data else None


async def find_or_make_customer(client: stripe.StripeClient, user_id: UUID) -> str:
    """Finds the customer of a user, or makes one.

    Raises:
        StripeAway, StripeRefuses: there is no answer, or the key may not write customers.
    """
    if found := await find_customer(client, user_id):
        return found
    with stripe_errors("customer"):
        made = await client.v1.customers.create_async(
            {"metadata": {USER_KEY: str(user_id)}},
            {"idempotency_key": f"credit-customer:{user_id}"},
        )
    return made.id


async def saved_card(client: stripe.StripeClient, customer_id: str) -> str | None:
    """Finds the card of a customer to charge: the default one, else the one saved last.

    Returns:
        The id of the payment method; None: no card is saved, or the customer was deleted.

    Raises:
        StripeAway, StripeRefuses: there is no answer, or the key may not read them.
    """
    try:
        with stripe_errors(customer_id):
            customer = (await client.v1.customers.retrieve_async(customer_id)).to_dict()
            if customer.get("deleted"):
                return None
            listed = await client.v1.payment_methods.list_async(
                {"customer": customer_id, "type": "card", "limit": 100}
            )
    except StripeMissing:
        return None
    cards = [card.id for card in listed.data]
    default = optional_id(child(customer, "invoice_settings").get("default_payment_method"))
    if default in cards:
        return default
    return cards[0] if cards else None
