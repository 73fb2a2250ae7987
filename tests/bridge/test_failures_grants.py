"""How grants fail: payments that are missing, not for credits, or wrongly priced or written."""

import time
from datetime import UTC, datetime, timedelta

import pytest
from kit.bridge_stage import MONTHLY, POLICY, STARTER, counted

from stripe_bridge.catalog import Catalog, Listed, Policy
from stripe_bridge.reconcile import reconcile


def priced_by_lines(user_id, *lines, **fields):
    """A session of an app that sells by the catalogue: it names the user and no credits."""
    metadata = {"credit_user_id": str(user_id)}
    return {
        "line_items": [{"price": price, "quantity": quantity} for price, quantity in lines],
        "metadata": metadata,
        "payment_intent_data": {"metadata": metadata},
        **fields,
    }


async def test_05_an_unpaid_session_gives_nothing_until_its_payment_succeeds(stage):
    user = await stage.user()
    await stage.delivering()
    session = await stage.fake.session(user)
    await stage.fake.pay_session(session["id"], when="later")
    await stage.fake.idle()
    assert await stage.statuses(session["id"]) == [200]
    assert await stage.entries(user) == []
    await stage.fake.settle_session(session["id"])
    await stage.fake.idle()
    assert await stage.statuses(session["id"]) == [200, 200]
    assert await stage.entries(user) == [100]


async def test_06_a_failed_payment_gives_nothing_and_takes_nothing(stage):
    failing, paying = await stage.users(2)
    await stage.delivering()
    session = await stage.fake.session(failing)
    await stage.fake.pay_session(session["id"], when="later")
    await stage.fake.settle_session(session["id"], succeeds=False)
    await stage.fake.idle()
    assert await stage.statuses(session["id"]) == [200, 200]
    assert await stage.entries(failing) == []
    session = await stage.fake.session(paying)
    await stage.fake.pay_session(session["id"], when="later")
    failed = "checkout.session.async_payment_failed"
    await stage.fake.event(failed, session["id"])
    await stage.fake.idle()
    assert await stage.entries(paying) == []
    await stage.fake.settle_session(session["id"])
    await stage.fake.event(failed, session["id"])
    await stage.fake.idle()
    assert await stage.statuses(session["id"]) == [200] * 4
    assert await stage.entries(paying) == [100]


async def test_07_sessions_that_no_money_was_paid_in_give_nothing(stage):
    user = await stage.user()
    for fields, reason in (
        ({"mode": "setup", "line_items": []}, "setup"),
        ({"mode": "subscription"}, "subscription"),
        ({"amount_discount": 900}, "free_order"),
    ):
        session = await stage.fake.session(user, **fields)
        paid = await stage.fake.pay_session(session["id"])
        assert paid["payment_status"] != "unpaid"
        assert await stage.tell(*await stage.events(session["id"])) == [(200, reason)]
    assert await stage.entries(user) == []


async def test_08_the_status_decides_and_not_the_type_of_the_event(stage):
    user = await stage.user()
    session = await stage.fake.session(user)
    unpaid = await stage.fake.pay_session(session["id"], when="later")
    lines = [{"price": MONTHLY}]
    invoice = await stage.fake.invoice(lines, status="open", metadata={"credit_user_id": str(user)})
    for kind, about in (
        ("checkout.session.completed", session["id"]),
        ("checkout.session.async_payment_succeeded", session["id"]),
        ("payment_intent.succeeded", unpaid["payment_intent"]),
        ("invoice.paid", invoice["id"]),
    ):
        event = await stage.event(await stage.fake.event(kind, about))
        assert await stage.tell(event) == [(200, "unpaid")]
    assert await stage.entries(user) == []


SOLD = {
    "quantity 3": ([(STARTER, 3)], {}, 300),
    "promotion code": ([(STARTER, 3)], {"amount_discount": 2000}, 300),
    "tax": ([(STARTER, 3)], {"amount_tax": 513}, 300),
    "upsell to a larger pack": ([(STARTER, 2), ("price_large", 1)], {}, 1200),
    "something else beside it": ([(STARTER, 1), ("price_mug", 5)], {}, 100),
}


@pytest.mark.parametrize("name", SOLD)
async def test_36_credits_are_the_catalogues_times_the_quantity_for_any_amount_paid(stage, name):
    lines, fields, credits_ = SOLD[name]
    user = await stage.user()
    await stage.fake.price(7900, id="price_large")
    await stage.fake.price(1500, id="price_mug")
    catalog = Catalog(by_price={**POLICY.catalog.by_price, "price_large": Listed(1000)})
    session = await stage.fake.do("session", **priced_by_lines(user, *lines, **fields))
    # The fake has no shipping, which is another part of the amount paid.
    shipped = {"amount_total": session["amount_total"] + 490}
    await stage.fake.do("edit", id=session["id"], fields=shipped)
    paid = (await stage.fake.pay_session(session["id"]))["payment_intent"]
    async with stage.another_bridge(policy=Policy(catalog=catalog)) as bridge:
        events = await stage.events(session["id"], paid)
        answers = await stage.tell(*events, bridge=bridge)
    assert answers == [(200, "purchase"), (200, "purchase")]
    assert await stage.entries(user) == [credits_]


async def test_37_an_unknown_price_waits_for_a_person_then_is_parked_and_granted_later(stage):
    user = await stage.user()
    await stage.fake.price(500, id="price_forgotten")
    session = await stage.fake.do("session", **priced_by_lines(user, ("price_forgotten", 2)))
    await stage.fake.pay_session(session["id"])
    (event,) = await stage.events(session["id"])
    reason = {"reason": "price_unknown"}
    alerts, parked = counted("alerts", **reason), counted("parked", **reason)
    assert await stage.tell(event) == [(422, "price_unknown")]
    assert (counted("alerts", **reason), counted("parked", **reason)) == (alerts + 1, parked)
    for age, status in ((timedelta(hours=23), 422), (timedelta(hours=25), 200)):
        created = int(time.time() - age.total_seconds())
        assert await stage.tell({**event, "created": created}) == [(status, "price_unknown")]
    assert counted("parked", **reason) == parked + 1
    assert await stage.entries(user) == []
    mended = Policy(
        catalog=Catalog(by_price={**POLICY.catalog.by_price, "price_forgotten": Listed(40)})
    )
    since = datetime.now(UTC) - timedelta(days=1)
    await reconcile(
        stage.reads,
        stage.settler(mended),
        since=since,
        disputes_since=since,
        progress=lambda _name, _summary: None,
    )
    assert await stage.entries(user) == [80]


@pytest.mark.parametrize(
    "written",
    [
        "0",
        "-5",
        1e9,
        100,
        "1e9",
        "1e3",
        "10.0",
        " 5",
        "\N{ARABIC-INDIC DIGIT FIVE}",
        "",
        "1" + "0" * 30,
    ],
    ids=repr,
)
async def test_38_credits_that_are_not_a_plain_whole_number_are_refused(stage, written):
    user = await stage.user()
    metadata = {"credit_user_id": str(user), "credits": written, "credits_v": "1"}
    session = await stage.fake.session(
        metadata=metadata, payment_intent_data={"metadata": metadata}
    )
    paid = (await stage.fake.pay_session(session["id"]))["payment_intent"]
    answers = await stage.tell(*await stage.events(session["id"], paid))
    assert answers == [(422, "credits_malformed")] * 2
    assert await stage.entries(user) == []


PRORATION = {"price": MONTHLY, "proration": True}
# The lines of an invoice, its other fields, and the entries that it makes.
INVOICED = {
    "as many as were subscribed": ([{"price": MONTHLY, "quantity": 2}], {}, [60]),
    "prorations": ([{"price": MONTHLY}, PRORATION, {**PRORATION, "amount": -1450}], {}, [60, -15]),
    "12 lines over two pages": ([{"price": MONTHLY}] * 12, {}, [360]),
    "first month": ([{"price": MONTHLY}], {"billing_reason": "subscription_create"}, [30]),
    "zero amount": ([{"price": MONTHLY, "amount": 0}], {}, []),
    "out of band": ([{"price": MONTHLY}], {"out_of_band": True}, []),
    "manual": ([{"price": MONTHLY}], {"billing_reason": "manual"}, []),
    "change of the plan": ([{"price": MONTHLY}], {"billing_reason": "subscription_update"}, [30]),
}


@pytest.mark.parametrize("version", ["2023-10-16", "2026-10-28.endive"])
@pytest.mark.parametrize("name", INVOICED)
async def test_39_a_months_invoice_gives_its_lines_once_in_both_layouts(stage, name, version):
    lines, fields, entries = INVOICED[name]
    user = await stage.user()
    await stage.fake.settings(api_version=version)
    invoice = await stage.fake.invoice(lines, metadata={"credit_user_id": str(user)}, **fields)
    (event,) = await stage.events(invoice["id"])
    assert ("parent" in event["data"]["object"]) == (version > "2025")
    answers = await stage.tell(event, event)
    assert [status for status, _ in answers] == [200, 200]
    assert await stage.entries(user) == entries


async def test_40_a_checkout_payment_that_also_makes_an_invoice_is_one_grant_and_no_alert(stage):
    user = await stage.user()
    before = counted("alerts", reason="billing_reason")
    await stage.delivering()
    with_invoice = {"invoice_creation": {"enabled": True}}
    for sold in (
        await stage.fake.session(user, line_items=[{"price": STARTER}], **with_invoice),
        await stage.fake.do("session", **priced_by_lines(user, (STARTER, 1), **with_invoice)),
    ):
        await stage.fake.pay_session(sold["id"])
        await stage.fake.idle()
        invoice = (await stage.fake.do("object", id=sold["id"]))["invoice"]
        assert await stage.statuses(invoice) == [200]
    assert await stage.entries(user) == [100, 100]
    assert counted("alerts", reason="billing_reason") == before
