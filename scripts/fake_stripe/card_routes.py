"""The API's routes that change payment intents, customers and saved cards."""

from collections.abc import Callable

from . import cards
from .forms import confirm_parameters, intent_parameters
from .reading import Call
from .state import Object


def _create_intent(call: Call) -> Object:
    form = intent_parameters(call.params)
    return call.show(cards.create_intent(call.stripe, form, live=call.live))


def _update_intent(call: Call) -> Object:
    return call.show(cards.update_intent(call.one("payment_intent"), call.params))


def _confirm_intent(call: Call) -> Object:
    form = confirm_parameters(call.params)
    return call.show(cards.confirm_intent(call.stripe, call.one("payment_intent"), form))


def _cancel_intent(call: Call) -> Object:
    return call.show(cards.cancel_intent(call.stripe, call.one("payment_intent"), call.params))


def _update_customer(call: Call) -> Object:
    customer = call.one("customer")
    customer["metadata"] = {**customer["metadata"], **(call.params.get("metadata") or {})}
    return call.show(customer)


def _attach_card(call: Call) -> Object:
    """Attaches a test card, whose own id (`pm_card_visa`) stands for a new card each time."""
    return call.show(cards.save_card(call.stripe, call.params["customer"], call.ids["id"]))


def _detach_card(call: Call) -> Object:
    return call.show(cards.detach_card(call.stripe, call.one("payment_method")))


POSTS: dict[str, Callable[[Call], Object]] = {
    "/v1/payment_intents": _create_intent,
    "/v1/payment_intents/{id}": _update_intent,
    "/v1/payment_intents/{id}/confirm": _confirm_intent,
    "/v1/payment_intents/{id}/cancel": _cancel_intent,
    "/v1/customers/{id}": _update_customer,
    "/v1/payment_methods/{id}/attach": _attach_card,
    "/v1/payment_methods/{id}/detach": _detach_card,
}
