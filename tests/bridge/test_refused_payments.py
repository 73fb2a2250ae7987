"""Payments that could not be credited and whose money went back, as the manual advises."""

from dataclasses import replace

import pytest
from kit.bridge_stage import MONTHLY, POLICY, counted

REFUSING = {
    "currency_not_allowed": replace(POLICY, allowed_currencies=frozenset({"usd"})),
    "credits_above_limit": replace(POLICY, max_credits_per_purchase=10),
}


@pytest.mark.parametrize("reason", REFUSING)
async def test_a_refused_payment_alarms_until_it_is_wholly_refunded(stage, reason):
    user = await stage.user()
    async with stage.another_bridge(policy=REFUSING[reason]) as bridge:
        session = await stage.fake.session(user)
        paid = (await stage.fake.pay_session(session["id"]))["payment_intent"]
        events = await stage.events(session["id"], paid)
        assert await stage.tell(*events, bridge=bridge) == [(422, reason)] * 2
        part = await stage.fake.refund(paid, amount=300)
        of_part = await stage.events(part["id"])
        assert await stage.tell(*events, *of_part, bridge=bridge) == [(422, reason)] * 3
        rest = await stage.fake.refund(paid)
        of_all = [*of_part, *await stage.events(rest["id"], rest["charge"])]
        before = counted("alerts", reason=reason)
        answers = await stage.tell(*events, *of_all, bridge=bridge)
        assert answers == [(200, "refunded")] * len(answers)
        assert counted("alerts", reason=reason) == before
    settler = stage.settler(REFUSING[reason])
    for about in (session["id"], paid, rest["id"], rest["charge"]):
        assert (await settler.replay(about)).reason == "refunded"
    assert await stage.entries(user) == []


async def test_a_refused_invoice_is_settled_when_each_of_its_payments_is_refunded(stage):
    user = await stage.user()
    settler = stage.settler(REFUSING["currency_not_allowed"])
    mark = {"metadata": {"credit_user_id": str(user)}}
    lines, parts = [{"price": MONTHLY}], [{"amount": 1_000}, {"amount": 1_900}]
    invoice = await stage.fake.invoice(lines, payments=parts, **mark)
    (event,) = await stage.events(invoice["id"])
    async with stage.another_bridge(policy=REFUSING["currency_not_allowed"]) as bridge:
        payments = [each async for each in stage.reads.payments_of_invoice(invoice["id"])]
        for payment, status in zip(payments, (422, 200), strict=True):
            await stage.fake.refund(payment["payment"]["payment_intent"])
            ((answered, _),) = await stage.tell(event, bridge=bridge)
            assert answered == status
    assert (await settler.replay(invoice["id"])).reason == "refunded"
    assert await stage.entries(user) == []


async def test_a_payment_for_an_unknown_user_is_settled_when_it_is_refunded(stage):
    paid = await stage.fake.purchase("00000000-0000-4000-8000-000000000001")
    events = await stage.events(paid)
    assert await stage.tell(*events) == [(422, "user_not_found")]
    refund = await stage.fake.refund(paid)
    events += await stage.events(refund["id"])
    assert await stage.tell(*events) == [(200, "refunded")] * 2


async def test_while_stripe_cannot_say_whether_it_was_refunded_a_person_is_called(stage):
    paid = await stage.fake.purchase("00000000-0000-4000-8000-000000000001")
    events = await stage.events(paid)
    await stage.fake.refund(paid)
    for fault in ({"status": 500}, {"status": 403}):
        await stage.fake.api_faults({"path": "charges", **fault})
        assert await stage.tell(*events) == [(422, "user_not_found")]
    await stage.fake.api_faults()
    assert await stage.tell(*events) == [(200, "refunded")]
