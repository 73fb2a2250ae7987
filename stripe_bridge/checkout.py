"""Sells credit packs by Stripe Checkout Sessions that name the user and the credits.

User and credits are fixed in the metadata of the session and of its payment intent when the session
is made. So no later change of the catalogue alters what was sold, and refunds and disputes find
their user (Stripe: "Create a Checkout Session", "Metadata").
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from uuid import UUID, uuid4

import stripe

from credit_service.fields import uuid_or_none
from stripe_bridge.catalog import CREDITS_MAX
from stripe_bridge.customers import find_or_make_customer
from stripe_bridge.metadata import TOP_UP_KEY, frozen_metadata
from stripe_bridge.stripe_api import StripeRefuses, stripe_errors

if TYPE_CHECKING:
    from collections.abc import Collection

    from stripe.params.checkout import SessionCreateParams

    from stripe_bridge.catalog import Catalog, Pack
    from stripe_bridge.fields import Object

_QUANTITY_MAX = 999_999
_FIELDS = {
    "user_id",
    "pack",
    "quantity",
    "success_url",
    "cancel_url",
    "idempotency_key",
    "save_card",
}

# Only URLs that every program reads alike: no user name before the host, no backslash.
_URL = re.compile(
    r"(?P<scheme>https?)://(?P<host>[A-Za-z0-9.-]+|\[[0-9A-Fa-f:.]+\])(?P<port>:[0-9]{1,5})?"
    "([/?#][!-~]*)?"
)
_URL_LENGTH_MAX = 2048
_KEY = re.compile("[!-~]{1,128}")
_THIS_MACHINE = {"localhost", "127.0.0.1", "[::1]"}
_DEFAULT_PORTS = {"https": ":443", "http": ":80"}


class CheckoutRefused(Exception):
    """The order is refused.

    Attributes:
        status: of the HTTP answer.
        reason: a snake_case word for programs.
    """

    def __init__(self, status: int, reason: str, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.reason = reason


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """The order of a user.

    Attributes:
        user_id: who gets the credits.
        pack: what is bought.
        quantity: how many of it.
        success_url: where Stripe sends the buyer after the payment.
        cancel_url: where Stripe sends a buyer who turns back.
        key: the caller's idempotency key; None: every call makes a session of its own.
        save_card: whether the card is saved with the user's customer, to be charged for top-ups.
        top_up: the id of the failed top-up that this order pays; None: it is an ordinary order.
    """

    user_id: UUID
    pack: Pack
    quantity: int
    success_url: str
    cancel_url: str
    key: str | None
    save_card: bool = False
    top_up: str | None = None

    @property
    def credits(self) -> int:
        """The credits that it gives."""
        return self.pack.credits * self.quantity

    @property
    def idempotency_key(self) -> str:
        """The idempotency key at Stripe: one key of one user makes one session.

        It has a prefix because other programs of the account use keys too, and it holds the user
        so that a key never leads to another user's session.
        """
        return f"credit-checkout:{self.user_id}:{self.key or uuid4()}"


@dataclass(frozen=True, slots=True)
class Opened:
    """A Checkout Session to pay: its URL, its id, and when it expires (seconds since 1970)."""

    url: str
    id: str
    expires_at: int


def read_order(
    fields: Any, *, catalog: Catalog, return_origins: Collection[str], credits_max: int
) -> Order:
    """Reads the order of a request.

    Args:
        fields: the JSON of the request.
        catalog: what is sold.
        return_origins: the only origins to return to; empty: any with https.
        credits_max: the maximum number of credits of one purchase.

    Raises:
        CheckoutRefused: 400 invalid_request, 404 unknown_pack, 422 too_many_credits.
    """
    if not isinstance(fields, dict):
        raise _invalid("the body must be a JSON object")
    if unknown := fields.keys() - _FIELDS:
        raise _invalid(f"{min(unknown)[:64]!a} is not a field of an order")
    user_id, pack_id = uuid_or_none(fields.get("user_id")), fields.get("pack")
    if user_id is None:
        raise _invalid("user_id must be a UUID")
    pack = catalog.pack(pack_id) if isinstance(pack_id, str) else None
    if pack is None:
        raise CheckoutRefused(404, "unknown_pack", "there is no such pack; see GET /credit-packs")
    quantity = fields.get("quantity", 1)
    if type(quantity) is not int or not 1 <= quantity <= _QUANTITY_MAX:
        raise _invalid(f"quantity must be a whole number, 1 to {_QUANTITY_MAX}")
    key = fields.get("idempotency_key")
    if key is not None and not (isinstance(key, str) and _KEY.fullmatch(key)):
        raise _invalid("idempotency_key must have 1 to 128 printable ASCII characters, no spaces")
    save_card = fields.get("save_card", False)
    if type(save_card) is not bool:
        raise _invalid("save_card must be true or false")
    order = Order(
        user_id=user_id,
        pack=pack,
        quantity=quantity,
        success_url=return_url(fields, "success_url", return_origins),
        cancel_url=return_url(fields, "cancel_url", return_origins),
        key=key,
        save_card=save_card,
    )
    most = min(credits_max, CREDITS_MAX)
    if order.credits > most:
        raise CheckoutRefused(422, "too_many_credits", f"one purchase gives at most {most} credits")
    return order


async def open_session(client: stripe.StripeClient, order: Order) -> Opened:
    """Makes the Checkout Session of an order, or finds the one made under its key.

    Raises:
        CheckoutRefused: 409 idempotency_key_reused: the key belongs to another order.
        StripeAway: no usable answer came; ask again with the same key.
        StripeRefuses: Stripe does not sell this; the configuration is wrong.
        StripeMissing: Stripe does not know the price.
    """
    metadata = frozen_metadata(order.user_id, order.credits, order.pack.valid_for)
    price_id = order.pack.price or await _price_id(client, order.pack)
    wanted: SessionCreateParams = {
        "mode": "payment",
        "line_items": [
            {
                "price": price_id,
                "quantity": order.quantity,
                # The buyer must not change the quantity, because the credits are fixed.
                "adjustable_quantity": {"enabled": False},
            }
        ],
        "client_reference_id": str(order.user_id),
        "metadata": metadata if order.top_up is None else {**metadata, TOP_UP_KEY: order.top_up},
        "payment_intent_data": {"metadata": metadata},
        "success_url": order.success_url,
        "cancel_url": order.cancel_url,
    }
    if order.save_card:
        wanted["customer"] = await find_or_make_customer(client, order.user_id)
        # Checkout informs the buyer that the card is saved for future payments.
        wanted["payment_intent_data"]["setup_future_usage"] = "off_session"
    with stripe_errors(f"session for pack {order.pack.id}"):
        try:
            session = await client.v1.checkout.sessions.create_async(
                wanted, {"idempotency_key": order.idempotency_key}
            )
        except stripe.IdempotencyError:
            raise CheckoutRefused(
                409, "idempotency_key_reused", "this idempotency_key belongs to another order"
            ) from None
    made = session.to_dict()
    return Opened(made["url"], made["id"], made["expires_at"])


async def find_price(client: stripe.StripeClient, pack: Pack) -> Object | None:
    """Reads the Stripe price of a pack, by its id or lookup key; None: no active price has it.

    Raises:
        StripeAway: no usable answer came.
        StripeRefuses: the key may not read prices.
        StripeMissing: there is no price of that id.
    """
    with stripe_errors(f"price of pack {pack.id}"):
        if pack.price is not None:
            return (await client.v1.prices.retrieve_async(pack.price)).to_dict()
        named = pack.lookup_key or ""
        found = await client.v1.prices.list_async({"lookup_keys": [named], "active": True})
        return next((price.to_dict() for price in found.data), None)


async def _price_id(client: stripe.StripeClient, pack: Pack) -> str:
    price = await find_price(client, pack)
    if price is None:
        raise StripeRefuses(f"no active price has the lookup key of pack {pack.id}")
    return str(price["id"])


def return_url(fields: dict[str, Any], name: str, origins: Collection[str]) -> str:
    """Reads an address to which Stripe may send a buyer back.

    Args:
        fields: the JSON of the request.
        name: of the field.
        origins: the only origins to return to; empty: any with https.

    Raises:
        CheckoutRefused: 400 invalid_request.
    """
    url = fields.get(name)
    parts = _URL.fullmatch(url) if isinstance(url, str) and len(url) <= _URL_LENGTH_MAX else None
    if not isinstance(url, str) or parts is None:
        raise _invalid(f"{name} must be a URL such as https://app.example.com/paid")
    scheme, host, port = parts["scheme"], parts["host"].lower(), parts["port"] or ""
    if scheme == "http" and host not in _THIS_MACHINE:
        raise _invalid(f"{name} must be https")
    port = "" if port == _DEFAULT_PORTS[scheme] else port
    if origins and f"{scheme}://{host}{port}" not in origins:
        raise _invalid(f"{name} has an origin that is not allowed")
    return url


def _invalid(message: str) -> CheckoutRefused:
    return CheckoutRefused(400, "invalid_request", message)
