"""Top-ups from the spend that asks for one to the purchase, and the failures on the way."""

from dataclasses import replace
from datetime import timedelta

import pytest
from kit.top_up_stage import AMOUNT, ASKING, BELOW, CREDITS, DECLINING, POLICY

from credit_service.v1 import credit_service_pb2 as pb
from stripe_bridge.catalog import Catalog, Policy

AT_ONCE = timedelta(0)
OPEN, SUCCEEDED = pb.TOP_UP_STATE_OPEN, pb.TOP_UP_STATE_SUCCEEDED
FAILED, NOT_NEEDED = pb.TOP_UP_STATE_FAILED, pb.TOP_UP_STATE_NOT_NEEDED


async def test_a_spend_below_the_threshold_charges_the_saved_card_and_credits_the_pack(
    stage, bridge
):
    user = await stage.user()
    asked = await stage.asked(user)
    assert (asked.state, asked.pack, asked.payment_ref) == (OPEN, "starter", "")
    worked = await stage.round(user, bridge)
    assert (worked.outcome, worked.reason) == ("credited", "purchase")
    done = await stage.request(user)
    assert (done.state, done.payment_ref) == (SUCCEEDED, f"stripe:{worked.payment}")
    assert await stage.balance(user) == 40 + CREDITS
    assert await stage.paid(asked.id) == [AMOUNT]
    assert await stage.round(user, bridge) is None


async def test_a_declined_card_leads_to_a_link_and_is_tried_again_later(stage, bridge, eager):
    user = await stage.user(DECLINING)
    asked = await stage.asked(user)
    worked = await stage.round(user, bridge)
    assert (worked.outcome, worked.reason) == ("try_again", "generic_decline")
    failed = await stage.request(user)
    assert (failed.state, failed.tries, failed.reason) == (OPEN, 1, "generic_decline")
    [session] = await stage.sessions(asked.id)
    assert (session["status"], session["url"]) == ("open", failed.link)
    assert (await stage.round(user, bridge)).outcome == "waiting"
    await stage.save_card(user)
    assert (await stage.round(user, eager)).outcome == "credited"
    [session] = await stage.sessions(asked.id)
    assert session["status"] == "expired"
    assert await stage.paid(asked.id) == [AMOUNT]


async def test_a_bank_that_requires_authentication_is_a_failure_with_that_reason(stage, bridge):
    user = await stage.user(ASKING)
    await stage.asked(user)
    worked = await stage.round(user, bridge)
    assert (worked.outcome, worked.reason) == ("try_again", "authentication_required")
    assert (await stage.request(user)).link


async def test_after_three_failures_the_payment_is_cancelled_and_the_request_given_up(stage, eager):
    user = await stage.user(DECLINING)
    asked = await stage.asked(user)
    outcomes = [(await stage.round(user, eager)).outcome for _ in range(3)]
    assert outcomes == ["try_again", "try_again", "given_up"]
    assert await stage.round(user, eager) is None
    failed = await stage.request(user)
    assert (failed.state, failed.tries, failed.reason) == (FAILED, 3, "generic_decline")
    [intent] = await stage.intents(asked.id)
    assert intent["status"] == "canceled"
    newest, *older = await stage.sessions(asked.id)
    assert (newest["url"], newest["status"]) == (failed.link, "open")
    assert {each["status"] for each in older} == {"expired"}


async def test_a_user_without_a_card_gets_a_link_by_which_the_card_is_saved(stage, bridge):
    user = await stage.user(card=None)
    asked = await stage.asked(user)
    worked = await stage.round(user, bridge)
    assert (worked.outcome, worked.reason) == ("try_again", "no_card")
    [session] = await stage.sessions(asked.id)
    await stage.fake.pay_session(session["id"])
    [intent] = await stage.intents(asked.id)
    cards = await stage.sdk.v1.payment_methods.list_async(
        {"customer": intent["customer"], "type": "card"}
    )
    assert len(cards.data) == 1


async def test_a_payment_by_the_link_cancels_the_intent_and_nothing_is_charged_again(stage, eager):
    user = await stage.user(DECLINING)
    asked = await stage.asked(user)
    assert (await stage.round(user, eager)).outcome == "try_again"
    await stage.save_card(user)
    [session] = await stage.sessions(asked.id)
    await stage.fake.pay_session(session["id"])
    worked = await stage.round(user, eager)
    assert (worked.outcome, worked.reason) == ("not_needed", "paid_by_link")
    assert (await stage.request(user)).state == NOT_NEEDED
    assert await stage.paid(asked.id) == [AMOUNT]


async def test_a_balance_that_has_risen_meanwhile_is_not_topped_up(stage, bridge):
    user = await stage.user()
    asked = await stage.asked(user)
    await stage.client.grant_credits(user, BELOW, reason="by hand")
    worked = await stage.round(user, bridge)
    assert (worked.outcome, worked.reason) == ("not_needed", "not_needed")
    assert (await stage.request(user)).state == NOT_NEEDED
    [intent] = await stage.intents(asked.id)
    assert intent["status"] == "canceled"
    assert await stage.paid(asked.id) == []


@pytest.mark.parametrize(
    ("policy", "reason"),
    [
        (Policy(catalog=Catalog()), "unknown_pack"),
        (replace(POLICY, max_credits_per_purchase=99), "too_many_credits"),
        (replace(POLICY, allowed_currencies=frozenset({"usd"})), "currency_not_allowed"),
    ],
)
async def test_a_pack_that_cannot_be_sold_is_a_failure_without_a_payment(stage, policy, reason):
    user = await stage.user()
    asked = await stage.asked(user)
    async with stage.bridge(policy, retry_after=AT_ONCE) as bridge:
        done = [await stage.round(user, bridge) for _ in range(3)]
    assert [each.reason for each in done] == [reason] * 3
    assert [each.outcome for each in done] == ["try_again", "try_again", "given_up"]
    assert (await stage.request(user)).link == ""
    assert await stage.intents(asked.id) == []
