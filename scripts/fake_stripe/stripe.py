"""The fake Stripe: its state, and the events of every change."""

import asyncio
from collections import deque
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import orjson

from .faults import Faults
from .state import Object, State
from .versions import NEWEST, sent, shown

if TYPE_CHECKING:
    from collections.abc import Callable

_URLS = {
    "checkout.session": "/v1/checkout/sessions",
    "payment_intent": "/v1/payment_intents",
    "charge": "/v1/charges",
    "refund": "/v1/refunds",
    "dispute": "/v1/disputes",
    "invoice": "/v1/invoices",
    "invoice_payment": "/v1/invoice_payments",
    "customer": "/v1/customers",
    "payment_method": "/v1/payment_methods",
    "price": "/v1/prices",
}


@dataclass(slots=True, eq=False)
class Event:
    """One Event object. Its content never changes; a body is kept for every version asked for."""

    id: str
    type: str
    created: int
    object_id: str
    object_kind: str
    livemode: bool
    account: str | None
    bodies: dict[str, bytes]
    pending: int = 0


@dataclass(slots=True, eq=False)
class Endpoint:
    """A destination of events: a webhook endpoint, or a thin destination.

    Attributes:
        secrets: several while one is being rolled; each signs.
        api_version: the events' version, pinned for good.
        thin: notifications without content instead of snapshots.
    """

    id: str
    url: str
    secrets: list[str]
    enabled_events: list[str]
    api_version: str
    thin: bool
    livemode: bool
    created: int
    status: str = "enabled"
    metadata: dict[str, str] = field(default_factory=dict)

    def wants(self, event: Event) -> bool:
        """Whether this endpoint gets the event."""
        if self.status != "enabled" or not (event.livemode == self.livemode or event.account):
            return False
        if self.thin:
            return True
        listed = "*" in self.enabled_events or event.type in self.enabled_events
        return listed and not event.type.startswith("v2.") and sent(event.type, self.api_version)


@dataclass(frozen=True, slots=True)
class KeptAnswer:
    """The answer of an idempotency key, a digest of the request, and when it was made."""

    used_with: bytes
    status: int
    body: bytes
    at: int


class Stripe:
    """State, events, endpoints and faults.

    Attributes:
        api_version: the account's default, in which `/v1/events` shows events.
        base_url: where this fake can be reached.
        answers: those of idempotency keys, by mode and key.
        search_lag_seconds: the age from which a search finds an object; a list shows it at once.
        undelivered: events that no endpoint has accepted and no fault has lost.
        outbox: those of them that wait for a delivery.
        mail: set when something is in the outbox.
        keep: called after every change.
    """

    def __init__(self, *, live: bool, api_version: str = NEWEST, seed: int = 0) -> None:
        self.state = State(live=live)
        self.api_version = api_version
        self.base_url = ""
        self.faults = Faults(seed)
        self.endpoints: dict[str, Endpoint] = {}
        self.events: dict[str, Event] = {}
        self.event_order: list[Event] = []
        self.answers: dict[tuple[bool, str], KeptAnswer] = {}
        self.search_lag_seconds = 0
        self.undelivered: dict[tuple[str, str], tuple[Event, Endpoint]] = {}
        self.outbox: deque[tuple[Event, Endpoint]] = deque()
        self.mail = asyncio.Event()
        self.keep: Callable[[], None] = lambda: None

    def __getstate__(self) -> dict[str, Any]:
        gone = {"outbox", "mail", "keep"}
        return {name: value for name, value in self.__dict__.items() if name not in gone}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__ |= state
        self.outbox = deque(self.undelivered.values())
        self.mail = asyncio.Event()
        self.keep = lambda: None

    def tell(self, *changes: tuple[str, Object], account: str | None = None) -> list[Event]:
        """Makes the events of one change, with its objects as they are now, and hands them out.

        Args:
            changes: type and object of each, in the order the real one makes them.
            account: the connected account they are about, if not the own one.

        Returns:
            The events that can be listed.
        """
        made = []
        for kind, about in self.faults.shuffled(changes):
            if self.faults.strikes("unmade"):
                continue
            for _ in range(2 if self.faults.strikes("twin") else 1):
                event = self.make_event(kind, about, account=account)
                self.send(event)
                made.append(event)
        return made

    def make_event(
        self, kind: str, about: Object, *, account: str | None = None, **fields: Any
    ) -> Event:
        """Makes an Event object without sending it; `fields` override those of its body."""
        event = Event(
            id=fields.get("id") or self.state.new_id("event"),
            type=kind,
            created=fields.get("created") or self.state.now(),
            object_id=about.get("id", ""),
            object_kind=about.get("object", ""),
            livemode=bool(fields.get("livemode", about.get("livemode", self.state.live))),
            account=account,
            bodies={},
        )
        for version in {self.api_version, *(each.api_version for each in self.endpoints.values())}:
            event.bodies[version] = self._body(event, about, version, fields)
        self.events[event.id] = event
        self.event_order.append(event)
        return event

    def send(self, event: Event) -> None:
        """Hands an event to every endpoint that wants it."""
        for endpoint in self.endpoints.values():
            if endpoint.wants(event):
                self.outbox.append((event, endpoint))
                self.undelivered[event.id, endpoint.id] = (event, endpoint)
                event.pending += 1
        self.mail.set()

    def body_for(self, event: Event, endpoint: Endpoint) -> bytes:
        """Returns the exact bytes that an endpoint gets."""
        if endpoint.thin or event.type.startswith("v2."):
            return orjson.dumps(self.thin(event))
        # An endpoint made after the event gets it in the account's version.
        return event.bodies.get(endpoint.api_version) or event.bodies[self.api_version]

    def thin(self, event: Event) -> Object:
        """The notification of an event (https://docs.stripe.com/event-destinations)."""
        unversioned = {
            "id": f"{event.id}_thin",
            "object": "v2.core.event",
            "type": event.type if event.type.startswith("v2.") else f"v1.{event.type}",
            "created": datetime.fromtimestamp(event.created, UTC)
            .isoformat()
            .replace("+00:00", "Z"),
            "livemode": event.livemode,
            "context": event.account,
            "reason": None,
        }
        if event.type.startswith("v2."):
            return {**unversioned, "id": event.id}
        related = {
            "id": event.object_id,
            "type": event.object_kind,
            "url": f"{_URLS.get(event.object_kind, '/v1/unknown')}/{event.object_id}",
        }
        return {**unversioned, "related_object": related, "snapshot_event": event.id}

    def _body(self, event: Event, about: Object, version: str, fields: Object) -> bytes:
        if event.type.startswith("v2."):
            return orjson.dumps(about)
        of_request = {"id": self.state.new_id("request"), "idempotency_key": None}
        body = {
            "id": event.id,
            "object": "event",
            "api_version": version,
            "created": event.created,
            "data": {"object": shown(self.state, about, version) if "object" in about else about},
            "livemode": event.livemode,
            "pending_webhooks": 1,
            "request": of_request,
            "type": event.type,
        }
        if event.account:
            body["account"] = event.account
        # A copy, because the bytes from orjson keep the far larger buffer that it wrote into.
        return bytes(bytearray(orjson.dumps({**body, **fields})))
