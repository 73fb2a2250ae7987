"""Events: their ids, and bodies with the content of the contract's messages."""

import json
from datetime import UTC, datetime
from uuid import UUID

import pytest
from google.protobuf.json_format import MessageToDict

from credit_service.relay.event_types import ENTRY_TYPES, EVENT_TYPES, UnknownTypeError, matching
from credit_service.relay.events import event, event_type
from credit_service.rpc import responses, top_up_messages
from credit_service.rules.feed_values import (
    KIND_ADVANCED,
    KIND_ALERT,
    KIND_ENTRY,
    KIND_POLICY,
    KIND_TOP_UP,
    Advanced,
    Alert,
    Place,
)
from credit_service.rules.grant_values import Allowance
from credit_service.rules.model import (
    Entry,
    Payment,
    Policy,
    PolicyChange,
    SpendLimits,
)
from credit_service.rules.top_up_values import TopUpChange, TopUpRequest
from credit_service.v1 import credit_service_pb2 as pb

USER = UUID("3f2b8c1e-9d4a-4f6b-8a57-0c1d2e3f4a5b")
TIME = datetime(2026, 11, 28, 17, 3, 50, 123456, UTC)
PLAIN = Entry(
    USER, 7, "spend", "SpendCredits", 10, 10, -10, 0, 90, 5, 0, "for a stem", TIME, None, None,
    None, None, "job 7", {"song": "a"}, None, "key", "stems", None,
)  # fmt: skip
ENTRIES = [
    PLAIN,
    PLAIN._replace(operation="render", quantity=2, unit_cost=5, price_version="v1"),
    PLAIN._replace(type="refund", related_seq=3, balance_change=10),
    PLAIN._replace(type="capture", hold_seq=4, held_change=-10),
    PLAIN._replace(type="purchase", payment=Payment("pi_1", 999, "eur")),
    PLAIN._replace(type="lapse", call="lapse", idempotency_key=None, metadata={}),
    PLAIN._replace(call="adopted", description="x" * 20_000, metadata={"a": "y" * 20_000}),
    PLAIN._replace(balance_after=10**15, amount=10**12),
]


def as_the_contract_says(message):
    """The contract's JSON, with numbers as numbers and with the events' names of enums."""

    def plain(value, field):
        if field.type == field.TYPE_INT64:
            return int(value)
        if field.type == field.TYPE_ENUM:
            return value.partition("_TYPE_")[2].lower() or value.rpartition("_")[2].lower()
        if field.type != field.TYPE_MESSAGE or isinstance(value, str):
            return value
        if field.message_type.GetOptions().map_entry:
            return value
        return fields(value, field.message_type)

    def fields(found, kind):
        return {name: plain(value, kind.fields_by_name[name]) for name, value in found.items()}

    return fields(MessageToDict(message, preserving_proto_field_name=True), message.DESCRIPTOR)


@pytest.mark.parametrize("entry", ENTRIES)
def test_the_event_of_an_entry_has_the_content_of_the_contract(entry):
    made = event(Place(5, USER, KIND_ENTRY, 7), entry)
    body = json.loads(made.body)
    assert made.id == f"5.{USER}.7.entry.{entry.type}"
    assert body["type"] == made.type == f"entry.{entry.type}"
    assert body["timestamp"] == "2026-11-28T17:03:50.123456Z"
    said = body["data"]
    # Zero and empty values are written too, so that receivers need not know the defaults.
    for name in ("held_change", "metadata", "description"):
        if not said[name]:
            del said[name]
    assert said == as_the_contract_says(responses.transaction(entry))


def test_the_event_of_a_policy_change_has_the_content_of_the_contract():
    policy = Policy(
        frozen=True,
        min_balance=-5,
        limits=SpendLimits(minute=10, hour=20, day=30),
        allowance=Allowance(20, "month", 1),
        alert_below=50,
    )
    change = PolicyChange(USER, 3, TIME, "ops", policy)
    made = event(Place(5, USER, KIND_POLICY, 3), change)
    data = json.loads(made.body)["data"]
    assert made.id == f"5.{USER}.p3.policy.changed"
    assert (data["user_id"], data["change"], data["caller"]) == (str(USER), 3, "ops")
    shown = as_the_contract_says(responses.policy(policy))
    # Newer fields of the contract are compared only if the message has them.
    assert {name: data["policy"][name] for name in shown} == shown
    assert data["policy"]["alert_below"] == 50
    assert data["policy"].keys() - {"alert_below"} <= set(
        pb.AccountPolicy.DESCRIPTOR.fields_by_name
    )


def test_an_alert_and_an_advance_have_separate_ids():
    alert = Alert(USER, 2, "balance.low", TIME, {"balance": 9})
    made = event(Place(6, USER, KIND_ALERT, 2), alert)
    assert made.id == f"6.{USER}.a2.balance.low"
    assert json.loads(made.body)["data"] == {"user_id": str(USER), "balance": 9}
    advanced = event(Place(9, UUID(int=0), KIND_ADVANCED, 1), Advanced(1, TIME, "restored"))
    assert advanced.id == f"9.{UUID(int=0)}.f1.feed.advanced"
    assert json.loads(advanced.body)["data"] == {"reason": "restored"}


def test_the_event_of_a_top_up_has_the_content_of_the_contract():
    request = TopUpRequest(
        USER, 1, "small", "failed", "pi_1", 3, "card_declined", "https://pay.example.com", TIME,
        TIME, None,
    )  # fmt: skip
    change = TopUpChange(USER, 4, "failed", TIME, "bridge", "failures", request)
    made = event(Place(5, USER, KIND_TOP_UP, 4), change)
    assert made.id == f"5.{USER}.t4.topup.failed"
    data = json.loads(made.body)["data"]
    shown = MessageToDict(top_up_messages.change(change), preserving_proto_field_name=True)
    assert data.keys() == shown.keys()
    assert data["top_up"].keys() == shown["top_up"].keys()
    assert (data["kind"], data["off"], data["top_up"]["tries"]) == ("failed", "failures", 3)
    for name in ("id", "pack", "payment_ref", "reason", "link"):
        assert data["top_up"][name] == shown["top_up"][name]
    assert event_type(change._replace(kind="noted")) is None


def test_patterns_choose_types():
    assert matching(["*"]) == set(EVENT_TYPES)
    assert matching(["entry.*"]) == set(ENTRY_TYPES)
    assert matching(["topup.failed", "feed.*"]) == {"topup.failed", "feed.advanced"}
    for pattern in ("entry", "entry.", "en*", "**", "", "relay.test"):
        with pytest.raises(UnknownTypeError):
            matching([pattern])
