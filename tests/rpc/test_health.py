"""The standard health service: the serving status, and its changes."""

import asyncio

import asyncpg
import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from kit.refusals import refused
from kit.services import running, server_settings
from kit.waiting import eventually, patience
from prometheus_client import REGISTRY

from credit_service.v1 import credit_service_pb2 as pb
from credit_service.v1 import credit_service_pb2_grpc as pb_grpc

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
SERVICE_UNKNOWN = health_pb2.HealthCheckResponse.SERVICE_UNKNOWN

NAMES = ("", "credit_service.v1.CreditService")


@pytest.fixture
async def channel(service):
    async with grpc.aio.insecure_channel(service.target) as channel:
        yield channel


@pytest.fixture
async def health(channel):
    return health_pb2_grpc.HealthStub(channel)


async def state(health, name=""):
    answer = await health.Check(health_pb2.HealthCheckRequest(service=name), timeout=patience(10))
    return answer.status


async def reports(health, expected):
    """Waits until health reports a state for the server and for its one service."""

    async def claim():
        return [await state(health, name) for name in NAMES] == [expected] * len(NAMES)

    await eventually(claim)


class Switch:
    """Makes a database unavailable, as its administrator can, and available again."""

    def __init__(self, database, cluster_owner_url):
        self._name = database.name
        self._url = cluster_owner_url

    async def _run(self, *statements):
        connection = await asyncpg.connect(self._url)
        try:
            for statement in statements:
                await connection.execute(statement)
        finally:
            await connection.close()

    async def off(self):
        await self._run(
            f"ALTER DATABASE {self._name} ALLOW_CONNECTIONS false",
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            f" WHERE datname = '{self._name}'",
        )

    async def on(self):
        await self._run(f"ALTER DATABASE {self._name} ALLOW_CONNECTIONS true")


@pytest.fixture
async def switch(database, cluster_owner_url):
    return Switch(database, cluster_owner_url)


@pytest.mark.parametrize("name", NAMES)
async def test_a_service_that_answers_is_serving_as_a_whole_and_by_name(health, name):
    assert await state(health, name) == SERVING


async def test_an_unknown_service_name_is_not_found(health):
    with pytest.raises(grpc.aio.AioRpcError) as failure:
        await state(health, "credit_service.v2.CreditService")
    assert failure.value.code() is grpc.StatusCode.NOT_FOUND
    request = health_pb2.HealthCheckRequest(service="credit_service.v2.CreditService")
    watch = health.Watch(request, timeout=patience(10))
    assert (await watch.read()).status == SERVICE_UNKNOWN
    watch.cancel()


async def test_a_service_without_its_database_does_not_serve_until_the_database_is_back(
    channel, health, switch, database
):
    stub = pb_grpc.CreditServiceStub(channel)
    user_id = str(await database.user(10))
    read = pb.GetUserCreditRequest(user_id=user_id)
    spend = pb.SpendCreditsRequest(user_id=user_id, amount=1, idempotency_key="a key")
    assert (await stub.GetUserCredit(read, timeout=patience(10))).credit.balance == 10
    assert REGISTRY.get_sample_value("credit_serving") == 1
    await switch.off()
    await reports(health, NOT_SERVING)
    assert REGISTRY.get_sample_value("credit_serving") == 0
    for call in (
        stub.GetUserCredit(read, timeout=patience(10)),
        stub.SpendCredits(spend, timeout=patience(10)),
    ):
        with pytest.raises(grpc.aio.AioRpcError) as failure:
            await call
        answer = refused(failure.value)
        assert answer.code is grpc.StatusCode.UNAVAILABLE
        assert answer.reason == "LEDGER_UNAVAILABLE"
    await switch.on()
    await reports(health, SERVING)
    spent = await stub.SpendCredits(spend, timeout=patience(10))
    assert (spent.credit.balance, spent.replayed) == (9, False)
    assert not await database.faults()


async def test_a_watch_sends_each_change(health, switch):
    watches = [
        health.Watch(health_pb2.HealthCheckRequest(service=name), timeout=patience(60))
        for name in NAMES
    ]
    for watch in watches:
        assert (await watch.read()).status == SERVING
    await switch.off()
    for watch in watches:
        assert (await watch.read()).status == NOT_SERVING
    await switch.on()
    for watch in watches:
        assert (await watch.read()).status == SERVING
        watch.cancel()


async def test_a_draining_service_does_not_serve(database):
    user_id = await database.user(10)
    await database.wait_longer_for_locks()
    async with running(server_settings(database.service_url)) as service:
        client = await service.client(deadline_seconds=patience(2))
        async with (
            grpc.aio.insecure_channel(service.target) as channel,
            database.locked(user_id),
        ):
            watch = health_pb2_grpc.HealthStub(channel).Watch(
                health_pb2.HealthCheckRequest(), timeout=patience(60)
            )
            assert (await watch.read()).status == SERVING
            spend = asyncio.create_task(client.spend_credits(user_id, amount=1))
            await eventually(database.waits_for_a_lock, every=0.01)
            service.stop.set()
            assert (await watch.read()).status == NOT_SERVING
            assert not spend.done(), "the drain should still wait for this call"
        await asyncio.wait({spend})
