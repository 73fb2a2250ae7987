"""The payment of a top-up at Stripe: its payment intent, and the links to pay by instead.

Which intent and which links belong to a request is in Stripe's metadata, because the bridge has no
database.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import stripe

from stripe_bridge.checkout import Order, open_session
from stripe_bridge.customers import find_or_make_customer, saved_card
from stripe_bridge.fields import Object, child, optional_id
from stripe_bridge.metadata import TOP_UP_KEY, frozen_metadata
from stripe_bridge.stripe_api import stripe_errors
from stripe_bridge.top_up_rules import Link, decline_reason, gravest, link_of

if TYPE_CHECKING:
    from uuid import UUID

    from stripe_bridge.catalog import Pack

_LINK_KEY = "credit_top_up_link_"

# Stripe keeps an idempotency key for at least a day. A search shows an intent within minutes, so if
# it does not show an intent, the intent is younger than its key.
_SEARCHED_FROM = timedelta(hours=12)

_UNEXPECTED_STATE = "payment_intent_unexpected_state"
_KEY_IN_USE = 409


class Declined(Exception):
    """The request cannot be charged now.

    Attributes:
        reason: a snake_case word that may be shown to the customer.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class StateChanged(Exception):
    """The intent has changed its state since it was read, so it must be read again."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """A top-up to charge for.

    Attributes:
        id: of the request.
        user_id: who gets the credits.
        created: when it was requested, aware.
    """

    id: str
    user_id: UUID
    created: datetime


class TopUpPayments:
    """Makes, confirms and cancels the intents of top-ups, and opens and closes links.

    Every method raises StripeAway and StripeRefuses, and StripeMissing for an object that Stripe
    does not know.
    """

    def __init__(self, client: stripe.StripeClient, *, return_url: str) -> None:
        """Works through `client`; customers who paid by a link are sent to `return_url`."""
        self._client = client
        self._intents = client.v1.payment_intents
        self._sessions = client.v1.checkout.sessions
        self._return_url = return_url

    async def find_or_make(self, wanted: Wanted, pack: Pack) -> str:
        """Finds the intent of a request, or makes an unconfirmed one.

        Returns:
            Its id. Amount, currency and credits are those of the pack when it was made.

        Raises:
            Declined: Stripe does not accept such a payment, for instance because it is too small.
        """
        if datetime.now(UTC) - wanted.created > _SEARCHED_FROM and (
            found := await self._search(wanted.id)
        ):
            return found
        customer = await find_or_make_customer(self._client, wanted.user_id)
        metadata = frozen_metadata(wanted.user_id, pack.credits, pack.valid_for)
        with stripe_errors(f"payment intent of {wanted.id}"):
            try:
                made = await self._intents.create_async(
                    {
                        "amount": pack.amount_minor,
                        "currency": pack.currency,
                        "customer": customer,
                        "description": pack.name,
                        "metadata": {**metadata, TOP_UP_KEY: wanted.id},
                        # The card is chosen at each confirmation, so that a new card can be
                        # charged. A card, because other methods need the customer or take days.
                        "allowed_payment_method_types": ["card"],
                    },
                    {"idempotency_key": f"topup:{wanted.id}"},
                )
            except stripe.IdempotencyError as error:
                # The intent was made while the pack had another price, or the user another
                # customer.
                if error.http_status != _KEY_IN_USE and (found := await self._search(wanted.id)):
                    return found
                raise
            except stripe.InvalidRequestError as error:
                if error.code in ("amount_too_small", "amount_too_large"):
                    raise Declined(error.code) from None
                raise
        return made.id

    async def read(self, intent_id: str) -> Object:
        """Reads an intent as it is now."""
        with stripe_errors(intent_id):
            return (await self._intents.retrieve_async(intent_id)).to_dict()

    async def card_of(self, intent: Object) -> str | None:
        """Finds the card to charge; None: the customer has none."""
        customer = optional_id(intent.get("customer"))
        return None if customer is None else await saved_card(self._client, customer)

    async def confirm(self, intent: Object, card: str, *, key: str) -> Object:
        """Charges a card without its customer.

        Args:
            intent: an unpaid one.
            card: the payment method.
            key: the idempotency key, one for each try.

        Returns:
            The intent after it.

        Raises:
            Declined: the bank declines, or wants to see the customer.
            StateChanged: the intent is paid or cancelled already.
        """
        intent_id = str(intent["id"])
        with stripe_errors(intent_id):
            try:
                confirmed = await self._intents.confirm_async(
                    intent_id,
                    {"payment_method": card, "off_session": True},
                    {"idempotency_key": key},
                )
            except stripe.CardError as error:
                raise Declined(decline_reason(_error_of(error))) from None
            except stripe.InvalidRequestError as error:
                if error.code == _UNEXPECTED_STATE:
                    raise StateChanged from None
                raise
            except stripe.IdempotencyError as error:
                if error.http_status != _KEY_IN_USE and intent.get("last_payment_error"):
                    # This try was declined with another card, and the answer never came.
                    raise Declined(decline_reason(child(intent, "last_payment_error"))) from None
                raise
        if confirmed.status == "requires_action":
            raise Declined("authentication_required")
        return confirmed.to_dict()

    async def cancel(self, intent_id: str) -> None:
        """Cancels an intent, so that it can never be paid.

        Raises:
            StateChanged: it is paid or cancelled already.
        """
        with stripe_errors(intent_id):
            try:
                await self._intents.cancel_async(intent_id, {"cancellation_reason": "abandoned"})
            except stripe.InvalidRequestError as error:
                if error.code == _UNEXPECTED_STATE:
                    raise StateChanged from None
                raise

    async def open_link(self, wanted: Wanted, pack: Pack, intent: Object) -> str:
        """Opens a Checkout Session that sells the pack and saves the card.

        The session is recorded at the intent before anyone can pay by it.

        Returns:
            Its URL.
        """
        order = Order(
            user_id=wanted.user_id,
            pack=pack,
            quantity=1,
            success_url=self._return_url,
            cancel_url=self._return_url,
            # A session that a killed bridge made is never shown to anyone, so a repeat needs no
            # key.
            key=None,
            save_card=True,
            top_up=wanted.id,
        )
        opened = await open_session(self._client, order)
        # A name of its own, because another bridge may record another link at the same time.
        name = f"{_LINK_KEY}{opened.id[-12:]}"
        with stripe_errors(str(intent["id"])):
            await self._intents.update_async(str(intent["id"]), {"metadata": {name: opened.id}})
        return opened.url

    async def links(self, intent: Object) -> Link:
        """Reads the state of the links recorded at an intent."""
        return gravest([link_of(await self._session(id_)) for id_ in _recorded(intent)])

    async def link_to_pay(self, intent: Object) -> str:
        """Finds the URL of an open link of an intent; empty: it has none."""
        for session_id in _recorded(intent):
            session = await self._session(session_id)
            if link_of(session) is Link.OPEN:
                return str(session["url"])
        return ""

    async def close_links(self, intent: Object) -> None:
        """Lets every open link of an intent expire; one that was just paid stays as it is."""
        for session_id in _recorded(intent):
            if link_of(await self._session(session_id)) is not Link.OPEN:
                continue
            with stripe_errors(session_id):
                try:
                    await self._sessions.expire_async(session_id)
                except stripe.InvalidRequestError as error:
                    if error.http_status == 404:  # noqa: PLR2004  # not found
                        raise

    async def _session(self, session_id: str) -> Object:
        with stripe_errors(session_id):
            session = await self._sessions.retrieve_async(
                session_id, {"expand": ["payment_intent"]}
            )
        return session.to_dict()

    async def _search(self, top_up_id: str) -> str | None:
        quoted = top_up_id.replace("\\", "\\\\").replace("'", "\\'")
        with stripe_errors(f"payment intent of {top_up_id}"):
            found = await self._intents.search_async(
                {"query": f"metadata['{TOP_UP_KEY}']:'{quoted}'", "limit": 1}
            )
        return found.data[0].id if found.data else None


def _recorded(intent: Object) -> list[str]:
    metadata = child(intent, "metadata")
    return [str(metadata[name]) for name in sorted(metadata) if name.startswith(_LINK_KEY)]


def _error_of(error: stripe.StripeError) -> Object:
    body: Any = error.json_body
    return child(body, "error") if isinstance(body, dict) else {}
