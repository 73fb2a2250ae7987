"""How the fake Stripe delivers events: at least once, signed as the SDK requires, or badly."""

import asyncio
import json
import signal
from collections import Counter
from uuid import uuid4

import pytest
import stripe
from kit.programs import free_port
from kit.stripe_fakes import SECRET, bought, fake_stripe
from kit.stripe_receiver import Receiver, receiving
from kit.waiting import eventually

pytestmark = pytest.mark.usefixtures("calm")


async def test_events_carry_a_signature_that_the_sdk_accepts_for_each_secret(fake, receiver):
    await fake.do("endpoint", id=receiver.id, secrets=[SECRET, "whsec_new"])
    await fake.purchase(uuid4())
    await fake.idle()
    assert len(receiver.requests) == 3
    for headers, body in receiver.requests:
        for secret in (SECRET, "whsec_new"):
            event = stripe.Webhook.construct_event(body, headers["stripe-signature"], secret)
            assert event.object == "event"
        with pytest.raises(stripe.SignatureVerificationError):
            stripe.Webhook.construct_event(body, headers["stripe-signature"], "whsec_other")


async def test_a_delivery_not_answered_2xx_is_tried_again_with_a_fresh_signature(fake, receiver):
    receiver.answers = [500, 400, 301, None]
    event = await fake.event("customer.created", {"id": "cus_1", "object": "customer"})
    await eventually(lambda: receiver.requests)
    await fake.settings(clock_skew_seconds=100)
    await fake.idle()
    assert [each["id"] for each in receiver.events] == [event] * 5
    assert len({body for _headers, body in receiver.requests}) == 1
    signatures = [headers["stripe-signature"] for headers, _body in receiver.requests]
    assert signatures[0] != signatures[-1]
    for (_headers, body), signature in zip(receiver.requests, signatures, strict=True):
        stripe.WebhookSignature.verify_header(body, signature, SECRET, tolerance=30)
    attempts = await fake.deliveries(object=event)
    assert [each["status"] for each in attempts] == [500, 400, 301, None, 200]


async def test_held_events_are_delivered_later_and_lost_ones_never(fake, sdk, receiver):
    await fake.hold()
    held = await fake.purchase(uuid4())
    assert (await fake.idle())["held"] == 3
    assert receiver.requests == []
    await fake.lose()
    lost = await fake.purchase(uuid4())
    await fake.deliver_all()
    delivered = {each["data"]["object"]["id"] for each in receiver.events}
    assert held in delivered
    assert lost not in delivered
    wanted = {"types": ["payment_intent.succeeded"], "delivery_success": False, "limit": 100}
    undelivered = (await sdk.v1.events.list_async(wanted)).data
    about = {each.data.object["id"] for each in undelivered}
    assert lost in about
    assert held not in about


async def _events_of_a_payment(fake, receiver):
    intent = await fake.purchase(uuid4())
    await fake.idle()
    return intent, [each for each in receiver.events if intent in json.dumps(each)]


async def test_a_duplicate_is_the_same_event_again(fake, receiver):
    await fake.faults(duplicate=1)
    _intent, events = await _events_of_a_payment(fake, receiver)
    assert sorted(Counter(each["id"] for each in events).values()) == [2, 2, 2]


async def test_a_twin_is_a_second_event_about_the_same_change(fake, receiver):
    await fake.faults(twin=1)
    _intent, events = await _events_of_a_payment(fake, receiver)
    assert len({each["id"] for each in events}) == 6
    assert set(Counter(each["type"] for each in events).values()) == {2}


async def test_events_of_one_change_come_in_another_order(fake, receiver):
    await fake.settings(concurrency=1)
    await fake.faults(seed=3, reorder=1)
    orders = set()
    for _ in range(6):
        _intent, events = await _events_of_a_payment(fake, receiver)
        orders.add(tuple(each["type"] for each in events))
    await fake.settings(concurrency=100)
    assert len(orders) > 1


async def test_a_delayed_event_comes_after_later_events(fake, receiver):
    await fake.faults(delay=1, delay_seconds=60)
    first = await fake.event("customer.created", {"id": "cus_1", "object": "customer"})
    await fake.faults()
    second = await fake.event("customer.updated", {"id": "cus_1", "object": "customer"})
    await eventually(lambda: receiver.requests)
    assert [each["id"] for each in receiver.events] == [second]
    await fake.deliver_all()
    assert [each["id"] for each in receiver.events] == [second, first]


@pytest.mark.parametrize(("fault", "listed"), [("lose", 1), ("unmade", 0)])
async def test_a_lost_event_is_listed_and_one_that_was_never_made_is_not(
    fake, sdk, receiver, fault, listed
):
    await fake.faults(**{fault: 1})
    intent, events = await _events_of_a_payment(fake, receiver)
    assert events == []
    newest = await sdk.v1.events.list_async({"types": ["payment_intent.succeeded"], "limit": 100})
    assert [each.data.object["id"] for each in newest.data].count(intent) == listed
    assert (await sdk.v1.payment_intents.retrieve_async(intent)).status == "succeeded"


@pytest.mark.parametrize("fault", ["cut_sending", "cut_waiting", "cut_answer"])
async def test_a_cut_connection_is_a_failed_try(fake, receiver, fault):
    await fake.faults(**{fault: 1})
    event = await fake.event("customer.created", {"id": "cus_1", "object": "customer"})

    async def struck():
        return len(await fake.deliveries(object=event)) >= 2

    await eventually(struck)
    reached = len(receiver.requests)
    await fake.faults()
    await fake.idle()
    attempts = await fake.deliveries(object=event)
    assert attempts[0]["fault"] == fault
    assert (attempts[-1]["status"], attempts[-1]["fault"]) == (200, None)
    # Only the whole request reaches the receiver, which cannot know that its answer was lost.
    assert (reached == 0) == (fault == "cut_sending")
    assert receiver.events[-1]["id"] == event


async def test_noise_has_no_valid_signature_and_is_not_tried_again(fake, receiver):
    await fake.faults(noise=1)
    await _events_of_a_payment(fake, receiver)
    good = 0
    for headers, body in receiver.requests:
        try:
            stripe.WebhookSignature.verify_header(body, headers["stripe-signature"], SECRET, 300)
            good += 1
        except stripe.SignatureVerificationError:
            pass
    assert (good, len(receiver.requests)) == (3, 6)


async def test_a_killed_fake_resumes_where_it_stopped(tmp_path):
    arguments = ("--keep", str(tmp_path / "stripe"), "--port", str(free_port()))
    key = {"idempotency_key": "order-1"}
    wanted = {"mode": "payment", **bought(uuid4(), 100, 900)}
    async with fake_stripe(*arguments) as fake:
        await fake.deliver_to("http://127.0.0.1:1/nobody")
        intent = await fake.purchase(uuid4())
        session = (await fake.sdk().v1.checkout.sessions.create_async(wanted, key)).id
        ((endpoint, *_),) = [(await fake.sdk().v1.webhook_endpoints.list_async()).data]
        fake.process.signal(signal.SIGKILL)
        fake.process.wait()
    receiver = Receiver()
    server = await asyncio.start_server(receiver.serve, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/hooks"
    async with fake_stripe(*arguments) as fake:
        await fake.do("endpoint", id=endpoint.id, url=url)
        await fake.deliver_all()
        again = await fake.sdk().v1.checkout.sessions.create_async(wanted, key)
        charges = await fake.sdk().v1.charges.list_async({"payment_intent": intent})
    server.close()
    assert intent in {each["data"]["object"]["id"] for each in receiver.events}
    assert (again.id, len(charges.data)) == (session, 1)


async def test_a_thousand_events_at_once_all_arrive_exactly_once(fake):
    async with receiving(fake, enabled_events=["payment_intent.succeeded"]) as receiver:
        await fake.hold()
        await fake.batch(*[("purchase", bought(uuid4(), 100, 900)) for _ in range(1000)])
        counts = await fake.deliver_all()
        assert counts["held"] == 0
        arrived = Counter(each["data"]["object"]["id"] for each in receiver.events)
    assert (len(arrived), max(arrived.values())) == (1000, 1)
