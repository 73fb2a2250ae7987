"""The API under `/v1/` for the SDK: keys, versions, errors, idempotency.

https://docs.stripe.com/api
"""

import asyncio
import hashlib
import re
from collections.abc import Callable

import orjson
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from . import card_routes, money_back, payments
from .faults import ApiFault
from .forms import decoded, flag, session_parameters
from .payments import Refused
from .reading import FILTERS, Call
from .state import Object
from .stripe import Endpoint, Event, KeptAnswer, Stripe
from .versions import shown

Handler = Callable[[Call], Object]

_EVENTS_KEPT_SECONDS = 30 * 86400
_KEYS_KEPT_SECONDS = 86400
_MOST_EVENT_TYPES = 20
_MOST_ENDPOINTS = 16

_LISTS = {
    "/v1/checkout/sessions": "checkout.session",
    "/v1/payment_intents": "payment_intent",
    "/v1/charges": "charge",
    "/v1/refunds": "refund",
    "/v1/disputes": "dispute",
    "/v1/invoices": "invoice",
    "/v1/invoice_payments": "invoice_payment",
    "/v1/customers": "customer",
    "/v1/payment_methods": "payment_method",
    "/v1/prices": "price",
    "/v1/products": "product",
}
assert set(_LISTS.values()) == set(FILTERS)


class Broken(Response):
    """An answer that stops in the middle, so that the client sees a broken connection."""

    async def __call__(self, _scope: Scope, _receive: Receive, send: Send) -> None:
        headers = [(b"content-length", b"1000"), (b"content-type", b"application/json")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": b'{"object":', "more_body": True})


class Api:
    """Answers requests below `/v1/` and `/v2/`."""

    def __init__(self, stripe: Stripe) -> None:
        self._stripe = stripe
        self.requests = 0

    async def __call__(self, request: Request) -> Response:
        """Answers one request, or lets it fail as the faults say."""
        self.requests += 1
        fault = self._stripe.faults.of_request(request.method, request.url.path)
        body = await request.body()
        if fault is not None and fault.kind not in {"lost_answer", "late_answer"}:
            return await _failing(fault)
        status, answer, headers = self._answer(request, body)
        if request.method == "POST":
            self._stripe.keep()
        if fault is not None and fault.kind == "lost_answer":
            return _json(_failure(fault), fault.status)
        if fault is not None:
            await asyncio.sleep(fault.seconds)
        return _json(answer, status, headers)

    def _answer(self, request: Request, body: bytes) -> tuple[int, bytes, dict[str, str]]:
        headers = {"Request-Id": self._stripe.state.new_id("request")}
        key, used_with = "", b""
        try:
            live = _mode(request)
            if request.method == "POST":
                key = request.headers.get("Idempotency-Key", "")
            used_with = hashlib.sha256(request.url.path.encode() + b"?" + body).digest()
            if key and (kept := self._kept(live, key)):
                if kept.used_with != used_with:
                    raise Refused(
                        "Keys for idempotent requests can only be used with the same parameters "
                        "they were first used with. Try using a key other than "
                        f"'{key}' if you meant to execute a different request.",
                        kind="idempotency_error",
                    )
                return kept.status, kept.body, {**headers, "Idempotent-Replayed": "true"}
            version = request.headers.get("Stripe-Version") or self._stripe.api_version
            handler, ids = _route(request)
            form = body.decode() if request.method == "POST" else request.url.query
            call = Call(self._stripe, live, version, request.url.path, decoded(form), ids)
            answer = orjson.dumps(handler(call))
            if key:
                self._keep(live, key, KeptAnswer(used_with, 200, answer, self._stripe.state.now()))
                headers["Idempotency-Key"] = key
        except Refused as refusal:
            refused = orjson.dumps({"error": refusal.error})
            if key and refusal.kept:
                now = self._stripe.state.now()
                self._keep(live, key, KeptAnswer(used_with, refusal.status, refused, now))
            return refusal.status, refused, headers
        return 200, answer, {**headers, "Stripe-Version": version}

    def _kept(self, live: bool, key: str) -> KeptAnswer | None:
        kept = self._stripe.answers.get((live, key))
        if kept is None or self._stripe.state.now() - kept.at >= _KEYS_KEPT_SECONDS:
            return None
        return kept

    def _keep(self, live: bool, key: str, answer: KeptAnswer) -> None:
        self._stripe.answers[live, key] = answer


def _mode(request: Request) -> bool:
    kind, _, key = request.headers.get("Authorization", "").partition(" ")
    if kind != "Bearer" or not key:
        raise Refused(
            "You did not provide an API key. You need to provide your API key in the "
            "Authorization header, using Bearer auth (e.g. 'Authorization: Bearer "
            "YOUR_SECRET_KEY').",
            status=401,
        )
    for prefix, live in _KEY_PREFIXES.items():
        if key.startswith(prefix):
            return live
    raise Refused(f"Invalid API Key provided: {key[:8]}***", status=401)


_KEY_PREFIXES = {"sk_test_": False, "rk_test_": False, "sk_live_": True, "rk_live_": True}


def _route(request: Request) -> tuple[Handler, dict[str, str]]:
    path = request.url.path
    if handler := _ROUTES.get((request.method, path)):
        return handler, {}
    parts = path.split("/")
    # One id, last or last but one; `/v1/refunds` and `/v2/core/events` differ in depth.
    for place in (len(parts) - 1, len(parts) - 2):
        pattern = "/".join([*parts[:place], "{id}", *parts[place + 1 :]])
        if handler := _ROUTES.get((request.method, pattern)):
            return handler, {"id": parts[place]}
    raise Refused(
        f"Unrecognized request URL ({request.method}: {path}). Please see "
        "https://stripe.com/docs or we can help at https://support.stripe.com/.",
        status=404,
    )


async def _failing(fault: ApiFault) -> Response:
    if fault.kind == "hang":
        await asyncio.sleep(fault.seconds)
    if fault.kind in {"hang", "cut"}:
        return Broken()
    return _json(_failure(fault), fault.status)


def _failure(fault: ApiFault) -> bytes:
    error = {"type": "api_error", "message": "An unexpected error occurred."}
    if fault.status == 429:
        error = {"type": "invalid_request_error", "code": "rate_limit", "message": "Too many."}
    elif fault.code:
        error = {"type": "invalid_request_error", "code": fault.code, "message": "Refused."}
    return orjson.dumps({"error": error})


def _json(body: bytes, status: int, headers: dict[str, str] | None = None) -> Response:
    return Response(body, status, headers, media_type="application/json")


def _create_session(call: Call) -> Object:
    form = session_parameters(call.params)
    return call.show(payments.make_session(call.stripe, {**form, "livemode": call.live}))


def _expire_session(call: Call) -> Object:
    session = payments.expire_session(call.stripe, call.one("checkout.session"))
    return call.show(session)


def _line_items(call: Call) -> Object:
    session = call.one("checkout.session")
    return call.page(session["_lines"][::-1], lambda _: True, dict, made=lambda _: 0)


def _invoice_lines(call: Call) -> Object:
    state = call.stripe.state
    lines = call.one("invoice")["_lines"][::-1]
    return call.page(
        lines, lambda _: True, lambda line: shown(state, line, call.version), made=lambda _: 0
    )


def _create_refund(call: Call) -> Object:
    form = call.params
    charge = money_back.charge_of(call.stripe, form.get("charge") or form["payment_intent"])
    amount = int(form["amount"]) if "amount" in form else None
    made = money_back.refund(
        call.stripe,
        charge,
        amount=amount,
        reason=form.get("reason"),
        metadata=form.get("metadata"),
    )
    return call.show(made)


def _event(call: Call) -> Object:
    event = call.stripe.events.get(call.ids["id"])
    oldest = call.stripe.state.now() - _EVENTS_KEPT_SECONDS
    if event is None or event.created < oldest or not _snapshot(event, live=call.live):
        message = f"No such event: '{call.ids['id']}'"
        raise Refused(message, status=404, code="resource_missing", param="id")
    return _shown_event(call, event)


def _snapshot(event: Event, *, live: bool) -> bool:
    return event.livemode == live and not event.type.startswith("v2.")


def _shown_event(call: Call, event: Event) -> Object:
    # Not the caller's version: an event keeps the one that the account had when it was made.
    return {
        **orjson.loads(event.bodies[call.stripe.api_version]),
        "pending_webhooks": max(0, event.pending),
    }


def _events(call: Call) -> Object:
    form = call.params
    types = set(form.get("types") or ([form["type"]] if "type" in form else []))
    if len(types) > _MOST_EVENT_TYPES:
        raise Refused("types has at most 20 entries.", param="types")
    delivered = flag(form, "delivery_success")
    oldest = call.stripe.state.now() - _EVENTS_KEPT_SECONDS

    def keep(event: Event) -> bool:
        return (
            _snapshot(event, live=call.live)
            and event.created >= oldest
            and (not types or event.type in types)
            and (delivered is None or delivered == (event.pending == 0))
        )

    return call.page(
        call.stripe.event_order,
        keep,
        lambda event: _shown_event(call, event),
        made=lambda event: event.created,
        id_of=lambda event: event.id,
    )


def _thin_event(call: Call) -> Object:
    id_ = call.ids["id"].removesuffix("_thin")
    if id_ not in call.stripe.events:
        raise Refused(f"No such event: '{id_}'", status=404, code="not_found")
    event = call.stripe.events[id_]
    if not event.type.startswith("v2."):
        return call.stripe.thin(event)
    # Only events of the API's second version have content of their own; a notification has none.
    content = orjson.loads(event.bodies[call.stripe.api_version])
    return {**call.stripe.thin(event), "data": content}


def _create_endpoint(call: Call) -> Object:
    form, state = call.params, call.stripe.state
    for name in ("url", "enabled_events"):
        if not form.get(name):
            raise Refused(f"Missing required param: {name}.", code="parameter_missing", param=name)
    if len(call.stripe.endpoints) >= _MOST_ENDPOINTS:
        raise Refused("You have reached the maximum of 16 webhook endpoints.")
    id_ = state.new_id("webhook_endpoint")
    endpoint = Endpoint(
        id=id_,
        url=form["url"],
        secrets=[f"whsec_{id_.removeprefix('we_')}"],
        enabled_events=form["enabled_events"],
        api_version=form.get("api_version") or call.stripe.api_version,
        thin=False,
        livemode=call.live,
        created=state.now(),
        metadata=form.get("metadata") or {},
    )
    call.stripe.endpoints[id_] = endpoint
    return {**endpoint_view(endpoint), "secret": endpoint.secrets[0]}


def endpoint_view(endpoint: Endpoint) -> Object:
    """A webhook endpoint as the API shows it; its secret is shown only when it is made."""
    return {
        "id": endpoint.id,
        "object": "webhook_endpoint",
        "api_version": endpoint.api_version,
        "application": None,
        "created": endpoint.created,
        "description": None,
        "enabled_events": endpoint.enabled_events,
        "livemode": endpoint.livemode,
        "metadata": endpoint.metadata,
        "status": endpoint.status,
        "url": endpoint.url,
    }


def _endpoint(call: Call) -> Object:
    endpoint = call.stripe.endpoints.get(call.ids["id"])
    if endpoint is None:
        message = f"No such webhook endpoint: '{call.ids['id']}'"
        raise Refused(message, status=404, code="resource_missing", param="id")
    return endpoint_view(endpoint)


def _endpoints(call: Call) -> Object:
    made = list(call.stripe.endpoints.values())
    return call.page(
        made,
        lambda each: each.livemode == call.live,
        endpoint_view,
        made=lambda each: each.created,
        id_of=lambda each: each.id,
    )


def _create_price(call: Call) -> Object:
    given = {**call.params, "unit_amount": int(call.params["unit_amount"]), "livemode": call.live}
    return call.show(payments.make_price(call.stripe, given))


def _create_customer(call: Call) -> Object:
    return call.show(payments.make_customer(call.stripe, {**call.params, "livemode": call.live}))


def _searching(kind: str) -> Handler:
    """Finds objects by one pair of their metadata, which is all that our programs search for."""

    def search(call: Call) -> Object:
        asked = re.fullmatch(r"metadata\['(\w+)'\]:'([^']*)'", call.params.get("query", ""))
        if asked is None:
            raise Refused("The search query could not be read.", param="query")
        state = call.stripe.state
        indexed = state.now() - call.stripe.search_lag_seconds
        found = [
            call.show(each)
            for each in reversed(state.all(kind))
            if each["livemode"] == call.live
            and each["metadata"].get(asked[1]) == asked[2]
            and each["created"] <= indexed
        ]
        limit = int(call.params.get("limit", 10))
        return {
            "object": "search_result", "data": found[:limit], "has_more": len(found) > limit,
            "next_page": None, "url": call.path,
        }  # fmt: skip

    return search


def _create_portal_session(call: Call) -> Object:
    form, state = call.params, call.stripe.state
    customer = payments.found(call.stripe, "customer", form["customer"], param="customer")
    id_ = state.new_id("portal_session")
    return {
        "id": id_,
        "object": "billing_portal.session",
        "created": state.now(),
        "customer": customer["id"],
        "livemode": call.live,
        "return_url": form.get("return_url"),
        "url": f"{call.stripe.base_url}/_fake/portal/{id_}",
    }


def _account(call: Call) -> Object:
    return {"id": "acct_fake", "object": "account", "country": "DE", "default_currency": "eur"}


def _listing(kind: str) -> Handler:
    return lambda call: call.listed(kind)


def _retrieving(kind: str) -> Handler:
    return lambda call: call.show(call.one(kind))


_ROUTES: dict[tuple[str, str], Handler] = {
    **{("GET", path): _listing(kind) for path, kind in _LISTS.items()},
    **{("GET", f"{path}/{{id}}"): _retrieving(kind) for path, kind in _LISTS.items()},
    ("POST", "/v1/checkout/sessions"): _create_session,
    ("POST", "/v1/checkout/sessions/{id}/expire"): _expire_session,
    ("GET", "/v1/checkout/sessions/{id}/line_items"): _line_items,
    ("GET", "/v1/invoices/{id}/lines"): _invoice_lines,
    ("POST", "/v1/refunds"): _create_refund,
    ("POST", "/v1/prices"): _create_price,
    ("POST", "/v1/customers"): _create_customer,
    ("GET", "/v1/customers/search"): _searching("customer"),
    ("GET", "/v1/payment_intents/search"): _searching("payment_intent"),
    **{("POST", path): handler for path, handler in card_routes.POSTS.items()},
    ("POST", "/v1/billing_portal/sessions"): _create_portal_session,
    ("GET", "/v1/events"): _events,
    ("GET", "/v1/events/{id}"): _event,
    ("GET", "/v2/core/events/{id}"): _thin_event,
    ("GET", "/v1/webhook_endpoints"): _endpoints,
    ("GET", "/v1/webhook_endpoints/{id}"): _endpoint,
    ("POST", "/v1/webhook_endpoints"): _create_endpoint,
    ("GET", "/v1/account"): _account,
}
