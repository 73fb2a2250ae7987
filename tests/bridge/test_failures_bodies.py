"""How requests fail: secrets, signatures, bodies, connections, foreign events, revealed data."""

import asyncio
import gzip
import json
import time
from contextlib import closing
from uuid import uuid4

import pytest
from kit.bridge_stage import counted
from kit.bridges import event_of, paid_session, signature
from kit.http_clients import http_client
from kit.stripe_fakes import KEY, SECRET, Program, bridge_process, bridge_url
from kit.waiting import eventually, patience

from credit_service.runtime.environment import ConfigurationError
from stripe_bridge import config, webhook
from stripe_bridge.request_bodies import Limits
from stripe_bridge.webhook import Secret


async def post(stage, body, *headers, bridge=None):
    http = (bridge or stage.bridge).http
    return await http.post("/stripe/webhooks", content=body, headers=list(headers))


async def bytes_of_a_purchase(stage, user):
    (event,) = await stage.events(await stage.fake.purchase(user))
    return json.dumps(event).encode()


def signed(body, secret=SECRET, seconds=0):
    return ("Stripe-Signature", signature(body, secret, int(time.time()) + seconds))


async def test_27_no_secret_but_ours_opens_the_bridge(stage):
    user = await stage.user()
    body = await bytes_of_a_purchase(stage, user)
    for wrong in ("whsec_of_somebody_else", "", " ", f"{SECRET}\n", f" {SECRET}", SECRET[:-1]):
        assert (await post(stage, body, signed(body, wrong))).status_code == 400
    assert await stage.entries(user) == []


async def test_27_while_a_secret_is_rolled_the_old_and_the_new_and_both_at_once_are_good(stage):
    old, new = "whsec_old", "whsec_new"
    users = await stage.users(3)
    rolling = (Secret(old, live=False), Secret(new, live=False))
    for user, secrets, known in (
        (users[0], [old], rolling),
        (users[1], [new], rolling),
        (users[2], [old, new], rolling[1:]),
    ):
        async with stage.another_bridge(secrets=known) as bridge:
            await stage.fake.do("endpoint", id=stage.endpoint, secrets=secrets)
            async with stage.delivering_to(str(bridge.http.base_url)):
                paid = await stage.fake.purchase(user)
                await stage.fake.idle()
            assert await stage.statuses(paid) == [200]
            assert await stage.entries(user) == [100]


@pytest.mark.parametrize("secrets", [" ", "test:", "test: ", "test:whsec_", f"test:{SECRET}, "])
def test_27_an_empty_secret_is_refused(monkeypatch, secrets):
    monkeypatch.setenv("STRIPE_BRIDGE_WEBHOOK_SECRETS", secrets)
    with pytest.raises(ConfigurationError, match="STRIPE_BRIDGE_WEBHOOK_SECRETS"):
        config.read()


def test_27_without_a_secret_it_does_not_start():
    with closing(
        Program("stripe_bridge", ("serve",), {"STRIPE_BRIDGE_STRIPE_KEY": KEY})
    ) as process:
        assert process.wait() == 2
        assert "set STRIPE_BRIDGE_WEBHOOK_SECRETS" in process.output


async def test_28_a_signature_of_more_than_300_seconds_ago_or_ahead_is_a_400(stage):
    user = await stage.user()
    body = await bytes_of_a_purchase(stage, user)
    for seconds in (-301, -3600, 330, 3600):
        assert (await post(stage, body, signed(body, seconds=seconds))).status_code == 400
    assert await stage.entries(user) == []
    for seconds in (-270, 300):
        assert (await post(stage, body, signed(body, seconds=seconds))).status_code == 200
    assert await stage.entries(user) == [100]


@pytest.mark.parametrize(
    ("seconds", "good"), [(299, True), (300, True), (301, False), (10**11, False)]
)
def test_28_the_300th_second_is_the_last_good_one_in_both_directions(seconds, good):
    body, now = json.dumps(event_of({"id": "cs_1"})).encode(), int(time.time())
    for at in (now - seconds, now + seconds):
        found = webhook.admit(
            body,
            [signature(body, at=at)],
            secrets=[Secret(SECRET, live=False)],
            now=now,
        )
        assert isinstance(found, webhook.Event) == good


def touched(body):
    """Bodies and headers that were changed in transit."""
    good, other = signature(body), body.replace(b"livemode", b"livemodf", 1)
    text = json.loads(body)
    digits = b"t=" + b"1" * 5000 + b",v1=" + good.partition("v1=")[2].encode()
    return {
        "one byte": (other, good),
        "re-serialised": (json.dumps(text, indent=2).encode(), good),
        "keys sorted": (json.dumps(text, sort_keys=True).encode() + b" ", good),
        "CRLF added": (body + b"\r\n", good),
        "gzip": (gzip.compress(body), good),
        "BOM": (b"\xef\xbb\xbf" + body, good),
        "not UTF-8": (body + b"\xff", good),
        "NUL": (body + b"\0", good),
        "empty": (b"", good),
        "non-ASCII header": (body, b"t=1,v1=\xff\xfe\xe9"),
        "5000-digit time": (body, digits),
        "negative time": (body, good.replace("t=", "t=-")),
        "no time": (body, good.partition(",")[2]),
        "no signature": (body, good.partition(",")[0]),
        "another scheme": (body, good.replace("v1=", "v0=")),
        "empty header": (body, ""),
        "no header": (body,),
        "two headers": (body, good, good),
    }


async def test_29_anything_changed_in_transit_is_a_400_and_no_entry(stage):
    user = await stage.user()
    body = await bytes_of_a_purchase(stage, user)
    before = await stage.database.book()
    answers = {
        name: (await post(stage, sent, *(("Stripe-Signature", each) for each in headers)))
        for name, (sent, *headers) in touched(body).items()
    }
    assert {name: answer.status_code for name, answer in answers.items()} == dict.fromkeys(
        answers, 400
    )
    assert len({answer.text for answer in answers.values()}) == 1
    assert await stage.database.book() == before
    assert (await post(stage, body, signed(body))).status_code == 200


async def test_30_a_signed_body_that_is_not_an_event_is_a_400(stage):
    for body in (
        b"",
        b"not JSON",
        b"null",
        b"[]",
        b'"event"',
        b"NaN",
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b'{"object": "event"}',
        *(
            json.dumps(event_of({}) | change).encode()
            for change in ({"data": None}, {"data": []}, {"data": {}}, {"data": {"object": "cs"}})
        ),
        *(
            json.dumps({key: each for key, each in event_of({}).items() if key != missing}).encode()
            for missing in ("data", "object", "id", "type")
        ),
    ):
        assert (await post(stage, body, signed(body))).status_code == 400, body[:80]


async def test_30_an_event_without_a_time_is_settled_like_any_other(stage):
    user = await stage.user()
    event = event_of(paid_session(user))
    del event["created"]
    assert await stage.tell(event) == [(200, "purchase")]
    malformed = event_of(paid_session("nobody"))
    del malformed["created"]
    assert await stage.tell(malformed) == [(422, "user_malformed")]
    assert await stage.entries(user) == [100]


async def test_30_a_signed_event_with_a_malformed_object_is_never_a_500_and_no_entry(stage):
    good = paid_session(uuid4())
    before = await stage.database.book()
    for field in good:
        for value in (None, [], {}, "", 0, -1, 10**400, [[]], {"id": {}}, "\0", "\ud800"):
            changed = {**good, field: value}
            answers = await stage.tell(event_of(changed), event_of({**changed, "metadata": []}))
            assert {status for status, _ in answers} <= {200, 422}, (field, value, answers)
    assert await stage.database.book() == before


async def test_30_ids_may_be_whole_objects(stage):
    user = await stage.user()
    session = await stage.fake.session(user)
    paid = await stage.fake.pay_session(session["id"])
    (event,) = await stage.events(session["id"])
    intent = await stage.fake.do("object", id=paid["payment_intent"])
    expanded = {**event["data"]["object"], "payment_intent": intent, "customer": {"metadata": []}}
    by_intent = await stage.events(paid["payment_intent"])
    await stage.tell({**event, "data": {"object": expanded}}, *by_intent)
    assert await stage.entries(user) == [100]
    refund = await stage.fake.refund(paid["payment_intent"], amount=450)
    (event,) = await stage.events(refund["id"])
    charge = await stage.fake.do("object", id=refund["charge"])
    charge["payment_intent"] = intent
    expanded = {**refund, "charge": charge, "payment_intent": intent}
    assert await stage.tell({**event, "data": {"object": expanded}}) == [(200, "reversal")]
    assert await stage.entries(user) == [100, -50]


# Enough time, even on a slow machine, for bytes that are sent at once to arrive.
SHORT_READS = Limits(read_seconds=patience(0.5), budget_seconds=patience(4))


async def test_31_big_and_slow_bodies_and_idle_connections_do_not_stop_the_others(stage):
    user = await stage.user()
    async with stage.another_bridge(limits=SHORT_READS) as bridge:
        opened = [await asyncio.open_connection("127.0.0.1", bridge.port) for _ in range(80)]
        head = b"POST /stripe/webhooks HTTP/1.1\r\nHost: a\r\nContent-Length: 100\r\n\r\n{"
        slow = opened[:40]
        for _reader, writer in slow:
            writer.write(head)
        large = b" " * (1024 * 1024 + 1)
        assert (await post(stage, large, signed(large), bridge=bridge)).status_code == 413
        body = await bytes_of_a_purchase(stage, user)
        assert (await post(stage, body, signed(body), bridge=bridge)).status_code == 200
        for reader, _writer in slow:
            async with asyncio.timeout(patience(10)):
                assert (await reader.read()).startswith(b"HTTP/1.1 408")
        for _reader, writer in opened:
            writer.transport.abort()
    assert await stage.entries(user) == [100]


def ignored(reason):
    return counted(
        "events",
        type="checkout.session.completed",
        status="200",
        outcome="nothing",
        reason=reason,
    )


async def test_32_a_test_event_on_a_live_bridge_is_a_counted_200_and_no_entry(stage):
    user = await stage.user()
    before = ignored("other_mode")
    event = event_of(paid_session(user))
    async with stage.another_bridge(secrets=(Secret(SECRET, live=True),)) as bridge:
        without_mode = {name: each for name, each in event.items() if name != "livemode"}
        assert await stage.tell(event, without_mode, bridge=bridge) == [(200, "other_mode")] * 2
        assert ignored("other_mode") == before + 2
        assert await stage.entries(user) == []
        assert await stage.tell({**event, "livemode": True}, bridge=bridge) == [(200, "purchase")]
    assert await stage.entries(user) == [100]


async def test_33_a_session_forged_by_a_connected_account_is_a_counted_200_and_no_entry(stage):
    user = await stage.user()
    session = await stage.fake.session(user)
    await stage.fake.pay_session(session["id"])
    before = ignored("connected_account")
    await stage.delivering()
    forged = await stage.fake.event(
        "checkout.session.completed", session["id"], account="acct_forger"
    )
    await stage.fake.idle()
    assert await stage.statuses(forged) == [200]
    assert ignored("connected_account") == before + 1
    assert await stage.entries(user) == []


async def test_45_an_unknown_type_is_a_200_and_no_entry(stage):
    before = await stage.database.book()
    unknown = event_of(paid_session(await stage.user()), "checkout.session.perfected")
    assert (
        await stage.tell(unknown, event_of({}, "something.of.2099")) == [(200, "unknown_type")] * 2
    )
    assert len(await stage.database.book()) == len(before) + 1  # the user


async def test_45_a_dispute_of_an_unknown_status_follows_its_transactions(stage):
    user = await stage.user()
    dispute = await stage.fake.dispute(await stage.bought(user))
    await stage.fake.do("change_dispute", id=dispute["id"], status="appeal_of_2099")
    event = (await stage.events(dispute["id"]))[-1]
    assert event["data"]["object"]["status"] == "appeal_of_2099"
    assert await stage.tell(event) == [(200, "reversal")]
    assert await stage.entries(user) == [100, -100]


async def test_45_an_event_of_an_unknown_version_is_accepted(stage):
    user = await stage.user()
    new = event_of(paid_session(user, novelty={"of": 2099}), api_version="2099-01-01.unheard")
    assert await stage.tell(new) == [(200, "purchase")]
    assert await stage.entries(user) == [100]


async def test_48_with_a_clock_10_minutes_off_the_refusals_raise_an_alarm_and_nothing_is_lost(
    stage,
):
    users = await stage.users(2)
    for user, skew in zip(users, (600, -600), strict=True):
        before = counted("alerts", reason="signature_timestamp")
        await stage.delivering(clock_skew_seconds=skew)
        paid = await stage.fake.purchase(user)

        async def has_alarmed(before=before):
            return counted("alerts", reason="signature_timestamp") >= before + 2

        await eventually(has_alarmed)
        assert set(await stage.statuses(paid)) == {400}
        assert await stage.entries(user) == []
        await stage.fake.settings(clock_skew_seconds=0)
        await stage.fake.deliver_all()
        assert await stage.entries(user) == [100]


async def test_49_logs_and_answers_hold_no_body_no_address_and_no_secret(stage):
    user, mark = await stage.user(), "personal-mark"
    with bridge_process(stage.fake.url, stage.service.target) as process:
        before = (await stage.fake.counts())["attempts"]
        async with stage.delivering_to(bridge_url(process)):
            paid = await stage.fake.purchase(user, customer_email=f"{mark}@example.com")
            await stage.fake.refund(paid, amount=450)
            await stage.fake.idle()
            answers = [each["answer"] for each in await stage.fake.deliveries(since=before)]
        (good,) = await stage.events(paid)
        session = paid_session(f"{mark}@example.com", customer_details={"email": mark})
        other = paid_session(user, payment_intent=paid, client_reference_id=mark)
        other["metadata"] |= {"credits": "7", "note": mark}
        await stage.fake.api_faults({"path": "charges", "status": 500})
        posts = [
            (json.dumps(good).encode(), SECRET),
            (json.dumps(event_of(session)).encode(), SECRET),
            (json.dumps(event_of(other)).encode(), SECRET),
            (json.dumps(event_of({"id": "no id", "note": mark})).encode(), SECRET),
            (json.dumps({**event_of(session), "type": [mark]}).encode(), SECRET),
            (
                json.dumps(
                    event_of({"id": "re_1", "charge": "ch_1", "reason": mark}, "refund.created")
                ).encode(),
                SECRET,
            ),
            (f"{mark} is no JSON".encode(), SECRET),
            (json.dumps(event_of(session)).encode(), f"whsec_{mark}"),
        ]
        async with http_client(base_url=bridge_url(process)) as http:
            for body, secret in posts:
                header = {"Stripe-Signature": signature(body, secret), "Cookie": mark}
                answer = await http.post("/stripe/webhooks", content=body, headers=header)
                answers.append(f"{answer.status_code} {answer.text} {answer.headers}")
        process.wait_for('"signature"')
        printed = process.output
    assert [answer[:3] for answer in answers[-8:]] == [
        "200", "422", "200", "422", "400", "503", "400", "400",
    ]  # fmt: skip
    assert printed.count('"event":"webhook"') == len(answers) == 4 + len(posts)
    for secret in (mark, "example.com", SECRET, KEY, "v1=", "metadata", str(user)):
        assert secret not in printed
        assert not any(secret in answer for answer in answers)
