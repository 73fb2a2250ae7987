"""The fake Stripe's API, used by Stripe's own SDK: the bridge sees it as the real one."""

import json
from collections import Counter
from uuid import uuid4

import pytest
import stripe
from kit.stripe_fakes import KEY, SECRET, bought
from kit.stripe_receiver import receiving
from kit.waiting import patience

pytestmark = pytest.mark.usefixtures("calm")


def params(amount=900, **fields):
    return {"mode": "payment", **bought(uuid4(), 100, amount, **fields)}


async def ids(pages):
    return [each.id async for each in pages.auto_paging_iter()]


async def test_a_session_made_by_the_sdk_is_paid_and_its_metadata_reaches_the_charge(fake, sdk):
    wanted = params()
    made = await sdk.v1.checkout.sessions.create_async(wanted)
    assert (made.status, made.payment_status, made.payment_intent) == ("open", "unpaid", None)
    assert made.amount_total == 900
    await fake.pay_session(made.id)
    expand = {"expand": ["payment_intent.latest_charge", "line_items"]}
    paid = (await sdk.v1.checkout.sessions.retrieve_async(made.id, expand)).to_dict()
    assert (paid["status"], paid["payment_status"]) == ("complete", "paid")
    charge = paid["payment_intent"]["latest_charge"]
    assert charge["metadata"] == wanted["payment_intent_data"]["metadata"]
    assert (charge["amount"], charge["payment_intent"]) == (900, paid["payment_intent"]["id"])
    assert paid["line_items"]["data"][0]["price"]["unit_amount"] == 900


async def test_a_delayed_payment_is_unpaid_until_it_is_settled(fake, receiver):
    for succeeds, status in ((True, "paid"), (False, "unpaid")):
        session = await fake.session(uuid4())
        completed = await fake.pay_session(session["id"], when="later")
        assert (completed["status"], completed["payment_status"]) == ("complete", "unpaid")
        settled = await fake.settle_session(session["id"], succeeds=succeeds)
        assert settled["payment_status"] == status
    await fake.idle()
    kinds = Counter(each["type"] for each in receiver.events)
    assert kinds["checkout.session.completed"] == 2
    assert kinds["checkout.session.async_payment_succeeded"] == kinds["payment_intent.succeeded"]
    assert kinds["checkout.session.async_payment_failed"] == 1


async def test_lists_come_newest_first_and_page_in_both_directions(fake, sdk):
    intent = await fake.purchase(uuid4())
    made = [(await fake.refund(intent, 10))["id"] for _ in range(7)]
    of_intent = {"payment_intent": intent, "limit": 3}
    first = await sdk.v1.refunds.list_async(of_intent)
    assert ([each.id for each in first.data], first.has_more) == (made[:3:-1], True)
    assert await ids(first) == made[::-1]
    back = await sdk.v1.refunds.list_async({**of_intent, "ending_before": made[0]})
    assert [each.id for each in back.data] == made[3:0:-1]
    assert await ids(back) == made[1:]
    last = await sdk.v1.refunds.list_async({**of_intent, "starting_after": made[3]})
    assert ([each.id for each in last.data], last.has_more) == (made[2::-1], False)


async def test_lists_have_the_filters_that_the_bridge_uses(fake, sdk):
    intent = await fake.purchase(uuid4())
    other = await fake.session(uuid4())
    sessions = sdk.v1.checkout.sessions
    paid = await ids(await sessions.list_async({"payment_intent": intent}))
    assert len(paid) == 1
    assert other["id"] in await ids(await sessions.list_async({"status": "open", "limit": 100}))
    assert paid[0] not in await ids(await sessions.list_async({"status": "open", "limit": 100}))
    now = other["created"]
    assert await ids(await sessions.list_async({"created": {"gt": now + 60}})) == []
    assert other["id"] in await ids(await sessions.list_async({"created": {"gte": now}}))
    dispute = await fake.dispute(intent)
    by_charge = await sdk.v1.disputes.list_async({"charge": dispute["charge"]})
    assert await ids(by_charge) == [dispute["id"]]
    key = f"pack_{uuid4().hex}"
    price = await fake.price(lookup_key=key)
    assert await ids(await sdk.v1.prices.list_async({"lookup_keys": [key]})) == [price["id"]]


async def test_an_idempotency_key_gives_one_session_and_refuses_other_parameters(fake, sdk):
    options = {"idempotency_key": uuid4().hex}
    create, wanted = sdk.v1.checkout.sessions.create_async, params()
    first, again = await create(wanted, options), await create(wanted, options)
    assert first.id == again.id
    with pytest.raises(stripe.IdempotencyError):
        await create({**wanted, "success_url": "https://elsewhere.example.com"}, options)


async def test_a_lost_answer_is_tried_again_by_the_sdk_and_makes_one_session(fake):
    await fake.api_faults({"kind": "lost_answer", "method": "POST", "count": 1})
    before = (await fake.counts())["objects"].get("checkout.session", 0)
    sessions = fake.sdk(max_network_retries=2).v1.checkout.sessions
    assert (await sessions.create_async(params())).id.startswith("cs_test_")
    assert (await fake.counts())["objects"]["checkout.session"] == before + 1


async def test_refusals_have_the_shapes_that_the_sdk_turns_into_its_errors(fake, sdk):
    sessions = sdk.v1.checkout.sessions
    with pytest.raises(stripe.AuthenticationError):
        await fake.sdk("nonsense").v1.refunds.list_async()
    with pytest.raises(stripe.InvalidRequestError) as unknown:
        await sdk.v1.refunds.retrieve_async("re_unknown")
    assert (unknown.value.code, unknown.value.http_status) == ("resource_missing", 404)
    made = await fake.session(uuid4())
    live = fake.sdk(KEY.replace("_test_", "_live_"))
    with pytest.raises(stripe.InvalidRequestError, match="exists in test mode"):
        await live.v1.checkout.sessions.retrieve_async(made["id"])
    for wrong in ({"quantity": 1}, {"mode": "payment"}):
        with pytest.raises(stripe.InvalidRequestError) as refused:
            await sessions.create_async(wrong)
        assert refused.value.code in {"parameter_unknown", "parameter_missing"}
    with pytest.raises(stripe.InvalidRequestError, match="No such price"):
        await sessions.create_async(params(line_items=[{"price": "price_unknown"}]))


@pytest.mark.parametrize(
    ("fault", "error"),
    [
        ({"status": 429}, stripe.RateLimitError),
        ({"status": 500}, stripe.APIError),
        ({"kind": "hang", "seconds": 600}, stripe.APIConnectionError),
        ({"kind": "cut"}, stripe.APIConnectionError),
    ],
)
async def test_the_api_fails_as_arranged_and_recovers(fake, fault, error):
    sdk = fake.sdk(http_client=stripe.HTTPXClient(timeout=patience(0.3)))
    await fake.api_faults({"path": "refunds", "count": 1, **fault})
    with pytest.raises(error):
        await sdk.v1.refunds.list_async()
    await sdk.v1.refunds.list_async()


async def test_an_endpoint_gets_its_pinned_version_and_the_list_shows_the_accounts(fake, sdk):
    price = await fake.price(recurring={"interval": "month"})
    pinned = {"enabled_events": ["*"], "api_version": "2022-08-01"}
    async with receiving(fake, **pinned) as old:
        invoice = await fake.invoice([{"price": price["id"]}], metadata={"credit_user_id": "u"})
        await fake.refund(invoice["id"], 100)
        await fake.idle()
        events = {each["type"]: each for each in old.events}
    invoice = events["invoice.paid"]["data"]["object"]
    assert events["invoice.paid"]["api_version"] == "2022-08-01"
    assert invoice["subscription_details"] == {"metadata": {"credit_user_id": "u"}}
    assert invoice["lines"]["data"][0]["price"]["id"] == price["id"]
    assert invoice["charge"] == events["charge.succeeded"]["data"]["object"]["id"]
    refunds = events["charge.refunded"]["data"]["object"]["refunds"]["data"]
    assert [each["amount"] for each in refunds] == [100]
    # Cards had no refund.* before 2024-10-28.
    assert not {"refund.created", "refund.updated"} & set(events)
    listed = (await sdk.v1.events.retrieve_async(events["invoice.paid"]["id"])).to_dict()
    assert listed["api_version"] == "2026-10-28.endive"
    now = listed["data"]["object"]
    assert now["parent"]["subscription_details"]["metadata"] == {"credit_user_id": "u"}
    assert now["lines"]["data"][0]["pricing"]["price_details"]["price"] == price["id"]
    assert not {"subscription", "payment_intent", "charge", "paid"} & set(now)
    of_intent = {"type": "payment_intent", "payment_intent": invoice["payment_intent"]}
    payments = await sdk.v1.invoice_payments.list_async({"payment": of_intent})
    assert [each.invoice for each in payments.data] == [invoice["id"]]


async def test_a_thin_notification_leads_the_sdk_to_the_object_and_its_event(fake, sdk):
    async with receiving(fake, thin=True) as thin:
        session = await fake.session(uuid4())
        await fake.pay_session(session["id"])
        await fake.idle()
        of_session = (each for each in thin.requests if b"checkout.session.completed" in each[1])
        headers, body = next(of_session)
    note = sdk.parse_event_notification(body, headers["stripe-signature"], SECRET)
    assert note.type == "v1.checkout.session.completed"
    assert (await note.fetch_related_object_async()).id == session["id"]
    event = await note.fetch_event_async()
    assert event.snapshot_event == json.loads(body)["snapshot_event"]
    assert (await sdk.v1.events.retrieve_async(event.snapshot_event)).id == event.snapshot_event


async def test_a_failure_to_make_events_is_reported_to_thin_destinations_only(fake, sdk, receiver):
    async with receiving(fake, thin=True) as thin:
        made = await fake.generation_failure("cs_test_1", "checkout.session.completed")
        await fake.idle()
        ((headers, body),) = thin.requests
    assert receiver.requests == []
    note = sdk.parse_event_notification(body, headers["stripe-signature"], SECRET)
    assert (note.id, "data" in json.loads(body)) == (made, False)
    event = (await sdk.v2.core.events.retrieve_async(made)).to_dict()
    assert event["data"]["impact"]["related_object_id"] == "cs_test_1"
    with pytest.raises(stripe.InvalidRequestError):
        await sdk.v1.events.retrieve_async(made)


async def test_a_refund_can_fail_days_later_and_gives_the_money_back_to_the_charge(fake, sdk):
    intent = await fake.purchase(uuid4())
    refund = await fake.refund(intent, 400, status="pending")
    assert (await sdk.v1.charges.retrieve_async(refund["charge"])).amount_refunded == 400
    await fake.change_refund(refund["id"], "succeeded")
    failed = await fake.change_refund(refund["id"], "failed")
    assert (failed["status"], failed["amount"]) == ("failed", 400)
    assert (await sdk.v1.charges.retrieve_async(refund["charge"])).amount_refunded == 0
    kinds = [each["type"] for each in await fake.events(object=refund["id"])]
    assert kinds.count("refund.updated") == 2
    assert kinds[-1] == "refund.failed"


async def test_a_disputes_transactions_show_withdrawals_and_returns(fake, sdk):
    async def moved(dispute):
        read = await sdk.v1.disputes.retrieve_async(dispute["id"])
        return read.status, [each.amount for each in read.balance_transactions]

    inquiry = await fake.dispute(await fake.purchase(uuid4()), withdraw=False)
    assert await moved(inquiry) == ("warning_needs_response", [])
    await fake.do("withdraw", id=inquiry["id"])
    assert await moved(inquiry) == ("needs_response", [-900])
    await fake.win(inquiry["id"])
    assert await moved(inquiry) == ("won", [-900, 900])
    lost = await fake.dispute(await fake.purchase(uuid4()))
    await fake.lose_dispute(lost["id"], returned=300)
    assert await moved(lost) == ("lost", [-900, 300])


async def test_an_endpoint_made_by_the_sdk_shows_its_secret_once_and_receives(fake, sdk):
    async with receiving(fake) as receiver:
        url = (await sdk.v1.webhook_endpoints.retrieve_async(receiver.id)).url
        wanted = {"url": url, "enabled_events": ["customer.created"], "api_version": "2025-03-31"}
        made = await sdk.v1.webhook_endpoints.create_async(wanted)
        await fake.event("customer.created", {"id": "cus_1", "object": "customer"})
        await fake.idle()
        ((headers, body),) = receiver.requests
        listed = await sdk.v1.webhook_endpoints.list_async({"limit": 100})
        await fake.delete_endpoint(made.id)
    event = stripe.Webhook.construct_event(body, headers["stripe-signature"], made.secret)
    assert event.api_version == "2025-03-31"
    (shown,) = [each.to_dict() for each in listed.data if each.id == made.id]
    assert "secret" not in shown


async def test_events_are_listed_for_thirty_days(fake, sdk):
    kind = "product.created"
    event = await fake.event(kind, {"id": "prod_1", "object": "product"})
    assert await ids(await sdk.v1.events.list_async({"types": [kind]})) == [event]
    await fake.settings(clock_offset_seconds=31 * 86400)
    assert await ids(await sdk.v1.events.list_async({"types": [kind]})) == []
    with pytest.raises(stripe.InvalidRequestError):
        await sdk.v1.events.retrieve_async(event)
