"""Far more calls than the service can handle: every call is answered, and none is charged twice."""

import asyncio
import time
from contextlib import AsyncExitStack

import grpc
import pytest
from google.protobuf import empty_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from kit.refusals import refused
from kit.services import running, server_settings
from kit.waiting import eventually, patience

from credit_service.rpc.waiting_time import FEW_CALLS
from credit_service.v1 import credit_service_pb2 as pb
from credit_service.v1 import credit_service_pb2_grpc as pb_grpc

# More calls than gRPC by itself keeps waiting until a server looks at them.
CROWD = 4000
CHANNELS = 4

USERS = 20


@pytest.fixture
async def connections():
    async with AsyncExitStack() as stack:

        async def connect(target):
            # A connection of its own, which gRPC would otherwise share between channels.
            options = (("grpc.use_local_subchannel_pool", 1),)
            channel = grpc.aio.insecure_channel(target, options)
            await stack.enter_async_context(channel)
            await channel.channel_ready()
            return channel

        yield connect


def spend(user_id, key):
    return pb.SpendCreditsRequest(user_id=str(user_id), amount=1, idempotency_key=key)


async def keys_in_book(database):
    rows = await database.fetch(
        "SELECT idempotency_key FROM credit_transactions WHERE type = 'spend'"
    )
    return sorted(row[0] for row in rows)


def told_to_wait(failure):
    """The reason of a failure that says when to call again."""
    seen = refused(failure)
    assert (seen.code, seen.domain) == (grpc.StatusCode.UNAVAILABLE, "credit_service"), seen
    assert seen.retry_seconds >= 0.2
    return seen.reason


async def test_a_crowd_is_answered_or_refused_and_never_charged_for_a_refusal(
    database, connections
):
    await database.wait_longer_for_locks()
    users = [await database.user(CROWD) for _ in range(USERS)]
    async with running(server_settings(database.service_url, calls_in_flight=500)) as service:
        stubs = [
            pb_grpc.CreditServiceStub(await connections(service.target)) for _ in range(CHANNELS)
        ]
        health = health_pb2_grpc.HealthStub(await connections(service.target))
        async with database.locked(*users):
            calls = {
                f"k{number:04}": stubs[number % CHANNELS].SpendCredits(
                    spend(users[number % USERS], f"k{number:04}"), timeout=patience(60)
                )
                for number in range(CROWD)
            }
            crowd = asyncio.gather(*calls.values(), return_exceptions=True)
            await asyncio.sleep(0)
            # gRPC receives the calls while Python looks at none of them.
            time.sleep(0.5)  # noqa: ASYNC251  # the loop must not run
            await eventually(lambda: any(call.done() for call in calls.values()))
        states = set()
        while not crowd.done():
            answer = await health.Check(health_pb2.HealthCheckRequest(), timeout=patience(10))
            states.add(answer.status)
        answers = dict(zip(calls, await crowd, strict=True))
        for place, stub in enumerate(stubs):
            after = f"l{place}"
            answers[after] = await stub.SpendCredits(spend(users[0], after), timeout=patience(5))
    failures = [answer for answer in answers.values() if isinstance(answer, BaseException)]
    reasons = {told_to_wait(failure) for failure in failures}
    # LEDGER_UNAVAILABLE is for calls that waited too long for the lock.
    assert "OVERLOADED" in reasons <= {"OVERLOADED", "LEDGER_UNAVAILABLE"}
    paid = [key for key, answer in answers.items() if not isinstance(answer, BaseException)]
    assert len(paid) > CHANNELS
    assert await keys_in_book(database) == paid
    assert states == {health_pb2.HealthCheckResponse.SERVING}
    assert not await database.faults()


async def test_a_call_with_less_time_than_it_would_wait_is_refused_and_reaches_no_database(
    database, connections
):
    await database.wait_longer_for_locks()
    locked, user_id = await database.user(10 * FEW_CALLS), await database.user(10)
    async with running(server_settings(database.service_url, lanes=1)) as service:
        stub = pb_grpc.CreditServiceStub(await connections(service.target))

        async def short(key):
            with pytest.raises(grpc.aio.AioRpcError) as failure:
                await stub.SpendCredits(spend(user_id, key), timeout=1)
            return failure.value

        for attempt in range(10):
            async with database.locked(locked):
                crowd = [
                    stub.SpendCredits(
                        spend(locked, f"a{attempt}:{number:02}"), timeout=patience(60)
                    )
                    for number in range(FEW_CALLS)
                ]
                # The first one is accepted, because nothing is known of the wait yet.
                await short(f"first {attempt}")
                second = await short(f"second {attempt}")
            await asyncio.gather(*crowd, return_exceptions=True)
            if second.code() is grpc.StatusCode.UNAVAILABLE:
                break
            # The machine is so slow that the crowd gave up before the second call came.
        assert told_to_wait(second) == "OVERLOADED"
        await stub.SpendCredits(spend(user_id, "z"), timeout=patience(5))
    keys = await keys_in_book(database)
    assert "z" in keys
    assert not [key for key in keys if key.startswith(("first", "second"))]
    assert not await database.faults()


async def test_a_call_without_a_request_is_refused_as_invalid(service, connections):
    channel = await connections(service.target)
    call = channel.stream_unary(
        "/credit_service.v1.CreditService/SpendCredits",
        request_serializer=empty_pb2.Empty.SerializeToString,
    )
    with pytest.raises(grpc.aio.AioRpcError) as failure:
        await call(iter(()), timeout=patience(5))
    seen = refused(failure.value)
    assert (seen.reason, list(seen.violations)) == ("INVALID_REQUEST", ["request"])


async def test_a_refusal_of_a_caller_that_has_gone_is_no_error_in_the_log(
    database, connections, caplog
):
    await database.wait_longer_for_locks()
    user_id = await database.user(10)
    async with running(server_settings(database.service_url, calls_in_flight=1)) as service:
        stub = pb_grpc.CreditServiceStub(await connections(service.target))
        async with database.locked(user_id):
            waiting = stub.SpendCredits(spend(user_id, "a"), timeout=patience(60))
            await eventually(database.waits_for_a_lock)
            for number in range(20):
                # The deadlines of some of them pass while they are refused.
                seconds = 0.001 * number
                gone = [stub.ListPrices(pb.ListPricesRequest(), timeout=seconds) for _ in range(50)]
                await asyncio.gather(*gone, return_exceptions=True)
        await asyncio.gather(waiting, return_exceptions=True)
    assert [record.message for record in caplog.records if record.levelname == "ERROR"] == []
