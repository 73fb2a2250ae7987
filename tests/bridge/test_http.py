"""The webhook on a real socket: its answers, and its log lines."""

import asyncio
import gzip
import json
import signal
import time
import urllib.request
from uuid import uuid4

import pytest
from kit.bridge_http import BODY, balance, status_and_outcome
from kit.bridges import NOWHERE, bridge_settings, event_of, paid_session, running_bridge, signature
from kit.callers import EVERY_ROLE
from kit.http_clients import http_client
from kit.programs import free_port
from kit.services import running, server_settings
from kit.stripe_fakes import SECRET, bridge_process, bridge_url, fake_stripe
from kit.waiting import patience
from prometheus_client import REGISTRY

from credit_service import errors
from credit_service.rpc.access import Authenticator
from credit_service.runtime.build_info import VERSION
from stripe_bridge import webhook_answers
from stripe_bridge.model import Unresolved
from stripe_bridge.server import CreditService
from stripe_bridge.settle import Settler
from stripe_bridge.stripe_api import StripeAway, StripeRefuses

pytestmark = pytest.mark.shared


@pytest.fixture
async def bridge(service):
    async with running_bridge(bridge_settings(service.target)) as running_one:
        yield running_one


def alerts(reason):
    return REGISTRY.get_sample_value("stripe_bridge_alerts_total", {"reason": reason}) or 0


async def test_credits_are_there_when_stripe_is_answered_and_a_repeat_is_one_more_200(
    bridge, client, database
):
    user_id = await database.user()
    event = event_of(paid_session(user_id))
    assert status_and_outcome(await bridge.deliver(event)) == (200, "committed")
    assert await balance(client, user_id) == 100
    assert status_and_outcome(await bridge.deliver(event)) == (200, "replayed")
    assert status_and_outcome(await bridge.deliver(event | {"id": "evt_other"})) == (
        200,
        "replayed",
    )
    assert await balance(client, user_id) == 100
    assert not await database.faults()


async def test_an_event_that_is_not_for_us_is_a_200_and_no_write(bridge, database):
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
        assert status_and_outcome(await bridge.deliver(event)) == (200, "nothing")
    assert await database.book() == before


async def test_a_payment_with_other_values_later_is_a_200_and_an_alert_and_the_first_one_counts(
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
        assert status_and_outcome(await bridge.deliver(event_of(other))) == (200, "conflict")
        assert alerts(reason) == before + 1
    assert await balance(client, user_id) == 100


async def test_an_event_that_a_person_must_resolve_is_a_422_and_after_a_day_a_counted_200(
    bridge, database
):
    now = int(time.time())
    bad = paid_session("nobody")
    before = alerts("user_malformed"), alerts("user_not_found")
    assert status_and_outcome(await bridge.deliver(event_of(bad))) == (422, "user_malformed")
    young = event_of(bad, created=now - 24 * 60 * 60 + 60)
    assert status_and_outcome(await bridge.deliver(young)) == (422, "user_malformed")
    unknown = event_of(paid_session(uuid4()))
    assert status_and_outcome(await bridge.deliver(unknown)) == (422, "user_not_found")
    assert (alerts("user_malformed"), alerts("user_not_found")) == (before[0] + 2, before[1] + 1)
    parked = {"reason": "user_not_found"}
    counted = REGISTRY.get_sample_value("stripe_bridge_parked_total", parked) or 0
    old = unknown | {"created": now - 24 * 60 * 60}
    assert status_and_outcome(await bridge.deliver(old)) == (200, "parked")
    assert REGISTRY.get_sample_value("stripe_bridge_parked_total", parked) == counted + 1


async def test_an_event_that_needs_a_read_is_a_503_while_stripe_is_away(alone):
    thin = {
        **event_of({}, "v1.checkout.session.completed"),
        "object": "v2.core.event",
        "created": "2026-11-22T10:00:00Z",
        "related_object": {"id": "cs_test_1", "type": "checkout.session", "url": "/"},
    }
    answer = await alone.deliver(thin)
    assert status_and_outcome(answer) == (503, "stripe_away")
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
            assert status_and_outcome(answer) == (500, "failed")
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
    settings = server_settings(database.service_url, authenticator=Authenticator(callers))
    async with running(settings) as service:
        known = CreditService(target=service.target, token=token, credentials=None)
        async with running_bridge(bridge_settings("", credit_service=known)) as bridge:
            before = alerts(reason)
            answer = await bridge.deliver(event_of(paid_session(await database.user())))
            assert status_and_outcome(answer) == (500, "failed")
            assert alerts(reason) == before + 1
            if reason == "unauthenticated":
                assert status_and_outcome(await bridge.http.get("/readyz")) == (503, reason)


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
    answer = webhook_answers.of_error(error, age_seconds=0, park_after_seconds=10)
    assert (answer.status, answer.outcome, answer.reason) == (status, outcome, reason)
    assert answer.alerts == (outcome in {"unresolved", "failed"})
    assert answer.body["error"]["reason"] == ("failed" if outcome == "failed" else reason)
    old = webhook_answers.of_error(error, age_seconds=10, park_after_seconds=10)
    assert old.status == (200 if outcome == "unresolved" else status)


async def test_an_unexpected_error_is_a_500_that_reveals_nothing(alone, monkeypatch, capfd):
    address = "buyer@example.com"

    async def broken(*_):
        raise RuntimeError(address)

    monkeypatch.setattr(Settler, "event", broken)
    before = alerts("bug")
    answer = await alone.deliver(event_of(paid_session(uuid4())))
    assert status_and_outcome(answer) == (500, "failed")
    assert alerts("bug") == before + 1
    printed = "".join(capfd.readouterr())
    assert "in broken" in printed
    assert address not in answer.text + printed


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


async def test_a_request_that_stripe_did_not_sign_is_a_400_that_reveals_nothing(alone):
    for body, headers in REFUSED:
        answer = await alone.http.post("/stripe/webhooks", content=body, headers=headers)
        assert status_and_outcome(answer) == (400, "refused")
        assert answer.json() == webhook_answers.Answer(400, "refused", "").body


async def test_a_signature_out_of_time_alerts_because_the_clock_may_be_wrong(alone):
    old = signature(BODY, at=int(time.time()) - 600)
    before = alerts("signature_timestamp"), alerts("signature")
    for header in (old, signature(BODY, "whsec_other")):
        answer = await alone.http.post(
            "/stripe/webhooks", content=BODY, headers={"Stripe-Signature": header}
        )
        assert answer.status_code == 400
    assert (alerts("signature_timestamp"), alerts("signature")) == (before[0] + 1, before[1])


async def test_a_wrong_path_or_method_is_an_error_and_never_redirected(alone):
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
        assert status_and_outcome(answer) == (status, reason)
        assert ("allow" in answer.headers) == (status == 405)


async def test_the_packs_are_public_and_may_be_cached(alone):
    answer = await alone.http.get("/credit-packs")
    assert answer.json() == {
        "packs": [
            {
                "id": "starter",
                "name": "100 credits",
                "credits": 100,
                "amount_minor": 900,
                "currency": "eur",
                "valid_for_seconds": None,
            },
            {
                "id": "studio",
                "name": "1,000 credits",
                "credits": 1000,
                "amount_minor": 7900,
                "currency": "eur",
                "valid_for_seconds": 31_536_000,
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
        async with http_client(base_url=bridge_url(process)) as http:
            for body, secret in ((forged, SECRET), (forged, "whsec_other"), (b"[]", SECRET)):
                header = {"Stripe-Signature": signature(body, secret), "Cookie": "a=personal"}
                await http.post("/stripe/webhooks", content=body, headers=header)
            bad = event_of(paid_session("buyer@example.com"))
            text = json.dumps(bad).encode()
            await http.post(
                "/stripe/webhooks", content=text, headers={"Stripe-Signature": signature(text)}
            )
        scraped = await asyncio.to_thread(_read, f"http://127.0.0.1:{metrics_port}/metrics")
        assert f'stripe_bridge_build_info{{version="{VERSION}"}} 1.0' in scraped
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
    with urllib.request.urlopen(url, timeout=patience(10)) as answer:
        return answer.read().decode()
