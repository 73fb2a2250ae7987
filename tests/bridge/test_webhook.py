"""Requests to the webhook: bytes and headers in, an event or a refusal out, never an exception."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from stripe import WebhookSignature

from stripe_bridge.model import Nothing
from stripe_bridge.webhook import Event, Refusal, Secret, admit

NOW = 1_764_000_000
OLD, NEW, TEST = "whsec_old", "whsec_new", "whsec_test"
SECRETS = (Secret(OLD, live=True), Secret(NEW, live=True))
ACCOUNT = "acct_ours"

SESSION = {"id": "cs_1", "object": "checkout.session"}
SNAPSHOT = {
    "id": "evt_1",
    "object": "event",
    "type": "checkout.session.completed",
    "created": NOW - 5,
    "livemode": True,
    "api_version": "2026-10-28.endive",
    "data": {"object": SESSION},
}
THIN = {
    "id": "evt_2",
    "object": "v2.core.event",
    "type": "v1.checkout.session.completed",
    "created": "2025-11-24T15:59:55.000Z",
    "livemode": True,
    "context": None,
    "related_object": {"id": "cs_1", "type": "checkout.session", "url": "/v1/checkout/sessions/x"},
    "snapshot_event": "evt_1",
}


def signature(body, secret=NEW, at=NOW):
    return WebhookSignature.generate_signature_header(body, secret, at)


def admitted(body, *headers, secrets=SECRETS, now=NOW):
    return admit(body, headers, secrets=secrets, now=now)


def signed(event, secret=NEW, at=NOW, **options):
    text = event if isinstance(event, str) else json.dumps(event)
    return admitted(text.encode(), signature(text, secret, at), **options)


def without(event, *names):
    return {name: value for name, value in event.items() if name not in names}


def refuses(answer, reason):
    return answer == Refusal(400, reason, alerts=reason == "signature_timestamp")


def test_a_snapshot_event_brings_its_object():
    assert signed(SNAPSHOT) == Event(
        id="evt_1",
        kind="checkout.session.completed",
        created=NOW - 5,
        object_id="cs_1",
        obj=SESSION,
        nothing=None,
    )


def test_a_thin_event_names_its_object_and_has_the_snapshot_event_s_type():
    assert signed(THIN) == Event(
        id="evt_2",
        kind="checkout.session.completed",
        created=NOW - 5,
        object_id="cs_1",
        obj=None,
        nothing=None,
    )


def test_a_thin_event_may_be_about_no_object():
    never_made = THIN | {"type": "v2.core.health.event_generation_failure.resolved"}
    for event in (without(never_made, "related_object"), never_made | {"related_object": None}):
        answer = signed(event)
        assert (answer.kind, answer.object_id) == (never_made["type"], "")


@pytest.mark.parametrize("version", ["2015-10-16", "2019-12-03", "2099-01-01.unheard", None, 7])
def test_an_event_of_any_version_is_accepted(version):
    assert signed(SNAPSHOT | {"api_version": version}).obj == SESSION


def test_while_a_secret_is_replaced_both_are_valid():
    text = json.dumps(SNAPSHOT)
    both = f"{signature(text, OLD)},{signature(text, NEW).partition(',')[2]}"
    for header in (signature(text, OLD), signature(text, NEW), both, f"{both},v0=abc,v2=abc"):
        assert admitted(text.encode(), header).id == "evt_1"
    for secrets in (SECRETS[:1], SECRETS[1:]):
        assert admitted(text.encode(), both, secrets=secrets).id == "evt_1"


@pytest.mark.parametrize("wrong", ["whsec_", "", " ", f" {NEW}", f"{NEW}\n", NEW.upper(), TEST])
def test_a_signature_of_another_secret_is_refused(wrong):
    assert refuses(signed(SNAPSHOT, secret=wrong), "signature")


@pytest.mark.parametrize("empty", ["", " ", "\n"])
def test_no_event_passes_an_empty_secret(empty):
    assert refuses(signed(SNAPSHOT, empty, secrets=(Secret(empty, live=True),)), "signature")


def test_without_secrets_no_event_passes():
    assert refuses(signed(SNAPSHOT, secrets=()), "signature")


def test_exactly_one_signature_header_must_be_present():
    text = json.dumps(SNAPSHOT)
    good = signature(text)
    assert refuses(admitted(text.encode()), "signature_missing")
    assert refuses(admitted(text.encode(), good, good), "signature_repeated")
    assert refuses(admitted(text.encode(), good, "t=1,v1=a"), "signature_repeated")


@pytest.mark.parametrize("seconds", [-300, -299, 0, 299, 300])
def test_a_signature_of_the_last_or_next_five_minutes_is_valid(seconds):
    assert signed(SNAPSHOT, at=NOW + seconds).id == "evt_1"


@pytest.mark.parametrize("seconds", [-(10**9), -3600, -301, 301, 3600, 10**9])
def test_an_older_or_later_signature_is_refused_with_different_reasons(seconds):
    assert refuses(signed(SNAPSHOT, at=NOW + seconds), "signature_timestamp")


def test_only_stripe_can_raise_the_alarm_about_the_clock():
    text = json.dumps(SNAPSHOT)
    assert refuses(admitted(text.encode(), f"t={NOW - 3600},v1={'a' * 64}"), "signature")


def test_a_second_time_in_the_header_does_not_renew_an_old_signature():
    text = json.dumps(SNAPSHOT)
    old = signature(text, at=NOW - 3600)
    for header in (f"{old},t={NOW}", f"t={NOW},{old}"):
        assert refuses(admitted(text.encode(), header), "signature")


@pytest.mark.parametrize(
    "header",
    [
        *("", ",", "=", "t", "t=", "v1", "v1=", "t=1", "v1=a", "t=,v1=", "t=a,v1=b", "t=-1,v1=a"),
        *("t=1,v1=ä", "t=1,v1=\u2028", "t=1,v1=\x00", "t=1,v1=\udcff", "t=²,v1=a", "t=1e3,v1=a"),
        *(f"t={'9' * 5000},v1=a", f"t={NOW},v1={'a' * 100_000}", f"t={NOW}{',v1=a' * 5000}"),
        f"t={NOW},v0={'a' * 64}",
    ],
)
def test_a_header_that_is_not_a_signature_is_refused(header):
    assert refuses(admitted(json.dumps(SNAPSHOT).encode(), header), "signature")


@pytest.mark.parametrize("written", [f"0{NOW}", f" {NOW}", f"{NOW}=1", f"{NOW}_0", f"+{NOW}"])
def test_an_ambiguous_time_is_refused_or_is_the_one_signed(written):
    text = json.dumps(SNAPSHOT)
    digest = signature(text).partition("v1=")[2]
    answer = admitted(text.encode(), f"t={written},v1={digest}")
    assert isinstance(answer, Event) or answer.reason == "signature"


def test_a_body_that_was_changed_is_refused():
    text = json.dumps(SNAPSHOT)
    body, header = text.encode(), signature(text)
    touched = [
        *(body[:place] + bytes([body[place] ^ 1]) + body[place + 1 :] for place in (0, 50, -1)),
        *(body + b"\r\n", body + b" ", body[:-1], b"", b"\xef\xbb\xbf" + body, body + b"\x00"),
        json.dumps(SNAPSHOT, indent=1).encode(),
        json.dumps(SNAPSHOT, separators=(",", ":")).encode(),
        text.encode("utf-16"),
        b"\x1f\x8b\x08\x00" + body,
        b"\xff\xfe" + body,
    ]
    for other in touched:
        assert refuses(admitted(other, header), "signature")


@pytest.mark.parametrize(
    "text",
    [
        *("", " ", "{", "nothing", "\ufeff{}", "{}{}", "'a'", '{"a": NaN}', '{"a": Infinity}'),
        *("[" * 100_000, '{"a":' * 100_000, "9" * 5000, '{"a": ' + "9" * 5000 + "}", '"\x00"'),
    ],
)
def test_a_signed_body_that_is_not_json_is_refused(text):
    assert refuses(signed(text), "not_json")


@pytest.mark.parametrize(
    "event",
    [
        *([], [SNAPSHOT], {}, "evt_1", 1, None, True),
        *({**SNAPSHOT, "object": other} for other in ("charge", None, 1, [], {}, ["event"])),
        *(
            {**SNAPSHOT, "id": other}
            for other in (None, "", 1, [], {}, "x" * 256, "a\nb", "\ud800")
        ),
        *({**SNAPSHOT, "type": other} for other in (None, "", 1, [], {}, "x" * 256, "a\x1b[2J")),
        *({**SNAPSHOT, "data": other} for other in (None, [], "x", {}, {"object": None})),
        *({**SNAPSHOT, "data": {"object": other}} for other in ([], "cs_1", 1, [SESSION])),
        *({**THIN, "related_object": other} for other in ("cs_1", [], 1)),
        *(without(SNAPSHOT, name) for name in ("id", "object", "type", "data")),
        {**SNAPSHOT, "object": "v2.core.event", "related_object": []},
    ],
)
def test_signed_json_that_is_not_an_event_is_refused(event):
    assert refuses(signed(json.dumps(event)), "not_an_event")


@pytest.mark.parametrize(
    "event",
    [
        *({**SNAPSHOT, "created": other} for other in (None, -1, 10**12, 1.5, True, "x", [], {})),
        *({**THIN, "created": other} for other in (None, "yesterday", "2025-13-01T00:00:00Z", {})),
        without(SNAPSHOT, "created"),
        without(THIN, "created"),
    ],
)
def test_an_event_without_a_usable_time_is_still_an_event(event):
    answer = signed(event)
    assert (answer.id, answer.created) == (event["id"], None)


@pytest.mark.parametrize("named", [None, 1, [], {}, "x" * 256, "a\nb"])
def test_an_object_without_a_usable_id_is_still_an_event(named):
    answer = signed(SNAPSHOT | {"data": {"object": {"id": named}}})
    assert (answer.object_id, answer.obj) == ("", {"id": named})


@pytest.mark.parametrize("event", [SNAPSHOT, THIN])
@pytest.mark.parametrize("livemode", [True, False, None, "true", 1, "missing"])
def test_an_event_counts_only_in_the_mode_of_its_secret(event, livemode):
    event = without(event, "livemode") | ({} if livemode == "missing" else {"livemode": livemode})
    other_mode = Nothing("other_mode")
    for live in (True, False):
        answer = signed(event, TEST, secrets=(*SECRETS, Secret(TEST, live=live)))
        assert answer.nothing == (None if live is (livemode is True) else other_mode)


@pytest.mark.parametrize("event", [SNAPSHOT, THIN])
@pytest.mark.parametrize("field", ["account", "context"])
@pytest.mark.parametrize("value", [ACCOUNT, "acct_other", "", 1, [], {}, False, f"{ACCOUNT}/x"])
def test_an_event_of_a_connected_account_is_not_for_us(event, field, value):
    assert signed(event | {field: value}).nothing == Nothing("connected_account")


def test_the_text_of_a_secret_does_not_contain_it():
    assert NEW not in repr(SECRETS) + str(SECRETS)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=10,
)
FIELDS = st.sampled_from([*SNAPSHOT, *THIN, "account"])


@given(st.binary(), st.lists(st.text(max_size=100), max_size=3))
def test_unsigned_requests_are_refused(body, headers):
    assert isinstance(admitted(body, *headers), Refusal)


@given(st.binary(), st.binary(max_size=100))
def test_garbage_after_a_time_is_refused(body, garbage):
    header = f"t={NOW},v1={garbage.decode('latin-1')}"
    assert isinstance(admitted(body, header), Refusal)


@given(st.sampled_from([SNAPSHOT, THIN]), st.dictionaries(FIELDS, JSON), st.sets(FIELDS))
def test_signed_json_is_an_event_or_refused(event, changes, missing):
    answer = signed(without(event | changes, *missing))
    assert isinstance(answer, Event) or answer.status == 400


@given(JSON.map(json.dumps) | st.text(st.characters(codec="utf-8")))
def test_signed_text_is_refused_unless_it_is_an_event(text):
    assert isinstance(signed(text), Refusal)
