"""The fake's own routes under `/_fake/`: the actions of customers and banks, and the faults.

Each action takes a JSON object and answers with one; `batch` takes many actions at once.
"""

import asyncio
import contextlib
import html
from collections.abc import Callable
from dataclasses import asdict, fields
from typing import Any

import orjson
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response

from . import billing, cards, money_back, payments, plans
from .deliveries import Couriers, Pace
from .faults import ApiFault
from .payments import Refused, found
from .routes import Api, endpoint_view
from .state import Object
from .stripe import Endpoint, Stripe
from .versions import shown

_EVENTS = [
    "checkout.session.completed",
    "checkout.session.async_payment_succeeded",
    "checkout.session.async_payment_failed",
    "payment_intent.succeeded",
    "invoice.paid",
    "refund.created",
    "refund.updated",
    "refund.failed",
    "charge.refunded",
    "charge.refund.updated",
    "charge.dispute.created",
    "charge.dispute.updated",
    "charge.dispute.funds_withdrawn",
    "charge.dispute.funds_reinstated",
    "charge.dispute.closed",
]


_PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Fake Stripe</title>
<link rel="icon" href="data:,">
<style>
  :root {{ color-scheme: light dark; font: 1rem/1.5 system-ui, sans-serif; }}
  body {{ max-width: 24rem; margin: 4rem auto; padding: 0 1rem; }}
  button {{ font: inherit; font-weight: 600; width: 100%; padding: 0.7em; cursor: pointer; }}
</style>
<h1>Fake Stripe</h1>
<p>No money moves here.</p>
<p>{total} (minor units), {status}</p>
{form}
<p><a href="{back}">Back to the shop</a></p>
</html>
"""


def _pay_page(session: Object) -> str:
    total = f"{session['amount_total']} {session['currency']}"
    is_open = session["status"] == "open"
    return _PAGE.format(
        total=html.escape(total),
        status=html.escape(session["status"]),
        form="<form method=post><button>Pay</button></form>" if is_open else "",
        back=html.escape(session["cancel_url"] or "/"),
    )


class Control:
    """The actions that a test or a person can call."""

    def __init__(self, stripe: Stripe, couriers: Couriers, api: Api) -> None:
        self._stripe = stripe
        self._couriers = couriers
        self._api = api
        self._actions: dict[str, Callable[[Object], Any]] = {
            "session": lambda body: payments.make_session(stripe, {"mode": "payment", **body}),
            "pay_session": lambda body: self._pay(
                self._object("checkout.session", body), body.get("when", "now")
            ),
            "settle_session": self._settle_session,
            "expire_session": lambda body: payments.expire_session(
                stripe, self._object("checkout.session", body)
            ),
            "purchase": self._purchase,
            "price": lambda body: payments.make_price(stripe, body),
            "customer": lambda body: payments.make_customer(stripe, body),
            "card": lambda body: cards.save_card(stripe, **body),
            "change_card": lambda body: cards.change_card(
                stripe, self._object("payment_method", body), like=body["like"]
            ),
            "payment": lambda body: payments.pay_intent(stripe, payments.make_intent(stripe, body)),
            "capture": lambda body: payments.capture(
                stripe, self._object("payment_intent", body), amount=body.get("amount")
            ),
            "refund": lambda body: money_back.refund(stripe, self._charge(body), **body),
            "change_refund": lambda body: money_back.change_refund(
                stripe, self._object("refund", body), status=body["status"]
            ),
            "dispute": lambda body: money_back.dispute(stripe, self._charge(body), **body),
            "withdraw": lambda body: self._disputed(money_back.withdraw, body),
            "reinstate": lambda body: self._disputed(money_back.reinstate, body),
            "win": lambda body: self._disputed(money_back.win, body),
            "lose": lambda body: self._disputed(money_back.lose, body),
            "change_dispute": lambda body: self._disputed(money_back.change_dispute, body),
            "invoice": lambda body: billing.invoice(stripe, body),
            "pay_invoice": lambda body: billing.pay_rest(stripe, self._object("invoice", body)),
            "subscribe": lambda body: plans.subscribe(stripe, body),
            "renew": lambda body: plans.renew(stripe, body),
            "change_plan": lambda body: plans.change_plan(stripe, body),
            "edit": self._edit,
            "event": self._event,
            "resend": self._resend,
            "endpoint": self._endpoint,
            "delete_endpoint": self._delete_endpoint,
            "settings": self._settings,
            "faults": self._faults,
            "api_faults": self._api_faults,
            "release": lambda _: {"released": couriers.release()},
            "hurry": lambda _: {"hurried": couriers.hurry()},
            "counts": lambda _: self._counts(),
            "deliveries": self._deliveries,
            "events": self._events,
            "object": lambda body: self._any(body["id"]),
            "batch": self._batch,
        }

    async def __call__(self, request: Request) -> Response:
        """Does one action; GET reads with query parameters, POST with a JSON object."""
        name = request.path_params["action"]
        try:
            body = dict(request.query_params)
            if request.method == "POST":
                body = orjson.loads(await request.body() or b"{}")
            if name == "idle":
                answer: Any = await self._idle(float(body.get("wait", 0)), int(body.get("most", 0)))
            else:
                answer = self._do(name, body)
                if request.method == "POST":
                    self._stripe.keep()
        except Refused as refusal:
            return _json({"error": refusal.error}, refusal.status)
        except (KeyError, TypeError, ValueError) as mistake:
            message = f"{name}: {type(mistake).__name__}: {mistake}"
            return _json({"error": {"type": "control", "message": message}}, 400)
        return _json(answer)

    async def pay_page(self, request: Request) -> Response:
        """The page behind a session's `url`: shows the amount, and a POST pays it."""
        session = self._stripe.state.get("checkout.session", request.path_params["id"])
        if session is None:
            return HTMLResponse("<h1>No such session</h1>", 404)
        if request.method == "POST" and session["status"] == "open":
            self._pay(session)
            back = (session["success_url"] or "").replace("{CHECKOUT_SESSION_ID}", session["id"])
            return Response(status_code=303, headers={"Location": back or "/"})
        return HTMLResponse(_pay_page(session))

    def _do(self, name: str, body: Object) -> Any:
        action = self._actions.get(name)
        if action is None:
            raise Refused(f"No such action: {name}. There are {', '.join(self._actions)}.")
        answer = action(body)
        if isinstance(answer, dict) and answer.get("object") in _SHOWN:
            return shown(self._stripe.state, answer, self._stripe.api_version)
        return answer

    def _object(self, kind: str, body: Object) -> Object:
        return found(self._stripe, kind, body["id"])

    def _charge(self, body: Object) -> Object:
        return money_back.charge_of(self._stripe, body.pop("payment"))

    def _disputed(self, happens: Callable[..., Object], body: Object) -> Object:
        return happens(self._stripe, found(self._stripe, "dispute", body.pop("id")), **body)

    def _any(self, id_: str) -> Object:
        object_ = self._stripe.state.find(id_)
        if object_ is None:
            raise Refused(f"No such object: '{id_}'", status=404, code="resource_missing")
        return object_

    def _pay(self, session: Object, when: str = "now") -> Object:
        """The customer completes a session, and gets the invoice that it may have asked for."""
        payments.pay_session(self._stripe, session, when=when)
        if session["_saves_card"] and session["customer"]:
            cards.save_card(self._stripe, session["customer"])
        billing.invoice_of_session(self._stripe, session)
        return session

    def _settle_session(self, body: Object) -> Object:
        session = self._object("checkout.session", body)
        payments.settle_session(self._stripe, session, succeeds=body["succeeds"])
        billing.invoice_of_session(self._stripe, session)
        return session

    def _purchase(self, body: Object) -> Object:
        """Makes a session and pays it at once; answers with the ids of both."""
        when = body.pop("when", "now")
        session = payments.make_session(self._stripe, {"mode": "payment", **body})
        self._pay(session, when)
        return {"session": session["id"], "payment_intent": session["payment_intent"]}

    def _edit(self, body: Object) -> Object:
        """Changes fields of an object directly, if no action does it; makes no event."""
        object_ = self._any(body["id"])
        object_ |= body["fields"]
        self._stripe.state.save(object_)
        return object_

    def _event(self, body: Object) -> Object:
        """An event of any type about any object (an id, or a whole one); `fields` override."""
        about = body["object"]
        if isinstance(about, str):
            about = self._any(about)
        event = self._stripe.make_event(
            body["type"], about, account=body.get("account"), **body.get("fields", {})
        )
        self._stripe.send(event)
        return {"id": event.id}

    def _resend(self, body: Object) -> Object:
        if body["id"] not in self._stripe.events:
            raise Refused(f"No such event: '{body['id']}'", status=404, code="resource_missing")
        self._stripe.send(self._stripe.events[body["id"]])
        return {}

    def _endpoint(self, body: Object) -> Object:
        """Makes an endpoint, or with the id of one changes it (url, secrets, status, events)."""
        if id_ := body.pop("id", None):
            endpoint = self._stripe.endpoints[id_]
            for name, value in body.items():
                if name not in {"url", "secrets", "status", "enabled_events"}:
                    raise Refused(f"The {name} of an endpoint cannot be changed.")
                setattr(endpoint, name, value)
            return endpoint_view(endpoint)
        return endpoint_view(add_endpoint(self._stripe, **body))

    def _delete_endpoint(self, body: Object) -> Object:
        self._stripe.endpoints.pop(body["id"]).status = "deleted"
        return {"hurried": self._couriers.hurry()}

    def _settings(self, body: Object) -> Object:
        """Sets the pace of deliveries, the account's `api_version`, the clock."""
        for name, value in body.items():
            if name == "api_version":
                self._stripe.api_version = value
            elif name == "clock_offset_seconds":
                self._stripe.state.clock_offset_seconds = value
            elif name == "search_lag_seconds":
                self._stripe.search_lag_seconds = value
            elif name in {each.name for each in fields(Pace)}:
                setattr(self._couriers.pace, name, value)
            else:
                raise Refused(f"No such setting: {name}")
        self._stripe.mail.set()
        return {**asdict(self._couriers.pace), "api_version": self._stripe.api_version}

    def _faults(self, body: Object) -> Object:
        if "seed" in body:
            self._stripe.faults.random.seed(body.pop("seed"))
        self._stripe.faults.set(body)
        return self._stripe.faults.shown()

    def _api_faults(self, body: Object) -> Object:
        """Replaces the faults of the API by `faults`, a list of them; an empty one ends them."""
        self._stripe.faults.api = [ApiFault(**each) for each in body["faults"]]
        return {}

    def _counts(self) -> Object:
        return {
            **self._couriers.summary(),
            "faults": dict(self._stripe.faults.struck),
            "api_requests": self._api.requests,
            "objects": self._stripe.state.counts(),
        }

    def _deliveries(self, body: Object) -> list[Object]:
        """The attempts so far, from the place `since` on; `object` chooses those about one."""
        attempts = self._couriers.record[int(body.get("since", 0)) :]
        wanted = body.get("object")
        return [asdict(each) for each in attempts if wanted in (None, each.object, each.event)]

    def _events(self, body: Object) -> list[Object]:
        """Every event in short, oldest first; `object` chooses those about one."""
        wanted = body.get("object")
        return [
            {
                "id": each.id,
                "type": each.type,
                "object": each.object_id,
                "created": each.created,
                "pending": each.pending,
            }
            for each in self._stripe.event_order
            if wanted in (None, each.object_id)
        ]

    def _batch(self, body: Object) -> list[Any]:
        return [self._do(each["action"], each.get("body", {})) for each in body["actions"]]

    async def _idle(self, wait: float, most: int) -> Object:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(wait):
                await self._couriers.until_idle(most)
        return {"idle": self._couriers.on_the_way <= most, **self._couriers.summary()}


_SHOWN = {
    "checkout.session", "payment_intent", "charge", "refund", "dispute", "invoice", "price",
    "customer", "invoice_payment", "payment_method", "product",
}  # fmt: skip


def add_endpoint(
    stripe: Stripe,
    *,
    url: str,
    secret: str,
    enabled_events: list[str] | None = None,
    api_version: str | None = None,
    thin: bool = False,
    livemode: bool | None = None,
) -> Endpoint:
    """Adds an endpoint, by default for the events that a credit bridge wants."""
    live = stripe.state.live if livemode is None else livemode
    endpoint = Endpoint(
        id=stripe.state.new_id("webhook_endpoint"),
        url=url,
        secrets=[secret],
        enabled_events=enabled_events or _EVENTS,
        api_version=api_version or stripe.api_version,
        thin=thin,
        livemode=live,
        created=stripe.state.now(),
    )
    stripe.endpoints[endpoint.id] = endpoint
    return endpoint


def _json(answer: Any, status: int = 200) -> Response:
    return Response(orjson.dumps(answer), status, media_type="application/json")
