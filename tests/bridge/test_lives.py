"""The lifetime of purchased credits, by the catalogue, the checkout and the lines."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kit.bridge_rules import judged, needed, unresolved
from kit.stripe_bodies import STORAGE, STUDIO, USER, thing

from stripe_bridge.catalog import CREDITS_MAX, Catalog, Listed, Policy, Validity
from stripe_bridge.durations import duration_or_none, written
from stripe_bridge.metadata import frozen_metadata
from stripe_bridge.model import FOREVER, Life, Rollover

PAID = "2026-10-28.endive/checkout.session.completed"
INTENT = "2026-10-28.endive/payment_intent.succeeded"
OLD, NEW = "2022-08-01/invoice.paid", "2025-03-31.basil/invoice.paid"

YEAR = Validity(timedelta(days=365))
PERIOD = Validity(by_period=True)
CARRIED = Validity(by_period=True, carry_over=2)
CAPPED = Validity(by_period=True, carry_over=1, cap=750)
MONTHLY = {"interval": "month", "interval_count": 1}
# The month of the invoices of both layouts, and two later ones.
END = datetime(2026, 5, 1, tzinfo=UTC)
LATER = datetime(2026, 7, 1, tzinfo=UTC)
SERIES = "stripe:sub_studio"


def policy(**validities):
    """A catalogue of STUDIO and STORAGE, 500 credits each."""
    prices = {"studio": STUDIO, "storage": STORAGE}
    return Policy(
        catalog=Catalog(
            by_price={prices[name]: Listed(500, each) for name, each in validities.items()}
        )
    )


def invoices(*lines, **changes):
    """An invoice in either layout with these lines, and all of them as they are read."""
    for name in (NEW, OLD):
        invoice = thing(name, **changes)
        if name == NEW:
            invoice["parent"]["subscription_details"]["subscription"] = "sub_studio"
        else:
            invoice["subscription"] = "sub_studio"
        yield invoice, [shaped(name, **line) for line in lines]


def shaped(name, price=STUDIO, *, once=False, proration=False, **fields):
    """A line in the layout of a body; for April unless `fields` change it."""
    old = name == OLD
    line = thing(name)["lines"]["data"][0 if once and not old else 1]
    whole = {"id": price, "object": "price", "recurring": None if once else MONTHLY}
    if old:
        line |= {"price": whole, "proration": proration}
        line["type"] = "invoiceitem" if once else "subscription"
    else:
        (details,) = filter(None, (line["parent"][key] for key in line["parent"] if key != "type"))
        details["proration"] = proration
        line["pricing"]["price_details"]["price"] = whole
    april = {"start": seconds(2026, 4, 1), "end": seconds(2026, 5, 1)}
    return {**line, "amount": 1900, "period": april, "quantity": 1, **fields}


def seconds(*date):
    return int(datetime(*date, tzinfo=UTC).timestamp())


def lives(rules, *lines, **changes):
    """The lifetime of the credits of these lines, which must be the same in both layouts."""
    found = {judged(invoice, rules, read).life for invoice, read in invoices(*lines, **changes)}
    (life,) = found
    return life


@pytest.mark.parametrize("name", [PAID, INTENT])
def test_a_lifetime_fixed_by_a_checkout_counts(name):
    frozen = frozen_metadata(UUID(USER), 100, timedelta(days=365))
    assert frozen["credits_valid_for"] == "365d"
    assert judged(thing(name, metadata=frozen)).life == Life(valid_for=timedelta(days=365))
    assert judged(thing(name, metadata=frozen_metadata(UUID(USER), 100))).life == FOREVER


@pytest.mark.parametrize("name", [PAID, INTENT])
@pytest.mark.parametrize(
    "text", ["", "1y", "365", "-5d", "0d", "3654d", "99999w", "1m", 365, ["1d"]]
)
def test_a_malformed_lifetime_in_a_checkout_waits_for_a_person(name, text):
    frozen = frozen_metadata(UUID(USER), 100) | {"credits_valid_for": text}
    assert unresolved(thing(name, metadata=frozen)) == "valid_for_malformed"


@given(st.integers(1, 9999), st.sampled_from("mhdw"))
def test_a_duration_reads_back_as_it_was_written(count, unit):
    duration = duration_or_none(f"{count}{unit}")
    assert duration_or_none(written(duration)) == duration


def test_credits_of_a_session_last_as_long_as_its_price_with_the_longest_lifetime():
    items = [
        {"price": {"id": price}, "quantity": 1, "amount_total": 900} for price in (STUDIO, STORAGE)
    ]
    session = thing(PAID, metadata={"credit_user_id": USER})
    month = Validity(timedelta(days=30))
    for rules, life in (
        (policy(studio=YEAR, storage=month), Life(valid_for=timedelta(days=365))),
        (policy(studio=Validity(), storage=month), FOREVER),
        (policy(storage=month), Life(valid_for=timedelta(days=30))),
    ):
        assert judged(session, rules, items).life == life
    assert unresolved(session, policy(studio=PERIOD), items) == "period_unknown"


def test_the_credits_of_a_plan_lapse_with_its_period_or_some_periods_later():
    assert lives(policy(studio=PERIOD), {}) == Life(expire_time=END)
    assert lives(policy(studio=CARRIED), {}) == Life(expire_time=LATER)


def test_credits_above_a_cap_for_each_unit_lapse_when_a_period_begins():
    once = Life(datetime(2026, 6, 1, tzinfo=UTC), rollover=Rollover(SERIES, 750))
    assert lives(policy(studio=CAPPED), {}) == once
    assert lives(policy(studio=CAPPED), {"quantity": 3}).rollover == Rollover(SERIES, 2_250)
    empty = replace_cap(0)
    assert lives(policy(studio=empty), {}).rollover == Rollover(SERIES, 0)
    large = {"quantity": 2}
    assert lives(policy(studio=replace_cap(CREDITS_MAX)), large).rollover.cap == CREDITS_MAX


def replace_cap(cap):
    return CAPPED._replace(cap=cap)


def test_the_rest_of_a_period_lapses_with_it_and_makes_nothing_lapse():
    rest = {
        "proration": True,
        "once": False,
        "period": {"start": seconds(2026, 4, 16), "end": seconds(2026, 5, 1)},
    }
    assert lives(policy(studio=PERIOD), rest) == Life(expire_time=END)
    life = lives(policy(studio=CAPPED), rest)
    assert life.expire_time == datetime(2026, 6, 1, tzinfo=UTC)
    assert life.rollover == Rollover(SERIES, CREDITS_MAX)
    # Beside the next month only that month's cap counts.
    may = {"period": {"start": seconds(2026, 5, 1), "end": seconds(2026, 6, 1)}}
    both = lives(policy(studio=CAPPED), rest, may)
    assert both == Life(datetime(2026, 7, 1, tzinfo=UTC), rollover=Rollover(SERIES, 750))


def test_a_pack_on_the_invoice_of_a_plan_lengthens_all_lifetimes_and_is_in_no_series():
    pack = {"price": STORAGE, "once": True}
    created = seconds(2026, 4, 2)
    rules = policy(studio=CAPPED, storage=YEAR)
    assert lives(rules, {}, pack, created=created) == Life(datetime(2027, 4, 2, tzinfo=UTC))
    short = policy(studio=CAPPED, storage=Validity(timedelta(days=1)))
    assert lives(short, {}, pack, created=created) == Life(datetime(2026, 6, 1, tzinfo=UTC))
    assert lives(policy(studio=CAPPED, storage=Validity()), {}, pack) == FOREVER


def test_a_free_line_lengthens_no_lifetime():
    free = {"price": STORAGE, "amount": 0}
    assert lives(policy(studio=PERIOD, storage=Validity()), {}, free) == Life(expire_time=END)


@pytest.mark.parametrize("broken", [{"period": None}, {"period": {"start": 0, "end": 10**15}}])
def test_a_plan_that_shows_no_period_waits_for_a_person(broken):
    for invoice, read in invoices(broken):
        assert unresolved(invoice, policy(studio=PERIOD), read) == "period_unknown"
        assert judged(invoice, policy(studio=Validity()), read).life == FOREVER


def test_a_price_is_read_whole_only_if_its_interval_is_needed():
    invoice = thing(NEW)
    assert judged(invoice, policy(studio=PERIOD)).life.expire_time == datetime.fromtimestamp(
        invoice["lines"]["data"][1]["period"]["end"], UTC
    )
    assert needed(invoice, policy(studio=CARRIED)) == ("invoice_lines", invoice["id"])


def test_the_lifetime_does_not_change_the_number_of_credits():
    session = thing(PAID)
    frozen = session["metadata"] | {"credits_valid_for": "9d"}
    limited = judged(thing(PAID, metadata=frozen))
    assert replace(limited, life=FOREVER) == judged(session)
