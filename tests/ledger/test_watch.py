"""A live balance: a snapshot, then always the newest state, whichever process wrote it."""

import asyncio
from uuid import UUID, uuid4

import grpc
import pytest
from kit.callers import EVERY_ROLE, bearer
from kit.held_jobs import SHORT
from kit.listeners import Listener, listening
from kit.programs import process
from kit.refusals import refused
from kit.services import TERMS, running, server_settings
from kit.storm import connected
from kit.waiting import eventually, patience

from credit_service.client import CreditClient
from credit_service.errors import InvalidRequest, Overloaded, UserNotFound
from credit_service.ledger import watch
from credit_service.ledger.reads import Reads
from credit_service.ledger.watch import Watchers
from credit_service.ledger.watched_due import WatchedDue
from credit_service.rpc.access import Authenticator
from credit_service.rules.model import Account
from credit_service.v1 import credit_service_pb2 as pb


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


async def test_an_account_that_is_opened_meanwhile_is_shown(database, client):
    user_id = await database.user()
    async with listening(client, user_id) as listener:
        await listener.hears(lambda credit: (credit.balance, credit.seq) == (0, 0))
        await client.grant_credits(user_id, 5, reason="welcome")
        await listener.hears(lambda credit: (credit.balance, credit.seq) == (5, 1))


async def test_a_user_who_was_deleted_and_created_again_is_shown(database, client):
    """The new account counts its changes from one again, below the numbers shown before."""
    user_id = await database.user(100)
    await client.spend_credits(user_id, amount=1)
    async with listening(client, user_id) as listener:
        await listener.hears(lambda credit: credit.seq == 2)
        await database.execute("DELETE FROM auth.users WHERE id = $1", user_id)
        await database.execute("INSERT INTO auth.users (id) VALUES ($1)", user_id)
        await client.grant_credits(user_id, 5, reason="welcome")
        await listener.hears(lambda credit: (credit.balance, credit.seq) == (5, 1))


async def test_a_user_who_was_created_again_at_the_same_seq_is_shown(database, client):
    user_id = await database.user(100)
    async with listening(client, user_id) as listener:
        await listener.hears(lambda credit: (credit.balance, credit.seq) == (100, 1))
        await database.make_anew(user_id, 55)
        await listener.hears(lambda credit: (credit.balance, credit.seq) == (55, 1))


async def test_an_account_whose_time_went_back_is_shown(database, client):
    """The server's clock was set back, or a standby that lacks the last writes was promoted."""
    user_id = await database.user(100)
    await database.execute("UPDATE user_credits SET last_updated = now() + interval '1 hour'")
    async with listening(client, user_id) as listener:
        await listener.hears(lambda credit: (credit.balance, credit.seq) == (100, 1))
        await database.make_anew(user_id, 55)
        await listener.hears(lambda credit: (credit.balance, credit.seq) == (55, 1))


async def test_after_seq_resumes_where_the_stream_ended(database, client):
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
        assert current.received == []
        await client.spend_credits(user_id, amount=1)
        for listener in (current, behind, ahead, new):
            await listener.hears(lambda credit: credit.balance == 96)
    assert current.seqs == [5]


async def test_a_policy_set_before_a_stream_resumes_is_shown(database, client):
    user_id = await database.user(100)
    await client.set_account_policy(user_id, frozen=True)
    async with listening(client, user_id, after_seq=1) as listener:
        await listener.hears(lambda credit: credit.frozen)


async def test_changes_of_policy_and_the_end_of_holds_are_shown(database, client):
    user_id = await database.user(100)
    async with listening(client, user_id) as listener:
        await listener.hears(lambda credit: credit.seq == 1)
        await client.set_account_policy(user_id, frozen=True)
        await listener.hears(lambda credit: credit.frozen)
        await client.set_account_policy(user_id, min_balance=7)
        await listener.hears(lambda credit: credit.min_balance == 7)
        await client.set_account_policy(user_id, frozen=False)
        await listener.hears(lambda credit: not credit.frozen)
        await client.hold_credits(user_id, amount=9, ttl=SHORT)
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


async def test_two_hundred_watchers_all_get_the_last_state(database, service):
    users = [await database.user(1000) for _ in range(8)]
    client = await service.client()
    listeners = [Listener(client.watch_user_credit(users[n % 8])) for n in range(200)]
    try:
        await eventually(lambda: all(listener.received for listener in listeners), seconds=60)
        await asyncio.gather(
            *(client.spend_credits(user_id, amount=1) for user_id in users for _ in range(25))
        )
        await eventually(lambda: all(heard.last.balance == 975 for heard in listeners), seconds=60)
    finally:
        await asyncio.gather(*(listener.stop() for listener in listeners))
    for number, listener in enumerate(listeners):
        assert {credit.user_id for credit in listener.received} == {str(users[number % 8])}
        assert listener.seqs == sorted(set(listener.seqs))


async def test_a_watcher_that_does_not_read_delays_no_other(database, service, monkeypatch):
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
        # It misses steps but not the last one.
        seqs = [1]
        while seqs[-1] != 301:
            seqs.append((await deaf.read()).credit.seq)
        assert seqs == sorted(set(seqs))
        deaf.cancel()


async def test_a_listener_that_takes_nothing_keeps_one_state():
    """Each change replaces the one before, however many there are."""
    user_id = uuid4()
    watchers = Watchers(None, WatchedDue(None, TERMS))
    with watchers.watch(user_id) as slow, watchers.watch(user_id) as quick:
        watchers._polls += 1
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
    watchers = Watchers(None, WatchedDue(None, TERMS))
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


async def test_an_older_state_is_never_shown_after_a_newer_one(database, client, monkeypatch):
    """A poll has read the account; before it reports, a new watcher has read a later state."""
    user_id = await database.user(100)
    found, release = asyncio.Event(), asyncio.Event()
    changes = Reads.changes

    async def late(ledger, seen, take):
        accounts = []
        await changes(ledger, seen, accounts.append)
        if any(account.seq == 2 for account in accounts):
            found.set()
            await release.wait()
        for account in accounts:
            take(account)

    async with listening(client, user_id) as first:
        await first.hears(lambda credit: credit.seq == 1)
        monkeypatch.setattr(Reads, "changes", late)
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


async def test_unknown_users_and_bad_requests_are_refused(database, client):
    with pytest.raises(UserNotFound):
        await anext(client.watch_user_credit(uuid4()))
    with pytest.raises(InvalidRequest):
        await anext(client.watch_user_credit("nobody"))


@pytest.mark.parametrize("role", ["worker", "gateway", "bridge", "operator", "auditor"])
async def test_gateways_operators_and_auditors_may_watch(database, tmp_path, role):
    (tmp_path / "identities.toml").write_text(EVERY_ROLE)
    authenticator = Authenticator(tmp_path / "identities.toml")
    request = pb.WatchUserCreditRequest(user_id=str(await database.user(10)))
    async with (
        running(server_settings(database.service_url, authenticator=authenticator)) as service,
        connected(service.target) as stub,
    ):
        stream = stub.WatchUserCredit(request, metadata=bearer(role), timeout=patience(10))
        if role in ("gateway", "operator", "auditor"):
            assert (await stream.read()).credit.balance == 10
            stream.cancel()
        else:
            with pytest.raises(grpc.aio.AioRpcError) as failure:
                await stream.read()
            assert refused(failure.value).reason == "PERMISSION_DENIED"
