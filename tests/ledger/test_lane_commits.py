"""A COMMIT whose answer is lost, and a key that comes more than once: one entry, truly reported."""

import asyncio

import pytest
from kit.commands import (
    answers,
    ask,
    kinds,
    lanes,
    purchase,
    refund,
    spend,
    submit,
    written,
)
from kit.fault_proxy import BEGIN, COMMIT, Kind
from kit.waiting import eventually

from credit_service.errors import (
    IdempotencyKeyReused,
    InsufficientCredits,
    LedgerUnavailable,
    RefundExceedsSpend,
)
from credit_service.rules.model import Outcome

LOSSES = [Kind.CUT_BEFORE, Kind.CUT_AFTER, Kind.SWALLOW]


def new_and_replayed(given):
    """The number of answers that report a new entry, and the number of replays."""
    flags = [answer.replayed for answer in given]
    return flags.count(False), flags.count(True)


@pytest.mark.parametrize("kind", LOSSES)
@pytest.mark.parametrize("times", [1, 2, 3])
async def test_a_lost_commit_is_resolved_by_its_keys(database, proxy, kind, times):
    user_id = await database.user(100)
    commands = [spend(user_id, 7), purchase(user_id, 5, ref="pi_1"), refund(user_id, 2)]
    fault = proxy.on(COMMIT, kind, times=times)
    async with lanes(proxy.url) as clerk:
        first = await ask(clerk, *commands, spend(user_id, 1000))
        assert fault.met.is_set()
        assert kinds(first) == [Outcome, Outcome, Outcome, InsufficientCredits]
        assert new_and_replayed(first[:3]) == (3, 0)
        again = await ask(clerk, *commands)
    assert new_and_replayed(again) == (0, 3)
    assert [answer.entry for answer in again] == [answer.entry for answer in first[:3]]
    assert await written(database, *commands) == 3
    assert not await database.faults()


@pytest.mark.parametrize("kind", LOSSES)
async def test_twins_behind_a_lost_commit_are_distinguished(database, proxy, kind):
    user_id = await database.user(100)
    command = spend(user_id, 7)
    proxy.on(COMMIT, kind)
    async with lanes(proxy.url) as clerk:
        given = await ask(clerk, *[command] * 4)
    assert new_and_replayed(given) == (1, 3)
    assert len({answer.entry.seq for answer in given}) == 1
    assert await written(database, command) == 1


@pytest.mark.parametrize("kind", LOSSES)
async def test_a_repeat_behind_a_lost_commit_stays_a_repeat(database, proxy, kind):
    user_id = await database.user(100)
    old, new = spend(user_id), spend(user_id)
    async with lanes(proxy.url) as clerk:
        await ask(clerk, old)
        proxy.on(COMMIT, kind)
        given = await ask(clerk, old, new)
    assert [answer.replayed for answer in given] == [True, False]


@pytest.mark.parametrize("kind", LOSSES)
async def test_a_commit_that_cannot_be_resolved_is_no_final_answer(database, proxy, kind):
    user_id = await database.user(100)
    command = spend(user_id, 7)
    fault = proxy.on(COMMIT, kind)
    lasting = proxy.on(BEGIN, Kind.CUT_BEFORE, nth=2, times=100)
    async with lanes(proxy.url) as clerk:
        assert kinds(await ask(clerk, command)) == [LedgerUnavailable]
        assert fault.met.is_set()
        assert lasting.met.is_set()
        proxy.forget()
        (again,) = await ask(clerk, command)
    assert again.replayed == (kind is not Kind.CUT_BEFORE)
    assert await written(database, command) == 1
    assert not await database.faults()


async def test_a_lane_waits_for_a_commit_that_is_still_on_its_way(database, proxy):
    user_id = await database.user(10)
    command = spend(user_id, 7)
    proxy.on(COMMIT, Kind.CUT_AFTER)
    # Deferred to the COMMIT, so that it outlives the connection over which it was sent.
    await database.execute(
        """
        CREATE FUNCTION dawdle() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN PERFORM pg_sleep(0.3); RETURN NULL; END $$;
        CREATE CONSTRAINT TRIGGER slow AFTER INSERT ON credit_transactions
        DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION dawdle();
        """
    )
    async with lanes(proxy.url) as clerk:
        (given,) = await ask(clerk, command)
    assert not given.replayed
    assert await written(database, command) == 1
    assert not await database.faults()


async def test_a_commit_in_flight_elsewhere_is_never_overtaken(database, proxy):
    user_id = await database.user(10)
    command = spend(user_id, 7)
    held = proxy.on(COMMIT, Kind.HOLD)
    async with lanes(proxy.url) as cut_off, lanes(database.service_url) as other:
        (left,) = submit(cut_off, command)
        await held.met.wait()
        left.cancel()
        # It may still arrive or not, so neither yes nor no is the right answer.
        assert kinds(await ask(other, command)) == [LedgerUnavailable]
        held.release()
        await eventually(lambda: written(database, command))
        (given,) = await ask(other, command)
    assert given.replayed
    assert not await database.faults()


async def test_a_key_that_comes_many_times_in_a_batch_makes_one_entry(database):
    user_id, other = await database.user(100), await database.user(100)
    command = spend(user_id, 7)
    key = command.idempotency_key
    async with lanes(database.service_url) as clerk:
        given = await ask(clerk, command, spend(user_id, 8, key=key), spend(other, 8, key), command)
    assert kinds(given) == [Outcome, IdempotencyKeyReused, Outcome, Outcome]
    assert [given[n].replayed for n in (0, 2, 3)] == [False, False, True]
    assert given[0].entry == given[3].entry
    assert await written(database, command) == 2  # one for each user
    assert not await database.faults()


async def test_a_refund_finds_a_spend_of_its_own_batch(database):
    user_id = await database.user(100)
    async with lanes(database.service_url) as clerk:
        given = await ask(
            clerk,
            spend(user_id, 30),
            refund(user_id, 2, 10),
            refund(user_id, 2, 21),
            refund(user_id, 2),
            refund(user_id, 2),
        )
    assert kinds(given) == [Outcome, Outcome, RefundExceedsSpend, Outcome, RefundExceedsSpend]
    assert given[3].entry.amount == 20
    assert not await database.faults()


async def test_one_key_from_two_lanes_at_once_makes_one_entry(database, proxy):
    user_id = await database.user(100)
    command = spend(user_id, 7)
    held = proxy.on(COMMIT, Kind.HOLD)
    async with lanes(proxy.url) as one, lanes(database.service_url) as two:
        first = submit(one, command)
        await held.met.wait()
        second = submit(two, command)
        # The other lane now waits for the lock; what it reads next must be read after it.
        await eventually(database.waits_for_a_lock, every=0.005)
        held.release()
        given = await answers(first + second)
    assert [answer.replayed for answer in given] == [False, True]
    assert await written(database, command) == 1
    assert not await database.faults()


async def test_many_lanes_on_one_account_never_spend_more_than_there_is(database):
    user_id = await database.user(30)

    given = []

    async def pay(clerk):
        for _ in range(10):
            given.extend(await ask(clerk, spend(user_id), spend(user_id)))

    async with (
        lanes(database.service_url) as one,
        lanes(database.service_url) as two,
        lanes(database.service_url) as three,
    ):
        await asyncio.gather(pay(one), pay(two), pay(three))
    assert (kinds(given).count(Outcome), kinds(given).count(InsufficientCredits)) == (30, 30)
    assert not await database.faults()
