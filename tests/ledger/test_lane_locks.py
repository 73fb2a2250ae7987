"""Rows that another transaction keeps locked: which calls they hold up, and for how long."""

import asyncio

from kit.commands import answers, ask, kinds, lanes, purchase, spend, submit, written
from kit.waiting import eventually
from prometheus_client import REGISTRY

from credit_service.errors import LedgerUnavailable
from credit_service.ledger.contention import Contention
from credit_service.rules.model import Outcome


async def test_a_locked_account_holds_up_its_own_user_only(database):
    locked, *free = [await database.user(10) for _ in range(5)]
    kept = [spend(locked), spend(locked)]
    async with lanes(database.service_url) as clerk:
        async with database.locked(locked):
            given = await ask(clerk, kept[0], *(spend(user_id) for user_id in free), kept[1])
        assert kinds(given) == [LedgerUnavailable, *[Outcome] * 4, LedgerUnavailable]
        assert await written(database, *kept) == 0
        again = await ask(clerk, *kept)
    assert [answer.replayed for answer in again] == [False, False]
    assert not await database.faults()


async def test_after_an_account_was_found_locked_no_other_call_waits_for_it(database):
    locked, free = [await database.user(10) for _ in range(2)]
    async with lanes(database.service_url) as clerks:
        async with database.locked(locked):
            [found] = await ask(clerks.of(locked), spend(locked))
            assert kinds([found]) == [LedgerUnavailable]
            [kept] = submit(clerks.of(locked), spend(locked))
            [served] = submit(clerks.of(free), spend(free))
            done, _ = await asyncio.wait({kept, served}, return_when=asyncio.FIRST_COMPLETED)
            assert done == {served}
        given = await answers([kept, served, *submit(clerks.of(locked), spend(locked))])
    assert kinds(given)[1:] == [Outcome, Outcome]
    assert not await database.faults()


async def test_calls_from_before_an_account_was_found_locked_hold_up_no_other_either(database):
    locked, free = [await database.user(10) for _ in range(2)]
    async with lanes(database.service_url) as clerks:
        usual = clerks.of(locked)
        async with database.locked(locked):
            [first] = submit(usual, spend(locked))
            await eventually(database.waits_for_a_lock)
            kept, served = submit(usual, spend(locked), spend(free))
            done, _ = await asyncio.wait({kept, served}, return_when=asyncio.FIRST_COMPLETED)
            assert done == {served}
        given = await answers([first, kept, served])
    assert kinds(given) == [Outcome] * 3
    assert not await database.faults()


def waits_for_locks():
    """How many batches of this process have waited for a lock and not got it."""
    faults = {"fault": "LockNotAvailableError"}
    return REGISTRY.get_sample_value("credit_lane_batch_faults_total", faults) or 0


async def test_many_locked_accounts_hold_up_the_others_no_longer_than_one(database):
    users = sorted([await database.user(10) for _ in range(12)])
    locked, free = users[::2], users[1::2]
    before = waits_for_locks()
    async with lanes(database.service_url) as clerks:
        usual = clerks.of(users[0])
        async with database.locked(*locked):
            waiting = dict(zip(users, submit(usual, *map(spend, users)), strict=True))
            served = {waiting[user_id] for user_id in free}
            assert set(kinds(await answers(served))) == {Outcome}
            assert not any(waiting[user_id].done() for user_id in locked)
            assert set(kinds(await answers(set(waiting.values()) - served))) == {LedgerUnavailable}
        assert waits_for_locks() - before == 1
        assert set(kinds(await answers(submit(usual, *map(spend, users))))) == {Outcome}
    assert not await database.faults()


async def test_contended_calls_wait_only_for_their_own_row_and_hold_no_other(database):
    free, locked = sorted([await database.user(1000) for _ in range(2)])
    async with lanes(database.service_url) as clerks, database.locked(locked):
        async with database.locked(free):
            for user_id in (free, locked):
                [found] = await ask(clerks.of(user_id), spend(user_id))
                assert kinds([found]) == [LedgerUnavailable]
        contended = clerks.of(free)
        kept, served = submit(contended, spend(locked), spend(free))
        done, _ = await asyncio.wait({kept, served}, return_when=asyncio.FIRST_COMPLETED)
        assert done == {served}
        # Another process could write there meanwhile.
        await database.execute(
            "SELECT FROM user_credits WHERE user_id = $1 FOR UPDATE NOWAIT", free
        )
        assert kinds(await answers([served, kept])) == [Outcome, LedgerUnavailable]
    assert not await database.faults()


async def test_contended_lock_that_no_account_shows_fails_its_own_user_only(database):
    newcomer, free = await database.user(), await database.user(10)
    async with lanes(database.service_url) as clerks:
        async with database.locked(free):
            await ask(clerks.of(free), spend(free))
        holder = await database.connect()
        async with holder.transaction():
            await holder.execute("SELECT FROM auth.users WHERE id = $1 FOR UPDATE", newcomer)
            given = await ask(clerks.of(free), purchase(newcomer), spend(free))
            assert kinds(given) == [LedgerUnavailable, Outcome]
        await holder.close()
        assert kinds(await ask(clerks.of(newcomer), purchase(newcomer))) == [Outcome]
    assert not await database.faults()


async def test_calls_in_the_contended_lane_are_served_while_the_lanes_close(database):
    users = sorted([await database.user(10) for _ in range(2)])
    async with lanes(database.service_url) as clerks:
        usual = clerks.of(users[0])
        async with database.locked(users[0]):
            [first] = submit(usual, spend(users[0]))
            await eventually(database.waits_for_a_lock)
            behind = submit(usual, *map(spend, users))
            closing = asyncio.create_task(clerks.close())
            await answers(behind[1:])
        await closing
        assert set(kinds(await answers([first, *behind]))) == {Outcome}
    assert not await database.faults()


async def test_a_locked_table_fails_the_batch_and_not_one_user_after_the_other(database):
    users = [await database.user(10) for _ in range(4)]
    before = waits_for_locks()
    async with lanes(database.service_url) as clerk:
        other = await database.connect()
        async with other.transaction():
            await other.execute("LOCK TABLE user_credits")
            given = await ask(clerk, *map(spend, users))
        await other.close()
        assert set(kinds(given)) == {LedgerUnavailable}
        assert waits_for_locks() - before == 2
        assert set(kinds(await ask(clerk, *map(spend, users)))) == {Outcome}
    assert not await database.faults()


async def test_a_user_whose_row_was_locked_comes_back_to_the_others(database, monkeypatch):
    monkeypatch.setattr("credit_service.ledger.lanes.Contention", lambda: Contention(0.0))
    user_id = await database.user(10)
    async with lanes(database.service_url) as clerks:
        usual = clerks.of(user_id)
        async with database.locked(user_id):
            await ask(usual, spend(user_id))
        assert clerks.of(user_id) is usual
