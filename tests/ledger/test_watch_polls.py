"""Polls serve the watchers: what they bring, what they cost, what they outlast."""

from kit.fault_proxy import Kind
from kit.listeners import POLL, Listener, listening
from kit.programs import free_port
from kit.services import running, server_settings
from kit.waiting import eventually

from credit_service.client import CreditClient
from credit_service.ledger import store
from credit_service.ledger.reads import Reads


async def test_a_drain_ends_the_streams_and_the_next_server_resumes_them(database):
    """The changes of the meantime come first, a change of policy among them."""
    user_id = await database.user(100)
    port = free_port()
    settings = server_settings(database.service_url, listen=f"127.0.0.1:{port}", drain_seconds=600)
    async with CreditClient(f"127.0.0.1:{port}") as client:
        async with running(settings) as service:
            patient = Listener(client.watch_user_credit(user_id, after_seq=1))

            async def a_change_without_a_seq_is_told():
                await client.set_account_policy(user_id, min_balance=1)
                return patient.received

            await eventually(a_change_without_a_seq_is_told)
            listeners = [Listener(client.watch_user_credit(user_id)) for _ in range(20)]
            await eventually(lambda: all(listener.received for listener in listeners))
            elsewhere = server_settings(database.service_url)
            service.stop.set()
            # Long before the end of the time that calls in flight would get.
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
        assert [credit.frozen for credit in listener.received] == [False, True, False]


async def test_a_poll_brings_only_changed_accounts(database, client, monkeypatch):
    user_id = await database.user(100)
    brought = []
    changes = Reads.changes

    async def counted(ledger, seen, take):
        accounts = []
        await changes(ledger, seen, accounts.append)
        brought.append(len(accounts))
        for account in accounts:
            take(account)

    async def rests_after(count):
        await eventually(lambda: sum(brought) >= count and brought[-3:] == [0, 0, 0])
        assert sum(brought) == count

    monkeypatch.setattr(Reads, "changes", counted)
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


async def test_without_watchers_there_is_no_poll(database, proxy):
    user_id = await database.user(100)
    async with running(server_settings(proxy.url)) as service:
        client = await service.client()
        polls = proxy.on(POLL, Kind.HOLD, nth=10**9)
        probes = proxy.on("^SHOW transaction_read_only$", Kind.HOLD, nth=10**9)
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
        await eventually(lambda: all(listener.received for listener in listeners))
        polls = proxy.on(POLL, Kind.HOLD)
        await eventually(polls.met.is_set)
        for user_id in users:
            await client.spend_credits(user_id, amount=1)
        assert polls.seen == 1
        counted = proxy.on(POLL, Kind.HOLD, nth=2)
        polls.release()
        # The first poll began before the spends or after; the next one reports all of them.
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
                for text in (
                    POLL,
                    "^SHOW transaction_read_only$",
                    "^" + store.SQL["find_due_users"][:20],
                )
            ]
            before = everything.seen - sum(read.seen for read in reads)
            await client.spend_credits(user_id, amount=1)
            after = everything.seen - sum(read.seen for read in reads)
            return after - before

        async def least_statements_of_a_spend():
            # Other statements of the process only add to them.
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


async def test_watchers_outlast_an_unforeseen_fault(database, proxy):
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
