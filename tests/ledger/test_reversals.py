"""Reversals between lanes: a reversal belongs to one payment, whichever records it first."""

import asyncio
from uuid import uuid4

import pytest
from kit.commands import answers, ask, kinds, lanes, purchase, reverse, submit
from kit.fault_proxy import COMMIT, Kind
from kit.waiting import eventually

from credit_service.errors import ReversalReused
from credit_service.rules.model import Outcome

TRIALS = 40


async def two_payments(database, clerk):
    """Two users, each with a payment of 9.99 for 10 credits."""
    users = [await database.user() for _ in range(2)]
    refs = [f"pi_{user_id}" for user_id in users]
    bought = [purchase(*each, ref=ref) for *each, ref in zip(users, [10, 10], refs, strict=True)]
    assert kinds(await ask(clerk, *bought)) == [Outcome, Outcome]
    return list(zip(users, refs, strict=True))


@pytest.mark.parametrize("revisions", [(1, 2), (2, 1), (1, 1)])
async def test_of_two_payments_at_the_same_instant_one_gets_the_reversal(database, revisions):
    async with lanes(database.service_url) as one, lanes(database.service_url) as two:
        for _ in range(TRIALS):
            payments, ref = await two_payments(database, one), uuid4().hex
            asked = [
                reverse(*payment, ref, revision)
                for payment, revision in zip(payments, revisions, strict=True)
            ]
            given = await asyncio.gather(ask(one, asked[0]), ask(two, asked[1]))
            outcomes = kinds(given[0] + given[1])
            assert sorted(outcomes, key=str) == sorted([Outcome, ReversalReused], key=str)
            # Later revisions go to the payment that has the reversal, and to no other.
            later = [reverse(*payment, ref, 3, 0) for payment in payments]
            assert kinds(await ask(two, *later)) == outcomes
    assert not await database.faults()


async def test_the_later_of_two_payments_waits_for_the_first_and_is_refused(database, proxy):
    async with lanes(proxy.url) as one, lanes(database.service_url) as two:
        payments = await two_payments(database, two)
        held = proxy.on(COMMIT, Kind.HOLD)
        first = submit(one, reverse(*payments[0]))
        await held.met.wait()
        second = submit(two, reverse(*payments[1], revision=2))
        await eventually(database.waits_for_a_lock, every=0.005)
        held.release()
        given = await answers(first + second)
    assert kinds(given) == [Outcome, ReversalReused]
    assert not await database.faults()


async def test_many_reversals_of_crossed_payments_end_without_a_deadlock(database):
    async with lanes(database.service_url) as one, lanes(database.service_url) as two:
        for _ in range(10):
            payments = await two_payments(database, one)
            refs = [uuid4().hex for _ in range(20)]
            asked = [
                [reverse(*payment, ref, revision, 1) for ref in refs[::step]]
                for payment, revision, step in zip(payments, (1, 2), (1, -1), strict=True)
            ]
            given = await asyncio.gather(ask(one, *asked[0]), ask(two, *asked[1]))
            for first, second in zip(given[0], reversed(given[1]), strict=True):
                assert {type(first), type(second)} == {Outcome, ReversalReused}
    assert not await database.faults()
