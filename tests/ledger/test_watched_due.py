"""Due changes of watched accounts are recorded in time, and many of them do not flood the lanes."""

import asyncio
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from uuid import UUID

import pytest
from kit.held_jobs import SHORT
from kit.listeners import Listener, listening
from kit.services import TERMS, running, server_settings
from kit.waiting import eventually

from credit_service.errors import Overloaded
from credit_service.ledger import sweeper
from credit_service.ledger.due_rounds import DueRounds
from credit_service.ledger.watched_due import WatchedDue
from credit_service.rules.grant_values import Allowance
from credit_service.rules.model import Account, Outcome

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)
SECOND = timedelta(seconds=1)
MONTHLY = replace(TERMS, allowance=Allowance(20, "month"))


@pytest.fixture(autouse=True)
def _no_sweeper(monkeypatch):
    async def never(*_):
        await asyncio.Event().wait()

    monkeypatch.setattr(sweeper, "sweep", never)


async def calls(database):
    rows = await database.fetch("SELECT call FROM credit_transactions ORDER BY user_id, seq")
    return [row[0] for row in rows]


async def test_a_watched_hold_ends_and_credits_lapse_in_time_with_seqs_of_their_own(
    database, client
):
    user_id = await database.user(100)
    async with listening(client, user_id) as listener:
        await listener.hears(lambda credit: credit.seq == 1)
        await client.grant_credits(user_id, 40, reason="campaign", valid_for=2 * SHORT)
        await client.hold_credits(user_id, amount=60, ttl=SHORT)
        await listener.hears(lambda credit: (credit.balance, credit.held) == (140, 60))
        await listener.hears(lambda credit: (credit.balance, credit.held) == (100, 0))
        assert listener.last == await client.get_user_credit(user_id)
    assert listener.seqs == sorted(set(listener.seqs))
    assert (await calls(database))[3:] == ["expiry", "lapse"]
    assert not await database.faults()


async def test_an_allowance_reaches_a_watcher_with_a_seq_of_its_own(database):
    user_id = await database.user()
    async with running(server_settings(database.service_url, terms=MONTHLY)) as service:
        client = await service.client()
        async with listening(client, user_id) as listener, listening(client, user_id) as other:
            for each in (listener, other):
                await each.hears(lambda credit: (credit.balance, credit.seq) == (20, 1))
            # The period ends while the account is watched.
            await database.execute(
                "UPDATE user_credits SET last_updated = now(),"
                " allowance_until = now() + interval '1 second'"
            )
            for each in (listener, other):
                await each.hears(lambda credit: (credit.balance, credit.seq) == (40, 2))
        shown = dict.fromkeys((credit.seq, credit.balance) for credit in listener.received)
        assert list(shown) == [(1, 20), (2, 40)]
    assert await calls(database) == ["allowance", "allowance"]
    assert not await database.faults()


async def test_a_change_due_before_a_stream_resumes_is_reported_as_a_new_state(database):
    user_id = await database.user(100)
    async with running(server_settings(database.service_url)) as service:
        client = await service.client()
        await client.hold_credits(user_id, amount=60, ttl=SECOND)
        await eventually(
            lambda: database.fetch("SELECT FROM credit_holds WHERE expires_at < now()")
        )
        assert (await client.get_user_credit(user_id)).seq == 2
        async with listening(client, user_id, after_seq=2) as listener:
            await listener.hears(lambda credit: (credit.seq, credit.held) == (3, 0))
    assert listener.seqs == [3]


async def test_an_account_that_stays_locked_delays_no_other(database, service):
    users = [await database.user(100) for _ in range(5)]
    client = await service.client()
    listeners = [Listener(client.watch_user_credit(user_id)) for user_id in users]
    for user_id in users:
        await client.hold_credits(user_id, amount=60, ttl=SHORT)
    await eventually(lambda: all(heard.last and heard.last.held == 60 for heard in listeners))
    async with database.locked(users[0]):
        for listener in listeners[1:]:
            await listener.hears(lambda credit: (credit.held, credit.seq) == (0, 3))
    for listener in listeners:
        await listener.stop()


class CountedRounds:
    """Rounds of three users; those in `busy` are not recorded."""

    size = 3

    def __init__(self):
        self.asked = []
        self.running = 0
        self.busy = set()

    async def record(self, users, *, watched):
        assert watched
        assert not self.running
        self.running += 1
        await asyncio.sleep(0)
        self.running -= 1
        self.asked.append(users)
        return {
            user: Overloaded()
            if user in self.busy
            else Outcome(None, Account(user, seq=1), replayed=False)
            for user in users
        }


@asynccontextmanager
async def watching_over(*accounts):
    rounds = CountedRounds()
    due = WatchedDue(rounds, TERMS)
    for account in accounts:
        due.add(account.user_id)
        due.plan(account)
    task = asyncio.create_task(due.record())
    yield due, rounds
    task.cancel()


def _accounts(count, time=NOON):
    return [Account(UUID(int=number), next_lapse=time) for number in range(count)]


async def test_many_accounts_due_at_one_instant_are_recorded_in_rounds_one_after_another():
    accounts = _accounts(1000)
    async with watching_over(*accounts) as (due, rounds):
        due.look(NOON - SECOND)
        assert not due._due
        due.look(NOON)
        assert not due.is_planned
        await asyncio.gather(*(due.recorded(account.user_id) for account in accounts))
        due.look(NOON + SECOND)
        assert not due._due
    assert max(map(len, rounds.asked)) == CountedRounds.size
    asked = [user for users in rounds.asked for user in users]
    assert asked == [account.user_id for account in accounts]


async def test_an_account_that_could_not_be_recorded_is_tried_again_later():
    (account,) = _accounts(1)
    async with watching_over(account) as (due, rounds):
        rounds.busy.add(account.user_id)
        due.look(NOON)
        await due.recorded(account.user_id)
        due.look(NOON + SECOND)
        assert len(rounds.asked) == 1
        rounds.busy.clear()
        due.look(NOON + 10 * SECOND)
        assert list(due._due) == [account.user_id]
        await due.recorded(account.user_id)
        assert len(rounds.asked) == 2
        assert not due.is_planned


async def test_an_account_with_more_due_than_a_batch_settles_is_sent_again():
    (account,) = _accounts(1)
    async with watching_over(account) as (due, _):
        due._note = lambda answers: (WatchedDue._note(due, answers), due.plan(account))
        due.look(NOON)
        await due.recorded(account.user_id)
        assert due.is_planned


async def test_a_clock_that_is_set_back_only_delays_the_recording():
    (account,) = _accounts(1)
    async with watching_over(account) as (due, rounds):
        due.look(NOON - SECOND)
        due.look(NOON - 3600 * SECOND)
        assert not due._due
        due.look(NOON)
        await due.recorded(account.user_id)
    assert rounds.asked == [[account.user_id]]


async def test_a_user_who_is_no_longer_watched_is_forgotten():
    (account,) = _accounts(1)
    async with watching_over(account) as (due, rounds):
        due.remove(account.user_id)
        due.look(NOON)
        due.plan(account)
        assert not due._times
        assert not due._due
    assert not rounds.asked


class SlowLedger:
    """Counts how many of its commands wait at the same time."""

    def __init__(self):
        self.waiting = self.most = 0

    def enqueue(self, command, _seconds):
        self.waiting += 1
        self.most = max(self.most, self.waiting)
        return asyncio.create_task(self._answer(command))

    async def _answer(self, command):
        await asyncio.sleep(0.001)
        self.waiting -= 1
        return Outcome(None, Account(command.user_id), replayed=False)


async def test_the_sweeper_and_the_watch_never_have_two_rounds_at_a_time():
    ledger = SlowLedger()
    rounds = DueRounds(ledger)
    users = [UUID(int=number) for number in range(50)]
    await asyncio.gather(
        *(rounds.record(users, watched=watched) for watched in (True, False) for _ in range(3))
    )
    assert ledger.most == len(users)
