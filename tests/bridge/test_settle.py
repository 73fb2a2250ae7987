"""The effect of Stripe's payments and events on the book, with the service and a fake Stripe."""

import asyncio
import itertools

import pytest
from kit.programs import free_port
from kit.settlers import POLICY, balance, events_about, refuse, requests
from kit.stripe_fakes import KEY
from kit.waiting import patience

from credit_service.client import CreditClient
from credit_service.errors import OutcomeUnknown
from stripe_bridge.catalog import Catalog, Listed, Policy
from stripe_bridge.settle import EVENT_NEVER_MADE, Settler
from stripe_bridge.stripe_api import StripeAway, StripeReads, stripe_client

pytestmark = pytest.mark.shared


async def test_session_and_intent_of_a_payment_are_one_purchase_in_any_order(
    fake, reads, settler, database, client
):
    for order in itertools.permutations(range(2)):
        user = await database.user()
        session = await fake.session(user)
        paid = await fake.pay_session(session["id"])
        events = await events_about(fake, reads, session["id"], paid["payment_intent"])
        outcomes = []
        for place in [*order, *order]:
            settled = await settler.listed_event(events[place])
            outcomes.append(settled.outcome)
            assert settled.refs == (f"stripe:{paid['payment_intent']}",)
        assert outcomes == ["committed", "replayed", "replayed", "replayed"]
        assert await balance(client, user) == 100


async def test_a_paid_session_of_our_checkout_needs_no_read_from_stripe(
    fake, reads, settler, database
):
    session = await fake.session(await database.user())
    (event,) = await events_about(fake, reads, (await fake.pay_session(session["id"]))["id"])
    before = await requests(fake)
    assert (await settler.listed_event(event)).outcome == "committed"
    assert await requests(fake) == before


async def test_a_session_without_frozen_credits_is_priced_by_all_of_its_lines(
    fake, reads, client, database
):
    user = await database.user()
    price = await fake.price(lookup_key="packs_settle")
    lines = [{"price": price["id"], "quantity": 3}] * 120
    session = await fake.session(line_items=lines, metadata={"credit_user_id": str(user)})
    policy = Policy(catalog=Catalog(by_lookup_key={"packs_settle": Listed(7)}))
    await fake.pay_session(session["id"])
    settled = await Settler(reads, client, policy).replay(session["id"])
    assert settled.outcome == "committed"
    assert await balance(client, user) == 120 * 3 * 7


async def test_a_delayed_payment_counts_although_its_event_still_says_unpaid(
    fake, reads, settler, database, client
):
    user = await database.user()
    session = await fake.session(user)
    unpaid = await fake.pay_session(session["id"], when="later")
    kinds = ("checkout.session.completed", "checkout.session.async_payment_failed")
    for kind in kinds:
        assert (await settler.event(kind, unpaid)).outcome == "nothing"
    await fake.settle_session(session["id"])
    assert (await settler.event(kinds[0], unpaid)).reason == "unpaid"
    settled = await settler.event("checkout.session.async_payment_succeeded", unpaid)
    assert settled.outcome == "committed"
    assert await balance(client, user) == 100


async def test_a_session_of_an_old_version_is_read_again(fake, settler, database, client):
    user = await database.user()
    session = await fake.session(user)
    paid = await fake.pay_session(session["id"])
    old = {name: paid[name] for name in ("id", "object", "payment_intent")}
    assert (await settler.event("checkout.session.completed", old)).outcome == "committed"
    assert await balance(client, user) == 100


async def test_an_invoice_is_credited_by_all_its_lines_with_their_lookup_keys(
    fake, reads, database, client
):
    user = await database.user()
    price = await fake.price(lookup_key="studio_settle", recurring={"interval": "month"})
    lines = [{"price": price["id"], "quantity": 2}] * 12
    invoice = await fake.invoice(lines, customer_metadata={"credit_user_id": str(user)})
    policy = Policy(catalog=Catalog(by_lookup_key={"studio_settle": Listed(5)}))
    (event,) = await events_about(fake, reads, invoice["id"])
    settled = await Settler(reads, client, policy).listed_event(event)
    assert (settled.outcome, settled.refs) == ("committed", (f"stripe:{invoice['id']}",))
    assert await balance(client, user) == 120


async def test_an_unknown_user_needs_a_person_and_a_deleted_one_does_not(
    fake, settler, database, client
):
    stranger = "00000000-0000-4000-8000-000000000001"
    assert await refuse(settler.replay(await fake.purchase(stranger))) == "user_not_found"
    refund = await fake.refund(await fake.purchase(stranger), amount=450)
    assert await refuse(settler.reversals.refund(refund)) == "user_not_found"
    user = await database.user()
    paid = await fake.purchase(user)
    await settler.replay(paid)
    await database.execute("DELETE FROM auth.users WHERE id = $1", user)
    refund = await fake.refund(paid)
    for settling in (settler.replay(paid), settler.reversals.refund(refund)):
        settled = await settling
        assert (settled.outcome, settled.reason) == ("nothing", "user_deleted")


async def test_other_figures_for_a_known_payment_are_a_conflict_and_the_first_count(
    fake, settler, database, client
):
    user = await database.user()
    paid = await fake.purchase(user, credits_=100)
    intent = await fake.do("object", id=paid)
    await settler.purchases.payment_intent(intent)
    changed = {**intent, "metadata": {**intent["metadata"], "credits": "101"}}
    conflict = await settler.purchases.payment_intent(changed)
    assert (conflict.outcome, conflict.reason) == ("conflict", "idempotency_key_reused")
    stranger = {**intent["metadata"], "credit_user_id": str(await database.user())}
    conflict = await settler.purchases.payment_intent({**intent, "metadata": stranger})
    assert (conflict.outcome, conflict.reason) == ("conflict", "payment_reused")
    refund = await fake.refund(paid, amount=450)
    await settler.reversals.refund(refund)
    conflict = await settler.reversals.refund({**refund, "amount": 900})
    assert (conflict.outcome, conflict.reason) == ("conflict", "reversal_reused")
    other = await fake.refund(paid, amount=10)
    await fake.do("edit", id=refund["charge"], fields={"amount": 1800})
    charge = await fake.do("object", id=refund["charge"])
    conflict = await settler.reversals.refund(other)
    assert (conflict.outcome, conflict.reason) == ("conflict", "payment_mismatch")
    assert (await settler.reversals.charge(charge)).outcome == "conflict"
    assert await balance(client, user) == 50


async def test_thin_events_are_settled_by_reading_their_object(fake, settler, database, client):
    user = await database.user()
    session = await fake.session(user)
    await fake.pay_session(session["id"])
    kind, event = "checkout.session.completed", "evt_1"
    settled = await settler.thin_event(kind, event_id=event, object_id=session["id"])
    assert settled.outcome == "committed"
    assert await balance(client, user) == 100
    unread = await requests(fake)
    other = await settler.thin_event("customer.created", event_id=event, object_id="cus_1")
    assert (other.reason, await requests(fake)) == ("unknown_type", unread)
    nameless = settler.thin_event(kind, event_id=event, object_id="")
    assert await refuse(nameless) == "id_malformed"


async def test_an_event_that_stripe_failed_to_make_is_settled(fake, settler, database, client):
    user = await database.user()
    paid = await fake.purchase(user)
    event = await fake.generation_failure(paid, "payment_intent.succeeded")
    settled = await settler.thin_event(EVENT_NEVER_MADE, event_id=event, object_id="")
    assert settled.outcome == "committed"
    assert await balance(client, user) == 100


async def test_replay_settles_every_kind_of_id(fake, reads, settler, database, client):
    user = await database.user()
    session = await fake.session(user, credits_=90)
    paid = (await fake.pay_session(session["id"]))["payment_intent"]
    refund = await fake.refund(paid, amount=300)
    dispute = await fake.dispute(paid, amount=300)
    (event,) = await events_about(fake, reads, session["id"])
    outcomes = {}
    for id_ in (session["id"], paid, event["id"], f"{event['id']}_thin", refund["id"]):
        outcomes[id_] = (await settler.replay(id_)).outcome
    assert list(outcomes.values()) == ["committed", "replayed", "replayed", "replayed", "committed"]
    assert (await settler.replay(refund["charge"])).outcome == "replayed"
    assert (await settler.replay(dispute["id"])).outcome == "committed"
    assert await balance(client, user) == 30
    customer = await fake.do("customer")
    for id_ in (customer["id"], "prod_1", "nothing"):
        assert (await settler.replay(id_)).reason == "unknown_object"
    for id_ in ("pi_gone", "evt_gone"):
        assert await refuse(settler.replay(id_)) == "stripe_object_missing"


async def test_an_event_is_replayed_with_the_current_state_of_its_object(
    fake, reads, settler, database
):
    session = await fake.session(await database.user())
    await fake.pay_session(session["id"], when="later")
    (event,) = await events_about(fake, reads, session["id"])
    assert (await settler.replay(event["id"])).reason == "unpaid"
    await fake.settle_session(session["id"])
    assert (await settler.replay(event["id"])).outcome == "committed"


async def test_events_of_connected_accounts_are_not_ours(fake, reads, settler, database):
    session = await fake.session(await database.user())
    paid = await fake.pay_session(session["id"])
    event = await fake.event("checkout.session.completed", paid["id"], account="acct_1")
    settled = await settler.replay(event)
    assert (settled.outcome, settled.reason) == ("nothing", "connected_account")


async def test_when_stripe_is_away_nothing_is_written_and_later_everything(fake, database, client):
    user = await database.user()
    refund = await fake.refund(await fake.purchase(user))
    book = await database.book()
    broken = ({"status": 500}, {"status": 429}, {"status": 409}, {"kind": "cut"}, {"kind": "hang"})
    async with stripe_client(KEY, address=fake.url, seconds=0.3, retries=0) as sdk:
        settler = Settler(StripeReads(sdk), client, POLICY)
        for path, fault in itertools.product(("charges", "checkout/sessions"), broken):
            await fake.api_faults({"path": path, "seconds": 60, **fault})
            with pytest.raises(StripeAway):
                async with asyncio.timeout(patience(8)):
                    await settler.reversals.refund(refund)
        assert await database.book() == book
        await fake.api_faults()
        assert (await settler.reversals.refund(refund)).outcome == "committed"
    assert await balance(client, user) == 0


async def test_a_call_is_retried_at_once_after_a_short_failure_of_stripe(fake, client, database):
    refund = await fake.refund(await fake.purchase(await database.user()))
    await fake.api_faults({"path": "charges", "status": 500, "count": 1})
    async with stripe_client(KEY, address=fake.url) as sdk:
        settled = await Settler(StripeReads(sdk), client, POLICY).reversals.refund(refund)
    assert settled.outcome == "committed"


async def test_a_credit_service_that_is_away_is_no_final_answer(fake, reads, database):
    paid = await fake.purchase(await database.user())
    refund = await fake.refund(paid)
    async with CreditClient(f"127.0.0.1:{free_port()}", deadline_seconds=0.2) as away:
        settler = Settler(reads, away, POLICY)
        with pytest.raises(OutcomeUnknown):
            await settler.replay(paid)
        with pytest.raises(OutcomeUnknown):
            await settler.reversals.refund(refund)


async def test_validate_only_reports_what_would_happen_and_writes_nothing(
    fake, reads, settler, database, client
):
    trial = Settler(reads, client, POLICY, validate_only=True)
    paid = await fake.purchase(await database.user())
    refund = await fake.refund(paid)
    for bought, reversed_ in (("committed",) * 2, ("replayed", "committed"), ("replayed",) * 2):
        book = await database.book()
        assert (await trial.replay(paid)).outcome == bought
        assert (await trial.reversals.refund(refund)).outcome == reversed_
        assert await database.book() == book
        await (settler.replay(paid) if bought == "committed" else settler.reversals.refund(refund))
    assert await refuse(trial.replay(await fake.purchase(refund["id"]))) == "user_malformed"
