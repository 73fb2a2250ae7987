"""Broken database connections and callers that leave: once or never, as the key shows."""

import asyncio
import contextlib
import random
from uuid import uuid4

import grpc
import pytest
from kit.extent import extent
from kit.fault_proxy import BEGIN, COMMIT, INSERT, LOAD_KEYS, LOCK, UPDATE, Kind
from kit.refusals import refused
from kit.services import running, server_settings
from kit.storm import NO_FINAL_ANSWER, Storm, call, connected
from kit.waiting import eventually, patience

from credit_service.v1 import credit_service_pb2 as pb

TRANSACTION = [
    pytest.param(BEGIN, id="begin"),
    pytest.param(LOCK, id="lock"),
    pytest.param(LOAD_KEYS, id="load"),
    pytest.param(UPDATE, id="update"),
    pytest.param(INSERT, id="insert"),
    pytest.param(COMMIT, id="commit"),
]


@pytest.fixture
async def stub(proxy):
    """A service of one lane behind the proxy, as a caller sees it."""
    async with (
        running(server_settings(proxy.url, lanes=1)) as service,
        connected(service.target) as made,
    ):
        yield made


def spend(user_id, amount=1, key=None):
    return pb.SpendCreditsRequest(
        user_id=str(user_id), amount=amount, idempotency_key=key or uuid4().hex
    )


async def entries(database):
    """The number of entries of each key."""
    rows = await database.fetch(
        "SELECT idempotency_key, count(*) FROM credit_transactions WHERE type = 'spend' GROUP BY 1"
    )
    return {row[0]: row[1] for row in rows}


@pytest.mark.parametrize("kind", [Kind.CUT_BEFORE, Kind.CUT_AFTER])
@pytest.mark.parametrize("statement", TRANSACTION)
async def test_a_line_cut_within_a_transaction_neither_loses_nor_doubles(
    database, proxy, stub, statement, kind
):
    user_id = await database.user(10)
    request = spend(user_id, 3)
    fault = proxy.on(statement, kind)
    first = await call(stub, request)
    assert fault.met.is_set()
    if statement == COMMIT:
        assert not first.replayed
    else:
        assert refused(first).reason == "LEDGER_UNAVAILABLE"
        assert refused(first).code is grpc.StatusCode.UNAVAILABLE
        assert not await entries(database)
    second = await call(stub, request)
    assert second.replayed == (statement == COMMIT)
    assert second.credit.balance == 7
    assert await entries(database) == {request.idempotency_key: 1}
    assert not await database.faults()


@pytest.mark.parametrize("statement", TRANSACTION)
async def test_a_caller_who_hangs_up_within_a_transaction_finds_it_done(
    database, proxy, stub, statement
):
    user_id = await database.user(10)
    request = spend(user_id, 3)
    held = proxy.on(statement, Kind.HOLD)
    asking = stub.SpendCredits(request, timeout=patience(30))
    await held.met.wait()
    waiting = asyncio.create_task(call(stub, spend(user_id)))
    asking.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await asking
    held.release()
    again = await call(stub, request)
    assert again.replayed
    assert not (await waiting).replayed
    assert (await entries(database))[request.idempotency_key] == 1
    assert not await database.faults()


@pytest.mark.parametrize("statement", TRANSACTION)
async def test_a_caller_whose_deadline_passes_within_a_transaction_gets_the_true_result(
    database, proxy, stub, statement
):
    user_id = await database.user(10)
    request = spend(user_id, 3)
    held = proxy.on(statement, Kind.HOLD)
    first = await call(stub, request, seconds=0.2)
    assert first.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    held.release()
    again = await call(stub, request)
    # The deadline may have passed before the batch was formed, and then nothing had happened.
    assert again.replayed or not held.met.is_set()
    assert await entries(database) == {request.idempotency_key: 1}
    assert not await database.faults()


async def _leave(stub, request, seconds):
    asking = stub.SpendCredits(request, timeout=patience(30))
    done, _ = await asyncio.wait({asyncio.ensure_future(_answer(asking))}, timeout=seconds)
    if done:
        return done.pop().result()
    asking.cancel()
    return None


async def _answer(asking):
    try:
        return await asking
    except (asyncio.CancelledError, grpc.aio.AioRpcError):
        return None


async def _pass_deadline(stub, request, seconds):
    answer = await call(stub, request, seconds)
    if isinstance(answer, grpc.aio.AioRpcError):
        assert answer.code() in NO_FINAL_ANSWER
        return None
    return answer


@pytest.mark.parametrize("give_up", [_leave, _pass_deadline])
async def test_giving_up_at_any_moment_and_repeating_the_call_pays_exactly_once(
    database, stub, proxy, give_up
):
    users = [await database.user(1000) for _ in range(3)]
    answered = {}
    for n in range(120):
        request = spend(users[n % 3])
        first = await give_up(stub, request, n * 0.0002)
        second = await call(stub, request)
        if first is not None:
            assert (first.replayed, second.replayed) == (False, True)
            assert first.transaction == second.transaction
        answered[request.idempotency_key] = second.transaction.id
    assert await entries(database) == dict.fromkeys(answered, 1)
    assert len(set(answered.values())) == 120
    assert not await database.faults()


async def test_a_silent_line_fails_every_call_in_time_and_heals_by_itself(database, proxy):
    users = [await database.user(100) for _ in range(8)]
    async with (
        running(server_settings(proxy.url)) as service,
        connected(service.target) as stub,
    ):
        await asyncio.gather(*(call(stub, spend(user_id)) for user_id in users))
        proxy.black_hole()
        requests = [spend(users[n % 8]) for n in range(40)]
        # Far longer than any answer takes, so that it is the service that ends the calls.
        reading = asyncio.create_task(_read(stub, users[0], 30))
        answers = await asyncio.gather(*(call(stub, request, 30) for request in requests))
        unread = await reading
        proxy.heal()
        assert {refused(answer).reason for answer in [*answers, unread]} == {"LEDGER_UNAVAILABLE"}

        async def paid():
            again = await asyncio.gather(*(call(stub, request) for request in requests))
            return not any(isinstance(answer, grpc.aio.AioRpcError) for answer in again)

        await eventually(paid)
        assert (await _read(stub, users[0], patience(10))).credit.balance == 94
    assert set((await entries(database)).values()) == {1}
    assert not await database.faults()


async def _read(stub, user_id, seconds):
    try:
        return await stub.GetUserCredit(
            pb.GetUserCreditRequest(user_id=str(user_id)), timeout=seconds
        )
    except grpc.aio.AioRpcError as failure:
        return failure


async def _disturb(database, proxy, lots, seconds, longest_silence):
    """One random fault after the other; about a quarter of the time there is none."""
    loop = asyncio.get_running_loop()
    end = loop.time() + seconds
    connection = await database.connect()
    counts = dict.fromkeys(("cut", "swallow", "hold", "silence", "backends", "lock", "peace"), 0)
    while loop.time() < end:
        kind = lots.choice(list(counts))
        counts[kind] += 1
        statement = lots.choice((BEGIN, LOCK, LOAD_KEYS, UPDATE, INSERT, COMMIT))
        nth = lots.randint(1, 4)
        match kind:
            case "cut":
                for each in (Kind.CUT_BEFORE, Kind.CUT_AFTER):
                    proxy.on(statement, each, nth=nth)
            case "swallow":
                proxy.on(statement, Kind.SWALLOW, nth=nth)
            case "hold":
                held = proxy.on(statement, Kind.HOLD, nth=nth)
                await asyncio.sleep(lots.uniform(0, 0.7))
                held.release()
            case "silence":
                proxy.black_hole()
                await asyncio.sleep(lots.uniform(0, longest_silence))
                proxy.heal()
            case "backends":
                await connection.execute(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                    " WHERE datname = current_database() AND usename = 'credit_service'"
                )
            case "lock":
                async with connection.transaction():
                    await connection.execute("LOCK TABLE user_credits IN SHARE MODE")
                    await asyncio.sleep(lots.uniform(0, 0.8))
        await asyncio.sleep(lots.uniform(0, 0.1))
    proxy.heal()
    await connection.close()
    print(counts)


async def _weather(database, proxy, seed, seconds, longest_silence):
    users = [await database.user(500) for _ in range(4)]
    lots = random.Random(seed)
    async with (
        running(server_settings(proxy.url)) as one,
        running(server_settings(proxy.url, lanes=2)) as two,
    ):
        async with Storm([one.target, two.target], users, seed=seed) as storm:
            storm.seconds = 2.0
            await _disturb(database, proxy, lots, seconds, longest_silence)
            await storm.more(50)
        await storm.settle()
        await storm.check(database)


@pytest.mark.long
@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ("seed", "longest_silence"), [(1, 0.5), (10, 5), *extent([], [(11, 5), (12, 5), (13, 5)])]
)
async def test_a_storm_of_faults_leaves_a_book_that_adds_up(database, proxy, seed, longest_silence):
    await _weather(database, proxy, seed, extent(10, 45), longest_silence)
