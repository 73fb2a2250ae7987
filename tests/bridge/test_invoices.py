"""Monthly credits: the lines of a subscription's invoice that count, in the old and new layout."""

from dataclasses import replace
from datetime import UTC, datetime
from uuid import UUID

import pytest
from kit.bridge_rules import BY_PRICE_ID, NO_CATALOGUE, POLICY, judged, needed, unresolved
from kit.stripe_bodies import STUDIO, USER, thing

from stripe_bridge.model import Nothing

OTHER_USER = "00000000-0000-4000-8000-0000000000aa"
OLD, NEW = "2022-08-01/invoice.paid", "2025-03-31.basil/invoice.paid"
PAGES = "2025-03-31.basil/invoice.paid-two-pages"


def lines(invoice):
    return invoice["lines"]["data"]


def by_subscription(user):
    return {"subscription_details": {"metadata": {"credit_user_id": user}}}


def unowned(name, **changes):
    """An invoice that names no user, with changes."""
    invoice = thing(name, parent=None, subscription_details=None)
    for line in lines(invoice):
        line["metadata"] = {}
    return invoice | changes


def changed_plan(**changes):
    """An invoice in either layout: -500 for an unlisted price, 950 for half a month of STUDIO.

    The new layout shows no whole price, so its lines are read.
    """
    new, old = thing(NEW, **changes), thing(OLD, **changes)
    lines(new)[1]["parent"]["subscription_item_details"]["proration"] = True
    lines(old)[1]["proration"] = True
    read = lines(thing(NEW))
    read[1]["parent"]["subscription_item_details"]["proration"] = True
    read[1]["pricing"]["price_details"]["price"] = lines(old)[1]["price"]
    for line in (lines(new)[1], lines(old)[1], read[1]):
        # April has 30 days.
        line["period"] = {"start": april(15), "end": april(30)}
        line["amount"] = 950
    return [(new, read), (old, lines(old))]


def april(day):
    return int(datetime(2025, 4, day, tzinfo=UTC).timestamp())


def test_a_proration_that_bills_a_listed_price_gives_the_share_of_its_credits():
    for invoice, read in changed_plan(billing_reason="subscription_update"):
        assert judged(invoice, BY_PRICE_ID, read).credits == 250


def test_a_proration_is_read_with_its_price_if_the_layout_does_not_show_it():
    (new, _), (old, _) = changed_plan()
    assert needed(new, BY_PRICE_ID) == ("invoice_lines", new["id"])
    assert judged(old, BY_PRICE_ID).credits == 250


def test_a_proration_gives_its_credits_beside_those_of_the_next_month():
    for (invoice, read), name in zip(changed_plan(), (NEW, OLD), strict=True):
        assert judged(invoice, BY_PRICE_ID, [*read, lines(thing(name))[1]]).credits == 750


@pytest.mark.parametrize(
    "broken",
    [
        {"period": None},
        {"period": {"start": 5, "end": 5}},
        {"period": {"start": "1", "end": 2}},
        {"price": {"id": STUDIO, "recurring": None}, "plan": None},
        {"price": {"id": STUDIO, "recurring": {"interval": "eon", "interval_count": 1}}},
        {"price": {"id": STUDIO, "recurring": {"interval": "month", "interval_count": 0}}},
    ],
)
def test_a_proration_whose_share_of_a_period_is_unknown_waits_for_a_person(broken):
    _, (old, read) = changed_plan()
    read[1] |= broken
    assert unresolved(old, BY_PRICE_ID, read) == "period_unknown"


def test_a_proration_of_an_unlisted_price_and_one_that_gives_back_give_no_credits():
    for invoice, read in changed_plan():
        assert judged(invoice, BY_PRICE_ID, read[:1]) == Nothing("no_subscription_lines")
        read[1]["amount"] = -950
        assert judged(invoice, BY_PRICE_ID, read) == Nothing("no_subscription_lines")


@pytest.mark.parametrize("reason", ["subscription_create", "subscription_update"])
def test_a_paid_plan_change_calls_a_person_if_its_billing_reason_is_not_allowed(reason):
    policy = replace(BY_PRICE_ID, invoice_billing_reasons=frozenset({"subscription_cycle"}))
    for invoice, read in changed_plan(billing_reason=reason):
        assert judged(invoice, policy, read) == Nothing("billing_reason", alerts=True)
        assert judged(invoice, NO_CATALOGUE, read).alerts is False


@pytest.mark.parametrize("name", [OLD, NEW])
def test_a_listed_pack_that_is_billed_once_gives_its_credits_beside_the_subscription(name):
    invoice = thing(name)
    month = lines(invoice)[1]
    pack = thing(name)["lines"]["data"][1]
    if name == OLD:
        pack["type"] = "invoiceitem"
        pack["price"] |= {"id": "plan_GSYk2vLq8wTz0d"}
    else:
        pack["parent"] = lines(thing(name))[0]["parent"]
        pack["parent"]["invoice_item_details"]["proration"] = False
        pack["pricing"]["price_details"]["price"] = "plan_GSYk2vLq8wTz0d"
    pack["quantity"] = 2
    lines(invoice).append(pack)
    assert judged(invoice, BY_PRICE_ID).credits == 580
    lines(invoice).remove(month)
    assert judged(invoice, BY_PRICE_ID).credits == 80


@pytest.mark.parametrize("name", [OLD, NEW])
def test_an_unlisted_line_that_is_billed_once_is_ignored(name):
    invoice = thing(name)
    if name == OLD:
        lines(invoice)[0]["proration"] = False
        lines(invoice)[1]["type"] = "invoiceitem"
    else:
        lines(invoice)[0]["parent"]["invoice_item_details"]["proration"] = False
        lines(invoice)[1]["parent"] = lines(invoice)[0]["parent"]
    assert judged(invoice, BY_PRICE_ID).credits == 500
    del lines(invoice)[1]
    assert judged(invoice, BY_PRICE_ID) == Nothing("no_subscription_lines")


@pytest.mark.parametrize("name", [OLD, NEW])
@pytest.mark.parametrize(
    "free", [{"amount": 0}, {"discount_amounts": [{"amount": 1900, "discount": "di_1"}]}]
)
def test_a_free_line_gives_nothing_even_beside_paid_ones(name, free):
    invoice = thing(name)
    lines(invoice)[0]["amount"] = 500
    lines(invoice)[1] |= free
    allowing = replace(BY_PRICE_ID, allow_free_orders=True)
    assert judged(invoice, BY_PRICE_ID) == Nothing("free_order")
    assert judged(invoice, allowing).credits == 500
    lines(invoice).append(lines(thing(name))[1])
    assert judged(invoice, BY_PRICE_ID).credits == 500
    assert judged(invoice, allowing).credits == 1000


@pytest.mark.parametrize("name", [OLD, NEW])
def test_a_month_paid_from_the_customers_balance_gives_its_credits(name):
    invoice = thing(name, amount_paid=0)
    assert judged(invoice, BY_PRICE_ID).credits == 500
    # The amount of a credit note was never paid.
    invoice |= {"pre_payment_credit_notes_amount": invoice["total"]}
    del lines(invoice)[0]
    assert judged(invoice, BY_PRICE_ID) == Nothing("free_order")


def test_lines_that_did_not_fit_into_the_event_are_read():
    invoice = thing(PAGES)
    assert needed(invoice, BY_PRICE_ID) == ("invoice_lines", invoice["id"])
    twelve = [lines(invoice)[0]] * 12
    assert judged(invoice, BY_PRICE_ID, twelve).credits == 6000
    del invoice["lines"]
    assert needed(invoice, BY_PRICE_ID) == ("invoice_lines", invoice["id"])


def test_a_lookup_key_that_the_event_does_not_show_is_read_with_the_lines():
    invoice = thing(NEW)
    assert needed(invoice) == ("invoice_lines", invoice["id"])
    read = lines(thing(NEW))
    assert judged(invoice, POLICY, read).credits == 500
    details = read[1]["pricing"]["price_details"]
    details["price"] = {"id": "price_successor", "object": "price", "lookup_key": "credits_1000"}
    assert judged(invoice, POLICY, read).credits == 1000


def test_a_listed_price_shows_its_lookup_key_in_the_old_layout():
    invoice = thing(OLD)
    lines(invoice)[1]["price"] |= {"id": "price_successor", "lookup_key": "credits_1000"}
    assert judged(invoice).credits == 1000


@pytest.mark.parametrize("reason", ["manual", "subscription_threshold", None, 5, ["x"]])
def test_only_the_configured_billing_reasons_give_credits(reason):
    withheld = Nothing("billing_reason", alerts=True)
    assert judged(thing(NEW, billing_reason=reason), BY_PRICE_ID) == withheld
    assert judged(thing(NEW, billing_reason=reason), NO_CATALOGUE) == Nothing("billing_reason")
    update = replace(BY_PRICE_ID, invoice_billing_reasons=frozenset({"subscription_update"}))
    assert judged(thing(NEW), update) == withheld
    assert judged(thing(NEW, billing_reason="subscription_update"), update).credits == 500


@pytest.mark.parametrize("status", ["draft", "open", "void", "uncollectible", None, 5, ["paid"]])
def test_an_invoice_that_is_not_paid_gives_nothing(status):
    assert judged(thing(NEW, status=status), BY_PRICE_ID) == Nothing("unpaid")


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        (OLD, {"paid_out_of_band": True}),
        (NEW, {"amount_paid_off_stripe": 1900}),
        (NEW, {"amount_paid_off_stripe": 2000}),
    ],
)
def test_an_invoice_paid_outside_of_stripe_gives_nothing(name, fields):
    assert judged(thing(name, **fields), BY_PRICE_ID) == Nothing("out_of_band", alerts=True)
    assert judged(thing(name, **fields), NO_CATALOGUE) == Nothing("out_of_band")


@pytest.mark.parametrize("off_stripe", [None, 0, 1899, "1900", True, 1900.0])
def test_an_invoice_paid_at_least_partly_through_stripe_counts(off_stripe):
    invoice = thing(NEW, amount_paid_off_stripe=off_stripe)
    assert judged(invoice, BY_PRICE_ID).credits == 500


def test_an_invoice_of_nothing_gives_credits_only_if_free_orders_do():
    trial = thing(NEW, amount_paid=0, total=0)
    del lines(trial)[0]
    assert judged(trial, BY_PRICE_ID) == Nothing("free_order")
    grant = judged(trial, replace(BY_PRICE_ID, allow_free_orders=True))
    assert (grant.credits, grant.amount_minor) == (500, 0)


def test_the_user_of_a_subscription_takes_precedence_over_lines_and_customer():
    customer = {"id": "cus_1", "object": "customer", "metadata": {"credit_user_id": OTHER_USER}}
    new = unowned(NEW, customer=customer, parent=by_subscription(USER))
    old = unowned(OLD, customer=customer, **by_subscription(USER))
    for invoice in (new, old):
        for line in lines(invoice):
            line["metadata"] = {"credit_user_id": OTHER_USER}
        assert judged(invoice, BY_PRICE_ID).user_id == UUID(USER)
    assert judged(old | {"subscription_details": None}, BY_PRICE_ID).user_id == UUID(OTHER_USER)


@pytest.mark.parametrize("name", [OLD, NEW])
def test_a_customer_names_the_user_of_an_invoice_if_nothing_else_does(name):
    customer = {"id": "cus_1", "object": "customer", "metadata": {"credit_user_id": USER}}
    assert needed(unowned(name, customer="cus_1"), BY_PRICE_ID) == ("customer", "cus_1")
    assert judged(unowned(name, customer=customer), BY_PRICE_ID).user_id == UUID(USER)
    assert unresolved(unowned(name, customer=None), BY_PRICE_ID) == "user_missing"


def test_lines_that_name_several_users_wait_for_a_person():
    line = lines(thing(OLD))[1]
    for_another = line | {"metadata": {"credit_user_id": OTHER_USER}}
    assert unresolved(thing(OLD), BY_PRICE_ID, [line, for_another]) == "user_ambiguous"
    assert judged(thing(OLD), BY_PRICE_ID, [line, line]).credits == 1000


def test_only_a_mark_of_the_subscription_makes_an_unlisted_invoice_ours():
    customer = {"id": "cus_1", "object": "customer", "metadata": {"credit_user_id": USER}}
    unmarked = unowned(NEW, customer=customer)
    assert judged(unmarked, NO_CATALOGUE) == Nothing("not_ours")
    assert unresolved(thing(NEW), NO_CATALOGUE) == "price_unknown"
    marked = unowned(NEW, parent=by_subscription(USER))
    assert unresolved(marked, NO_CATALOGUE) == "price_unknown"
    lines(unmarked)[1]["metadata"] = {"credit_user_id": USER}
    assert unresolved(unmarked, NO_CATALOGUE) == "price_unknown"


def test_metadata_of_another_version_on_a_subscription_waits_for_a_person():
    invoice = thing(NEW)
    invoice["parent"]["subscription_details"]["metadata"]["credits_v"] = "2"
    assert unresolved(invoice, BY_PRICE_ID) == "credits_version"


def test_a_quantity_of_zero_seats_gives_nothing():
    invoice = thing(NEW)
    lines(invoice)[1]["quantity"] = 0
    assert judged(invoice, BY_PRICE_ID) == Nothing("no_credits")
