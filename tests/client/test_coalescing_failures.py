"""A failure of one of the calls that are made together affects its caller alone."""

import asyncio
import signal

import pytest
from kit.call_proxy import call_proxy
from kit.fault_proxy import COMMIT, Kind
from kit.programs import free_port, process
from kit.services import running, server_settings
from kit.waiting import eventually, patience

from credit_service.client import CreditClient, coalescing
from credit_service.errors import OutcomeUnknown


@pytest.fixture
async def relay(service):
    async with call_proxy(service.target) as proxy:
        yield proxy


def client_of(target, **options):
    options.setdefault("deadline_seconds", patience(10))
    return CreditClient(target, coalesce=True, **options)


async def users(database, count, credits_=100):
    async with database.kept_open() as connected:
        return [await connected.user(credits_) for _ in range(count)]


def spends(client, user_ids):
    """Begins a spend of each user, with the user's id as its key."""
    return [
        asyncio.create_task(client.spend_credits(user_id, amount=1, idempotency_key=str(user_id)))
        for user_id in user_ids
    ]


async def charges(database, user_ids):
    """How often each user has been charged."""
    rows = await database.fetch(
        "SELECT user_id, count(*) FILTER (WHERE type = 'spend') FROM credit_transactions"
        " WHERE user_id = ANY($1) GROUP BY user_id",
        user_ids,
    )
    found = dict(rows)
    return [found[user_id] for user_id in user_ids]


async def held_up(relay, client, user_ids):
    """Begins a spend of each user and waits until all are sent, and held up on their way."""
    relay.flowing.clear()
    tasks = spends(client, user_ids)
    await eventually(lambda: len(relay.keys) == len(user_ids), every=0.01)
    assert "CallMany" in relay.methods
    return tasks


# Cancellation.


async def test_a_call_that_is_cancelled_before_it_is_sent_is_not_made(database, relay):
    user_ids = await users(database, 10)
    async with client_of(relay.target) as client:
        sent = await held_up(relay, client, user_ids)
        # These wait for the answers to the calls of the same users.
        waiting = [
            asyncio.create_task(
                client.spend_credits(user_id, amount=1, idempotency_key=f"second:{user_id}")
            )
            for user_id in user_ids
        ]
        await asyncio.sleep(0)
        for task in waiting[:5]:
            task.cancel()
        relay.flowing.set()
        await asyncio.gather(*sent, *waiting[5:])
        assert all(task.cancelled() for task in waiting[:5])
    assert await charges(database, user_ids) == [1] * 5 + [2] * 5
    assert len(relay.keys) == 15


async def test_a_call_that_is_cancelled_after_it_is_sent_leaves_the_others_alone(database, relay):
    user_ids = await users(database, 10)
    async with client_of(relay.target) as client:
        tasks = await held_up(relay, client, user_ids)
        for task in tasks[5:]:
            task.cancel()
        await asyncio.wait(tasks[5:])
        relay.flowing.set()
        answers = await asyncio.gather(*tasks[:5])
        assert {answer.credit.balance for answer in answers} == {99}
        # The client goes on, also for the users whose calls were cancelled.
        again = await asyncio.gather(*spends(client, user_ids))
    assert [answer.replayed for answer in again] == [True] * 10
    assert await charges(database, user_ids) == [1] * 10
    assert relay.cancelled == []


async def test_a_request_whose_callers_have_all_gone_is_cancelled(database, relay):
    user_ids = await users(database, 10)
    async with client_of(relay.target) as client:
        tasks = await held_up(relay, client, user_ids)
        for task in tasks:
            task.cancel()
        await eventually(lambda: "CallMany" in relay.cancelled)
        relay.flowing.set()
        await asyncio.wait(tasks)
        # The users are free for the next calls.
        answers = await asyncio.gather(*spends(client, user_ids))
    assert [answer.replayed for answer in answers] == [False] * 10


async def test_closing_the_client_cancels_the_calls_in_flight(database, relay):
    user_ids = await users(database, 10)
    client = client_of(relay.target)
    sent = await held_up(relay, client, user_ids)
    waiting = spends(client, user_ids)
    await asyncio.sleep(0)
    await client.close()
    await asyncio.wait([*sent, *waiting])
    assert all(task.cancelled() for task in (*sent, *waiting))
    with pytest.raises(RuntimeError, match="closed"):
        await client.spend_credits(user_ids[0], amount=1)


async def test_a_loop_that_ends_with_calls_in_flight_leaves_the_client_to_the_next(database, relay):
    user_ids = await users(database, 10)
    client = client_of(relay.target)

    async def cut_off():
        spends(client, user_ids)
        await eventually(lambda: "CallMany" in relay.methods, every=0.01)

    async def answered():
        answers = await asyncio.gather(*spends(client, user_ids))
        await client.close()
        return answers

    relay.flowing.clear()
    await asyncio.to_thread(asyncio.run, cut_off())
    relay.flowing.set()
    answers = await asyncio.to_thread(asyncio.run, answered())
    assert {answer.credit.balance for answer in answers} == {99}


# Deadlines and locks.


async def test_a_locked_account_delays_its_own_caller_alone(database):
    locked, *others = await users(database, 20)
    await database.wait_longer_for_locks()
    async with (
        running(server_settings(database.service_url)) as service,
        call_proxy(service.target) as relay,
        client_of(relay.target, deadline_seconds=patience(60)) as client,
    ):
        relay.flowing.clear()
        first = spends(client, others[:1])
        await eventually(lambda: relay.keys, every=0.01)
        async with database.locked(locked):
            (delayed,) = spends(client, [locked])
            rest = spends(client, others[1:])
            relay.flowing.set()
            await asyncio.gather(*first, *rest)
            # So do calls made meanwhile.
            answers = await asyncio.gather(
                *(client.spend_credits(user_id, amount=1) for user_id in others)
            )
            assert {answer.credit.balance for answer in answers} == {98}
        # The service may have asked for more retries than the client makes.
        await asyncio.wait([delayed])
        (again,) = await asyncio.gather(*spends(client, [locked]))
        assert again.transaction.balance_after == 99
    assert await charges(database, [locked]) == [1]
    # Calls made meanwhile may be as many in one request, too.
    sizes = [
        len(request.items)
        for method, request in relay.received
        if method == "CallMany" and str(locked) in [item.spend.user_id for item in request.items]
    ]
    assert sizes[0] == 19


async def test_requests_that_stay_unanswered_do_not_hold_up_other_calls(database, relay):
    """They are more than may be unanswered at once, as when each is of a locked account."""
    *slow, other = await users(database, 10)
    async with client_of(relay.target) as client:
        stuck = relay.flowing
        stuck.clear()
        delayed = []
        for user_id in slow:
            delayed += spends(client, [user_id])
            await eventually(lambda key=str(user_id): key in relay.keys, every=0.01)
        # Requests that have arrived stay held up; later ones pass.
        relay.flowing = asyncio.Event()
        relay.flowing.set()
        assert (await client.spend_credits(other, amount=1)).credit.balance == 99
        assert not any(task.done() for task in delayed)
        stuck.set()
        await asyncio.gather(*delayed)
    assert len(relay.received) > coalescing.REQUESTS_MAX


async def test_a_deadline_that_passes_is_that_of_its_caller_alone(database, relay):
    """Two calls are in one request, the second made half a deadline after the first."""
    (user_id,) = await users(database, 1)
    seconds = patience(1)
    async with client_of(relay.target, deadline_seconds=seconds) as client:

        def spend(key):
            return asyncio.create_task(client.spend_credits(user_id, amount=1, idempotency_key=key))

        before = relay.flowing
        before.clear()
        sent, early = spend("sent"), spend("early")
        await asyncio.sleep(seconds / 2)
        late = spend("late")
        await asyncio.sleep(0)
        relay.flowing = asyncio.Event()
        before.set()
        await sent
        await eventually(lambda: relay.keys == ["sent", "early", "late"], every=0.01)
        assert relay.methods == ["SpendCredits", "CallMany"]
        with pytest.raises(OutcomeUnknown) as unknown:
            await early
        assert unknown.value.key == "early"
        assert not late.done()
        relay.flowing.set()
        assert (await late).transaction.idempotency_key == "late"


# A service that is killed.


async def test_a_kill_between_commit_and_answer_is_ridden_out(database, proxy):
    user_ids = await users(database, 40)
    port = free_port()
    environment = {
        "CREDIT_DATABASE_URL": proxy.url,
        "CREDIT_LISTEN": f"127.0.0.1:{port}",
    }
    async with client_of(f"127.0.0.1:{port}", deadline_seconds=patience(60)) as client:
        with process("serve", **environment) as server:
            await asyncio.to_thread(server.wait_until_listening)
            fault = proxy.on(COMMIT, Kind.SWALLOW, times=1000)
            tasks = spends(client, user_ids)
            await eventually(fault.met.is_set)
            await eventually(
                lambda: database.fetch("SELECT FROM credit_transactions WHERE seq = 2")
            )
            server.signal(signal.SIGKILL)
            await asyncio.to_thread(server.wait)
        proxy.forget()
        with process("serve", **environment) as server:
            await asyncio.to_thread(server.wait_until_listening)
            answers = await asyncio.gather(*tasks)
    assert any(answer.replayed for answer in answers)
    assert {answer.transaction.balance_after for answer in answers} == {99}
    assert await charges(database, user_ids) == [1] * 40
    assert not await database.faults()


async def test_a_service_that_stays_away_leaves_each_outcome_unknown(database):
    user_ids = await users(database, 20)
    port = free_port()
    environment = {
        "CREDIT_DATABASE_URL": database.service_url,
        "CREDIT_LISTEN": f"127.0.0.1:{port}",
    }
    async with client_of(f"127.0.0.1:{port}", deadline_seconds=patience(2)) as client:
        with process("serve", **environment) as server:
            await asyncio.to_thread(server.wait_until_listening)
            async with database.locked(*user_ids):
                tasks = spends(client, user_ids)
                await eventually(database.waits_for_a_lock, every=0.01)
                server.signal(signal.SIGKILL)
                outcomes = await asyncio.gather(*tasks, return_exceptions=True)
    assert [type(each) for each in outcomes] == [OutcomeUnknown] * 20
    assert [each.key for each in outcomes] == [str(user_id) for user_id in user_ids]


# A service without CallMany.


async def test_a_service_without_the_call_gets_single_calls(database, relay):
    user_ids = await users(database, 30)
    relay.without.add("CallMany")
    async with client_of(relay.target) as client:
        for number in range(1, 4):
            calls = (client.spend_credits(user_id, amount=1) for user_id in user_ids)
            answers = await asyncio.gather(*calls)
            assert {answer.credit.balance for answer in answers} == {100 - number}
    assert relay.methods.count("CallMany") == 1
    assert relay.methods.count("SpendCredits") == 90
    assert not await database.faults()


async def test_a_service_that_has_the_call_at_last_is_asked_again(database, relay, monkeypatch):
    monkeypatch.setattr(coalescing, "_SINGLY_SECONDS", 0.0)
    user_ids = await users(database, 30)
    relay.without.add("CallMany")
    async with client_of(relay.target) as client:
        await asyncio.gather(*spends(client, user_ids))
        relay.without.clear()
        relay.received.clear()
        await asyncio.gather(*spends(client, user_ids))
    assert "CallMany" in relay.methods
    assert len(relay.received) <= 3
