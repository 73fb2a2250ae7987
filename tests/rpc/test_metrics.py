"""The metrics as Prometheus reads them, right after a small story whose numbers are known."""

import asyncio

import grpc
import pytest
from kit.metrics import scrape
from kit.programs import free_port, process
from kit.requests import payment
from kit.waiting import eventually, patience

from credit_service.client import CreditClient
from credit_service.errors import (
    InsufficientCredits,
    InvalidRequest,
    OutcomeUnknown,
    TransactionNotFound,
)
from credit_service.v1 import credit_service_pb2 as pb
from credit_service.v1 import credit_service_pb2_grpc as pb_grpc


@pytest.fixture
async def measured(database):
    """A service in a process of its own, a client of it, and a way to read its metrics."""
    port = free_port()
    with process(
        CREDIT_DATABASE_URL=database.service_url, CREDIT_METRICS_PORT=str(port)
    ) as running:
        async with CreditClient(
            f"127.0.0.1:{running.wait_until_listening()}", deadline_seconds=patience(10)
        ) as client:
            yield client, lambda: scrape(port)


async def test_calls_are_counted_by_method_code_and_reason(measured, database):
    client, read = measured
    user_id = await database.user()
    await client.purchase_credits(user_id, 100, payment=payment(), idempotency_key="1")
    await client.purchase_credits(user_id, 100, payment=payment(), idempotency_key="1")
    await client.purchase_credits(user_id, 100, payment=payment(), idempotency_key="2")
    spent = await client.spend_credits(user_id, operation="stem_separation", idempotency_key="3")
    await client.spend_credits(user_id, amount=30, idempotency_key="4")
    await client.spend_credits(user_id, amount=30, idempotency_key="4")
    with pytest.raises(InsufficientCredits):
        await client.spend_credits(user_id, amount=61, idempotency_key="5")
    with pytest.raises(InsufficientCredits):
        await client.spend_credits(user_id, amount=62, idempotency_key="5")
    with pytest.raises(InvalidRequest):
        await client.spend_credits(user_id, amount=0)
    await client.spend_credits(user_id, amount=60, validate_only=True)
    await client.refund_credits(user_id, spent.transaction.id, amount=4)
    with pytest.raises(TransactionNotFound):
        await client.get_transaction(user_id, idempotency_key="6")
    for _ in range(5):
        await client.get_user_credit(user_id)
    metrics = await read()
    assert metrics.all("credit_calls_total", ("method", "code", "reason")) == {
        ("PurchaseCredits", "OK", ""): 3,
        ("SpendCredits", "OK", ""): 4,
        ("SpendCredits", "FAILED_PRECONDITION", "INSUFFICIENT_CREDITS"): 2,
        ("SpendCredits", "INVALID_ARGUMENT", "INVALID_REQUEST"): 1,
        ("RefundCredits", "OK", ""): 1,
        ("GetTransaction", "NOT_FOUND", "TRANSACTION_NOT_FOUND"): 1,
        ("GetUserCredit", "OK", ""): 5,
    }
    assert metrics.all("credit_replays_total", "method") == {
        "PurchaseCredits": 2,
        "SpendCredits": 1,
    }
    assert metrics.all("credit_refusals_total", ("method", "reason")) == {
        ("SpendCredits", "INSUFFICIENT_CREDITS"): 2,
        ("SpendCredits", "INVALID_REQUEST"): 1,
        ("GetTransaction", "TRANSACTION_NOT_FOUND"): 1,
    }
    assert metrics.all("credit_credits_total", "type") == {
        "purchase": 100,
        "spend": 40,
        "refund": 4,
    }
    calls = {"GetTransaction": 1, "GetUserCredit": 5, "RefundCredits": 1}
    calls |= {"PurchaseCredits": 3, "SpendCredits": 7}
    assert metrics.all("credit_call_seconds_count", "method") == calls
    for method, count in calls.items():
        assert metrics.value("credit_call_seconds_bucket", method=method, le="+Inf") == count
        assert 0 < metrics.value("credit_call_seconds_sum", method=method) < 60
    commands = 3 + 6 + 1  # all but the invalid one reach a lane
    assert metrics.value("credit_lane_batch_commands_sum") == commands
    assert metrics.value("credit_lane_batch_commands_count") == commands, (
        "one caller, one at a time"
    )
    assert metrics.value("credit_lane_batch_seconds_count") == commands
    assert metrics.all("credit_lane_queue_commands", "lane") == {"0": 0, "contended": 0}
    assert metrics.value("credit_serving") == 1


async def test_methods_and_bytes_that_callers_invent_make_no_series(measured):
    client, read = measured
    async with grpc.aio.insecure_channel(client._target) as channel:
        invented = channel.unary_unary("/credit_service.v1.CreditService/Steal")
        with pytest.raises(grpc.aio.AioRpcError):
            await invented(b"", timeout=patience(10))
        garbage = channel.unary_unary("/credit_service.v1.CreditService/SpendCredits")
        with pytest.raises(grpc.aio.AioRpcError):
            await garbage(b"\xff", timeout=patience(10))
    assert (await read()).all("credit_calls_total", ("method", "code", "reason")) == {
        ("SpendCredits", "INVALID_ARGUMENT", "INVALID_REQUEST"): 1
    }


async def test_a_lane_measures_its_queue_and_the_size_of_its_batches(database):
    # Long enough to look at the waiting calls.
    for limit in ("lock_timeout", "statement_timeout"):
        await database.execute(
            f"ALTER ROLE credit_service IN DATABASE {database.name} SET {limit} = '20s'"
        )
    user_id = str(await database.user(10))
    holder = await database.connect()
    port = free_port()
    with process(
        CREDIT_DATABASE_URL=database.service_url, CREDIT_METRICS_PORT=str(port), CREDIT_LANES="1"
    ) as running:
        target = f"127.0.0.1:{running.wait_until_listening()}"
        async with grpc.aio.insecure_channel(target) as channel:
            stub = pb_grpc.CreditServiceStub(channel)

            def spend(key):
                request = pb.SpendCreditsRequest(user_id=user_id, amount=1, idempotency_key=key)
                return asyncio.ensure_future(stub.SpendCredits(request, timeout=patience(20)))

            async with holder.transaction():
                await holder.execute("SELECT FROM user_credits FOR UPDATE")
                spends = [spend("first")]
                await eventually(database.waits_for_a_lock, every=0.01)
                spends += [spend(f"queued {number}") for number in range(4)]

                async def four_wait():
                    metrics = await scrape(port)
                    return metrics.all("credit_lane_queue_commands", "lane") == {
                        "0": 4,
                        "contended": 0,
                    }

                await eventually(four_wait, every=0.01)
            await asyncio.gather(*spends)
        metrics = await scrape(port)
        assert metrics.all("credit_lane_queue_commands", "lane") == {"0": 0, "contended": 0}
        assert metrics.value("credit_lane_batch_commands_count") == 2
        assert metrics.value("credit_lane_batch_commands_sum") == 5
        sizes = metrics.all("credit_lane_batch_commands_bucket", "le")
        assert (sizes["1.0"], sizes["2.0"], sizes["5.0"], sizes["+Inf"]) == (1, 1, 2, 2)
        assert metrics.value("credit_lane_batch_seconds_count") == 2
    await holder.close()
    assert not await database.faults()


async def test_a_disturbed_batch_is_counted_by_what_disturbed_it(measured, database):
    client, read = measured
    user_id = await database.user(10)
    holder = await database.connect()
    assert (await read()).all("credit_lane_batch_faults_total", "fault") == {}
    async with holder.transaction():
        await holder.execute("SELECT FROM user_credits FOR UPDATE")
        with pytest.raises(OutcomeUnknown):
            await client.spend_credits(user_id, amount=1)
    await holder.close()
    metrics = await read()
    assert metrics.all("credit_lane_batch_faults_total", "fault")["LockNotAvailableError"] >= 1
    unavailable = {"code": "UNAVAILABLE", "reason": "LEDGER_UNAVAILABLE"}
    assert metrics.value("credit_calls_total", method="SpendCredits", **unavailable) >= 1
    assert metrics.all("credit_refusals_total", "reason") == {}, "a disturbance is no refusal"


async def test_the_pool_of_the_reads_measures_its_connections(measured, database):
    client, read = measured
    user_id = await database.user()
    await client.get_user_credit(user_id)

    async def at_rest():
        connections = (await read()).all("credit_pool_connections", "state")
        return 1 <= connections["open"] <= 4 and connections["idle"] == connections["open"]

    await eventually(at_rest)


async def test_each_of_several_processes_has_a_port_of_its_own(database):
    port = await two_free_ports()
    with process(
        "serve",
        "--processes",
        "2",
        CREDIT_DATABASE_URL=database.service_url,
        CREDIT_LISTEN=f"127.0.0.1:{free_port()}",
        CREDIT_METRICS_PORT=str(port),
    ) as running:
        target = f"127.0.0.1:{running.wait_until_listening()}"
        for _ in range(12):
            async with CreditClient(target) as client:
                await client.list_prices()
        both = [await scrape(port), await scrape(port + 1)]
        labels = {"method": "ListPrices", "code": "OK", "reason": ""}
        counted = [metrics.value("credit_calls_total", **labels) or 0 for metrics in both]
        assert sum(counted) == 12


async def two_free_ports():
    for _ in range(50):
        port = free_port()
        try:
            server = await asyncio.start_server(lambda *_: None, "127.0.0.1", port + 1)
        except OSError:
            continue
        server.close()
        await server.wait_closed()
        return port
    raise AssertionError("no two ports side by side are free")
