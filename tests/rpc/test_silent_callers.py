"""A caller whose connection has gone silent, without an end, is given up after 40 seconds."""

import asyncio

import grpc
import pytest
from kit.silent_proxy import silent_proxy
from kit.waiting import eventually
from prometheus_client import REGISTRY

from credit_service.v1 import credit_service_pb2 as pb
from credit_service.v1 import credit_service_pb2_grpc as pb_grpc

# Longer than 40 seconds, and shorter than the 90 that gRPC takes by default. Its timers are as fast
# on a slow machine.
SECONDS = 65


def open_streams():
    return REGISTRY.get_sample_value("credit_open_streams")


@pytest.mark.long
async def test_a_watch_of_a_silent_caller_ends(service, database):
    user_id = await database.user(10)
    async with (
        silent_proxy(service.port) as proxy,
        grpc.aio.insecure_channel(proxy.target) as channel,
    ):
        request = pb.WatchUserCreditRequest(user_id=str(user_id))
        watch = pb_grpc.CreditServiceStub(channel).WatchUserCredit(request)
        assert (await watch.read()).credit.balance == 10
        await eventually(lambda: open_streams() == 1)
        proxy.go_silent()
        async with asyncio.timeout(SECONDS):
            while open_streams():  # noqa: ASYNC110  # a metric has no event
                await asyncio.sleep(0.1)
        # The caller asked for no keepalive, so it does not notice.
        assert not watch.done()
        watch.cancel()
