"""Two batches of one lane in flight: which batch may begin beside another, and which may not."""

import asyncio
import random
from collections import Counter

import pytest
from kit.commands import answers, ask, kinds, lanes, spend, submit, transactions, written
from kit.fault_proxy import COMMIT, UPDATE, Kind
from kit.waiting import eventually

from credit_service.errors import LedgerUnavailable
from credit_service.ledger.transactions import Transactions
from credit_service.rules.model import Outcome

LOSSES = [Kind.CUT_BEFORE, Kind.CUT_AFTER, Kind.SWALLOW]

# With this many queued calls, a lane of `small` begins a batch beside another one.
MANY = 4


def small(url):
    """One lane whose batches are full with a few calls."""
    return lanes(url, batch_limit=MANY)


async def funded(database, count):
    return [await database.user(1000) for _ in range(count)]


async def test_many_queued_calls_are_served_while_a_batch_is_in_flight(database, proxy):
    first, *others = await funded(database, 46)
    held = proxy.on(COMMIT, Kind.HOLD)
    async with lanes(proxy.url) as clerk:
        running = submit(clerk, spend(first))
        await held.met.wait()
        given = await ask(clerk, *map(spend, others))
        assert set(kinds(given)) == {Outcome}
        assert not running[0].done()
        held.release()
        assert kinds(await answers(running)) == [Outcome]
    assert await transactions(database) == 2
    assert not await database.faults()


async def test_a_few_queued_calls_wait_for_the_batch_in_flight(database, proxy):
    first, *others = await funded(database, 45)
    held = proxy.on(COMMIT, Kind.HOLD)
    async with lanes(proxy.url) as clerk:
        running = submit(clerk, spend(first))
        await held.met.wait()
        waiting = submit(clerk, *map(spend, others))
        # The last comes alone, so that the lane has looked through its queue before.
        await asyncio.sleep(0)
        waiting += submit(clerk, spend(first))
        held.release()
        await answers(running + waiting)
    assert await transactions(database) == 2


async def test_a_user_in_a_batch_in_flight_is_in_no_other(database, proxy):
    first, *others = await funded(database, 1 + MANY)
    held = proxy.on(COMMIT, Kind.HOLD)
    async with small(proxy.url) as clerk:
        running = submit(clerk, spend(first, 1))
        await held.met.wait()
        passed_over = submit(clerk, spend(first, 2), spend(first, 3))
        served = await ask(clerk, *map(spend, others))
        assert set(kinds(served)) == {Outcome}
        # Enough of them to fill a batch, if they could begin.
        passed_over += submit(clerk, *(spend(first, 4 + n) for n in range(MANY)))
        await ask(clerk, *map(spend, others))
        assert not any(answer.done() for answer in running + passed_over)
        held.release()
        given = await answers(running + passed_over)
    assert [(a.entry.seq, a.entry.amount) for a in given] == [(n + 2, n + 1) for n in range(7)]
    assert not await database.faults()


async def test_users_that_were_passed_over_come_before_later_ones(database, proxy):
    first, *others = await funded(database, 1 + 3 * MANY)
    order = []
    commits = [proxy.on(COMMIT, Kind.HOLD, nth=nth) for nth in (1, 2)]
    async with small(proxy.url) as clerk:

        def note(command):
            (answer,) = submit(clerk, command)
            answer.add_done_callback(lambda _answer: order.append(command.user_id))
            return answer

        given = [note(spend(first))]
        await commits[0].met.wait()
        given.append(note(spend(first)))
        given += [note(spend(user_id)) for user_id in others[:MANY]]
        await commits[1].met.wait()
        # Both batches are in flight now; the user who was passed over is the first in the queue.
        given += [note(spend(user_id)) for user_id in others[MANY:]]
        commits[0].release()
        await eventually(lambda: len(order) > 1)
        commits[1].release()
        await answers(given)
    assert order[:2] == [first, first]


async def test_a_lane_has_no_more_than_two_batches_in_flight(database, proxy):
    users = await funded(database, 3 * MANY)
    async with small(proxy.url) as clerk:
        await connect_both(clerk, users)
        commits = proxy.on(COMMIT, Kind.HOLD, times=2)
        given = submit(clerk, *map(spend, users))
        await eventually(lambda: commits.seen == 2, every=0.005)
        assert await _in_transaction(database) == 2
        commits.release()
        assert set(kinds(await answers(given))) == {Outcome}
    assert await transactions(database) == 2 + 3


async def connect_both(clerk, users):
    """Opens both connections of a lane, which may take as long as the wait for a commit."""
    await ask(clerk, *map(spend, users[: 2 * MANY]))


async def _in_transaction(database):
    rows = await database.fetch(
        "SELECT FROM pg_stat_activity WHERE datname = current_database()"
        " AND state LIKE 'idle in transaction%'"
    )
    return len(rows)


@pytest.mark.parametrize("seed", range(3))
async def test_every_user_is_served_in_order_however_long_commits_take(database, monkeypatch, seed):
    chance = random.Random(seed)
    users = await funded(database, 12)
    running: Counter = Counter()
    together = []
    in_flight, most = 0, 0
    run = Transactions.run

    async def slowly(self, commands, way):
        """Runs a batch, and notes whether one of its users is already in another batch."""
        nonlocal in_flight, most
        mine = {command.user_id for command in commands}
        together.extend(mine & running.keys())
        running.update(mine)
        in_flight += 1
        most = max(most, in_flight)
        await asyncio.sleep(chance.uniform(0, 0.01))
        try:
            return await run(self, commands, way)
        finally:
            await asyncio.sleep(chance.uniform(0, 0.01))
            in_flight -= 1
            for user_id in mine:
                del running[user_id]

    monkeypatch.setattr(Transactions, "run", slowly)
    sent = {user_id: [] for user_id in users}
    waiting = []
    async with small(database.service_url) as clerk:
        for _ in range(60):
            for _ in range(chance.randrange(8)):
                command = spend(chance.choice(users))
                sent[command.user_id].append(command.idempotency_key)
                waiting += submit(clerk, command)
            await asyncio.sleep(chance.uniform(0, 0.003))
        assert set(kinds(await answers(waiting))) == {Outcome}
    assert most == 2
    assert not together
    for user_id, keys in sent.items():
        rows = await database.fetch(
            "SELECT idempotency_key FROM credit_transactions"
            " WHERE user_id = $1 AND seq > 1 ORDER BY seq",
            user_id,
        )
        assert [row[0] for row in rows] == keys
    assert not await database.faults()


@pytest.mark.parametrize("kind", LOSSES)
async def test_a_lost_commit_does_not_affect_the_batch_beside_it(database, proxy, kind):
    first, *others = await funded(database, 1 + MANY)
    commands = [spend(first, 7), *map(spend, others)]
    one, two = (proxy.on(UPDATE, Kind.HOLD, nth=nth) for nth in (1, 2))
    lost = proxy.on(COMMIT, kind)
    async with small(proxy.url) as clerk:
        running = submit(clerk, commands[0])
        await one.met.wait()
        running += submit(clerk, *commands[1:])
        await two.met.wait()
        one.release()
        given = await answers(running[:1])
        assert lost.met.is_set()
        assert not any(answer.done() for answer in running[1:])
        two.release()
        given += await answers(running[1:])
        assert set(kinds(given)) == {Outcome}
        assert not any(answer.replayed for answer in given)
        again = await ask(clerk, *commands)
    assert all(answer.replayed for answer in again)
    assert await written(database, *commands) == len(commands)
    assert not await database.faults()


@pytest.mark.parametrize("kind", LOSSES)
async def test_both_commits_in_flight_may_be_lost(database, proxy, kind):
    users = await funded(database, 2 * MANY)
    commands = [spend(user_id, 7) for user_id in users]
    proxy.on(COMMIT, kind, times=2)
    async with small(proxy.url) as clerk:
        given = await ask(clerk, *commands)
    assert set(kinds(given)) == {Outcome}
    assert not any(answer.replayed for answer in given)
    assert await written(database, *commands) == len(commands)
    assert not await database.faults()


async def test_a_batch_that_fails_does_not_affect_the_one_beside_it(database, proxy):
    first, *others = await funded(database, 1 + MANY)
    held = proxy.on(COMMIT, Kind.HOLD)
    async with small(proxy.url) as clerk:
        running = submit(clerk, spend(first))
        await held.met.wait()
        proxy.on("^BEGIN", Kind.CUT_BEFORE, times=100)
        assert set(kinds(await ask(clerk, *map(spend, others)))) == {LedgerUnavailable}
        held.release()
        assert kinds(await answers(running)) == [Outcome]
        proxy.forget()
        assert set(kinds(await ask(clerk, *map(spend, [first, *others])))) == {Outcome}
    assert not await database.faults()


async def test_a_lane_that_closes_waits_for_both_batches_and_the_queue(database, proxy):
    users = await funded(database, 2 * MANY)
    async with small(proxy.url) as clerk:
        await connect_both(clerk, users)
        commits = proxy.on(COMMIT, Kind.HOLD, times=2)
        given = submit(clerk, *map(spend, users))
        await eventually(lambda: commits.seen == 2, every=0.005)
        given += submit(clerk, *map(spend, users))
        closing = asyncio.create_task(clerk.of(users[0]).close())
        await asyncio.sleep(0)
        with pytest.raises(LedgerUnavailable):
            submit(clerk, spend(users[0]))
        commits.release()
        assert set(kinds(await answers(given))) == {Outcome}
        await closing
        assert await _in_transaction(database) == 0
    assert not await database.faults()


async def test_a_locked_row_holds_up_its_own_batch_and_not_the_one_beside_it(database):
    locked, *others = await funded(database, 1 + MANY)
    async with small(database.service_url) as clerk:
        async with database.locked(locked):
            [stuck] = submit(clerk, spend(locked))
            await eventually(database.waits_for_a_lock, every=0.005)
            served = await ask(clerk, *map(spend, others))
            assert set(kinds(served)) == {Outcome}
            assert not stuck.done()
        await answers([stuck])
    assert not await database.faults()
