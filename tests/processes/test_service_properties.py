"""Two services on one book against the model: random requests, repeated and all at once.

Every ordinary run draws the same requests (derandomized); they interleave at random.
With `--long` there are more, drawn at random each time.
"""

import asyncio
from contextlib import AsyncExitStack
from dataclasses import replace
from uuid import uuid4

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from kit.extent import extent, unless_long
from kit.services import running, server_settings
from kit.waiting import patience
from model.drawn import ALICE, BOB, STEPS, STRANGER, as_prices, as_refused, asked, message_as_entry
from model.ledger import Done, ModelLedger, Request

from credit_service.client import CreditClient
from credit_service.errors import Refusal
from credit_service.ledger import store
from credit_service.rules.pricing import Price, PriceList
from credit_service.rules.terms import Terms
from credit_service.v1 import credit_service_pb2 as pb

TERMS = Terms(PriceList({"stem_separation": Price(3, "piece"), "render": Price(2, "piece")}), 0)


async def ask(client, request):
    """Sends a request; returns the answer in the model's terms and the account that came with it.

    The account is (seq, balance), or None with a refusal.
    """
    common = {
        "idempotency_key": request.key,
        "description": request.note,
        "reference": request.note,
        "validate_only": request.validate_only,
    }
    try:
        match request.call:
            case "PurchaseCredits":
                payment = None
                if request.payment:
                    payment = pb.Payment(ref=request.payment, amount_minor=100, currency="eur")
                response = await client.purchase_credits(
                    request.user, request.amount, payment=payment, **common
                )
            case "SpendCredits":
                response = await client.spend_credits(
                    request.user,
                    operation=request.operation,
                    quantity=request.quantity or 1,
                    amount=request.amount,
                    expected_cost=request.expected_cost,
                    **common,
                )
            case _:
                spend = f"{request.user}-{request.transaction}" if request.transaction else None
                response = await client.refund_credits(
                    request.user, spend, amount=request.amount, **common
                )
    except Refusal as refusal:
        return as_refused(refusal), None
    entry = message_as_entry(response.transaction)
    return Done(entry, response.replayed), (response.credit.seq, response.credit.balance)


async def read_books(client, users):
    """Every user's entries in the order of seq."""
    books = {}
    for user in users:
        newest_first = [
            message_as_entry(message)
            async for message in client.get_transaction_history(user, page_size=1000)
        ]
        books[user] = newest_first[::-1]
    return books


def explains(ledger, request, answer):
    """Whether the model, in this state, gives this answer."""
    expected = ledger.answer(request, as_prices(TERMS))
    if isinstance(expected, Done) and request.validate_only and not expected.replayed:
        expected = replace(expected, entry=replace(expected.entry, seq=0))
    return expected == answer


def check_wave(ledger, requests, answers, books):
    """Compares the answers of simultaneous requests with the books that they left.

    The model follows the books, entry by entry in the order of seq. Each entry was acknowledged as
    new to exactly one caller, and every other answer is the model's answer in some state that the
    user's account went through in the meantime.
    """
    prices = as_prices(TERMS)
    before = ledger.copy()
    makers = {}
    for request, (answer, _) in zip(requests, answers, strict=True):
        if isinstance(answer, Done) and not answer.replayed and not request.validate_only:
            place = request.user, answer.entry.seq
            assert place not in makers, f"{place} was new to two callers"
            makers[place] = request
    for user, entries in books.items():
        known = [entry for _, entry in ledger.books[user]]
        assert entries[: len(known)] == known
        for entry in entries[len(known) :]:
            request = makers.pop((user, entry.seq))
            assert ledger.take(request, prices) == Done(entry, replayed=False)
        assert [entry for _, entry in ledger.books[user]] == entries
    assert not makers, "acknowledged, but not in the book"
    for request, (answer, _) in zip(requests, answers, strict=True):
        if isinstance(answer, Done) and answer.replayed and not request.validate_only:
            ledger.keep(request, answer.entry)
    for request, (answer, account) in zip(requests, answers, strict=True):
        seqs = range(len(before.books.get(request.user, ())), len(books.get(request.user, ())) + 1)
        known = request.user in ledger.books
        states = (
            ledger.as_of(request.user, seq, others, kept) if known else others
            for seq in seqs
            for others in (before, ledger)
            for kept in (before.kept, ledger.kept)
        )
        assert any(explains(state, request, answer) for state in states), (request, answer)
        if account is not None:
            seq, balance = account
            assert seq in seqs
            assert seq >= answer.entry.seq
            assert balance == (books[request.user][seq - 1].balance_after if seq else 0)


WAVES = st.lists(
    st.lists(st.tuples(STEPS, st.sampled_from([1, 1, 2, 3])), min_size=4, max_size=10),
    min_size=1,
    max_size=3,
)


@pytest.fixture
async def served(database):
    """A database, by one connection, and two services on it: the same for all examples."""
    # A busy machine must not make a call fail: the model cannot know whether it had an effect.
    await database.wait_longer_for_locks()
    settings_ = server_settings(database.service_url, terms=TERMS)
    async with (
        database.kept_open() as kept,
        running(settings_) as one,
        running(settings_) as other,
    ):
        yield kept, one, other


async def services_agree_with_the_model(served, waves):
    database, *services = served
    users = {ALICE: await database.user(25), BOB: await database.user(), STRANGER: uuid4()}
    ledger, earlier = ModelLedger((users[ALICE], users[BOB])), []
    opening = Request(
        call="PurchaseCredits", user=users[ALICE], key="opened by the test", amount=25
    )
    ledger.take(opening, as_prices(TERMS))
    async with AsyncExitStack() as stack:
        clients = [
            await stack.enter_async_context(
                CreditClient(service.target, deadline_seconds=patience(60))
            )
            for service in services
        ]
        for wave in waves:
            requests = [
                replace(
                    request,
                    user=users[request.user],
                    payment=request.payment and f"{request.payment} of {users[ALICE]}",
                )
                for step, count in wave
                for request in asked([step], earlier) * count
            ]
            answers = await asyncio.gather(
                *(ask(clients[place % 2], request) for place, request in enumerate(requests))
            )
            books = await read_books(clients[0], ledger.books)
            check_wave(ledger, requests, answers, books)
        for user in ledger.books:
            credit = await clients[1].get_user_credit(user)
            assert credit.balance == ledger.balance(user)
    assert not await database.faults()


# A failure of a race may not come back while it is shrunk, so it is shown as it was found.
_RACES = settings(
    database=None,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@settings(_RACES, derandomize=True, max_examples=unless_long(6, 12))
@given(waves=WAVES)
async def test_two_services_agree_with_the_model_in_every_interleaving(served, waves):
    await services_agree_with_the_model(served, waves)


@pytest.mark.long
@pytest.mark.timeout(900)
@settings(_RACES, max_examples=extent(12, 60))
@given(waves=WAVES)
async def test_two_services_agree_with_the_model_in_a_storm(served, waves):
    await services_agree_with_the_model(served, waves)


@pytest.mark.parametrize(
    ("call", "answer"),
    [
        (lambda client, user: _buy(client, user, key="bought", ref="pi_1"), (True, 2, 6)),
        (lambda client, user: _buy(client, user, key="again", ref="pi_1"), (True, 2, 6)),
        (
            lambda client, user: client.refund_credits(user, f"{user}-2", validate_only=True),
            (False, 2, 6),
        ),
    ],
    ids=["repeat of its key", "repeat of its payment", "refund of its spend"],
)
async def test_an_account_opened_by_another_process_after_the_lock_is_not_taken_for_empty(
    database, monkeypatch, call, answer
):
    user = await database.user()
    settings_ = server_settings(database.service_url, terms=TERMS)
    async with running(settings_) as one, running(settings_) as other:
        client, competitor = await one.client(), await other.client()
        lock_accounts, locks = store.lock_accounts, []

        async def lock_and_be_overtaken(connection, user_ids):
            locked = await lock_accounts(connection, user_ids)
            locks.append(locked)
            if len(locks) == 1:
                await _buy(competitor, user, key="bought", ref="pi_1")
                await competitor.spend_credits(user, amount=4)
            return locked

        monkeypatch.setattr(store, "lock_accounts", lock_and_be_overtaken)
        response = await call(client, user)
        assert locks[0] == {}
        credit = response.credit
        assert (response.replayed, credit.seq, credit.balance) == answer
    assert not await database.faults()


async def _buy(client, user, *, key, ref):
    payment = pb.Payment(ref=ref, amount_minor=100, currency="eur")
    return await client.purchase_credits(user, 10, payment=payment, idempotency_key=key)
