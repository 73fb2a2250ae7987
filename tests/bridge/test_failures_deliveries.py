"""How deliveries fail: events that come twice, at once, concurrently, or lose their sender."""

import asyncio
import itertools
import json
from collections import Counter

from kit.bridge_stage import Hasty, counted, line_to
from kit.bridges import signature
from kit.http_clients import http_client
from kit.programs import free_port
from kit.stripe_fakes import bridge_process, bridge_url
from kit.waiting import eventually, patience


async def test_01_the_same_event_twice_in_sequence_is_two_200s_and_one_entry(stage):
    user = await stage.user()
    await stage.delivering()
    paid = await stage.fake.purchase(user)
    await stage.fake.idle()
    (event,) = [each["id"] for each in await stage.events(paid)]
    await stage.fake.do("resend", id=event)
    await stage.fake.idle()
    assert await stage.statuses(event) == [200, 200]
    assert await stage.entries(user) == [100]


async def test_02_the_same_event_50_times_at_once_at_two_bridges_is_one_entry(stage):
    user = await stage.user()
    (event,) = await stage.events(await stage.fake.purchase(user))
    body = json.dumps(event).encode()
    here = stage.fake.url, stage.service.target
    with bridge_process(*here) as one, bridge_process(*here) as other:
        urls = [bridge_url(each) for each in (one, other)]
        async with http_client(timeout=patience(20)) as http:
            posts = [
                http.post(
                    f"{url}/stripe/webhooks",
                    content=body,
                    headers={"Stripe-Signature": signature(body)},
                )
                for url in urls * 25
            ]
            answers = await asyncio.gather(*posts)
    assert [answer.status_code for answer in answers] == [200] * 50
    outcomes = Counter(answer.json()["outcome"] for answer in answers)
    assert outcomes == {"committed": 1, "replayed": 49}
    assert await stage.entries(user) == [100]


async def test_03_two_event_objects_for_one_change_are_one_entry(stage):
    user = await stage.user()
    await stage.fake.faults(twin=1.0)
    await stage.delivering()
    paid = await stage.fake.purchase(user)
    refund = await stage.fake.refund(paid, amount=450)
    await stage.fake.idle()
    for about, twins in ((paid, 2), (refund["id"], 2), (refund["charge"], 2)):
        attempts = await stage.fake.deliveries(object=about)
        assert {each["status"] for each in attempts} == {200}
        assert len({each["event"] for each in attempts}) == twins
    assert await stage.entries(user) == [100, -50]


async def test_04_the_three_events_of_one_payment_are_one_entry_in_every_order(stage):
    orders = list(itertools.permutations(range(3)))
    for order, user in zip(orders, await stage.users(len(orders)), strict=True):
        session = await stage.fake.session(user)
        await stage.fake.pay_session(session["id"], when="later")
        paid = await stage.fake.settle_session(session["id"])
        _unpaid, *later = await stage.events(session["id"], paid["payment_intent"])
        # A payment has only two of the three; their keys must not depend on that.
        completed = {**later[0], "id": "evt_1", "type": "checkout.session.completed"}
        events = [completed, *later]
        assert [event["type"] for event in events] == [
            "checkout.session.completed",
            "checkout.session.async_payment_succeeded",
            "payment_intent.succeeded",
        ]
        answers = await stage.tell(*(events[place] for place in order))
        assert answers == [(200, "purchase")] * 3
        assert await stage.entries(user) == [100]


async def test_09_a_bridge_killed_after_the_commit_and_before_its_answer_credits_once(stage):
    user, port = await stage.user(), free_port()
    async with line_to(stage.service.port) as line:
        with bridge_process(stage.fake.url, line.target, port=port) as process:
            async with stage.delivering_to(bridge_url(process)):
                await stage.fake.purchase(await stage.user())
                await stage.fake.idle()
                line.keep_answers()
                paid = await stage.fake.purchase(user)

                async def is_committed():
                    return await stage.entries(user)

                await eventually(is_committed)
                assert 200 not in await stage.statuses(paid)
                process.popen.kill()
                process.wait()
                line.pass_answers()
                with bridge_process(stage.fake.url, line.target, port=port) as restarted:
                    bridge_url(restarted)
                    await stage.fake.deliver_all()
        *before, last = await stage.statuses(paid)
        assert before
        assert last == 200
        assert 200 not in before
    assert await stage.entries(user) == [100]


async def test_10_a_sender_who_hangs_up_while_the_call_runs_gets_its_effect_once(stage):
    user = await stage.user(1)
    holder = await stage.database.connect()
    await stage.fake.faults(cut_waiting=1.0)
    async with holder.transaction():
        await holder.execute("SELECT FROM user_credits WHERE user_id = $1 FOR UPDATE", user)
        await stage.delivering(retry_seconds=600, retry_cap_seconds=600)
        paid = await stage.fake.purchase(user)

        async def has_hung_up():
            return await stage.statuses(paid) == [None]

        await eventually(has_hung_up)
        await stage.refused_once()
    await holder.close()

    async def is_there():
        return await stage.balance(user) == 101

    await eventually(is_there)
    await stage.fake.faults()
    await stage.fake.deliver_all()
    assert await stage.statuses(paid) == [None, 200]
    assert await stage.entries(user) == [1, 100]


async def test_11_a_call_that_commits_beyond_its_deadline_is_a_503_and_its_repeat_a_200(stage):
    user = await stage.user()
    async with (
        line_to(stage.service.port) as line,
        stage.another_bridge(
            credit_service=Hasty(target=line.target, deadline_seconds=patience(1))
        ) as bridge,
    ):
        warming = await stage.events(await stage.fake.purchase(await stage.user()))
        await stage.tell(*warming, bridge=bridge)
        (event,) = await stage.events(await stage.fake.purchase(user))
        line.keep_answers()
        assert await stage.tell(event, bridge=bridge) == [(503, "outcome_unknown")]

        async def is_committed():
            return await stage.entries(user) == [100]

        await eventually(is_committed)
        line.pass_answers()

        async def is_replayed():
            answer = await bridge.deliver(event)
            return (answer.status_code, answer.json().get("outcome")) == (200, "replayed")

        # The hasty bridge may again give up too early on a busy machine.
        await eventually(is_replayed)
    assert await stage.entries(user) == [100]


async def test_14_a_payment_with_other_values_later_is_a_200_and_an_alert_and_the_first_one_counts(
    stage,
):
    user, other = await stage.users(2)
    (event,) = await stage.events(await stage.fake.purchase(user))
    assert await stage.tell(event) == [(200, "purchase")]
    intent = event["data"]["object"]
    for change, reason in (
        ({"credits": "999"}, "idempotency_key_reused"),
        ({"credit_user_id": str(other)}, "payment_reused"),
    ):
        before = counted("alerts", reason=reason)
        changed = {**intent, "metadata": {**intent["metadata"], **change}}
        answer = await stage.bridge.deliver({**event, "data": {"object": changed}})
        assert answer.json() == {"outcome": "conflict", "reason": reason}
        assert answer.status_code == 200
        assert counted("alerts", reason=reason) == before + 1
    assert await stage.entries(user) == [100]
    assert await stage.entries(other) == []
    assert not await stage.database.faults()
