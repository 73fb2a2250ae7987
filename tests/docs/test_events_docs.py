"""docs/events.md: its examples run as printed and give the printed output."""

import asyncio
import json
import re
from datetime import UTC, datetime
from uuid import UUID

from kit.documents import section, snippets
from kit.feed import all_readable
from kit.paths import ROOT
from kit.requests import payment

from credit_service.relay.alert_store import ExpiringGrant
from credit_service.relay.alerts import _new_alert
from credit_service.relay.event_types import EVENT_TYPES
from credit_service.relay.events import event
from credit_service.relay.expiring import _alerts
from credit_service.rules.alerts import BalanceAlert, Change, State
from credit_service.rules.feed_values import Advanced, Alert, Place
from credit_service.rules.model import Entry, Payment, Policy, PolicyChange, SpendLimits
from credit_service.rules.top_up_values import TopUpChange, TopUpRequest

EVENTS = ROOT / "docs" / "events.md"


async def test_the_example_of_a_reader_gives_the_printed_output(
    database, service, client, tmp_path, monkeypatch
):
    user_id = await database.user()
    await client.purchase_credits(user_id, 100, payment=payment("pi_1"))
    await client.spend_credits(user_id, amount=30)
    (code,) = snippets(EVENTS, "The stream", "python")
    (expected,) = snippets(EVENTS, "The stream", "text")
    printed = []
    names = {"print": lambda text: printed.append(f"{text}\n")}
    monkeypatch.chdir(tmp_path)
    code = code.replace("127.0.0.1:50051", service.target)
    await all_readable(database)
    await asyncio.to_thread(exec, code, names)
    assert "".join(printed) == expected
    assert (tmp_path / "credits.cursor").exists()


async def test_the_statement_finds_the_transaction_that_holds_up_the_feed(database):
    (statement,) = snippets(EVENTS, "When the feed waits", "sql")
    holder = await database.connect()
    try:
        await holder.execute("BEGIN")
        await holder.fetchval("SELECT pg_current_xact_id()")
        # Other tests write on the same server.
        found = {row["pid"] for row in await database.fetch(statement)}
        assert holder.get_server_pid() in found
    finally:
        await holder.close()


def examples():
    return [json.loads(text) for text in snippets(EVENTS, "The events", "json")]


def at(minute, second=0):
    return datetime(2026, 11, 28, 9, minute, second, tzinfo=UTC)


def sent():
    """The relay's events for the cases of the examples, by type."""
    user_id = UUID("3f2b8c1e-9d4a-4f6b-8a57-0c1d2e3f4a5b")
    bought = Entry(
        user_id=user_id,
        seq=7,
        type="purchase",
        call="PurchaseCredits",
        amount=1000,
        requested_amount=1000,
        balance_change=1000,
        held_change=0,
        balance_after=1012,
        held_after=0,
        floor=None,
        description="1,000 credits",
        timestamp=at(30),
        operation=None,
        quantity=None,
        unit_cost=None,
        price_version=None,
        reference="",
        metadata={},
        related_seq=None,
        idempotency_key="stripe:pi_3f",
        caller="bridge",
        payment=Payment("stripe:pi_3f", 7900, "eur"),
    )
    policy = Policy(limits=SpendLimits(hour=200, day=1000), alert_below=50)
    changed = PolicyChange(user_id, 2, at(31), "ops", policy)
    balance = State(Change(725, is_policy=False, number=12, time=at(32)), 48, 10, 0, 50)
    low = _new_alert(user_id, BalanceAlert("balance.low", balance, at(32)))
    (expiring,) = _alerts(
        [ExpiringGrant(user_id, 5, datetime(2026, 12, 5, tzinfo=UTC), 40, 0, is_news=True)]
    )
    alerts = [
        Alert(user_id, 1, made.type, at(32 + n), made.data)
        for n, made in enumerate((low, expiring))
    ]
    request = TopUpRequest(
        user_id,
        number=2,
        pack="album",
        state="open",
        payment_ref="stripe:pi_4a",
        tries=1,
        reason="card_declined",
        link="https://checkout.stripe.com/c/pay/cs_4a",
        created_at=at(33, 30),
        changed_at=at(34),
        seq=None,
    )
    failed = TopUpChange(user_id, 3, "failed", at(34), "bridge", None, request)
    advanced = Advanced(1, datetime(2026, 11, 28, 10, tzinfo=UTC), "restored to 09:55")
    rendered = [
        event(Place(725, user_id), item) for item in (bought, changed, *alerts, failed, advanced)
    ]
    return {made.type: json.loads(made.body) for made in rendered}


def test_the_examples_are_events_as_the_relay_sends_them():
    assert examples()
    for example in examples():
        assert example == sent()[example["type"]]


def test_every_type_of_event_is_described():
    described = set(re.findall(r"`([a-z]+\.[a-z]+)`", section(EVENTS, "The events")))
    assert described == set(EVENT_TYPES)


def test_the_printed_configuration_is_a_part_of_the_whole_one():
    (part,) = snippets(EVENTS, "Kafka, NATS, a warehouse", "yaml")
    assert part in (ROOT / "docs/examples/benthos/credits.yaml").read_text()
