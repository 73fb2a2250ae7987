"""Items of CallMany that wait: for a locked row, in a full queue, after their caller has gone."""

import asyncio
import time

import grpc
import pytest
from kit import many_calls
from kit.fault_proxy import COMMIT, Kind
from kit.many_calls import begun, reason, spend
from kit.refusals import refused
from kit.services import running, server_settings
from kit.storm import connected
from kit.waiting import eventually, patience
from prometheus_client import REGISTRY

from credit_service.v1 import credit_service_pb2 as pb


def counted(code, reason="", method="SpendCredits"):
    """How many calls of this process have ended with a code and reason."""
    labels = {"method": method, "code": code, "reason": reason}
    return REGISTRY.get_sample_value("credit_calls_total", labels) or 0


async def balance(stub, user_id):
    answer = await stub.GetUserCredit(pb.GetUserCreditRequest(user_id=str(user_id)))
    return answer.credit.balance


async def taken(call, number):
    """Reads responses until a number of results have come; returns the results by index."""
    found = {}
    while len(found) < number:
        response = await call.read()
        assert response is not grpc.aio.EOF
        found |= {result.index: result for result in response.results}
    return found


async def test_a_locked_row_delays_only_its_own_item(database):
    locked, *free = [await database.user(10) for _ in range(9)]
    settings = server_settings(database.service_url)
    async with running(settings) as service, connected(service.target) as stub:
        async with database.locked(locked):
            # The first to meet the lock gets LEDGER_UNAVAILABLE; later ones wait for it separately.
            (met,) = await many_calls.results(stub, [spend(locked)])
            assert reason(met) == "LEDGER_UNAVAILABLE"
            items = [spend(locked), *(spend(user_id) for user_id in free), spend(locked)]
            call = begun(stub, items, timeout=patience(20))
            found = await taken(call, 8)
            assert sorted(found) == list(range(1, 9))
            assert not any(reason(result) for result in found.values())
        found |= await taken(call, 2)
        assert await call.read() is grpc.aio.EOF
        assert [reason(found[0]), reason(found[9])] == ["", ""]
        assert [found[n].spend.transaction.seq for n in (0, 9)] == [2, 3]
    assert not await database.faults()


async def test_items_that_have_not_begun_are_dropped_when_the_caller_leaves(database, proxy):
    user_id = await database.user(100)
    settings = server_settings(proxy.url, lanes=1, batch_limit=5)
    async with running(settings) as service, connected(service.target) as stub:
        held = proxy.on(COMMIT, Kind.HOLD)
        before = counted("CANCELLED")
        call = begun(stub, [spend(user_id) for _ in range(20)])
        await held.met.wait()
        call.cancel()
        await eventually(lambda: counted("CANCELLED") == before + 20)
        assert counted("CANCELLED", method="CallMany") > 0
        held.release()
        await stub.SpendCredits(spend(user_id).spend)
        # The first five had begun, so they were carried out.
        assert await balance(stub, user_id) == 100 - 5 - 1
    assert not await database.faults()


async def test_results_that_were_sent_remain_valid_when_the_call_is_cancelled(database):
    locked, free = await database.user(10), await database.user(10)
    settings = server_settings(database.service_url)
    async with running(settings) as service, connected(service.target) as stub:
        before = counted("CANCELLED"), counted("OK")
        async with database.locked(locked):
            await many_calls.results(stub, [spend(locked)])  # meets the lock
            call = begun(stub, [spend(locked, 1, "kept"), spend(free)])
            found = await taken(call, 1)
            assert found[1].spend.credit.balance == 9
            call.cancel()
            await eventually(lambda: counted("CANCELLED") == before[0] + 1)
        assert counted("OK") == before[1] + 1
        assert await balance(stub, free) == 9
        # Whether or not it had begun, its key leads to its outcome.
        await stub.SpendCredits(spend(locked, 1, "kept").spend, timeout=patience(10))
        assert await balance(stub, locked) == 9
    assert not await database.faults()


async def test_an_item_is_not_begun_after_its_own_timeout(database, proxy):
    user_id, other = await database.user(100), await database.user(100)
    settings = server_settings(proxy.url, lanes=1)
    async with running(settings) as service, connected(service.target) as stub:
        held = proxy.on(COMMIT, Kind.HOLD)
        first = asyncio.ensure_future(stub.SpendCredits(spend(other).spend, timeout=patience(20)))
        await held.met.wait()
        hurried, patient = spend(user_id), spend(user_id)
        hurried.timeout_ms, patient.timeout_ms = 50, int(patience(20) * 1000)
        call = begun(stub, [hurried, patient, spend(user_id)], timeout=patience(20))
        queued = REGISTRY.get_sample_value
        await eventually(lambda: queued("credit_lane_queue_commands", {"lane": "0"}) == 3)
        sent = time.monotonic()
        await eventually(lambda: time.monotonic() - sent > 0.1)
        held.release()
        found = await taken(call, 3)
        await first
        reasons = [reason(found[place]) for place in range(3)]
        assert reasons == ["LEDGER_UNAVAILABLE", "", ""]
        assert await balance(stub, user_id) == 98
    assert not await database.faults()


async def test_a_full_lane_refuses_the_items_it_cannot_take(database):
    user_id = await database.user(100)
    settings = server_settings(database.service_url, queue_limit=5, lanes=1)
    async with running(settings) as service, connected(service.target) as stub:
        items = [spend(user_id) for _ in range(8)]
        found = await many_calls.results(stub, items)
        assert [reason(result) for result in found] == [""] * 5 + ["OVERLOADED"] * 3
        assert len(found[5].error.details) == 2, "it says when to call again"
        again = await many_calls.results(stub, items[3:])
        assert [result.spend.replayed for result in again] == [True] * 2 + [False] * 3
    assert not await database.faults()


async def test_a_stopping_service_answers_the_items_it_has_received(database, proxy):
    user_id = await database.user(10)
    async with running(server_settings(proxy.url)) as service, connected(service.target) as stub:
        held = proxy.on(COMMIT, Kind.HOLD)
        call = begun(stub, [spend(user_id), spend(user_id)], timeout=patience(20))
        await held.met.wait()
        service.stop.set()
        await eventually(lambda: refuses_calls(stub))
        held.release()
        found = await taken(call, 2)
        assert [reason(found[place]) for place in range(2)] == ["", ""]
        assert await call.read() is grpc.aio.EOF
        assert await call.code() is grpc.StatusCode.OK
    assert not await database.faults()


async def refuses_calls(stub):
    try:
        await stub.ListPrices(pb.ListPricesRequest())
    except grpc.aio.AioRpcError:
        return True
    return False


async def test_a_service_whose_drain_time_is_over_ends_the_call_with_a_reason(database, proxy):
    user_id, other = await database.user(10), await database.user(10)
    settings = server_settings(proxy.url, lanes=1, drain_seconds=0.1)
    async with running(settings) as service, connected(service.target) as stub:
        held = proxy.on(COMMIT, Kind.HOLD, nth=2)
        call = begun(stub, [spend("nobody"), spend(user_id)], timeout=patience(20))
        await taken(call, 2)
        call = begun(stub, [spend("nobody"), spend(user_id), spend(other)], timeout=patience(20))
        assert reason((await taken(call, 1))[0]) == "INVALID_REQUEST"
        await held.met.wait()
        service.stop.set()
        with pytest.raises(grpc.aio.AioRpcError) as failure:
            await call.read()
        assert refused(failure.value).reason == "LEDGER_UNAVAILABLE"
        held.release()
    assert not await database.faults()
