"""Lost events are settled by a reconcile of Stripe's objects, and by the poller."""

import asyncio
import itertools
import time
from contextlib import asynccontextmanager
from datetime import UTC, datetime

import pytest
from kit.programs import free_port
from kit.waiting import eventually

from credit_service.client import CreditClient
from stripe_bridge import metrics
from stripe_bridge.catalog import Catalog, Listed, Policy
from stripe_bridge.poll import Poller
from stripe_bridge.reconcile import reconcile
from stripe_bridge.settle import Settled, Settler
from stripe_bridge.settle_many import settle_many
from stripe_bridge.stripe_api import StripeAway

STRANGER = "00000000-0000-4000-8000-000000000001"

_weeks = itertools.count(1)


@pytest.fixture
async def ahead(fake):
    """Seconds by which Stripe's clock is ahead: a week for each test, so that it sees only its own.

    One fake serves all tests, because starting it takes longer than most of them.
    """
    seconds = next(_weeks) * 7 * 86_400
    await fake.settings(clock_offset_seconds=seconds)
    yield seconds
    await fake.api_faults()


def policy(price=None):
    return Policy(catalog=Catalog(by_price={} if price is None else {price["id"]: Listed(30)}))


def walking(reads, ahead, retry_seconds=(0.01, 0.01)):
    """A reconcile of this test's time, with a settler."""

    async def walked(settler, progress=lambda _name, _summary: None):
        since = datetime.fromtimestamp(time.time() + ahead - 60, UTC)
        return await reconcile(
            reads,
            settler,
            since=since,
            disputes_since=since,
            progress=progress,
            retry_seconds=retry_seconds,
        )

    return walked


async def sell(fake, users):
    """Sells in every way, with money back, and delivers no event; returns the monthly price."""
    at_once, later, by_app, monthly, refunded, disputed = users
    price = await fake.price(recurring={"interval": "month"})
    await fake.purchase(at_once)
    delayed = await fake.session(later)
    await fake.pay_session(delayed["id"], when="later")
    await fake.settle_session(delayed["id"])
    metadata = {"credit_user_id": str(by_app), "credits": "20", "credits_v": "1"}
    await fake.do("payment", amount=900, metadata=metadata)
    lines = [{"price": price["id"], "quantity": 2}]
    invoice = await fake.invoice(lines, metadata={"credit_user_id": str(monthly)})
    await fake.refund(invoice["id"], amount=450)
    await fake.refund(await fake.purchase(refunded), amount=450)
    await fake.dispute(await fake.purchase(disputed))
    await fake.refund(await fake.purchase())
    return price


EXPECTED = [100, 100, 20, 45, 50, 0]


async def balances(client, users):
    return [(await client.get_user_credit(user)).balance for user in users]


def counts(summary):
    found = (summary.seen, summary.already_there, summary.repaired, summary.nothing)
    assert sum(found[1:]) + len(summary.conflicts) + len(summary.unresolved) == summary.seen
    return found


async def test_everything_lost_is_repaired_and_a_second_walk_repairs_nothing(
    fake, reads, ahead, database, client
):
    walked = walking(reads, ahead)
    users = [await database.user() for _ in range(6)]
    price = await sell(fake, users)
    trial = Settler(reads, client, policy(price), validate_only=True)
    settler = Settler(reads, client, policy(price))
    book, reported = await database.book(), []
    assert counts(await walked(trial)) == (13, 0, 9, 4)
    assert await database.book() == book
    summary = await walked(settler, lambda name, so_far: reported.append((name, so_far.seen)))
    assert counts(summary) == (13, 0, 9, 4)
    assert await balances(client, users) == EXPECTED
    names = ["sessions", "invoices", "payment intents", "refunds", "disputes"]
    assert list(dict(reported)) == names
    assert [seen for _, seen in reported] == sorted(seen for _, seen in reported)
    assert reported[-1] == ("disputes", 13)
    book = await database.book()
    for again in (trial, settler):
        assert counts(await walked(again)) == (13, 9, 0, 4)
    assert await database.book() == book
    assert not await database.faults()


async def test_walks_and_a_poller_at_once_with_the_events_credit_everything_once(
    fake, reads, ahead, database, client
):
    users = [await database.user() for _ in range(6)]
    price = await sell(fake, users)
    settler = Settler(reads, client, policy(price))
    walked = walking(reads, ahead)
    poller = Poller(reads, settler, **window(ahead))
    settled = await asyncio.gather(walked(settler), walked(settler), poller.poll(), poller.poll())
    assert [summary.unresolved for summary in settled[:2]] == [[], []]
    assert await balances(client, users) == EXPECTED
    assert not await database.faults()


async def test_an_object_that_needs_a_person_is_named_once_and_stops_nothing(
    fake, reads, ahead, database, client
):
    user = await database.user()
    await fake.purchase(user)
    session = await fake.session(STRANGER)
    await fake.pay_session(session["id"])
    other = await fake.session(await database.user())
    paid = (await fake.pay_session(other["id"]))["payment_intent"]
    settler = Settler(reads, client, policy())
    await settler.replay(other["id"])
    changed = {**other["metadata"], "credits": "101"}
    await fake.do("edit", id=other["id"], fields={"metadata": changed})
    summary = await walking(reads, ahead)(settler)
    assert counts(summary) == (3, 0, 1, 0)
    (unresolved,), (conflict,) = summary.unresolved, summary.conflicts
    assert (unresolved.id, unresolved.reason) == (session["id"], "user_not_found")
    assert (conflict.id, conflict.detail) == (other["id"], f"stripe:{paid}")
    assert await balances(client, [user]) == [100]


async def test_an_internal_failure_with_one_object_does_not_hide_the_others(
    fake, reads, ahead, database, client
):
    users = [await database.user() for _ in range(12)]
    sessions = [await fake.session(user) for user in users]
    await fake.batch(*(("pay_session", {"id": each["id"]}) for each in sessions))

    settler = Settler(reads, client, policy())
    credit_session = settler.purchases.session

    async def failing(obj):
        if obj["id"] == sessions[3]["id"]:
            raise ZeroDivisionError
        return await credit_session(obj)

    settler.purchases.session = failing
    summary = await walking(reads, ahead)(settler)
    assert [(each.id, each.reason) for each in summary.unresolved] == [
        (sessions[3]["id"], "failed")
    ]
    assert await balances(client, users) == [100] * 3 + [0] + [100] * 8


async def test_a_list_that_breaks_off_is_continued_from_there(fake, reads, ahead, database, client):
    await fake.batch(*[("purchase", {"line_items": [{"price": (await fake.price())["id"]}]})] * 150)
    seen = []
    settler = Settler(reads, client, policy())
    credit_session = settler.purchases.session

    async def breaking(obj):
        if not seen:
            await fake.api_faults({"path": "checkout/sessions", "status": 500, "count": 2})
        seen.append(obj["id"])
        return await credit_session(obj)

    settler.purchases.session = breaking
    summary = await walking(reads, ahead)(settler)
    assert (len(seen), len(set(seen))) == (150, 150)
    assert summary.unresolved == []


async def test_a_list_that_cannot_be_read_leaves_the_walk_unresolved_and_the_others_done(
    fake, reads, ahead, database, client
):
    users = [await database.user() for _ in range(6)]
    price = await sell(fake, users)
    await fake.api_faults({"path": "refunds", "status": 500}, {"path": "disputes", "status": 403})
    summary = await walking(reads, ahead)(Settler(reads, client, policy(price)))
    assert [(each.id, each.reason) for each in summary.unresolved] == [
        ("refunds", "list_incomplete"),
        ("disputes", "list_incomplete"),
    ]
    assert await balances(client, users) == [100, 100, 20, 60, 100, 100]


async def test_an_object_that_stripe_fails_to_show_is_tried_again_and_then_unresolved(
    fake, reads, ahead, database, client
):
    user = await database.user()
    refund = await fake.refund(await fake.purchase(user), amount=450)
    walked = walking(reads, ahead)
    settler = Settler(reads, client, policy())
    await fake.api_faults({"path": "charges", "status": 500})
    (unresolved,) = (await walked(settler)).unresolved
    assert (unresolved.id, unresolved.reason) == (refund["id"], "stripe_away")
    await fake.api_faults({"path": "charges", "status": 429, "count": 2})
    assert counts(await walked(settler)) == (2, 1, 1, 0)
    assert await balances(client, [user]) == [50]


async def test_a_walk_retries_nothing_while_nothing_can_be_settled():
    tried = []

    async def settle(obj):
        tried.append(obj["id"])
        if obj["id"] < 24 or (obj["id"] >= 32 and tried.count(obj["id"]) == 1):
            raise StripeAway("away")
        return Settled("nothing", "unpaid")

    async def listed():
        for number in range(40):
            yield {"id": number}

    walked = [
        each async for group in settle_many(listed(), settle, retry_seconds=[0]) for each in group
    ]
    assert [obj["id"] for obj, _ in walked] == list(range(40))
    assert [tried.count(first) for first in range(0, 40, 8)] == [2, 1, 1, 1, 2]


async def test_a_walk_without_the_credit_service_ends_with_all_unresolved(
    fake, reads, ahead, database
):
    await fake.refund(await fake.purchase(await database.user()))
    async with CreditClient(f"127.0.0.1:{free_port()}", deadline_seconds=0.1) as away:
        summary = await walking(reads, ahead)(Settler(reads, away, policy()))
    reasons = [each.reason for each in summary.unresolved]
    assert reasons == ["outcome_unknown", "outcome_unknown"]


def window(ahead):
    """Limits a poller to the events of this test."""
    return {"look_back_seconds": 60 - ahead, "grace_seconds": -60 - ahead}


def polled(outcome, reason):
    return metrics.POLLED.labels(outcome, reason)._value.get()


async def test_a_poller_settles_events_that_never_came_and_each_once(
    fake, reads, ahead, database, client
):
    users = [await database.user() for _ in range(6)]
    price = await sell(fake, users)
    poller = Poller(reads, Settler(reads, client, policy(price)), **window(ahead))
    before = polled("committed", "purchase"), polled("replayed", "purchase")
    assert await poller.poll()
    assert await balances(client, users) == EXPECTED
    after = polled("committed", "purchase"), polled("replayed", "purchase")
    assert after > before
    assert await poller.poll()
    assert (polled("committed", "purchase"), polled("replayed", "purchase")) == after
    await fake.purchase(users[0])
    assert await poller.poll()
    assert await balances(client, users[:1]) == [200]


async def test_an_event_is_left_to_its_delivery_at_first(fake, reads, ahead, database, client):
    user = await database.user()
    await fake.purchase(user)
    patient = {**window(ahead), "grace_seconds": 600 - ahead}
    poller = Poller(reads, Settler(reads, client, policy()), **patient)
    assert await poller.poll()
    assert await balances(client, [user]) == [0]


async def test_an_event_that_could_not_be_settled_waits_for_the_next_poll(
    fake, reads, ahead, database, client
):
    users = [await database.user() for _ in range(2)]
    await fake.purchase(users[0])
    await fake.dispute(await fake.purchase(users[1]))
    settler = Settler(reads, client, policy())
    poller = Poller(reads, settler, overlap_seconds=-3600, **window(ahead))
    await fake.api_faults({"path": "charges", "status": 500})
    assert not await poller.poll()
    assert await balances(client, users) == [100, 100]
    await fake.api_faults()
    assert await poller.poll()
    assert await balances(client, users) == [100, 0]


async def test_a_poller_reads_no_event_that_stripe_lists_no_more(
    fake, reads, ahead, client, monkeypatch
):
    await fake.dispute(await fake.purchase(STRANGER))
    asked, events = [], reads.events

    def recorded(**filters):
        asked.append(filters["created"]["gte"])
        return events(**filters)

    monkeypatch.setattr(reads, "events", recorded)
    settler = Settler(reads, client, policy())
    poller = Poller(reads, settler, listed_seconds=30 - ahead, **window(ahead))
    await fake.api_faults({"path": "charges", "status": 500})
    assert not await poller.poll()
    assert not await poller.poll()
    assert asked[1] - asked[0] >= 30


async def test_a_poll_ends_early_when_nothing_can_be_settled(fake, reads, ahead, database):
    tried = []

    class Counting(Settler):
        async def listed_event(self, event):
            tried.append(event)
            return await super().listed_event(event)

    for _ in range(10):
        await fake.purchase(STRANGER)
    async with CreditClient(f"127.0.0.1:{free_port()}", deadline_seconds=0.1) as away:
        poller = Poller(reads, Counting(reads, away, policy()), **window(ahead))
        assert not await poller.poll()
    assert 0 < len(tried) < 20


async def test_an_event_that_only_a_person_resolves_alarms_once(
    fake, reads, ahead, database, client
):
    await fake.purchase(STRANGER)
    poller = Poller(reads, Settler(reads, client, policy()), **window(ahead))
    alerts = metrics.ALERTS.labels("user_not_found")._value
    before = alerts.get()
    assert await poller.poll()
    alarmed = alerts.get()
    assert alarmed > before
    assert await poller.poll()
    assert alerts.get() == alarmed


@asynccontextmanager
async def polling(poller):
    task = asyncio.create_task(poller.run(0.02))
    try:
        yield task
    finally:
        task.cancel()
        await asyncio.wait({task})


async def test_a_poller_outlives_every_failure(fake, reads, ahead, database, client):
    class Failing(Poller):
        failed = False

        async def poll(self):
            if not self.failed:
                self.failed = True
                raise ZeroDivisionError
            return await super().poll()

    user = await database.user()
    await fake.purchase(user)
    await fake.api_faults({"path": "events", "status": 500})
    failures = metrics.POLLS_FAILED._value
    before = failures.get()
    async with polling(Failing(reads, Settler(reads, client, policy()), **window(ahead))) as task:
        await eventually(lambda: failures.get() >= before + 3)
        await fake.api_faults()

        async def credited():
            return await balances(client, [user]) == [100]

        await eventually(credited)
        assert not task.done()
