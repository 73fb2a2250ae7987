"""Paid invoices that give no or fewer credits: free lines, packs, other billing reasons."""

from datetime import UTC, datetime, timedelta

import pytest
from kit.bridge_stage import MONTHLY, STARTER, counted

from stripe_bridge.reconcile import reconcile

SETUP_FEE = "price_setup_fee"
TRIAL = {"price": MONTHLY, "amount": 0}
FEE = {"price": SETUP_FEE, "item": True}
PACK = {"price": STARTER, "item": True}
CREATE = {"billing_reason": "subscription_create"}
MANUAL = {"billing_reason": "manual"}


@pytest.fixture(autouse=True)
async def setup_fee(shared_stage):
    await shared_stage.fake.price(500, id=SETUP_FEE)


async def answer_to(stage, user, lines, **fields):
    """Delivers a paid invoice of the user; returns the status and reason of the answer."""
    mark = {"metadata": {"credit_user_id": str(user)}}
    invoice = await stage.fake.invoice(lines, **{**mark, **fields})
    (event,) = await stage.events(invoice["id"])
    answer = await stage.bridge.deliver(event)
    return answer.status_code, answer.json()["reason"]


CASES = {
    "a trial beside a set-up fee": ([TRIAL, FEE], CREATE, "free_order", False, []),
    "a month that a coupon paid": (
        [{"price": MONTHLY, "discount": 2_900}, FEE], {}, "free_order", False, []
    ),
    "a trial alone": ([TRIAL], CREATE, "free_order", False, []),
    "a pack with the first month": ([{"price": MONTHLY}, PACK], CREATE, "purchase", False, [130]),
    "a pack beside a trial": ([TRIAL, PACK], CREATE, "purchase", False, [100]),
    "a pack beside another plan": (
        [{"price": SETUP_FEE}, PACK], CREATE, "purchase", False, [100]
    ),
    "money from outside of Stripe": (
        [{"price": MONTHLY}], {"out_of_band": True}, "out_of_band", True, []
    ),
    "a credit balance": (
        [{"price": MONTHLY}], {"balance": 2_900}, "purchase", False, [30]
    ),
    "a billing reason that is not allowed": (
        [{"price": MONTHLY}], {"billing_reason": "upcoming"}, "billing_reason", True, []
    ),
    "an invoice by hand": ([{"price": MONTHLY}], MANUAL, "billing_reason", True, []),
    "an invoice by hand for something else": (
        [{"price": SETUP_FEE}], MANUAL, "billing_reason", False, []
    ),
}  # fmt: skip


@pytest.mark.parametrize("version", ["2023-10-16", "2026-10-28.endive"])
@pytest.mark.parametrize("name", CASES)
async def test_a_listed_price_that_was_paid_gives_credits_or_calls_a_person(stage, name, version):
    lines, fields, reason, alerts, entries = CASES[name]
    await stage.fake.settings(api_version=version)
    user = await stage.user()
    before = counted("alerts", reason=reason)
    assert await answer_to(stage, user, lines, **fields) == (200, reason)
    assert counted("alerts", reason=reason) - before == alerts
    assert await stage.entries(user) == entries


async def test_a_pack_of_a_first_invoice_is_granted_once_and_reversed_with_it(stage):
    user = await stage.user()
    mark = {"metadata": {"credit_user_id": str(user)}}
    invoice = await stage.fake.invoice([{"price": MONTHLY}, PACK], **mark, **CREATE)
    (event,) = await stage.events(invoice["id"])
    assert await stage.tell(event, event) == [(200, "purchase")] * 2
    refund = await stage.fake.refund(invoice["id"], amount=invoice["amount_paid"] // 2)
    await stage.tell(*await stage.events(refund["id"]))
    assert await stage.entries(user) == [130, -65]


async def test_reconcile_names_the_invoices_that_a_person_should_look_at(stage):
    user = await stage.user()
    mark = {"metadata": {"credit_user_id": str(user)}}
    invoice = await stage.fake.invoice([{"price": MONTHLY}], **mark, **MANUAL)
    since = datetime.now(UTC) - timedelta(days=1)
    summary = await reconcile(
        stage.reads,
        stage.settler(),
        since=since,
        disputes_since=since,
        progress=lambda _name, _summary: None,
    )
    noticed = [(each.id, each.reason) for each in summary.noticed]
    assert (invoice["id"], "billing_reason") in noticed
    assert invoice["id"] not in [each.id for each in summary.conflicts + summary.unresolved]
