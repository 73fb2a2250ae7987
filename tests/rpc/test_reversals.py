"""Reversals: refunded and disputed payments take back credits of a purchase, in any order."""

import asyncio

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from kit.extent import unless_long
from kit.programs import process
from kit.requests import payment

from credit_service.client import CreditClient
from credit_service.errors import (
    InsufficientCredits,
    InvalidRequest,
    PaymentMismatch,
    PaymentNotFound,
    ReversalReused,
    UserDeleted,
)
from credit_service.v1 import credit_service_pb2 as pb

PAID = 1000


def refund(reversed_minor, *, ref="re_1", revision=1, paid=PAID, currency="eur"):
    return {
        "reversal_ref": ref,
        "revision": revision,
        "reversed_minor": reversed_minor,
        "paid_minor": paid,
        "currency": currency,
        "reason": "the card was refunded",
    }


@pytest.fixture
async def bought(database, client):
    """A user with 100 credits that were bought for 10.00 by the payment pi_1."""
    user_id = await database.user()
    await client.purchase_credits(user_id, 100, payment=payment("pi_1", PAID))
    return user_id


async def balance(client, user_id):
    return (await client.get_user_credit(user_id)).balance


async def test_a_refund_takes_its_share_and_names_the_purchase(client, bought, database):
    answer = await client.reverse_purchase("pi_1", **refund(400))
    entry = answer.transaction
    assert (entry.type, entry.amount, entry.balance_change) == (
        pb.TRANSACTION_TYPE_REVERSAL,
        40,
        -40,
    )
    assert entry.related_transaction_id == f"{bought}-1"
    assert (entry.reference, entry.description) == ("re_1", "the card was refunded")
    assert (entry.caller, entry.idempotency_key) == ("local", "")
    assert (answer.credit.balance, answer.replayed) == (60, False)
    listed = [
        e
        async for e in client.get_transaction_history(bought, related_transaction_id=f"{bought}-1")
    ]
    assert [e.id for e in listed] == [entry.id]
    assert not await database.faults()


async def test_the_same_revision_again_is_answered_with_its_entry(client, bought, database):
    first = await client.reverse_purchase("pi_1", **refund(400))
    book = await database.book()
    again = await client.reverse_purchase("pi_1", **refund(400) | {"reason": "in other words"})
    assert again.replayed
    assert again.transaction == first.transaction
    assert await database.book() == book


async def test_spent_credits_become_debt_that_the_next_purchase_pays(client, bought):
    await client.spend_credits(bought, amount=30)
    assert (await client.reverse_purchase("pi_1", **refund(PAID))).credit.balance == -30
    with pytest.raises(InsufficientCredits):
        await client.spend_credits(bought, amount=1)
    with pytest.raises(InsufficientCredits):
        await client.hold_credits(bought, amount=1)
    later = await client.purchase_credits(bought, 100, payment=payment("pi_2"))
    assert later.credit.balance == 70


async def test_held_credits_stay_held_and_can_be_captured(client, bought):
    hold = await client.hold_credits(bought, amount=80)
    reversed_ = await client.reverse_purchase("pi_1", **refund(PAID))
    assert (reversed_.credit.balance, reversed_.credit.held, reversed_.credit.available) == (
        0,
        80,
        -80,
    )
    assert (await client.capture_hold(bought, hold.hold.id)).credit.balance == -80


async def test_a_refund_that_failed_gives_back_what_it_took(client, bought, database):
    await client.reverse_purchase("pi_1", **refund(400))
    answer = await client.reverse_purchase("pi_1", **refund(0, revision=2))
    assert (answer.transaction.amount, answer.transaction.balance_change) == (40, 40)
    assert answer.credit.balance == 100
    late = await client.reverse_purchase("pi_1", **refund(400))
    assert (late.replayed, late.credit.balance) == (True, 100)
    assert not await database.faults()


async def test_a_lower_revision_that_comes_late_is_recorded_and_moves_nothing(
    client, bought, database
):
    await client.reverse_purchase("pi_1", **refund(0, revision=2))
    answer = await client.reverse_purchase("pi_1", **refund(400))
    assert (answer.HasField("transaction"), answer.replayed) == (False, False)
    assert answer.credit.balance == 100
    assert (await client.reverse_purchase("pi_1", **refund(400))).replayed
    assert len(await database.fetch("SELECT FROM credit_reversals")) == 2


async def test_three_thirds_are_the_whole(client, bought):
    taken = []
    for n, part in enumerate((333, 333, 334)):
        answer = await client.reverse_purchase("pi_1", **refund(part, ref=f"re_{n}"))
        taken.append(answer.transaction.amount)
    assert taken == [33, 33, 34]
    assert answer.credit.balance == 0


async def test_a_refund_and_a_dispute_together_never_take_more_than_was_bought(client, bought):
    await client.reverse_purchase("pi_1", **refund(PAID))
    answer = await client.reverse_purchase("pi_1", **refund(PAID, ref="du_1"))
    assert not answer.HasField("transaction")
    assert answer.credit.balance == 0
    # The dispute was won, and the refund is still valid.
    assert (
        await client.reverse_purchase("pi_1", **refund(0, ref="du_1", revision=2))
    ).credit.balance == 0
    # The refund failed as well; a later refund takes its share.
    assert (await client.reverse_purchase("pi_1", **refund(0, revision=2))).credit.balance == 100
    assert (await client.reverse_purchase("pi_1", **refund(250, ref="re_2"))).credit.balance == 75


async def test_large_sums_are_exact(client, database):
    user_id = await database.user()
    granted, paid = 10**12 - 1, 10**12 - 3
    await client.purchase_credits(user_id, granted, payment=payment("pi_1", paid, "jpy"))
    part = paid // 3
    answer = await client.reverse_purchase("pi_1", **refund(part, paid=paid, currency="jpy"))
    assert answer.transaction.amount == granted * part // paid
    assert not await database.faults()


REUSED = [
    ({"reversed_minor": 401}, "reversed_minor"),
    ({"paid_minor": PAID + 1}, "paid_minor"),
    ({"currency": "usd"}, "currency"),
]


@pytest.mark.parametrize(("change", "field"), REUSED)
async def test_a_revision_with_other_figures_is_refused(client, bought, database, change, field):
    await client.reverse_purchase("pi_1", **refund(400))
    book = await database.book()
    with pytest.raises(ReversalReused) as refusal:
        await client.reverse_purchase("pi_1", **refund(400) | change)
    assert (refusal.value.reversal_ref, refusal.value.field) == ("re_1", field)
    assert await database.book() == book


@pytest.mark.parametrize("revision", [1, 2])
async def test_a_reversal_belongs_to_one_payment(client, bought, database, revision):
    await client.purchase_credits(bought, 100, payment=payment("pi_2", PAID))
    await client.reverse_purchase("pi_1", **refund(400))
    with pytest.raises(ReversalReused) as refusal:
        await client.reverse_purchase("pi_2", **refund(400, revision=revision))
    assert refusal.value.field == "payment_ref"
    assert await balance(client, bought) == 160


@pytest.mark.parametrize("change", [{"paid_minor": PAID + 1}, {"currency": "usd"}])
async def test_the_first_reversal_fixes_what_was_paid(client, bought, change):
    await client.reverse_purchase("pi_1", **refund(400))
    with pytest.raises(PaymentMismatch) as refusal:
        await client.reverse_purchase("pi_1", **refund(100, ref="re_2") | change)
    assert (refusal.value.paid_minor, refusal.value.currency) == (PAID, "eur")
    assert await balance(client, bought) == 60


async def test_an_unknown_payment_and_a_deleted_user_are_distinguished(client, bought, database):
    with pytest.raises(PaymentNotFound) as refusal:
        await client.reverse_purchase("pi_2", **refund(400))
    assert refusal.value.payment_ref == "pi_2"
    await client.reverse_purchase("pi_1", **refund(400))
    await database.execute(f"DELETE FROM auth.users WHERE id = '{bought}'")
    for change in ({}, {"revision": 2}, {"reversal_ref": "re_2"}):
        with pytest.raises(UserDeleted):
            await client.reverse_purchase("pi_1", **refund(400) | change)
    assert len(await database.fetch("SELECT FROM credit_reversals")) == 1
    # The same user, created again, owes nothing for a payment that is gone with the old account.
    await database.execute(f"INSERT INTO auth.users (id) VALUES ('{bought}')")
    await client.grant_credits(bought, 7, reason="welcome back")
    with pytest.raises(UserDeleted):
        await client.reverse_purchase("pi_1", **refund(500, ref="re_3"))
    assert await balance(client, bought) == 7
    assert not await database.faults()


async def test_a_reversal_that_only_validates_writes_nothing(client, bought, database):
    book = await database.book()
    answer = await client.reverse_purchase("pi_1", **refund(400), validate_only=True)
    assert (answer.transaction.id, answer.transaction.amount) == ("", 40)
    assert (answer.credit.balance, answer.replayed) == (100, False)
    assert await database.book() == book
    await client.reverse_purchase("pi_1", **refund(400))
    assert (await client.reverse_purchase("pi_1", **refund(400), validate_only=True)).replayed


async def test_a_purchase_of_a_frozen_account_is_reversed(client, bought):
    await client.set_account_policy(bought, frozen=True)
    assert (await client.reverse_purchase("pi_1", **refund(PAID))).credit.balance == 0


async def test_a_reversal_cannot_be_refunded_and_a_spend_still_can(client, bought):
    spend = await client.spend_credits(bought, amount=30)
    entry = (await client.reverse_purchase("pi_1", **refund(100))).transaction
    with pytest.raises(InvalidRequest, match="names a reversal"):
        await client.refund_credits(bought, transaction_id=entry.id)
    assert (
        await client.refund_credits(bought, transaction_id=spend.transaction.id)
    ).transaction.amount == 30


# Each reversal of a payment with its revisions: a refund that is valid or failed, a dispute that
# was withdrawn, partly returned, won.
REVISIONS = st.lists(st.lists(st.integers(0, PAID), min_size=1, max_size=3), min_size=1, max_size=4)


def expected(granted, reversals):
    total = min(PAID, sum(revisions[-1] for revisions in reversals))
    return granted - (granted * total // PAID)


@settings(
    max_examples=unless_long(10, 25),
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(data=st.data(), granted=st.integers(1, 10**6), reversals=REVISIONS)
async def test_any_order_repetition_and_interleaving_ends_in_the_same_balance(
    client, database, data, granted, reversals
):
    user_id = await database.user()
    ref = f"pi_{user_id}"
    await client.purchase_credits(user_id, granted, payment=payment(ref, PAID))
    calls = [
        refund(reversed_minor, ref=f"re_{n}_{user_id}", revision=revision)
        for n, revisions in enumerate(reversals)
        for revision, reversed_minor in enumerate(revisions, 1)
    ]
    delivered = data.draw(
        st.permutations(calls + data.draw(st.lists(st.sampled_from(calls), max_size=4)))
    )
    at_once = data.draw(st.integers(1, len(delivered)))
    for first in range(0, len(delivered), at_once):
        part = delivered[first : first + at_once]
        await asyncio.gather(*(client.reverse_purchase(ref, **call) for call in part))
    assert await balance(client, user_id) == expected(granted, reversals)
    assert not [fault for fault in await database.faults() if str(user_id) in fault]


async def test_two_processes_that_get_the_same_reversal_at_once_take_it_once(database):
    user_id = await database.user()
    with (
        process("serve", CREDIT_DATABASE_URL=database.service_url) as one,
        process("serve", CREDIT_DATABASE_URL=database.service_url) as two,
    ):
        targets = [f"127.0.0.1:{server.wait_until_listening()}" for server in (one, two)]
        async with CreditClient(targets[0]) as first, CreditClient(targets[1]) as second:
            clients = [first, second]
            await first.purchase_credits(user_id, 100, payment=payment("pi_1", PAID))
            calls = [refund(100 * n, ref=f"re_{n}") for n in range(1, 4)] * 8
            answers = await asyncio.gather(
                *(clients[n % 2].reverse_purchase("pi_1", **call) for n, call in enumerate(calls))
            )
            assert sum(not answer.replayed for answer in answers) == 3
            assert await balance(first, user_id) == 40
    assert not await database.faults()
