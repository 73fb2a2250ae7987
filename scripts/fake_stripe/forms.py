"""Reads the parameters of Stripe's API: form fields whose names have brackets."""

import re
from urllib.parse import parse_qsl

from stripe import RequestOptions
from stripe.params import PaymentIntentConfirmParams, PaymentIntentCreateParams
from stripe.params.checkout import SessionCreateParams

from .payments import Refused
from .state import Object

_KEYS = re.compile(r"\[([^\]]*)\]")
_OPTIONS = frozenset(RequestOptions.__annotations__)  # of the SDK's calls, not of the API
_SESSION_PARAMETERS = frozenset(SessionCreateParams.__annotations__) - _OPTIONS
_INTENT_PARAMETERS = frozenset(PaymentIntentCreateParams.__annotations__) - _OPTIONS
_CONFIRM_PARAMETERS = frozenset(PaymentIntentConfirmParams.__annotations__) - _OPTIONS


def decoded(text: str) -> Object:
    """Returns nested dicts and lists: `a[b]=1&c[0]=2` is {"a": {"b": "1"}, "c": ["2"]}."""
    fields: Object = {}
    for name, value in parse_qsl(text, keep_blank_values=True):
        first, _, rest = name.partition("[")
        place = fields
        keys = [first, *_KEYS.findall(f"[{rest}")] if rest else [first]
        for key in keys[:-1]:
            place = place.setdefault(key or str(len(place)), {})
        place[keys[-1] or str(len(place))] = value
    return {name: _listed(value) for name, value in fields.items()}


def _listed(value: object) -> object:
    if not isinstance(value, dict):
        return value
    items = {key: _listed(each) for key, each in value.items()}
    return list(items.values()) if items and all(key.isdecimal() for key in items) else items


def session_parameters(form: Object) -> Object:
    """Checks the parameters of a checkout session.

    Raises:
        Refused: an unknown parameter, a missing one, or one of the wrong kind.
    """
    _only(form, _SESSION_PARAMETERS)
    mode = form.get("mode")
    if mode not in {"payment", "setup", "subscription"}:
        raise Refused(
            "You must provide one of `payment`, `setup`, or `subscription`.",
            code="parameter_missing",
            param="mode",
        )
    if mode == "payment" and not form.get("line_items"):
        raise Refused(
            "`line_items` is required in `payment` mode.",
            code="parameter_missing",
            param="line_items",
        )
    if form.get("ui_mode", "hosted_page") == "hosted_page" and not form.get("success_url"):
        raise Refused(
            "Missing required param: success_url.", code="parameter_missing", param="success_url"
        )
    for item in form.get("line_items") or []:
        if "price" not in item and "price_data" not in item:
            raise Refused("Each line item needs a price or price_data.", param="line_items[0]")
    for owner in (form, form.get("payment_intent_data") or {}):
        for key, value in (owner.get("metadata") or {}).items():
            if len(key) > 40 or len(value) > 500:
                raise Refused(
                    "Metadata keys have at most 40 characters and values at most 500.",
                    param="metadata",
                )
    return form


def intent_parameters(form: Object) -> Object:
    """Checks the parameters of a payment intent.

    Raises:
        Refused: an unknown parameter, or a missing one.
    """
    if "payment_method_types" in form:
        code = "payment_method_types_no_longer_supported"
        raise Refused("Use allowed_payment_method_types.", code=code, param="payment_method_types")
    _only(form, _INTENT_PARAMETERS)
    for name in ("amount", "currency"):
        if not form.get(name):
            raise Refused(f"Missing required param: {name}.", code="parameter_missing", param=name)
    return form


def confirm_parameters(form: Object) -> Object:
    """Checks the parameters of a confirmation.

    Raises:
        Refused: an unknown parameter.
    """
    _only(form, _CONFIRM_PARAMETERS)
    return form


def _only(form: Object, known: frozenset[str]) -> None:
    for name in form:
        if name not in known:
            raise Refused(
                f"Received unknown parameter: {name}", code="parameter_unknown", param=name
            )


def flag(form: Object, name: str) -> bool | None:
    """Reads a Boolean parameter; None where it is missing."""
    value = form.get(name)
    return None if value is None else value == "true"
