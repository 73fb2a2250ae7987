"""The state of the fake Stripe: its objects, their order, and the clock that dates them.

Objects are plain dicts in the newest layout. Keys that begin with an underscore are links that only
some versions show, or none; `versions` leaves them out.
"""

import time
import uuid
from collections import defaultdict
from typing import Any

Object = dict[str, Any]

PREFIXES = {
    "checkout.session": "cs",
    "payment_intent": "pi",
    "charge": "ch",
    "refund": "re",
    "dispute": "du",
    "invoice": "in",
    "invoice_payment": "inpay",
    "payment_record": "pr",
    "subscription": "sub",
    "subscription_item": "si",
    "customer": "cus",
    "payment_method": "pm",
    "price": "price",
    "product": "prod",
    "balance_transaction": "txn",
    "item": "li",
    "line_item": "il",
    "webhook_endpoint": "we",
    "event": "evt",
    "request": "req",
    "portal_session": "bps",
}

# Lists of these are needed too often to look at every object each time.
_INDEXED = ("payment_intent", "charge", "invoice", "customer")


class State:
    """Objects by kind and id, in the order they were made."""

    def __init__(self, *, live: bool) -> None:
        self.live = live
        self.clock_offset_seconds = 0
        self._objects: dict[str, dict[str, Object]] = defaultdict(dict)
        self._order: dict[str, list[Object]] = defaultdict(list)
        self._places: dict[str, int] = {}
        self._index: dict[tuple[str, str, str], dict[str, None]] = defaultdict(dict)

    def now(self) -> int:
        """Stripe's time in whole seconds, as `created` has it."""
        return int(time.time()) + self.clock_offset_seconds

    def new_id(self, kind: str, *, live: bool | None = None) -> str:
        """An id that no earlier run of the fake has made."""
        mark = uuid.uuid4().hex[:24]
        if kind == "checkout.session":
            return f"cs_{'live' if self._mode(live) else 'test'}_a1{mark}{uuid.uuid4().hex}"
        return f"{PREFIXES[kind]}_{mark}"

    def add(self, kind: str, fields: Object) -> Object:
        """Makes an object; `fields` may bring its own id, creation time and mode."""
        live = self._mode(fields.get("livemode"))
        given = fields.get("id") or self.new_id(kind, live=live)
        made = {"object": kind, "created": self.now(), **fields, "id": given, "livemode": live}
        self._places[given] = len(self._order[kind])
        self._order[kind].append(made)
        self._objects[kind][given] = made
        self.save(made)
        return made

    def save(self, changed: Object) -> None:
        """Updates the references of an object in the indexes that lists filter by."""
        kind = changed["object"]
        for field in _INDEXED:
            if referred := changed.get(field):
                self._index[kind, field, referred][changed["id"]] = None

    def get(self, kind: str, id_: str) -> Object | None:
        """The object of this kind and id, if there is one."""
        return self._objects[kind].get(id_)

    def find(self, id_: str) -> Object | None:
        """The object of this id, of any kind."""
        for objects in self._objects.values():
            if found := objects.get(id_):
                return found
        return None

    def all(self, kind: str) -> list[Object]:
        """Every object of a kind, oldest first."""
        return self._order[kind]

    def referring(self, kind: str, field: str, id_: str) -> list[Object] | None:
        """The objects whose `field` is `id_`, oldest first; None for a field without an index."""
        if field not in _INDEXED:
            return None
        found = [self._objects[kind][made] for made in self._index.get((kind, field, id_), ())]
        return sorted(found, key=lambda each: self._places[each["id"]])

    def counts(self) -> dict[str, int]:
        """How many objects of each kind there are."""
        return {kind: len(order) for kind, order in self._order.items()}

    def _mode(self, live: bool | None) -> bool:
        return self.live if live is None else live
