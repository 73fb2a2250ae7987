"""The bridge's next step for a top-up, for every state of its request and its payment."""

from itertools import product

import pytest

from stripe_bridge.catalog import Catalog, Pack, Policy
from stripe_bridge.top_up_rules import (
    Link,
    Payment,
    Situation,
    Step,
    decline_reason,
    gravest,
    is_last,
    link_of,
    next_step,
    payment_of,
    unsellable,
)

YES_NO = (True, False)
EVERY = [Situation(*each) for each in product(YES_NO, YES_NO, YES_NO, Payment, YES_NO, Link)]

# Open, needed, due, payment, declined, link, and the step; None means any value.
TABLE = [
    (None, None, None, Payment.PAID, None, None, Step.CREDIT),
    (None, None, None, Payment.PROCESSING, None, None, Step.WAIT),
    (False, None, None, Payment.UNPAID, None, None, Step.CANCEL),
    (True, None, None, Payment.UNPAID, None, Link.PROCESSING, Step.WAIT),
    (True, None, None, Payment.UNPAID, None, Link.PAID, Step.CANCEL),
    (True, False, None, Payment.UNPAID, None, Link.OPEN, Step.CANCEL),
    (True, False, None, Payment.UNPAID, None, Link.CLOSED, Step.CANCEL),
    (True, True, False, Payment.UNPAID, None, Link.OPEN, Step.WAIT),
    (True, True, False, Payment.UNPAID, None, Link.CLOSED, Step.WAIT),
    (True, True, True, Payment.UNPAID, None, Link.OPEN, Step.CLOSE_LINK),
    (True, True, True, Payment.UNPAID, None, Link.CLOSED, Step.CONFIRM),
    (False, None, None, Payment.CANCELED, None, None, Step.WAIT),
    (True, None, None, Payment.CANCELED, None, Link.PAID, Step.PAID_BY_LINK),
    (True, True, None, Payment.CANCELED, True, Link.CLOSED, Step.GIVE_UP),
    (True, True, None, Payment.CANCELED, True, Link.OPEN, Step.GIVE_UP),
    (True, True, None, Payment.CANCELED, True, Link.PROCESSING, Step.GIVE_UP),
    (True, False, None, Payment.CANCELED, True, Link.CLOSED, Step.NOT_NEEDED),
    (True, False, None, Payment.CANCELED, True, Link.OPEN, Step.NOT_NEEDED),
    (True, False, None, Payment.CANCELED, True, Link.PROCESSING, Step.NOT_NEEDED),
    (True, None, None, Payment.CANCELED, False, Link.CLOSED, Step.NOT_NEEDED),
    (True, None, None, Payment.CANCELED, False, Link.OPEN, Step.NOT_NEEDED),
    (True, None, None, Payment.CANCELED, False, Link.PROCESSING, Step.NOT_NEEDED),
]


def fits(row, situation):
    return all(wanted in (None, has) for wanted, has in zip(row[:-1], situation, strict=True))


def test_every_situation_has_the_one_step_of_the_table():
    for situation in EVERY:
        assert [row[-1] for row in TABLE if fits(row, situation)] == [next_step(situation)]


def test_a_card_is_charged_only_for_an_open_request_that_is_needed_and_has_no_link_to_pay():
    charging = [each for each in EVERY if next_step(each) is Step.CONFIRM]
    assert charging
    for now in charging:
        assert now.is_open
        assert now.is_needed
        assert now.is_due
        assert (now.payment, now.link) == (Payment.UNPAID, Link.CLOSED)


def test_a_request_is_closed_only_after_its_payment_is_cancelled():
    closing = {Step.GIVE_UP, Step.NOT_NEEDED, Step.PAID_BY_LINK}
    states = {each.payment for each in EVERY if next_step(each) in closing}
    assert states == {Payment.CANCELED}


def test_a_paid_payment_is_credited_in_every_state_of_its_request():
    assert {next_step(each) for each in EVERY if each.payment is Payment.PAID} == {Step.CREDIT}


@pytest.mark.parametrize(
    ("status", "state"),
    [
        ("requires_payment_method", Payment.UNPAID),
        ("requires_confirmation", Payment.UNPAID),
        ("requires_action", Payment.UNPAID),
        ("processing", Payment.PROCESSING),
        ("requires_capture", Payment.PROCESSING),
        ("succeeded", Payment.PAID),
        ("canceled", Payment.CANCELED),
        ("a status of the future", Payment.PROCESSING),
        (None, Payment.PROCESSING),
    ],
)
def test_the_status_of_an_intent(status, state):
    assert payment_of({"status": status}) is state


@pytest.mark.parametrize(
    ("session", "state"),
    [
        ({"status": "open", "payment_status": "unpaid"}, Link.OPEN),
        ({"status": "expired", "payment_status": "unpaid"}, Link.CLOSED),
        ({"status": "complete", "payment_status": "paid"}, Link.PAID),
        ({"status": "complete", "payment_status": "no_payment_required"}, Link.PAID),
        (
            {
                "status": "complete",
                "payment_status": "unpaid",
                "payment_intent": {"status": "processing"},
            },
            Link.PROCESSING,
        ),
        (
            {
                "status": "complete",
                "payment_status": "unpaid",
                "payment_intent": {"status": "requires_payment_method"},
            },
            Link.CLOSED,
        ),
        ({"status": "complete", "payment_status": "unpaid", "payment_intent": "pi_1"},
         Link.PROCESSING),
        ({}, Link.PROCESSING),
    ],
)  # fmt: skip
def test_the_status_of_a_link(session, state):
    assert link_of(session) is state


def test_of_several_links_the_most_restrictive_one_counts():
    assert gravest([]) is Link.CLOSED
    assert gravest([Link.CLOSED, Link.OPEN]) is Link.OPEN
    assert gravest([Link.OPEN, Link.PROCESSING, Link.CLOSED]) is Link.PROCESSING
    assert gravest([Link.PROCESSING, Link.PAID, Link.OPEN]) is Link.PAID


def test_the_third_failure_is_the_last():
    assert [is_last(tries) for tries in range(4)] == [False, False, True, True]


PACK = Pack(
    id="starter", name="100 credits", credits=100, price="price_1", lookup_key=None,
    amount_minor=900, currency="eur",
)  # fmt: skip


@pytest.mark.parametrize(
    ("pack", "changes", "reason"),
    [
        (PACK, {}, None),
        (PACK, {"allowed_currencies": frozenset({"eur"})}, None),
        (None, {}, "unknown_pack"),
        (PACK, {"max_credits_per_purchase": 99}, "too_many_credits"),
        (PACK, {"allowed_currencies": frozenset({"usd"})}, "currency_not_allowed"),
    ],
)
def test_a_pack_whose_purchase_would_not_be_credited_is_not_charged(pack, changes, reason):
    assert unsellable(pack, Policy(catalog=Catalog(), **changes)) == reason


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        ({"code": "card_declined", "decline_code": "insufficient_funds"}, "insufficient_funds"),
        ({"code": "expired_card", "decline_code": "expired_card"}, "expired_card"),
        ({"code": "authentication_required"}, "authentication_required"),
        ({"code": "card_declined", "decline_code": "stolen_card"}, "generic_decline"),
        ({"code": 7}, "card_declined"),
        ({}, "card_declined"),
        ({"code": "x" * 1000}, "x" * 100),
    ],
)
def test_the_reason_of_a_decline_may_be_shown_to_the_customer(error, reason):
    assert decline_reason(error) == reason
