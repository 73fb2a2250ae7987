"""Calls the Stripe bridge over HTTP."""

from __future__ import annotations

import asyncio
import re
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit

import httpx
import orjson

from credit_service.gateway.problems import ROWS, Problem

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping
    from uuid import UUID

_Read = TypeVar("_Read")

# A little more than the bridge allows itself.
_SECONDS = 9.0
_BYTES_MAX = 256 * 1024
_PACKS_KEPT_SECONDS = 60.0
_ADDRESS = re.compile(r"https?://[^\s/?#]+(/[!-~]*)?")


@dataclass(frozen=True, slots=True)
class Pack:
    """A pack of credits on sale.

    Attributes:
        id: names it in an order.
        name: for people.
        credits: how many.
        amount_minor: the price, in minor units.
        currency: of that, in lower case.
        valid_for_seconds: how long the credits live after the purchase; None: for ever.
    """

    id: str
    name: str
    credits: int
    amount_minor: int
    currency: str
    valid_for_seconds: int | None


@dataclass(frozen=True, slots=True)
class Checkout:
    """A checkout that can be paid: its id, its URL, and its expiry (seconds since 1970)."""

    id: str
    url: str
    expires_at: int


@dataclass(frozen=True, slots=True)
class CheckoutState:
    """The state of a checkout: open, processing, credited or expired."""

    id: str
    state: str
    credits: int | None


class Bridge:
    """A client of the Stripe bridge.

    The addresses to which buyers return are fixed here and never come from a request.
    """

    def __init__(
        self,
        address: str,
        *,
        token: str,
        success_url: str,
        cancel_url: str,
        portal_return_url: str | None = None,
        checkout_hosts: Collection[str] = ("checkout.stripe.com",),
        portal_hosts: Collection[str] = ("billing.stripe.com",),
    ) -> None:
        """Prepares the connection; it is made with the first request.

        Args:
            address: of the bridge, such as http://127.0.0.1:8081.
            token: the one whose hash is STRIPE_BRIDGE_CHECKOUT_TOKEN_SHA256 of the bridge.
            success_url: where Stripe sends the buyer after the payment; `{CHECKOUT_SESSION_ID}` in
                it becomes the checkout's id.
            cancel_url: where Stripe sends a buyer who gives up.
            portal_return_url: where the billing portal sends the user back; None: there is no
                portal.
            checkout_hosts: host, or host:port, of the pages where buyers pay; http only on this
                machine.
            portal_hosts: the same for the billing portal.
        """
        self._address = address.rstrip("/")
        self._token = token
        self._success_url = success_url
        self._cancel_url = cancel_url
        self._portal_return_url = portal_return_url
        self.checkout_hosts = tuple(checkout_hosts)
        self.portal_hosts = tuple(portal_hosts)
        self._http: httpx.AsyncClient | None = None
        self._packs: tuple[float, asyncio.Task[list[Pack]]] | None = None

    @property
    def has_portal(self) -> bool:
        """Whether the billing portal can be opened."""
        return self._portal_return_url is not None

    async def aclose(self) -> None:
        """Closes the connections."""
        if self._http is not None:
            await self._http.aclose()
            self._http = None

    async def packs(self) -> list[Pack]:
        """Lists what is on sale; the list is kept for a minute.

        Raises:
            Problem: the bridge's refusal, or 503; all methods here raise it.
        """
        now = time.monotonic()
        if self._packs is None or now - self._packs[0] >= _PACKS_KEPT_SECONDS:
            listing = asyncio.create_task(self._listed_packs())
            # All callers may have gone; then the task's failure must still be retrieved.
            listing.add_done_callback(lambda done: done.cancelled() or done.exception())
            self._packs = now, listing
            del listing  # or the frame in its failure's traceback would keep the failure
        try:
            # Shielded, because others may wait for the same answer.
            return await asyncio.shield(self._packs[1])
        except Problem:
            self._packs = None
            raise

    async def _listed_packs(self) -> list[Pack]:
        def read(answer: dict[str, Any]) -> list[Pack]:
            return [
                Pack(
                    _text(pack["id"]),
                    _text(pack["name"]),
                    _whole(pack["credits"]),
                    _whole(pack["amount_minor"]),
                    _text(pack["currency"]),
                    # A bridge of an earlier release does not send it.
                    _whole_or_none(pack.get("valid_for_seconds")),
                )
                for pack in answer["packs"]
            ]

        return await self._ask("GET", "/credit-packs", read)

    async def open_checkout(
        self,
        user_id: UUID,
        pack: str,
        quantity: int,
        idempotency_key: str,
        *,
        save_card: bool = False,
    ) -> Checkout:
        """Opens a checkout, or finds the one that the user opened under the same key.

        With `save_card` the card is kept for later payments; Stripe's page informs the buyer.
        """
        order = {
            "user_id": str(user_id),
            "pack": pack,
            "quantity": quantity,
            "success_url": self._success_url,
            "cancel_url": self._cancel_url,
            "idempotency_key": idempotency_key,
        }
        if save_card:
            # A bridge of an earlier release refuses a field that it does not know.
            order["save_card"] = True

        def read(answer: dict[str, Any]) -> Checkout:
            url = _leading_to(answer["url"], self.checkout_hosts)
            return Checkout(_text(answer["id"]), url, _whole(answer["expires_at"]))

        return await self._ask("POST", "/checkout-sessions", read, body=order)

    async def checkout(self, user_id: UUID, checkout_id: str) -> CheckoutState:
        """Reads the state of a checkout of the user."""
        path = f"/checkout-sessions/{checkout_id}"
        return await self._ask("GET", path, _state, parameters={"user_id": str(user_id)})

    async def refresh_checkout(self, user_id: UUID, checkout_id: str) -> CheckoutState:
        """Settles a checkout of the user and reads its state."""
        path = f"/checkout-sessions/{checkout_id}/refresh"
        return await self._ask("POST", path, _state, body={"user_id": str(user_id)})

    async def portal(self, user_id: UUID) -> str:
        """Opens Stripe's billing portal for the user; returns its address."""
        if self._portal_return_url is None:
            raise Problem("NOT_SOLD_HERE")
        order = {"user_id": str(user_id), "return_url": self._portal_return_url}

        def read(answer: dict[str, Any]) -> str:
            return _leading_to(answer["url"], self.portal_hosts)

        return await self._ask("POST", "/portal-sessions", read, body=order)

    async def _ask(
        self,
        method: str,
        path: str,
        read: Callable[[dict[str, Any]], _Read],
        *,
        body: Mapping[str, object] | None = None,
        parameters: dict[str, str] | None = None,
    ) -> _Read:
        if self._http is None:
            self._http = httpx.AsyncClient(
                base_url=self._address,
                headers={"Authorization": f"Bearer {self._token}"},
                follow_redirects=False,
                timeout=_SECONDS,
                trust_env=False,
            )
        try:
            async with (
                asyncio.timeout(_SECONDS),
                self._http.stream(method, path, json=body, params=parameters) as response,
            ):
                content = bytearray()
                async for chunk in response.aiter_bytes():
                    content += chunk
                    if len(content) > _BYTES_MAX:
                        raise Problem("MISCONFIGURED", "the bridge's answer is too long")
        except (httpx.HTTPError, TimeoutError) as error:
            raise Problem("BRIDGE_UNAVAILABLE", type(error).__name__) from None
        try:
            answer = orjson.loads(content)
            if response.is_success:
                return read(answer)
            refused = answer["error"]
            reason, message = _text(refused["reason"]), _text(refused["message"])
        except (ValueError, KeyError, TypeError):
            # Not the bridge's answer, but perhaps that of a proxy in front of a bridge that is
            # away.
            away = response.status_code >= 500  # noqa: PLR2004  # the class of HTTP's server errors
            raise Problem("BRIDGE_UNAVAILABLE" if away else "MISCONFIGURED") from None
        if ("bridge", reason) not in ROWS:
            raise Problem("MISCONFIGURED", f"the bridge refuses: {reason}")
        raise Problem(reason, message, source="bridge")


def _state(answer: dict[str, Any]) -> CheckoutState:
    credits_ = answer["credits"]
    return CheckoutState(_text(answer["id"]), _text(answer["state"]), _whole_or_none(credits_))


def _leading_to(url: object, hosts: Collection[str]) -> str:
    """Reads an address to which a buyer will be sent; its host must be one of `hosts`."""
    text = _text(url)
    parts = urlsplit(text)
    safe = parts.scheme == "https" or (
        parts.scheme == "http" and parts.hostname in {"127.0.0.1", "localhost", "::1"}
    )
    if not _ADDRESS.match(text) or not safe or parts.netloc.lower() not in hosts:
        raise Problem("MISCONFIGURED", "the bridge names a host that is not configured")
    return text


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError
    return value


def _whole(value: object) -> int:
    if type(value) is not int:
        raise TypeError
    return value


def _whole_or_none(value: object) -> int | None:
    return None if value is None else _whole(value)
