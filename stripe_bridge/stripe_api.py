"""Reads Stripe's objects as plain dicts; a read can fail in three ways."""

from __future__ import annotations

import re
from contextlib import asynccontextmanager, contextmanager
from enum import Enum
from typing import TYPE_CHECKING, Any, Unpack

import stripe

from stripe_bridge.model import Unresolved

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator

    from stripe import params as asked
    from stripe.params import checkout as asked_checkout

    from stripe_bridge.fields import Object

# Pinned, because another version of the SDK must not change the shape of the objects.
STRIPE_VERSION = "2026-10-28.endive"

CALL_SECONDS = 4.0


class Kind(Enum):
    """The kinds of objects that the bridge reads by their ids."""

    SESSION = "checkout.session"
    PAYMENT_INTENT = "payment_intent"
    CHARGE = "charge"
    REFUND = "refund"
    DISPUTE = "dispute"
    INVOICE = "invoice"
    CUSTOMER = "customer"
    EVENT = "event"


_BY_PREFIX = {
    "cs": Kind.SESSION,
    "pi": Kind.PAYMENT_INTENT,
    "ch": Kind.CHARGE,
    "py": Kind.CHARGE,
    "re": Kind.REFUND,
    "pyr": Kind.REFUND,
    "du": Kind.DISPUTE,
    "dp": Kind.DISPUTE,
    "in": Kind.INVOICE,
    "cus": Kind.CUSTOMER,
    "evt": Kind.EVENT,
}

_PAGE = 100  # objects, the most that Stripe gives at once
_RELEASE = "partial_capture_reversal"
_OFF_STRIPE = "amount_paid_off_stripe"
_MISSING = {"resource_missing", "not_found"}
_KEY = re.compile(r"\b[rs]k_\S+")


def kind_of(id: str) -> Kind | None:  # noqa: A002  # Stripe's own word
    """Finds the kind of an object by the prefix of its id; None: a kind that is not read here."""
    return _BY_PREFIX.get(id.partition("_")[0])


class StripeAway(Exception):
    """Stripe gave no usable answer; a later try may succeed."""


class StripeRefuses(Exception):
    """Stripe refuses the key or the call; the configuration is wrong."""


class StripeMissing(Unresolved):
    """Stripe does not know the object: it was deleted or is of another account or mode."""

    def __init__(self, name: str) -> None:
        super().__init__(
            "stripe_object_missing",
            f"Stripe does not know {name}; is the key one of its account and mode?",
        )


@contextmanager
def stripe_errors(name: str) -> Iterator[None]:
    """Turns the errors of Stripe's SDK into those of this module; `name` names the request.

    The SDK's errors are not chained, because they can hold the whole answer, and would be logged.

    Raises:
        StripeAway: no connection, no answer in time, too many requests, or a fault at Stripe.
        StripeRefuses: the key is wrong or lacks a right, or a parameter is refused.
        StripeMissing: there is no such object.
    """
    try:
        yield
    except stripe.InvalidRequestError as error:
        if error.code in _MISSING:
            raise StripeMissing(name) from None
        raise StripeRefuses(_described(name, error)) from None
    except (stripe.AuthenticationError, stripe.PermissionError) as error:
        raise StripeRefuses(_described(name, error)) from None
    except stripe.StripeError as error:
        status = error.http_status or type(error).__name__
        raise StripeAway(f"{name}: no usable answer from Stripe ({status})") from None


def _described(name: str, error: stripe.StripeError) -> str:
    return (
        f"{name}: Stripe answered {error.http_status}: {_KEY.sub('***', str(error.user_message))}"
    )


@asynccontextmanager
async def stripe_client(
    api_key: str,
    *,
    address: str | None = None,
    seconds: float = CALL_SECONDS,
    retries: int = 1,
) -> AsyncIterator[stripe.StripeClient]:
    """Opens a client of Stripe's API, and closes its connections at the end.

    Args:
        api_key: `sk_...` or, better, `rk_...` with only the rights that are needed.
        address: of the API, such as `http://127.0.0.1:12111`; None: Stripe's own.
        seconds: how long a try may wait for the connection and for each part of the answer.
        retries: further tries after no answer, 409 or 5xx, with the same idempotency key.
    """
    http = stripe.HTTPXClient(timeout=seconds)
    try:
        yield stripe.StripeClient(
            api_key,
            http_client=http,
            stripe_version=STRIPE_VERSION,
            max_network_retries=retries,
            base_addresses={"api": address} if address else None,
        )
    finally:
        await http.close_async()  # type: ignore[no-untyped-call]


class StripeReads:
    """Reads and lists Stripe's objects.

    Every method raises StripeAway and StripeRefuses; a read of one object also StripeMissing. Lists
    begin with the newest, and are read page by page.
    """

    def __init__(self, client: stripe.StripeClient) -> None:
        """Reads through `client`; its key decides the account and the mode."""
        self._v1 = client.v1
        self._v2 = client.v2
        self._one: dict[Kind, Callable[[str], Awaitable[stripe.StripeObject]]] = {
            Kind.SESSION: self._v1.checkout.sessions.retrieve_async,
            Kind.PAYMENT_INTENT: self._v1.payment_intents.retrieve_async,
            Kind.CHARGE: self._v1.charges.retrieve_async,
            Kind.REFUND: self._v1.refunds.retrieve_async,
            Kind.DISPUTE: self._v1.disputes.retrieve_async,
            Kind.INVOICE: self._invoice,
            Kind.CUSTOMER: self._v1.customers.retrieve_async,
            Kind.EVENT: self._v1.events.retrieve_async,
        }

    async def read(self, id: str) -> Object:  # noqa: A002  # Stripe's own word
        """Reads an object by its id, whose prefix names its kind.

        Raises:
            StripeMissing: there is no such object, or its kind is not in `Kind`.
        """
        kind = kind_of(id)
        if kind is None:
            raise StripeMissing(id)
        with stripe_errors(id):
            return (await self._one[kind](id)).to_dict()

    async def thin_event(self, id: str) -> Object:  # noqa: A002  # Stripe's own word
        """Reads a thin event with its data."""
        with stripe_errors(id):
            return (await self._v2.core.events.retrieve_async(id)).to_dict()

    async def line_items(self, session_id: str) -> list[Object]:
        """Reads all line items of a Checkout Session."""
        listed = self._v1.checkout.sessions.line_items.list_async
        items = self._list(f"line items of {session_id}", listed, session_id)
        return [item async for item in items]

    async def invoice_lines(self, invoice_id: str) -> list[Object]:
        """Reads the lines of an invoice, all of them, each with its whole price."""
        listed = self._v1.invoices.line_items.list_async
        expand = ["data.pricing.price_details.price"]
        lines = self._list(f"lines of {invoice_id}", listed, invoice_id, expand=expand)
        return [line async for line in lines]

    async def _invoice(self, invoice_id: str) -> stripe.StripeObject:
        # Stripe shows outside payments only on request, and never in an event.
        return await self._v1.invoices.retrieve_async(invoice_id, {"expand": [_OFF_STRIPE]})

    async def releases_capture(self, refund_id: str) -> bool:
        """Returns whether a refund only releases the rest of a partial capture.

        API versions before 2025-03-31 made such refunds. The key must have the right to read
        balance transactions.
        """
        with stripe_errors(refund_id):
            refund = await self._v1.refunds.retrieve_async(
                refund_id, {"expand": ["balance_transaction"]}
            )
        transaction = refund.to_dict().get("balance_transaction")
        return isinstance(transaction, dict) and transaction.get("reporting_category") == _RELEASE

    def sessions(
        self, **filters: Unpack[asked_checkout.SessionListParams]
    ) -> AsyncIterator[Object]:
        """Lists Checkout Sessions."""
        return self._list("sessions", self._v1.checkout.sessions.list_async, **filters)

    def payment_intents(
        self, **filters: Unpack[asked.PaymentIntentListParams]
    ) -> AsyncIterator[Object]:
        """Lists payment intents, of every status."""
        return self._list("payment intents", self._v1.payment_intents.list_async, **filters)

    def invoices(self, **filters: Unpack[asked.InvoiceListParams]) -> AsyncIterator[Object]:
        """Lists invoices."""
        filters = {**filters, "expand": [f"data.{_OFF_STRIPE}"]}
        return self._list("invoices", self._v1.invoices.list_async, **filters)

    def invoice_payments_of(self, intent_id: str) -> AsyncIterator[Object]:
        """Lists the payments of invoices by a payment intent."""
        listed = self._v1.invoice_payments.list_async
        payment = {"type": "payment_intent", "payment_intent": intent_id}
        return self._list(f"invoices of {intent_id}", listed, payment=payment, status="paid")

    def payments_of_invoice(self, invoice_id: str) -> AsyncIterator[Object]:
        """Lists the payments of an invoice, those outside Stripe included."""
        listed = self._v1.invoice_payments.list_async
        return self._list(f"payments of {invoice_id}", listed, invoice=invoice_id, status="paid")

    def refunds(self, **filters: Unpack[asked.RefundListParams]) -> AsyncIterator[Object]:
        """Lists refunds."""
        return self._list("refunds", self._v1.refunds.list_async, **filters)

    def disputes(self, **filters: Unpack[asked.DisputeListParams]) -> AsyncIterator[Object]:
        """Lists disputes."""
        return self._list("disputes", self._v1.disputes.list_async, **filters)

    def events(self, **filters: Unpack[asked.EventListParams]) -> AsyncIterator[Object]:
        """Lists events; Stripe keeps them for 30 days."""
        return self._list("events", self._v1.events.list_async, **filters)

    async def _list(
        self,
        name: str,
        listed: Callable[..., Awaitable[stripe.ListObject[Any]]],
        *of: str,
        **filters: Any,
    ) -> AsyncIterator[Object]:
        with stripe_errors(name):
            page = await listed(*of, {**filters, "limit": _PAGE})
            async for item in page.auto_paging_iter():
                yield item.to_dict()
