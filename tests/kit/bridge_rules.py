"""Asks the bridge's rules about an object, with a small catalogue."""

import pytest
from kit.stripe_bodies import STUDIO

from stripe_bridge import invoice_rules, session_rules
from stripe_bridge.catalog import Catalog, Listed, Policy
from stripe_bridge.model import Needs, Unresolved

CATALOG = Catalog(
    by_price={STUDIO: Listed(500), "plan_GSYk2vLq8wTz0d": Listed(40)},
    by_lookup_key={"credits_1000": Listed(1000)},
)
POLICY = Policy(catalog=CATALOG)
BY_PRICE_ID = Policy(catalog=Catalog(by_price=CATALOG.by_price))
NO_CATALOGUE = Policy(catalog=Catalog())


def judged(obj, policy=POLICY, listed=None):
    """The verdict of the function for objects of this kind."""
    match obj["object"]:
        case "checkout.session":
            return session_rules.of_session(obj, line_items=listed, policy=policy)
        case "payment_intent":
            return session_rules.of_payment_intent(obj, policy=policy)
        case "invoice":
            return invoice_rules.of_invoice(obj, lines=listed, policy=policy)


def unresolved(obj, policy=POLICY, listed=None):
    """The reason why a person must act."""
    with pytest.raises(Unresolved) as raised:
        judged(obj, policy, listed)
    assert "@" not in raised.value.detail
    return raised.value.reason


def needed(obj, policy=POLICY, listed=None):
    """The objects that must be read from Stripe first."""
    with pytest.raises(Needs) as raised:
        judged(obj, policy, listed)
    return raised.value.what, raised.value.id
