"""Payments captured for less than was authorized, and their entries."""

import itertools
from datetime import UTC, datetime, timedelta

import pytest
from kit.settlers import balance, events_about

from stripe_bridge.reconcile import reconcile

pytestmark = pytest.mark.shared

# Until 2025-03-31 Stripe made a refund of the amount that was not captured.
VERSIONS = ("2022-08-01", "2024-10-28.acacia", "2026-10-28.endive")


async def captured(fake, user, amount, **session):
    """Captures `amount` of a payment of 900 for 100 credits; returns session and intent."""
    made = await fake.session(user, **session)
    paid = await fake.pay_session(made["id"], when="authorized")
    await fake.do("capture", id=paid["payment_intent"], amount=amount)
    return made["id"], paid["payment_intent"]


@pytest.fixture(params=VERSIONS)
async def version(request, fake):
    await fake.settings(api_version=request.param)
    yield request.param
    await fake.settings(api_version=VERSIONS[-1])


@pytest.mark.usefixtures("version")
async def test_money_not_received_gives_no_credits_in_any_order_of_events(
    fake, reads, settler, database, client
):
    user = await database.user()
    session, intent = await captured(fake, user, 450)
    charge = (await reads.read(intent))["latest_charge"]
    events = await events_about(fake, reads, session, intent, charge)
    for event in itertools.chain(reversed(events), events):
        await settler.listed_event(event)
    assert await balance(client, user) == 50
    await settler.reversals.refund(await fake.refund(intent, amount=225))
    assert await balance(client, user) == 25
    await settler.reversals.refund(await fake.refund(intent))
    assert await balance(client, user) == 0
    assert not await database.faults()


@pytest.mark.usefixtures("version")
async def test_a_refund_as_large_as_the_rest_is_distinguished_from_the_rest(
    fake, reads, settler, database, client
):
    user = await database.user()
    _, intent = await captured(fake, user, 450)
    refund = await fake.refund(intent, amount=450)
    await settler.reversals.refund(refund)
    await settler.payment_intent(await reads.read(intent))
    assert await balance(client, user) == 0
    await fake.change_refund(refund["id"], "failed")
    await settler.replay(refund["id"])
    assert await balance(client, user) == 50


async def test_a_session_that_is_read_later_or_reconciled_counts_only_the_money_received(
    fake, reads, settler, database, client
):
    replayed, walked = await database.user(), await database.user()
    session, _ = await captured(fake, replayed, 300)
    assert (await settler.replay(session)).outcome == "committed"
    assert await balance(client, replayed) == 34
    await captured(fake, walked, 300)
    since = datetime.now(UTC) - timedelta(days=1)
    for _ in range(2):
        await reconcile(reads, settler, since=since, disputes_since=since, progress=lambda *_: None)
        assert await balance(client, walked) == 34
    assert not await database.faults()


async def test_of_two_amounts_received_the_larger_one_counts(
    fake, reads, settler, database, client
):
    user = await database.user()
    _, intent = await captured(fake, user, 300)
    early = await reads.read(intent)
    await settler.payment_intent(early)
    assert await balance(client, user) == 34
    for intent_then in ({**early, "amount_received": 600}, early):
        await settler.payment_intent(intent_then)
        assert await balance(client, user) == 67


async def test_a_partial_capture_that_is_not_ours_writes_nothing(fake, reads, settler, database):
    book = await database.book()
    _, intent = await captured(fake, None, 300)
    settled = await settler.payment_intent(await reads.read(intent))
    assert (settled.outcome, settled.reason) == ("nothing", "not_ours")
    assert await database.book() == book
