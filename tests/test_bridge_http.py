"""The webhook on a real socket: what is answered when, its limits, and how the bridge stops."""

import asyncio
import gzip
import json
import signal
import socket
import time
import urllib.request
from dataclasses import replace
from uuid import uuid4

import httpx
import pytest
from bridges import bridge_settings, event_of, paid_session, running_bridge, signature
from callers import EVERY_ROLE
from harness import eventually, free_port, running, server_settings
from prometheus_client import REGISTRY
from stripe_fakes import KEY, SECRET, bridge_process, bridge_url, fake_stripe

from credit_service import errors
from credit_service.access import Doorkeeper
from stripe_bridge import answers, server
from stripe_bridge.app import Probes, Webhooks, make_app
from stripe_bridge.bodies import Limits
from stripe_bridge.model import Unresolved
from stripe_bridge.server import CreditService
from stripe_bridge.settle import Settler
from stripe_bridge.stripe_api import StripeAway, StripeReads, StripeRefuses, stripe_client


@pytest.fixture
async def bridge(service):
    async with running_bridge(bridge_settings(service.target)) as running_one:
        yield running_one


# Enough for what needs no credits: nobody is there.
NOWHERE = "127.0.0.1:9"


@pytest.fixture(scope="module")
async def alone():
    async with running_bridge(bridge_settings(NOWHERE)) as running_one:
        yield running_one


def told(response):
    """Status, and outcome or reason of the answer."""
    said = response.json()
    return response.status_code, said.get("error", {}).get("reason") or said.get("outcome")


def alerts(reason):
    return REGISTRY.get_sample_value("stripe_bridge_alerts_total", {"reason": reason}) or 0


async def balance(client, user_id):
    return (await client.get_user_credit(user_id)).balance


class Raw:
    """A connection that sends what no HTTP library would."""

    @classmethod
    async def to(cls, bridge, sent=b""):
        self = cls()
        self.reader, self.writer = await asyncio.open_connection("127.0.0.1", bridge.port)
        await self.send(sent)
        return self

    async def send(self, sent):
        self.writer.write(sent)
        await self.writer.drain()

    async def head(self):
        """Waits for the head of an answer; returns its status."""
        async with asyncio.timeout(10):
            lines = await self.reader.readuntil(b"\r\n\r\n")
        return int(lines.split()[1])

    async def end(self):
        """Waits until the other side closes; returns all that it had sent."""
        async with asyncio.timeout(10):
            sent = await self.reader.read()
        self.close()
        return sent

    def close(self):
        self.writer.transport.abort()


def head(length, *lines, path="/stripe/webhooks"):
    """The head of a request whose body is announced and still to come."""
    told_lines = [f"POST {path} HTTP/1.1", "Host: a", f"Content-Length: {length}", *lines]
    return "\r\n".join([*told_lines, "", ""]).encode()


async def test_credits_are_there_when_stripe_is_answered_and_a_repeat_is_one_more_200(
    bridge, client, database
):
    user_id = await database.user()
    event = event_of(paid_session(user_id))
    assert told(await bridge.deliver(event)) == (200, "committed")
    assert await balance(client, user_id) == 100
    assert told(await bridge.deliver(event)) == (200, "replayed")
    assert told(await bridge.deliver(event | {"id": "evt_other"})) == (200, "replayed")
    assert await balance(client, user_id) == 100
    assert not await database.faults()


async def test_what_is_not_for_us_is_a_200_and_no_write(bridge, database):
    session = paid_session(await database.user())
    before = await database.book()
    for event in (
        event_of(session | {"payment_status": "unpaid"}),
        event_of(session | {"metadata": {}, "line_items": {"data": [], "has_more": False}}),
        event_of(session | {"mode": "setup"}),
        event_of(session, livemode=True),
        event_of(session, account="acct_other"),
        event_of(session, context="acct_other"),
        event_of(session, "checkout.session.async_payment_failed"),
        event_of(session, "checkout.session.expired"),
        event_of({}, "something.of.2099", api_version="2099-01-01.unheard"),
    ):
        assert told(await bridge.deliver(event)) == (200, "nothing")
    assert await database.book() == before


async def test_a_payment_told_with_other_values_is_a_200_an_alert_and_the_first_stands(
    bridge, client, database
):
    user_id = await database.user()
    session = paid_session(user_id)
    await bridge.deliver(event_of(session))
    for change, reason in (
        ({"credits": "999"}, "idempotency_key_reused"),
        ({"credit_user_id": str(await database.user())}, "payment_reused"),
    ):
        before = alerts(reason)
        other = session | {"metadata": session["metadata"] | change}
        assert told(await bridge.deliver(event_of(other))) == (200, "conflict")
        assert alerts(reason) == before + 1
    assert await balance(client, user_id) == 100


async def test_what_a_person_must_resolve_is_a_422_and_after_a_day_a_counted_200(bridge, database):
    now = int(time.time())
    bad = paid_session("nobody")
    before = alerts("user_malformed"), alerts("user_not_found")
    assert told(await bridge.deliver(event_of(bad))) == (422, "user_malformed")
    young = event_of(bad, created=now - 24 * 60 * 60 + 60)
    assert told(await bridge.deliver(young)) == (422, "user_malformed")
    unknown = event_of(paid_session(uuid4()))
    assert told(await bridge.deliver(unknown)) == (422, "user_not_found")
    assert (alerts("user_malformed"), alerts("user_not_found")) == (before[0] + 2, before[1] + 1)
    parked = {"reason": "user_not_found"}
    counted = REGISTRY.get_sample_value("stripe_bridge_parked_total", parked) or 0
    old = unknown | {"created": now - 24 * 60 * 60}
    assert told(await bridge.deliver(old)) == (200, "parked")
    assert REGISTRY.get_sample_value("stripe_bridge_parked_total", parked) == counted + 1


async def test_what_cannot_be_read_from_stripe_is_a_503_while_stripe_is_away(alone):
    thin = {
        **event_of({}, "v1.checkout.session.completed"),
        "object": "v2.core.event",
        "created": "2026-11-22T10:00:00Z",
        "related_object": {"id": "cs_test_1", "type": "checkout.session", "url": "/"},
    }
    answer = await alone.deliver(thin)
    assert told(answer) == (503, "stripe_away")
    assert int(answer.headers["retry-after"]) > 0


async def test_a_key_that_stripe_refuses_is_a_500_and_an_alert():
    refund = {"id": "re_1", "object": "refund", "charge": "ch_1", "status": "succeeded"}
    async with fake_stripe() as fake:
        settings = bridge_settings(
            NOWHERE, stripe_address=fake.url, stripe_key="rk_of_somebody_else"
        )
        async with running_bridge(settings) as bridge:
            before = alerts("stripe_refuses")
            answer = await bridge.deliver(event_of(refund, "refund.created"))
            assert told(answer) == (500, "failed")
            assert alerts("stripe_refuses") == before + 1


@pytest.mark.parametrize(
    ("token", "reason"),
    [("token of worker", "permission_denied"), ("unheard of", "unauthenticated")],
)
async def test_a_bridge_that_is_not_let_in_answers_500_and_is_not_ready(
    database, tmp_path, token, reason
):
    callers = tmp_path / "callers.toml"
    callers.write_text(EVERY_ROLE)
    settings = server_settings(database.service_url, doorkeeper=Doorkeeper(callers))
    async with running(settings) as service:
        known = CreditService(target=service.target, token=token, credentials=None)
        async with running_bridge(bridge_settings("", credit_service=known)) as bridge:
            before = alerts(reason)
            answer = await bridge.deliver(event_of(paid_session(await database.user())))
            assert told(answer) == (500, "failed")
            assert alerts(reason) == before + 1
            if reason == "unauthenticated":
                assert told(await bridge.http.get("/readyz")) == (503, reason)


TABLE = [
    (Unresolved("price_unknown", "x"), 422, "unresolved", "price_unknown"),
    (StripeAway("x"), 503, "unavailable", "stripe_away"),
    (StripeRefuses("x"), 500, "failed", "stripe_refuses"),
    (TimeoutError(), 503, "unavailable", "out_of_time"),
    (errors.LedgerUnavailable(), 503, "unavailable", "ledger_unavailable"),
    (errors.Overloaded(), 503, "unavailable", "overloaded"),
    (errors.OutcomeUnknown("stripe:pi_1"), 503, "unavailable", "outcome_unknown"),
    (errors.InternalError(), 503, "unavailable", "internal"),
    (errors.Unauthenticated("x"), 500, "failed", "unauthenticated"),
    (errors.PermissionDenied("worker", "x"), 500, "failed", "permission_denied"),
    (errors.InvalidRequest("a", "b"), 500, "failed", "invalid_request"),
    (RuntimeError("x"), 500, "failed", "bug"),
    (RecursionError("x"), 500, "failed", "bug"),
]


@pytest.mark.parametrize(
    ("error", "status", "outcome", "reason"), TABLE, ids=lambda each: type(each).__name__
)
def test_every_failure_has_its_answer(error, status, outcome, reason):
    answer = answers.of_error(error, age_seconds=0, park_after_seconds=10)
    assert (answer.status, answer.outcome, answer.reason) == (status, outcome, reason)
    assert answer.alerts == (outcome in {"unresolved", "failed"})
    assert answer.body["error"]["reason"] == ("failed" if outcome == "failed" else reason)
    old = answers.of_error(error, age_seconds=10, park_after_seconds=10)
    assert old.status == (200 if outcome == "unresolved" else status)


async def test_a_fault_of_ours_is_a_500_that_tells_nothing(alone, monkeypatch, capfd):
    address = "buyer@example.com"

    async def broken(*_):
        raise RuntimeError(address)

    monkeypatch.setattr(Settler, "event", broken)
    before = alerts("bug")
    answer = await alone.deliver(event_of(paid_session(uuid4())))
    assert told(answer) == (500, "failed")
    assert alerts("bug") == before + 1
    printed = "".join(capfd.readouterr())
    assert "in broken" in printed
    assert address not in answer.text + printed


BODY = json.dumps(event_of({"id": "cs_1"}, "checkout.session.async_payment_failed")).encode()
GOOD = signature(BODY)


REFUSED = [
    (BODY, []),
    (BODY, [("Stripe-Signature", "")]),
    (BODY, [("Stripe-Signature", GOOD), ("Stripe-Signature", GOOD)]),
    (BODY, [("Stripe-Signature", signature(BODY, "whsec_other"))]),
    (BODY, [("Stripe-Signature", b"t=1,v1=\xff\xfe")]),
    (BODY, [("Stripe-Signature", b"t=1,v1=" + b"9" * 5000)]),
    (BODY, [("Stripe-Signature", b"t=" + b"9" * 5000 + b",v1=a")]),
    (BODY + b"\r\n", [("Stripe-Signature", GOOD)]),
    (BODY.replace(b"evt_", b"ev_t"), [("Stripe-Signature", GOOD)]),
    (gzip.compress(BODY), [("Stripe-Signature", GOOD), ("Content-Encoding", "gzip")]),
    (b"\xff\xfe\x00", [("Stripe-Signature", signature(b"\xff\xfe\x00"))]),
    (b"", [("Stripe-Signature", signature(b""))]),
    (b"[]", [("Stripe-Signature", signature(b"[]"))]),
    (b"[" * 100_000, [("Stripe-Signature", signature(b"[" * 100_000))]),
]


async def test_what_stripe_did_not_sign_as_an_event_is_a_400_that_tells_nothing(alone):
    for body, headers in REFUSED:
        answer = await alone.http.post("/stripe/webhooks", content=body, headers=headers)
        assert told(answer) == (400, "refused")
        assert answer.json() == answers.Answer(400, "refused", "").body


async def test_a_signature_out_of_time_alerts_for_the_clock_may_be_wrong(alone):
    old = signature(BODY, at=int(time.time()) - 600)
    before = alerts("signature_timestamp"), alerts("signature")
    for header in (old, signature(BODY, "whsec_other")):
        answer = await alone.http.post(
            "/stripe/webhooks", content=BODY, headers={"Stripe-Signature": header}
        )
        assert answer.status_code == 400
    assert (alerts("signature_timestamp"), alerts("signature")) == (before[0] + 1, before[1])


async def test_a_wrong_path_or_method_is_told_and_never_redirected(alone):
    for method, path, status, reason in (
        ("GET", "/stripe/webhooks", 405, "method_not_allowed"),
        ("PUT", "/stripe/webhooks", 405, "method_not_allowed"),
        ("POST", "/healthz", 405, "method_not_allowed"),
        ("POST", "/stripe/webhooks/", 404, "not_found"),
        ("POST", "/stripe", 404, "not_found"),
        ("POST", "/", 404, "not_found"),
        ("POST", "/checkout-sessions", 404, "not_found"),
        ("GET", "/metrics", 404, "not_found"),
    ):
        answer = await alone.http.request(method, path, content=BODY)
        assert told(answer) == (status, reason)
        assert ("allow" in answer.headers) == (status == 405)


async def test_what_is_no_http_is_a_400_and_the_end(alone):
    start = b"POST /stripe/webhooks HTTP/1.1\r\nHost: a\r\n"
    for sent in (
        b"\x00\x01\x02\r\n\r\n",
        b"GET\r\n\r\n",
        b"POST /\r\n\r\n",
        b"POST /\xff HTTP/1.1\r\nHost: a\r\n\r\n",
        start + b"Content-Length: x\r\n\r\n",
        start + b"Content-Length: -1\r\n\r\n",
        start + b"Stripe-Signature: a\x00b\r\n\r\n",
    ):
        connection = await Raw.to(alone, sent)
        assert (await connection.end()).startswith(b"HTTP/1.1 400")
    assert (await alone.http.get("/healthz")).status_code == 200


async def test_a_body_over_the_limit_is_a_413_however_it_is_sent(alone):
    limit = Limits().body_bytes

    async def chunks():
        for _ in range(10):
            yield b" " * 1024 * 1024

    for body in (b" " * (limit + 1), b" " * 10 * limit, chunks()):
        answer = await alone.http.post("/stripe/webhooks", content=body)
        assert told(answer) == (413, "refused")
    text = BODY.decode().ljust(limit)
    assert told(await alone.post(text.encode())) == (200, "nothing")


async def test_an_announced_body_over_the_limit_is_not_waited_for(alone):
    connection = await Raw.to(alone, head(10**9))
    assert await connection.head() == 413
    connection.close()


async def test_a_body_that_does_not_come_is_a_408_and_others_are_served_meanwhile():
    limits = Limits(read_seconds=0.5)
    async with running_bridge(bridge_settings(NOWHERE, limits=limits)) as bridge:
        slow = [await Raw.to(bridge, head(100) + b"{") for _ in range(20)]
        assert told(await bridge.post(BODY)) == (200, "nothing")
        for connection in slow:
            assert (await connection.end()).startswith(b"HTTP/1.1 408")


async def test_a_sender_who_hangs_up_within_the_body_does_no_harm(alone):
    for _ in range(5):
        (await Raw.to(alone, head(1000) + b"{")).close()
    assert told(await alone.post(BODY)) == (200, "nothing")


async def test_connections_that_send_no_whole_head_are_closed_and_others_are_served(
    monkeypatch,
):
    monkeypatch.setattr(server, "_HEAD_SECONDS", 0.5)
    async with running_bridge(bridge_settings(NOWHERE)) as bridge:
        answered = await Raw.to(bridge, b"GET /healthz HTTP/1.1\r\nHost: a\r\n\r\n")
        assert await answered.head() == 200
        waiting = [await Raw.to(bridge) for _ in range(50)]
        waiting += [await Raw.to(bridge, b"POST /stripe/webhooks HTT") for _ in range(50)]
        await answered.send(b"POST /str")
        assert told(await bridge.post(BODY)) == (200, "nothing")
        for connection in waiting:
            assert await connection.end() == b""
        assert (await answered.end()).endswith(b"}")


async def test_a_request_in_hand_is_not_cut_as_a_connection_that_sends_no_head(
    service, monkeypatch, database, client
):
    monkeypatch.setattr(server, "_HEAD_SECONDS", 0.3)
    user_id = await database.user()
    body = json.dumps(event_of(paid_session(user_id))).encode()
    async with running_bridge(bridge_settings(service.target)) as bridge:
        connection = await Raw.to(
            bridge, head(len(body), f"Stripe-Signature: {signature(body)}") + body[:10]
        )
        idle = await Raw.to(bridge)
        assert await idle.end() == b""
        await connection.send(body[10:])
        assert await connection.head() == 200
        connection.close()
    assert await balance(client, user_id) == 100


async def test_strangers_with_slow_bodies_take_no_place_of_an_event():
    limits = Limits(requests_in_flight=1)
    async with running_bridge(bridge_settings(NOWHERE, limits=limits)) as bridge:
        slow = [await Raw.to(bridge, head(100) + b"{") for _ in range(5)]
        assert told(await bridge.post(BODY)) == (200, "nothing")
        for connection in slow:
            connection.close()


async def test_more_events_than_may_be_in_flight_are_a_503_until_one_ends(service, database):
    user_id = await database.user(1)
    holder = await locked(database, user_id)
    limits = Limits(requests_in_flight=1)
    async with running_bridge(bridge_settings(service.target, limits=limits)) as bridge:
        first = asyncio.create_task(bridge.deliver(event_of(paid_session(user_id))))
        await eventually(database.waits_for_a_lock)
        answer = await bridge.post(BODY)
        assert told(answer) == (503, "too_many_requests")
        assert int(answer.headers["retry-after"]) > 0
        assert (await bridge.http.get("/healthz")).status_code == 200
        await holder.execute("COMMIT")
        assert told(await first) == (200, "committed")
        assert told(await bridge.post(BODY)) == (200, "nothing")
    await holder.close()


async def test_bodies_that_arrive_never_take_more_memory_than_they_may():
    limits = Limits(arriving_bytes=10_000)
    async with running_bridge(bridge_settings(NOWHERE, limits=limits)) as bridge:
        half = await Raw.to(bridge, head(9_999) + b" " * 9_990)

        async def is_full():
            return told(await bridge.post(BODY)) == (503, "too_many_bytes")

        await eventually(is_full)
        half.close()

        async def has_room():
            return told(await bridge.post(BODY)) == (200, "nothing")

        await eventually(has_room)


async def test_a_request_is_answered_within_its_budget_and_the_repeat_finds_what_it_did(
    service, database, client
):
    user_id = await database.user(1)
    await database.wait_longer_for_locks()
    event = event_of(paid_session(user_id))
    limits = Limits(budget_seconds=0.7)
    holder = await database.connect()
    async with running_bridge(bridge_settings(service.target, limits=limits)) as bridge:
        async with holder.transaction():
            await holder.execute("SELECT FROM user_credits WHERE user_id = $1 FOR UPDATE", user_id)
            assert told(await bridge.deliver(event)) == (503, "out_of_time")

        async def is_there():
            return (await bridge.deliver(event)).status_code == 200

        await eventually(is_there)
    await holder.close()
    assert await balance(client, user_id) == 101
    assert not await database.faults()


async def locked(database, user_id):
    """Takes the account's lock, so that whoever writes there waits; returns who has it."""
    await database.wait_longer_for_locks()
    holder = await database.connect()
    await holder.execute("BEGIN")
    await holder.execute("SELECT FROM user_credits WHERE user_id = $1 FOR UPDATE", user_id)
    return holder


async def test_what_was_begun_is_finished_though_the_sender_hangs_up(database):
    user_id = await database.user(1)
    holder = await locked(database, user_id)
    body = json.dumps(event_of(paid_session(user_id))).encode()
    request = head(len(body), f"Stripe-Signature: {signature(body)}") + body
    async with running(server_settings(database.service_url)) as service:
        async with running_bridge(bridge_settings(service.target)) as bridge:
            connection = await Raw.to(bridge, request)
            await eventually(database.waits_for_a_lock)
            connection.close()
            bridge.stop.set()
            await holder.execute("COMMIT")
        client = await service.client()
        assert await balance(client, user_id) == 101
    await holder.close()


async def test_a_server_that_cancels_its_handler_leaves_nothing_half_done(
    service, client, database
):
    user_id = await database.user(1)
    holder = await locked(database, user_id)
    body = json.dumps(event_of(paid_session(user_id))).encode()
    async with stripe_client(KEY, address="http://127.0.0.1:9") as nobody:
        settings = bridge_settings(service.target)
        webhooks = Webhooks(
            Settler(StripeReads(nobody), client, settings.policy),
            secrets=settings.secrets,
            limits=Limits(),
        )
        app = make_app(webhooks, None, Probes(client), settings.policy.catalog)
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://a") as http:
            header = {"Stripe-Signature": signature(body)}
            handler = asyncio.create_task(
                http.post("/stripe/webhooks", content=body, headers=header)
            )
            await eventually(database.waits_for_a_lock)
            handler.cancel()
            await asyncio.wait({handler})
            assert handler.cancelled()
            drained = asyncio.create_task(webhooks.drained())
            await asyncio.sleep(0)
            assert not drained.done()
            await holder.execute("COMMIT")
            await drained
        assert await balance(client, user_id) == 101
    await holder.close()


async def test_a_bridge_that_stops_answers_what_it_has_and_takes_no_more(database):
    user_id = await database.user(1)
    holder = await locked(database, user_id)
    async with (
        running(server_settings(database.service_url)) as service,
        running_bridge(bridge_settings(service.target)) as bridge,
    ):
        answer = asyncio.create_task(bridge.deliver(event_of(paid_session(user_id))))
        await eventually(database.waits_for_a_lock)
        bridge.stop.set()

        async def is_closed():
            try:
                (await Raw.to(bridge)).close()
            except ConnectionRefusedError:
                return True
            return False

        await eventually(is_closed)
        assert not answer.done()
        await holder.execute("COMMIT")
        assert told(await answer) == (200, "committed")
        await bridge.task
    await holder.close()


async def test_sigterm_makes_it_unready_first_and_then_ends_it_with_exit_code_0(service, database):
    user_id = await database.user()
    with bridge_process("http://127.0.0.1:9", service.target, unready_seconds="2") as process:
        url = bridge_url(process)
        async with httpx.AsyncClient(base_url=url) as http:
            assert (await http.get("/readyz")).json() == {"status": "ready"}
            process.signal(signal.SIGTERM)

            async def is_stopping():
                return told(await http.get("/readyz")) == (503, "stopping")

            await eventually(is_stopping)
            assert (await http.get("/healthz")).status_code == 200
            body = json.dumps(event_of(paid_session(user_id))).encode()
            answer = await http.post(
                "/stripe/webhooks", content=body, headers={"Stripe-Signature": signature(body)}
            )
            assert told(answer) == (200, "committed")
        assert await asyncio.to_thread(process.wait) == 0, process.output


async def test_a_second_sigterm_ends_it_at_once():
    with bridge_process("http://127.0.0.1:9", NOWHERE, unready_seconds="600") as process:
        bridge_url(process)
        process.signal(signal.SIGTERM)
        process.wait_for("stopping")
        process.signal(signal.SIGTERM)
        assert await asyncio.to_thread(process.wait) == 1
        process.wait_for("told twice to stop")


async def test_without_the_credit_service_it_is_not_ready_and_with_it_ready_again(database):
    port = free_port()
    async with running_bridge(bridge_settings(f"127.0.0.1:{port}")) as bridge:
        assert told(await bridge.http.get("/readyz")) == (503, "credit_service_silent")
        assert (await bridge.http.get("/healthz")).json() == {"status": "ok"}
        settings = server_settings(database.service_url)
        async with running(replace(settings, listen=f"127.0.0.1:{port}")):

            async def is_ready():
                return (await bridge.http.get("/readyz")).status_code == 200

            await eventually(is_ready)


async def test_the_packs_are_shown_to_everybody_and_may_be_kept_a_while(alone):
    answer = await alone.http.get("/credit-packs")
    assert answer.json() == {
        "packs": [
            {
                "id": "starter",
                "name": "100 credits",
                "credits": 100,
                "amount_minor": 900,
                "currency": "eur",
            },
            {
                "id": "studio",
                "name": "1,000 credits",
                "credits": 1000,
                "amount_minor": 7900,
                "currency": "eur",
            },
        ]
    }
    assert "max-age" in answer.headers["cache-control"]
    assert answer.headers["access-control-allow-origin"] == "*"


async def test_logs_name_event_object_and_outcome_and_nothing_personal_or_secret(service, database):
    user_id = await database.user()
    metrics_port = free_port()
    with bridge_process(
        "http://127.0.0.1:9", service.target, metrics_port=str(metrics_port)
    ) as process:
        event = event_of(paid_session(user_id))
        forged = json.dumps(event).encode()
        async with httpx.AsyncClient(base_url=bridge_url(process)) as http:
            for body, secret in ((forged, SECRET), (forged, "whsec_other"), (b"[]", SECRET)):
                header = {"Stripe-Signature": signature(body, secret), "Cookie": "a=personal"}
                await http.post("/stripe/webhooks", content=body, headers=header)
            bad = event_of(paid_session("buyer@example.com"))
            text = json.dumps(bad).encode()
            await http.post(
                "/stripe/webhooks", content=text, headers={"Stripe-Signature": signature(text)}
            )
        scraped = await asyncio.to_thread(_read, f"http://127.0.0.1:{metrics_port}/metrics")
        process.signal(signal.SIGTERM)
        assert await asyncio.to_thread(process.wait) == 0
    lines = [json.loads(line) for line in process.lines if line.startswith("{")]
    first, *others = [line for line in lines if line["event"] == "webhook"]
    assert first.pop("ms") >= 0
    assert first.pop("timestamp")
    assert first == {
        "event": "webhook",
        "level": "info",
        "status": 200,
        "outcome": "committed",
        "reason": "purchase",
        "event_id": event["id"],
        "type": "checkout.session.completed",
        "object": event["data"]["object"]["id"],
    }
    assert [(line["level"], line["status"], line["reason"]) for line in others] == [
        ("info", 400, "signature"),
        ("info", 400, "not_an_event"),
        ("error", 422, "user_malformed"),
    ]
    kept = process.output + scraped
    for secret in ("example.com", SECRET, "personal", "v1=", "metadata", str(user_id)):
        assert secret not in kept
    assert 'stripe_bridge_alerts_total{reason="user_malformed"} 1.0' in scraped
    assert 'status="200",type="checkout.session.completed"} 1.0' in scraped


def _read(url):
    with urllib.request.urlopen(url, timeout=10) as answer:
        return answer.read().decode()


async def test_a_port_that_somebody_has_is_refused_with_its_setting():
    async with running_bridge(bridge_settings(NOWHERE)) as bridge:
        taken = f"127.0.0.1:{bridge.port}"
        for changes, setting in (
            ({"listen": taken}, "STRIPE_BRIDGE_LISTEN"),
            ({"metrics_port": bridge.port}, "STRIPE_BRIDGE_METRICS_PORT"),
        ):
            with pytest.raises(server.StartRefusedError, match=f"{taken}: Address.*{setting}"):
                async with running_bridge(bridge_settings(NOWHERE, **changes)):
                    pass


def test_answers_are_sent_at_once_and_not_held_back_by_the_kernel():
    # asyncio turns Nagle's algorithm off only for sockets that name their protocol.
    with server._bound("127.0.0.1:0") as listener:
        assert listener.proto == socket.IPPROTO_TCP


async def test_it_listens_on_ipv6_too():
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError:
        pytest.skip("this machine has no IPv6")
    async with running_bridge(bridge_settings(NOWHERE, listen="[::1]:0")) as bridge:
        answer = await bridge.http.get(f"http://[::1]:{bridge.port}/healthz")
        assert answer.status_code == 200
