"""What calls made is freed when they end, without the garbage collector, which seldom runs."""

import asyncio
import contextlib
import gc
from collections import Counter
from types import FrameType
from uuid import uuid4

import grpc
import pytest
from kit.services import running, server_settings
from kit.waiting import eventually

from credit_service import rpc
from credit_service.errors import CreditError
from credit_service.rpc.call_log import Call
from credit_service.rpc.open_calls import OpenCall
from credit_service.rules.commands import Spend
from credit_service.rules.model import Account
from credit_service.v1 import credit_service_pb2 as pb
from credit_service.v1 import credit_service_pb2_grpc as pb_grpc

ROUNDS = 20
# What a call starts for others, such as a connection, keeps the call in its context.
FEW = 5

SERVICE_FILES = rpc.__path__[0].removesuffix("rpc")


def made_by_calls():
    """What is in memory of calls: their parts, their frames, and the errors that ended them."""
    return Counter(
        f.f_code.co_qualname if isinstance(f, FrameType) else type(f).__name__
        for f in gc.get_objects()
        if isinstance(f, (Account, BaseException, Call, OpenCall, Spend))
        or (isinstance(f, FrameType) and f.f_code.co_filename.startswith(SERVICE_FILES))
    )


@contextlib.asynccontextmanager
async def all_is_freed():
    gc.collect()
    gc.disable()
    before = made_by_calls()
    try:
        yield
        await eventually(lambda: all(n < FEW for n in (made_by_calls() - before).values()))
    finally:
        gc.enable()


@contextlib.asynccontextmanager
async def caller(database, **options):
    async with running(server_settings(database.service_url)) as service:
        yield await service.client(**options), await database.user(1_000)


async def test_of_answered_calls(database):
    async with caller(database) as (client, user_id), all_is_freed():
        for _ in range(ROUNDS):
            await client.get_user_credit(user_id, history_size=10)
            await client.spend_credits(user_id, amount=1)


@pytest.mark.parametrize("coalesce", [False, True])
@pytest.mark.parametrize("why", ["too dear", "malformed", "unknown user"])
async def test_of_refused_calls(database, coalesce, why):
    async with caller(database, coalesce=coalesce) as (client, user_id), all_is_freed():
        spender = uuid4() if why == "unknown user" else user_id
        amount = {"too dear": 100_000, "malformed": -1, "unknown user": 1}[why]

        async def refused():
            with pytest.raises(CreditError):
                await client.spend_credits(spender, amount=amount)

        for _ in range(ROUNDS):
            await asyncio.gather(*(refused() for _ in range(10)))


@pytest.mark.parametrize("refused", ["one too dear", "one malformed", "all of them"])
@pytest.mark.parametrize("mode", [pb.BATCH_MODE_INDEPENDENT, pb.BATCH_MODE_ATOMIC])
async def test_of_refused_batches(database, mode, refused):
    user_id = str(await database.user(1_000))
    amounts = [1] * 30
    if refused != "all of them":
        amounts[20] = 100_000 if refused == "one too dear" else -1
    async with (
        running(server_settings(database.service_url)) as service,
        grpc.aio.insecure_channel(service.target) as channel,
    ):
        batch = pb_grpc.CreditServiceStub(channel).BatchSpendCredits
        async with all_is_freed():
            for attempt in range(ROUNDS):
                request = pb.BatchSpendCreditsRequest(mode=mode)
                for place, amount in enumerate(amounts):
                    key = "same" if refused == "all of them" else f"{attempt}:{place}"
                    request.items.add(user_id=user_id, idempotency_key=key, amount=amount)
                with contextlib.suppress(grpc.aio.AioRpcError):
                    await batch(request)
                del request
