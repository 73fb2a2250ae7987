"""The answers of the API: one object, a page of a list, expanded fields."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from .payments import Refused, found
from .state import Object
from .stripe import Stripe
from .versions import PAID_OFF_STRIPE, list_of, refunds_of, shown

_PAGING = {"limit", "starting_after", "ending_before", "expand", "created"}
_COMPARED: dict[str, Callable[[int, int], bool]] = {
    "gte": lambda made, limit: made >= limit,
    "gt": lambda made, limit: made > limit,
    "lte": lambda made, limit: made <= limit,
    "lt": lambda made, limit: made < limit,
}
_DEEPEST_EXPANSION = 4

# The filters of each list; `payment` and `lookup_keys` are nested.
FILTERS = {
    "checkout.session": {
        "customer", "payment_intent", "payment_link", "status", "subscription", "customer_details",
    },
    "payment_intent": {"customer"},
    "charge": {"customer", "payment_intent", "transfer_group"},
    "refund": {"charge", "payment_intent"},
    "dispute": {"charge", "payment_intent"},
    "invoice": {"collection_method", "customer", "due_date", "status", "subscription"},
    "invoice_payment": {"invoice", "payment", "status"},
    "customer": {"email"},
    "payment_method": {"customer", "type"},
    "price": {"active", "currency", "lookup_keys", "product", "recurring", "type"},
    "product": {"active", "ids", "shippable", "url"},
}  # fmt: skip


@dataclass(slots=True)
class Call:
    """One request to the API: its key, version and parameters."""

    stripe: Stripe
    live: bool
    version: str
    path: str
    params: Object
    ids: dict[str, str] = field(default_factory=dict)

    def one(self, kind: str) -> Object:
        """The object that the path names, if this key may see it.

        Raises:
            Refused: there is none, or it is of the other mode.
        """
        object_ = found(self.stripe, kind, self.ids["id"])
        if object_["livemode"] != self.live:
            asked, has = ("live", "test") if self.live else ("test", "live")
            raise Refused(
                f"No such {kind}: '{object_['id']}'; a similar object exists in {has} mode, "
                f"but a {asked} mode key was used to make this request.",
                status=404,
                code="resource_missing",
                param="id",
            )
        return object_

    def show(self, object_: Object) -> Object:
        """An object in this call's version, with the fields expanded that the call names."""
        view = shown(self.stripe.state, object_, self.version)
        for path in self.params.get("expand") or []:
            self._expand(view, path.split("."))
        return view

    def listed(self, kind: str) -> Object:
        """A page of the objects of a kind.

        Raises:
            Refused: an unknown filter or a bad page.
        """
        for name in self.params:
            if name not in FILTERS[kind] | _PAGING:
                raise Refused(
                    f"Received unknown parameter: {name}", code="parameter_unknown", param=name
                )
        wanted = {name: self.params[name] for name in FILTERS[kind] if name in self.params}
        state = self.stripe.state
        items: Sequence[Object] | None = None
        for name, value in wanted.items():
            if items is None and isinstance(value, str):
                items = state.referring(kind, name, value)
        if items is None:
            items = state.all(kind)

        def keep(each: Object) -> bool:
            return each["livemode"] == self.live and all(
                _matches(each, name, value) for name, value in wanted.items()
            )

        return self.page(items, keep, lambda each: shown(state, each, self.version))

    def page(
        self,
        oldest_first: Sequence[Any],
        keep: Callable[[Any], bool],
        show: Callable[[Any], Object],
        *,
        made: Callable[[Any], int] = lambda each: each["created"],
        id_of: Callable[[Any], str] = lambda each: each["id"],
    ) -> Object:
        """A page of a list, newest first, as `limit` and the cursors ask for it."""
        limit = self._limit()
        after, before = self.params.get("starting_after"), self.params.get("ending_before")
        place = len(oldest_first)
        if cursor := after or before:
            places = (place for place, each in enumerate(oldest_first) if id_of(each) == cursor)
            place = next(places, -1)
            if place < 0:
                param = "starting_after" if after else "ending_before"
                message = f"No such object: '{cursor}'"
                raise Refused(message, code="resource_missing", param=param)
        if before:
            order = (oldest_first[n] for n in range(place + 1, len(oldest_first)))
        else:
            order = (oldest_first[n] for n in range(place - 1, -1, -1))
        created = self.params.get("created")
        chosen = []
        for each in order:
            if keep(each) and _created(made(each), created):
                chosen.append(each)
                if len(chosen) > limit:
                    break
        more = len(chosen) > limit
        data = chosen[:limit][::-1] if before else chosen[:limit]
        view = list_of([show(each) for each in data], self.path, has_more=more)
        for path in self.params.get("expand") or []:
            self._expand(view, path.split("."))
        return view

    def _limit(self) -> int:
        limit = int(self.params.get("limit", 10))
        if not 1 <= limit <= 100:
            raise Refused("Invalid integer: limit is 1 to 100.", param="limit")
        return limit

    def _expand(self, view: Object, path: list[str]) -> None:
        if len(path) > _DEEPEST_EXPANSION:
            raise Refused("You cannot expand more than 4 levels of a property.", param="expand")
        head, *rest = path
        state = self.stripe.state
        match view.get("object"), head:
            case "checkout.session", "line_items":
                lines = found(self.stripe, "checkout.session", view["id"])["_lines"]
                url = f"/v1/checkout/sessions/{view['id']}/line_items"
                shared = list_of(lines[:10], url, has_more=len(lines) > 10)
                view[head] = {**shared, "data": [dict(each) for each in shared["data"]]}
            case "charge", "refunds":
                view[head] = refunds_of(state, view, self.version)
            case "invoice", "payments":
                payments = state.referring("invoice_payment", "invoice", view["id"]) or []
                view[head] = list_of(
                    [shown(state, each, self.version) for each in payments],
                    f"/v1/invoice_payments?invoice={view['id']}",
                )
            case "invoice", "amount_paid_off_stripe" if self.version[:10] >= PAID_OFF_STRIPE:
                view[head] = found(self.stripe, "invoice", view["id"])["_off_stripe"]
        value = view.get(head)
        if isinstance(value, str) and (object_ := state.find(value)):
            view[head] = shown(state, object_, self.version)
        elif isinstance(value, dict):
            view[head] = dict(value)
        elif head not in view:
            raise Refused(f"This property cannot be expanded ({head}).", param="expand")
        if not rest:
            return
        if isinstance(value, list):
            view[head] = [dict(each) for each in value]
        below = view[head] if isinstance(view[head], list) else [view[head]]
        for each in below:
            if isinstance(each, dict):
                self._expand(each, rest)


def _created(made: int, wanted: object) -> bool:
    if wanted is None:
        return True
    if isinstance(wanted, dict):
        return all(_COMPARED[name](made, int(limit)) for name, limit in wanted.items())
    return made == int(str(wanted))


def _matches(each: Object, name: str, wanted: Any) -> bool:
    if name == "lookup_keys":
        return bool(each["lookup_key"] in wanted)
    if name == "ids":
        return bool(each["id"] in wanted)
    if isinstance(wanted, dict):
        return all((each.get(name) or {}).get(key) == value for key, value in wanted.items())
    if name == "subscription" and each["object"] == "invoice":
        details = (each["parent"] or {}).get("subscription_details") or {}
        return bool(details.get("subscription") == wanted)
    value = each.get(name)
    return bool((str(value).lower() if isinstance(value, bool) else value) == wanted)
