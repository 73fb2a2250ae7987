"""Top-ups under failures: lost answers, two bridges, lost keys, deleted users, changed prices."""

import asyncio
from datetime import timedelta

import pytest
from kit.top_up_stage import AMOUNT, CREDITS, DECLINING, POLICY, pack_with
from kit.waiting import eventually

from credit_service.v1 import credit_service_pb2 as pb
from stripe_bridge.catalog import Catalog, Policy
from stripe_bridge.poll import Poller
from stripe_bridge.reconcile import reconcile
from stripe_bridge.settle import Settler
from stripe_bridge.stripe_api import StripeReads

OPEN, SUCCEEDED = pb.TOP_UP_STATE_OPEN, pb.TOP_UP_STATE_SUCCEEDED
A_DAY = 86400


async def until_closed(stage, user, bridge):
    """Lets a bridge work until the request of the user is closed; returns the request."""

    async def closed():
        await stage.round(user, bridge)
        return (await stage.request(user)).state != OPEN

    await eventually(closed)
    return await stage.request(user)


LOST = ("status", "hang", "cut", "lost_answer")


@pytest.mark.parametrize("kind", LOST)
@pytest.mark.parametrize("passed", range(2))
async def test_whichever_answer_of_stripe_is_lost_the_customer_pays_once(
    stage, bridge, kind, passed
):
    user = await stage.user()
    asked = await stage.asked(user)
    # Two requests: the intent is made, then confirmed.
    await stage.fake.api_faults(
        {"kind": kind, "method": "POST", "count": 1, "skip": passed, "seconds": 0.1}
    )
    done = await until_closed(stage, user, bridge)
    assert done.state == SUCCEEDED
    assert await stage.paid(asked.id) == [AMOUNT]
    assert len(await stage.intents(asked.id)) == 1
    assert await stage.balance(user) == 40 + CREDITS


async def test_bridges_at_the_same_time_charge_once(stage, bridge):
    users = [await stage.user() for _ in range(4)]
    asked = [await stage.asked(user) for user in users]
    async with stage.bridge() as second, stage.bridge() as third:
        for _ in range(3):
            await asyncio.gather(
                *(stage.round(users[0], each) for each in (bridge, second, third, bridge))
            )
    for user, top_up in zip(users, asked, strict=True):
        assert (await until_closed(stage, user, bridge)).state == SUCCEEDED
        assert await stage.paid(top_up.id) == [AMOUNT]
        assert await stage.balance(user) == 40 + CREDITS


async def test_the_webhook_may_be_faster_than_the_answer_to_the_confirmation(stage, bridge):
    user = await stage.user()
    asked = await stage.asked(user)
    await stage.fake.api_faults(
        {"kind": "late_answer", "method": "POST", "skip": 1, "count": 1, "seconds": 2.0}
    )
    settler = Settler(StripeReads(stage.sdk), stage.client, POLICY)
    working = asyncio.create_task(stage.round(user, bridge))

    async def is_paid():
        return any(each["status"] == "succeeded" for each in await stage.intents(asked.id))

    await eventually(is_paid)
    [intent] = await stage.intents(asked.id)
    assert (await settler.event("payment_intent.succeeded", intent)).outcome == "committed"
    assert (await stage.request(user)).state == SUCCEEDED
    await working
    assert await stage.paid(asked.id) == [AMOUNT]
    assert await stage.balance(user) == 40 + CREDITS


@pytest.mark.parametrize("after", [0, A_DAY + 60])
async def test_an_intent_whose_note_was_lost_is_the_one_that_is_charged(stage, bridge, after):
    user = await stage.user()
    asked = await stage.asked(user)
    async with stage.payments() as payments:
        wanted = stage.wanted(asked, age=timedelta(seconds=after))
        made = await payments.find_or_make(wanted, POLICY.catalog.pack("starter"))
        await stage.fake.settings(clock_offset_seconds=after)
        assert await payments.find_or_make(wanted, POLICY.catalog.pack("starter")) == made
    if not after:
        assert (await stage.round(user, bridge)).payment == made
        assert await stage.paid(asked.id) == [AMOUNT]


async def test_of_two_intents_the_noted_one_is_charged_and_the_other_is_cancelled(stage):
    user = await stage.user()
    asked = await stage.asked(user)
    pack = POLICY.catalog.pack("starter")
    async with stage.payments() as payments:
        noted = await payments.find_or_make(stage.wanted(asked), pack)
        # Only a bridge that was suspended for a day could do this.
        await stage.fake.settings(clock_offset_seconds=A_DAY + 60, search_lag_seconds=10 * A_DAY)
        other = await payments.find_or_make(stage.wanted(asked), pack)
    assert other != noted
    await stage.client.note_top_up(user, asked.id, f"stripe:{noted}")
    late = pb.TopUpRequest()
    late.CopyFrom(asked)
    async with stage.bridge() as made:
        worked = await made.work(late)
    assert (worked.outcome, worked.payment) == ("credited", noted)
    states = {each["id"]: each["status"] for each in await stage.intents(asked.id)}
    assert states == {noted: "succeeded", other: "canceled"}


async def test_a_payment_that_was_charged_before_a_kill_is_credited_by_the_next_round(
    stage, bridge
):
    user = await stage.user()
    asked = await stage.asked(user)
    async with stage.payments() as payments:
        made = await payments.find_or_make(stage.wanted(asked), POLICY.catalog.pack("starter"))
        await stage.client.note_top_up(user, asked.id, f"stripe:{made}")
        intent = await payments.read(made)
        card = await payments.card_of(intent)
        await payments.confirm(intent, card, key=f"{asked.id}:1")
    await stage.fake.settings(clock_offset_seconds=A_DAY + 60)
    worked = await stage.round(user, bridge)
    assert (worked.outcome, worked.payment) == ("credited", made)
    assert await stage.paid(asked.id) == [AMOUNT]


async def test_a_payment_that_a_person_has_cancelled_is_not_needed(stage, bridge):
    user = await stage.user()
    asked = await stage.asked(user)
    async with stage.payments() as payments:
        made = await payments.find_or_make(stage.wanted(asked), POLICY.catalog.pack("starter"))
        await stage.client.note_top_up(user, asked.id, f"stripe:{made}")
        await payments.cancel(made)
    assert (await stage.round(user, bridge)).outcome == "not_needed"
    assert await stage.paid(asked.id) == []


async def test_a_request_given_up_before_a_kill_keeps_its_reason_and_its_link(stage, eager):
    user = await stage.user(DECLINING)
    asked = await stage.asked(user)
    for _ in range(2):
        await stage.round(user, eager)
    # After the third failure: cancelled, then killed.
    async with stage.payments() as payments:
        [intent] = await stage.intents(asked.id)
        await payments.close_links(intent)
        pack = POLICY.catalog.pack("starter")
        url = await payments.open_link(stage.wanted(asked), pack, intent)
        await payments.cancel(intent["id"])
    worked = await stage.round(user, eager)
    assert (worked.outcome, worked.reason) == ("given_up", "generic_decline")
    assert (await stage.request(user)).link == url


async def test_the_amount_stays_when_the_price_changes_after_the_payment_was_made(stage, eager):
    user = await stage.user(DECLINING)
    asked = await stage.asked(user)
    await stage.round(user, eager)
    await stage.save_card(user)
    dearer = Policy(catalog=Catalog.parse(pack_with(amount_minor=1200, credits_=150)))
    async with stage.bridge(dearer, retry_after=timedelta(0)) as bridge:
        assert (await stage.round(user, bridge)).outcome == "credited"
    assert await stage.paid(asked.id) == [AMOUNT]
    assert await stage.balance(user) == 40 + CREDITS


async def test_a_pack_that_has_left_the_catalogue_is_still_charged_if_its_payment_was_made(
    stage, eager
):
    user = await stage.user(DECLINING)
    asked = await stage.asked(user)
    await stage.round(user, eager)
    async with stage.bridge(Policy(catalog=Catalog()), retry_after=timedelta(0)) as bridge:
        worked = await stage.round(user, bridge)
        assert (worked.outcome, worked.reason) == ("try_again", "generic_decline")
        assert (await stage.request(user)).link == ""
        await stage.save_card(user)
        assert (await stage.round(user, bridge)).outcome == "credited"
    assert await stage.paid(asked.id) == [AMOUNT]


async def test_a_due_request_is_charged_as_soon_as_its_pack_is_in_the_catalogue(stage):
    user = await stage.user()
    await stage.asked(user)
    pause = timedelta(seconds=0.3)
    async with stage.bridge(Policy(catalog=Catalog()), retry_after=pause) as bridge:
        assert (await stage.round(user, bridge)).reason == "unknown_pack"
    async with stage.bridge(retry_after=pause) as bridge:

        async def due():
            worked = await stage.round(user, bridge)
            done = (worked.outcome, worked.reason, bool(worked.payment))
            assert done in {("waiting", "retry_later", False), ("credited", "purchase", True)}
            return worked.payment

        await eventually(due)


async def test_a_customer_with_another_currency_pays_in_that_of_the_pack(stage, bridge):
    user = await stage.user()
    customer = await stage.customer(user)
    await stage.fake.do("edit", id=customer, fields={"currency": "usd"})
    asked = await stage.asked(user)
    assert (await stage.round(user, bridge)).outcome == "credited"
    [intent] = await stage.intents(asked.id)
    assert (intent["currency"], intent["amount_received"]) == ("eur", AMOUNT)


async def test_a_user_who_was_deleted_is_not_charged(stage, bridge):
    user = await stage.user()
    asked = await stage.asked(user)
    async with stage.payments() as payments:
        made = await payments.find_or_make(stage.wanted(asked), POLICY.catalog.pack("starter"))
    listed = [each async for each in stage.client.list_top_ups() if each.user_id == str(user)]
    await stage.database.execute("DELETE FROM auth.users WHERE id = $1", user)
    [top_up] = listed
    worked = await bridge.work(top_up)
    assert (worked.outcome, worked.payment) == ("closed", made)
    [intent] = await stage.intents(asked.id)
    assert intent["status"] == "canceled"


async def test_the_month_s_maximum_is_not_exceeded(stage, bridge):
    user = await stage.user(per_month=1)
    first = await stage.asked(user)
    assert (await stage.round(user, bridge)).outcome == "credited"
    await stage.asked(user, 130)
    assert (await stage.request(user)).id == first.id
    assert await stage.round(user, bridge) is None


async def test_a_wrong_price_of_the_pack_does_not_hide_a_decline(stage):
    user = await stage.user(DECLINING)
    await stage.asked(user)
    unsold = pack_with().replace("price_starter", "price_unknown")
    async with stage.bridge(Policy(catalog=Catalog.parse(unsold))) as unsellable:
        worked = await stage.round(user, unsellable)
    assert (worked.outcome, worked.reason) == ("try_again", "generic_decline")
    assert (await stage.request(user)).link == ""


async def test_an_outage_of_stripe_does_not_count_as_a_failure(stage, bridge):
    user = await stage.user()
    await stage.asked(user)
    await stage.fake.api_faults({"status": 503})
    worked = await stage.round(user, bridge)
    assert (worked.outcome, worked.reason) == ("away", "stripe_away")
    await stage.fake.api_faults({"status": 403, "code": "permission", "method": "POST"})
    worked = await stage.round(user, bridge)
    assert (worked.outcome, worked.reason) == ("unresolved", "stripe_refuses")
    await stage.fake.api_faults()
    assert (await stage.request(user)).tries == 0
    assert (await stage.round(user, bridge)).outcome == "credited"


async def test_a_refund_and_a_dispute_of_a_top_up_are_settled_like_those_of_a_pack(stage, bridge):
    user = await stage.user()
    await stage.asked(user)
    paid = (await stage.round(user, bridge)).payment
    settler = Settler(StripeReads(stage.sdk), stage.client, POLICY)
    refund = await stage.fake.refund(paid, AMOUNT // 3)
    assert (await settler.event("refund.created", refund)).outcome == "committed"
    assert await stage.balance(user) == 40 + CREDITS - CREDITS // 3
    dispute = await stage.fake.dispute(paid, AMOUNT - AMOUNT // 3)
    event = await settler.event("charge.dispute.funds_withdrawn", dispute)
    assert event.outcome == "committed"
    assert await stage.balance(user) == 40


@pytest.mark.parametrize("finder", ["poller", "reconcile"])
async def test_a_payment_whose_bridge_died_is_credited_by_the_poller_and_by_reconcile(
    stage, finder
):
    user = await stage.user()
    asked = await stage.asked(user)
    async with stage.payments() as payments:
        made = await payments.find_or_make(stage.wanted(asked), POLICY.catalog.pack("starter"))
        await stage.client.note_top_up(user, asked.id, f"stripe:{made}")
        intent = await payments.read(made)
        await payments.confirm(intent, await payments.card_of(intent), key=f"{asked.id}:1")
    reads = StripeReads(stage.sdk)
    settler = Settler(reads, stage.client, POLICY)
    if finder == "poller":
        await Poller(reads, settler, grace_seconds=0).poll()
    else:
        since = stage.wanted(asked).created - timedelta(minutes=1)
        await reconcile(
            reads, settler, since=since, disputes_since=since, progress=lambda _name, _found: None
        )
    assert (await stage.request(user)).state == SUCCEEDED
    assert await stage.balance(user) == 40 + CREDITS


async def test_a_running_bridge_charges_top_ups_by_itself(stage):
    user = await stage.user()
    asked = await stage.asked(user)
    async with stage.charging():

        async def credited():
            return (await stage.request(user)).state == SUCCEEDED

        await eventually(credited)
    assert await stage.paid(asked.id) == [AMOUNT]


async def test_a_request_of_an_operator_s_own_payment_is_left_alone(stage, bridge):
    user = await stage.user()
    asked = await stage.asked(user)
    await stage.client.note_top_up(user, asked.id, "bank transfer 7")
    worked = await stage.round(user, bridge)
    assert (worked.outcome, worked.reason) == ("waiting", "other_payment")
    assert await stage.intents(asked.id) == []
