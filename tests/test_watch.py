"""A live balance: a snapshot and then every last state, from whichever process it comes."""

import asyncio
import re
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from uuid import UUID, uuid4

import grpc
import pytest
from callers import EVERY_ROLE, bearer
from fault_proxy import Kind
from harness import eventually, free_port, process, refused, running, server_settings
from storm import connected

from credit_service import store, watch
from credit_service.access import Doorkeeper
from credit_service.client import CreditClient
from credit_service.errors import InvalidRequest, Overloaded, UserNotFound
from credit_service.ledger import Ledger
from credit_service.model import Account
from credit_service.v1 import credit_service_pb2 as pb
from credit_service.watch import Watchers, is_newer

POLL = "^" + re.escape(store.SQL["changed_accounts"].splitlines()[0])


class Listener:
    """Takes in a stream and remembers what it was told."""

    def __init__(self, stream):
        self.told = []
        self._task = asyncio.create_task(self._listen(stream))

    async def _listen(self, stream):
        async for credit in stream:
            self.told.append(credit)

    @property
    def seqs(self):
        return [credit.seq for credit in self.told]

    @property
    def last(self):
        return self.told[-1] if self.told else None

    async def hears(self, claim):
        """Waits until the newest state is as claimed."""
        await eventually(lambda: self.told and claim(self.told[-1]))

    async def stop(self):
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)


@asynccontextmanager
async def listening(client, user_id, **options):
    listener = Listener(client.watch_user_credit(user_id, **options))
    try:
        yield listener
    finally:
        await listener.stop()


async def test_a_snapshot_comes_first_and_then_the_changes(database, client):
    user_id = await database.user(100)
    async with listening(client, user_id) as listener:
        await listener.hears(lambda credit: credit.seq == 1)
        assert listener.last == await client.get_user_credit(user_id)
        await client.spend_credits(user_id, amount=30)
        await listener.hears(lambda credit: credit.balance == 70)
        await client.hold_credits(user_id, amount=20)
        await listener.hears(lambda credit: (credit.held, credit.available) == (20, 50))
        assert listener.last == await client.get_user_credit(user_id)
    assert listener.seqs == [1, 2, 3]


async def test_an_account_that_is_opened_meanwhile_is_told(database, client):
    user_id = await database.user()
    async with listening(client, user_id) as listener:
        await listener.hears(lambda credit: (credit.balance, credit.seq) == (0, 0))
        await client.grant_credits(user_id, 5, reason="welcome")
        await listener.hears(lambda credit: (credit.balance, credit.seq) == (5, 1))


async def test_a_user_who_was_deleted_and_made_anew_is_told_of(database, client):
    """The new account counts its changes from one again, below what was told before."""
    user_id = await database.user(100)
    await client.spend_credits(user_id, amount=1)
    async with listening(client, user_id) as listener:
        await listener.hears(lambda credit: credit.seq == 2)
        await database.execute("DELETE FROM auth.users WHERE id = $1", user_id)
        await database.execute("INSERT INTO auth.users (id) VALUES ($1)", user_id)
        await client.grant_credits(user_id, 5, reason="welcome")
        await listener.hears(lambda credit: (credit.balance, credit.seq) == (5, 1))


async def test_after_seq_takes_up_where_it_was_left(database, client):
    user_id = await database.user(100)
    for _ in range(3):
        await client.spend_credits(user_id, amount=1)
    async with (
        listening(client, user_id, after_seq=4) as current,
        listening(client, user_id, after_seq=2) as behind,
        listening(client, user_id, after_seq=9) as ahead,
        listening(client, user_id) as new,
    ):
        await behind.hears(lambda credit: credit.seq == 4)
        await ahead.hears(lambda credit: credit.seq == 4)
        await new.hears(lambda credit: credit.seq == 4)
        assert current.told == []
        await client.spend_credits(user_id, amount=1)
        for listener in (current, behind, ahead, new):
            await listener.hears(lambda credit: credit.balance == 96)
    assert current.seqs == [5]


async def test_a_policy_set_before_a_stream_is_taken_up_is_told(database, client):
    user_id = await database.user(100)
    await client.set_account_policy(user_id, frozen=True)
    async with listening(client, user_id, after_seq=1) as listener:
        await listener.hears(lambda credit: credit.frozen)


async def test_changes_of_policy_and_the_end_of_holds_are_told(database, client):
    user_id = await database.user(100)
    async with listening(client, user_id) as listener:
        await listener.hears(lambda credit: credit.seq == 1)
        await client.set_account_policy(user_id, frozen=True)
        await listener.hears(lambda credit: credit.frozen)
        await client.set_account_policy(user_id, min_balance=7)
        await listener.hears(lambda credit: credit.min_balance == 7)
        await client.set_account_policy(user_id, frozen=False)
        await listener.hears(lambda credit: not credit.frozen)
        await client.hold_credits(user_id, amount=9, ttl=timedelta(seconds=1))
        await listener.hears(lambda credit: credit.held == 9)
        await listener.hears(lambda credit: credit.held == 0)


async def test_a_change_through_another_process_arrives(database, client):
    user_id = await database.user(100)
    with process("serve", CREDIT_DATABASE_URL=database.service_url) as server:
        target = f"127.0.0.1:{await asyncio.to_thread(server.wait_until_listening)}"
        async with CreditClient(target) as other, listening(client, user_id) as listener:
            await listener.hears(lambda credit: credit.seq == 1)
            for n in range(1, 6):
                spend = await other.spend_credits(user_id, amount=1)
                assert spend.credit.balance == 100 - n
                await listener.hears(lambda credit, n=n: credit.balance == 100 - n)


async def test_two_hundred_watchers_all_hear_the_last_state(database, service):
    users = [await database.user(1000) for _ in range(8)]
    client = await service.client()
    listeners = [Listener(client.watch_user_credit(users[n % 8])) for n in range(200)]
    try:
        await eventually(lambda: all(listener.told for listener in listeners), seconds=60)
        await asyncio.gather(
            *(client.spend_credits(user_id, amount=1) for user_id in users for _ in range(25))
        )
        await eventually(lambda: all(heard.last.balance == 975 for heard in listeners), seconds=60)
    finally:
        await asyncio.gather(*(listener.stop() for listener in listeners))
    for number, listener in enumerate(listeners):
        assert {credit.user_id for credit in listener.told} == {str(users[number % 8])}
        assert listener.seqs == sorted(set(listener.seqs))


async def test_a_watcher_that_does_not_read_delays_nobody(database, service, monkeypatch):
    user_id = await database.user(10_000)
    monkeypatch.setattr(watch, "POLL_SECONDS", 0.001)
    client = await service.client()
    async with connected(service.target) as stub:
        deaf = stub.WatchUserCredit(pb.WatchUserCreditRequest(user_id=str(user_id)))
        assert (await deaf.read()).credit.seq == 1
        async with listening(client, user_id) as listener:
            for _ in range(30):
                await asyncio.gather(*(client.spend_credits(user_id, amount=1) for _ in range(10)))
            await listener.hears(lambda credit: credit.balance == 9700)
        # It misses steps and not the last one.
        seqs = [1]
        while seqs[-1] != 301:
            seqs.append((await deaf.read()).credit.seq)
        assert seqs == sorted(set(seqs))
        deaf.cancel()


async def test_a_listener_that_takes_nothing_keeps_one_state():
    """However many changes pass by, the newest takes the place of the one before."""
    user_id = uuid4()
    watchers = Watchers(ledger=None)
    with watchers.watch(user_id) as slow, watchers.watch(user_id) as quick:
        for seq in range(1, 1000):
            watchers._tell(Account(user_id, seq=seq))
            assert (await quick.next()).seq == seq
        assert (await slow.next()).seq == 999
        waiting = asyncio.create_task(slow.next())
        await asyncio.sleep(0)
        assert not waiting.done()
        watchers._tell(Account(user_id, seq=1000))
        assert (await waiting).seq == 1000
    assert not watchers._watchers
    assert not watchers._seen


async def test_more_listeners_than_a_process_takes_are_refused(monkeypatch):
    monkeypatch.setattr(watch, "WATCHERS_MAX", 2)
    watchers = Watchers(ledger=None)
    user_id = UUID(int=1)
    with (
        watchers.watch(user_id),
        watchers.watch(user_id),
        pytest.raises(Overloaded),
        watchers.watch(user_id),
    ):
        pass
    with watchers.watch(user_id):
        pass


async def test_an_older_state_is_never_told_after_a_newer_one(database, client, monkeypatch):
    """A poll has read the account, and before it tells, a newcomer has read a later state."""
    user_id = await database.user(100)
    found, release = asyncio.Event(), asyncio.Event()
    changes = Ledger.changes

    async def late(ledger, seen):
        accounts = await changes(ledger, seen)
        if any(account.seq == 2 for account in accounts):
            found.set()
            await release.wait()
        return accounts

    async with listening(client, user_id) as first:
        await first.hears(lambda credit: credit.seq == 1)
        monkeypatch.setattr(Ledger, "changes", late)
        await client.spend_credits(user_id, amount=1)
        await found.wait()
        await client.spend_credits(user_id, amount=1)
        async with listening(client, user_id) as second:
            await second.hears(lambda credit: credit.seq == 3)
            release.set()
            await first.hears(lambda credit: credit.seq == 3)
            await client.spend_credits(user_id, amount=1)
            await second.hears(lambda credit: credit.seq == 4)
    assert first.seqs == [1, 2, 3, 4]
    assert second.seqs == [3, 4]


def test_states_are_ordered_by_the_book():
    user_id = uuid4()
    nothing = Account(user_id)
    bought = Account(user_id, balance=5, seq=1, last_updated=_time(1))
    frozen = Account(
        user_id, balance=5, seq=1, last_updated=_time(2), frozen=True, policy_changes=1
    )
    thawed = Account(user_id, balance=5, seq=1, last_updated=_time(2), policy_changes=2)
    at_once = Account(user_id, balance=4, seq=2, last_updated=_time(2), policy_changes=2)
    made_anew = Account(user_id, balance=1, seq=1, last_updated=_time(3))
    states = [nothing, bought, frozen, thawed, at_once, made_anew]
    for place, told in enumerate(states):
        assert not is_newer(told, told)
        for later in states[place + 1 :]:
            assert is_newer(later, told)
            assert not is_newer(told, later)


def _time(second):
    return datetime(2026, 1, 1, 12, 0, second, tzinfo=UTC)


async def test_unknown_users_and_bad_requests_are_refused(database, client):
    with pytest.raises(UserNotFound):
        await anext(client.watch_user_credit(uuid4()))
    with pytest.raises(InvalidRequest):
        await anext(client.watch_user_credit("nobody"))


@pytest.mark.parametrize("role", ["worker", "gateway", "bridge", "operator", "auditor"])
async def test_gateways_operators_and_auditors_may_watch(database, tmp_path, role):
    (tmp_path / "identities.toml").write_text(EVERY_ROLE)
    doorkeeper = Doorkeeper(tmp_path / "identities.toml")
    request = pb.WatchUserCreditRequest(user_id=str(await database.user(10)))
    async with (
        running(server_settings(database.service_url, doorkeeper=doorkeeper)) as service,
        connected(service.target) as stub,
    ):
        stream = stub.WatchUserCredit(request, metadata=bearer(role), timeout=10)
        if role in ("gateway", "operator", "auditor"):
            assert (await stream.read()).credit.balance == 10
            stream.cancel()
        else:
            with pytest.raises(grpc.aio.AioRpcError) as failure:
                await stream.read()
            assert refused(failure.value).reason == "PERMISSION_DENIED"


async def test_a_drain_ends_the_streams_and_the_next_server_takes_them_up(database):
    """What changed while nobody told of it is told first, a change of policy too."""
    user_id = await database.user(100)
    port = free_port()
    settings = server_settings(database.service_url, listen=f"127.0.0.1:{port}", drain_seconds=600)
    async with CreditClient(f"127.0.0.1:{port}") as client:
        async with running(settings) as service:
            patient = Listener(client.watch_user_credit(user_id, after_seq=1))

            async def a_change_without_a_seq_is_told():
                await client.set_account_policy(user_id, min_balance=1)
                return patient.told

            await eventually(a_change_without_a_seq_is_told)
            listeners = [Listener(client.watch_user_credit(user_id)) for _ in range(20)]
            await eventually(lambda: all(listener.told for listener in listeners))
            elsewhere = server_settings(database.service_url)
            service.stop.set()
            # Long before the time is over that calls in flight would get.
        async with running(elsewhere) as other:
            await (await other.client()).set_account_policy(user_id, frozen=True)
        async with running(settings):
            for listener in (*listeners, patient):
                await listener.hears(lambda credit: credit.frozen)
            await client.set_account_policy(user_id, frozen=False)
            for listener in (*listeners, patient):
                await listener.hears(lambda credit: not credit.frozen)
                await listener.stop()
    for listener in listeners:
        assert [credit.frozen for credit in listener.told] == [False, True, False]


async def test_a_poll_brings_only_what_changed(database, client, monkeypatch):
    user_id = await database.user(100)
    brought = []
    changes = Ledger.changes

    async def counted(ledger, seen):
        accounts = await changes(ledger, seen)
        brought.append(len(accounts))
        return accounts

    async def rests_after(count):
        await eventually(lambda: sum(brought) >= count and brought[-3:] == [0, 0, 0])
        assert sum(brought) == count

    monkeypatch.setattr(Ledger, "changes", counted)
    async with listening(client, user_id) as listener:
        await rests_after(1)
        await client.spend_credits(user_id, amount=1)
        await rests_after(2)
        async with listening(client, user_id) as newcomer:
            await rests_after(3)
            await client.spend_credits(user_id, amount=1)
            await rests_after(4)
            await newcomer.hears(lambda credit: credit.seq == 3)
    assert listener.seqs == [1, 2, 3]
    assert newcomer.seqs == [2, 3]


async def test_nobody_who_watches_means_no_poll(database, proxy):
    user_id = await database.user(100)
    async with running(server_settings(proxy.url)) as service:
        client = await service.client()
        polls = proxy.on(POLL, Kind.HOLD, nth=10**9)
        probes = proxy.on("^SELECT 1$", Kind.HOLD, nth=10**9)
        await eventually(lambda: probes.seen >= 2)
        assert polls.seen == 0
        async with listening(client, user_id) as listener:
            await listener.hears(lambda credit: credit.seq == 1)
            await eventually(lambda: polls.seen >= 3)
        # The last one may still be on its way when the listener goes.
        await eventually(lambda: _stands_still(polls, probes))


async def _stands_still(polls, probes):
    before, probed = polls.seen, probes.seen
    await eventually(lambda: probes.seen >= probed + 1)
    return polls.seen == before


async def test_one_poll_serves_all_watched_users(database, proxy):
    users = [await database.user(100) for _ in range(12)]
    async with running(server_settings(proxy.url)) as service:
        client = await service.client()
        listeners = [Listener(client.watch_user_credit(user_id)) for user_id in users]
        await eventually(lambda: all(listener.told for listener in listeners))
        polls = proxy.on(POLL, Kind.HOLD)
        await eventually(polls.met.is_set)
        for user_id in users:
            await client.spend_credits(user_id, amount=1)
        assert polls.seen == 1
        counted = proxy.on(POLL, Kind.HOLD, nth=2)
        polls.release()
        # The first poll began before the spends or after; with the next one all are told.
        await eventually(counted.met.is_set)
        await eventually(lambda: all(listener.last.balance == 99 for listener in listeners))
        proxy.forget()
        for listener in listeners:
            await listener.stop()


async def test_writers_pay_nothing_for_watchers(database, proxy):
    """The transaction of a spend has the same statements, watched or not."""
    user_id = await database.user(100)
    async with running(server_settings(proxy.url, lanes=1)) as service:
        client = await service.client()

        async def statements_of_a_spend():
            everything = proxy.on("", Kind.HOLD, nth=10**9)
            reads = [
                proxy.on(text, Kind.HOLD, nth=10**9)
                for text in (POLL, "^SELECT 1$", "^" + store.SQL["find_due_users"][:20])
            ]
            before = everything.seen - sum(read.seen for read in reads)
            await client.spend_credits(user_id, amount=1)
            after = everything.seen - sum(read.seen for read in reads)
            return after - before

        async def least_statements_of_a_spend():
            # Whatever else the process asks meanwhile only adds to them.
            return min([await statements_of_a_spend() for _ in range(5)])

        await client.spend_credits(user_id, amount=1)
        unwatched = await least_statements_of_a_spend()
        async with listening(client, user_id) as listener:
            await listener.hears(lambda credit: credit.seq == 7)
            watched = await least_statements_of_a_spend()
            await listener.hears(lambda credit: credit.seq == 12)
    assert unwatched == watched > 3


async def test_watchers_outlast_a_database_that_is_away(database, proxy):
    user_id = await database.user(100)
    async with running(server_settings(proxy.url)) as service:
        client = await service.client()
        async with listening(client, user_id) as listener:
            await listener.hears(lambda credit: credit.seq == 1)
            cut = proxy.on(POLL, Kind.CUT_BEFORE)
            await cut.met.wait()
            proxy.cut_all()
            proxy.black_hole()
            connection = await database.connect()
            await connection.close()
            proxy.heal()
            await client.spend_credits(user_id, amount=1, idempotency_key="spend:1:1")
            await listener.hears(lambda credit: credit.balance == 99)


async def test_watchers_outlast_a_fault_that_nobody_foresees(database, proxy):
    user_id = await database.user(100)
    async with running(server_settings(proxy.url)) as service:
        client = await service.client()
        async with listening(client, user_id) as listener:
            await listener.hears(lambda credit: credit.seq == 1)
            await database.execute("REVOKE SELECT ON credit_holds FROM credit_service")
            polls = proxy.on(POLL, Kind.HOLD, nth=10**9)
            await eventually(lambda: polls.seen >= 2)
            await database.execute("GRANT SELECT ON credit_holds TO credit_service")
            await client.spend_credits(user_id, amount=1)
            await listener.hears(lambda credit: credit.balance == 99)
