"""CreditClient: keys, arguments, deadlines, and writes whose outcome is unknown."""

import asyncio
from datetime import UTC, datetime

import grpc
import pytest
from kit.answering import USER, answering, every_call, keyed_writes, keyless_writes, reads
from kit.programs import free_port
from kit.requests import payment
from kit.services import running, server_settings
from kit.waiting import eventually, patience
from kit.wire import METHODS

from credit_service import errors
from credit_service.client import CreditClient, item_error
from credit_service.client.connection import REQUEST_BYTES_MAX
from credit_service.errors import (
    InternalError,
    InvalidRequest,
    LedgerUnavailable,
    OutcomeUnknown,
    UnknownRefusal,
)
from credit_service.status import typed
from credit_service.v1 import credit_service_pb2 as pb

pytestmark = pytest.mark.shared


def writes_by_key(client):
    """Every call that changes something, by the key that it names when its outcome is unknown."""
    return {"k": keyed_writes(client, idempotency_key="k"), "": keyless_writes(client)}


# Keys and arguments.


async def test_a_key_is_made_once_per_call_and_named_when_the_outcome_is_unknown():
    async with answering() as server, CreditClient(server.target) as client:
        for call in keyed_writes(client).values():
            for _ in range(2):
                await call()
        server.answers = [InternalError()]
        with pytest.raises(OutcomeUnknown) as unknown:
            await client.spend_credits(USER, amount=5)
    keys = [received.request.idempotency_key for received in server.received]
    assert len(set(keys)) == len(keys) == 2 * len(keyed_writes(client)) + 1
    assert unknown.value.key == keys[-1]


async def test_every_argument_reaches_the_request():
    write = {
        "idempotency_key": "k",
        "description": "text",
        "reference": "job",
        "metadata": {"a": "b"},
        "validate_only": True,
    }
    time = datetime(2026, 1, 2, 3, 4, 5, 6, tzinfo=UTC)
    stamp = {"seconds": 1767323045, "nanos": 6000}
    user = {"user_id": str(USER)}
    async with answering() as server, CreditClient(server.target) as client:
        await client.purchase_credits(USER, 5, payment=payment(), **write)
        await client.spend_credits(str(USER), operation="r", quantity=2, expected_cost=3, **write)
        await client.spend_credits(USER, amount=5, **write)
        await client.refund_credits(USER, "t", amount=4, **write)
        await client.refund_credits(USER, None, **write)
        await client.get_user_credit(USER, as_of=time, history_size=7)
        filters = {"page_size": 3, "types": [2, 3], "reference": "job"}
        history = client.get_transaction_history(
            USER, start_time=time, end_time=time, related_transaction_id="t", **filters
        )
        assert [entry async for entry in history] == []
        await client.get_transaction(USER, transaction_id="t")
        await client.get_transaction(USER, idempotency_key="k")
        await client.quote_cost({"r": 2, "s": 1}, user_id=USER)
        await client.quote_cost({"r": 1})
        await client.list_prices()
    assert [received.request for received in server.received] == [
        pb.PurchaseCreditsRequest(**user, **write, amount=5, payment=payment()),
        pb.SpendCreditsRequest(
            **user, **write, charge=pb.Charge(operation="r", quantity=2), expected_cost=3
        ),
        pb.SpendCreditsRequest(**user, **write, amount=5),
        pb.RefundCreditsRequest(**user, **write, transaction_id="t", amount=4),
        pb.RefundCreditsRequest(**user, **write),
        pb.GetUserCreditRequest(**user, as_of=stamp, history_size=7),
        pb.GetTransactionHistoryRequest(
            **user, **filters, start_time=stamp, end_time=stamp, related_transaction_id="t"
        ),
        pb.GetTransactionRequest(**user, transaction_id="t"),
        pb.GetTransactionRequest(**user, idempotency_key="k"),
        pb.QuoteCostRequest(
            **user,
            items=[pb.Charge(operation="r", quantity=2), pb.Charge(operation="s", quantity=1)],
        ),
        pb.QuoteCostRequest(items=[pb.Charge(operation="r", quantity=1)]),
        pb.ListPricesRequest(),
    ]


async def test_contradictory_calls_are_not_sent():
    async with answering() as server, CreditClient(server.target) as client:
        for price in ({}, {"operation": "render", "amount": 5}):
            with pytest.raises(TypeError):
                await client.spend_credits(USER, **price)
        with pytest.raises(ValueError, match="zone"):
            await client.get_user_credit(USER, as_of=datetime(2026, 1, 1))  # noqa: DTZ001
    assert server.received == []


async def test_the_token_goes_with_every_call_and_nothing_without_one():
    async with answering() as server:
        for token, sent in (("secret", "Bearer secret"), (None, None)):
            server.received.clear()
            async with CreditClient(server.target, token=token) as client:
                for call in every_call(client).values():
                    await call()
            # The reports have deadlines of their own.
            reports = {"GetUsageReport", "GetLiabilityReport"}
            assert {r.method for r in server.received} == set(METHODS) - reports
            assert {r.metadata.get("authorization") for r in server.received} == {sent}


# Deadlines, and a service that is away.


async def test_every_call_has_a_deadline_of_five_seconds_or_what_is_asked_for():
    async with answering() as server:
        for options, most in (({}, 5), ({"deadline_seconds": 60}, 60)):
            server.received.clear()
            async with CreditClient(server.target, **options) as client:
                for call in every_call(client).values():
                    await call()
            assert all(most - 4 < received.seconds_left < most + 1 for received in server.received)


async def test_no_answer_in_time_is_unknown_for_a_write_and_unavailable_for_a_read():
    async with (
        answering() as server,
        CreditClient(server.target, deadline_seconds=0.2) as client,
    ):
        for key, calls in writes_by_key(client).items():
            for call in calls.values():
                server.answers = ["none"]
                with pytest.raises(OutcomeUnknown) as unknown:
                    await call()
                assert unknown.value.key == key
        for call in reads(client).values():
            server.answers = ["none"]
            with pytest.raises(LedgerUnavailable):
                await call()


async def test_a_closed_port_is_unknown_for_a_write_and_unavailable_for_a_read():
    async with CreditClient(f"127.0.0.1:{free_port()}", deadline_seconds=0.2) as client:
        for key, calls in writes_by_key(client).items():
            for call in calls.values():
                with pytest.raises(OutcomeUnknown) as unknown:
                    await call()
                assert unknown.value.key == key
        for call in reads(client).values():
            with pytest.raises(LedgerUnavailable):
                await call()


async def test_a_call_waits_for_a_service_that_listens_within_its_deadline(database):
    user_id = await database.user(10)
    port = free_port()
    async with CreditClient(f"127.0.0.1:{port}", deadline_seconds=patience(30)) as client:
        spending = asyncio.create_task(client.spend_credits(user_id, amount=1))
        # Longer than its retries take.
        done, _ = await asyncio.wait({spending}, timeout=3)
        assert not done
        settings = server_settings(database.service_url, listen=f"127.0.0.1:{port}")
        async with running(settings):
            assert (await spending).credit.balance == 9


async def test_repeating_the_call_with_its_key_shows_that_an_unanswered_write_happened(database):
    user_id = await database.user(10)
    await database.wait_longer_for_locks()
    async with running(server_settings(database.service_url)) as service:
        client = await service.client()
        hasty = await service.client(deadline_seconds=patience(1))
        # The account is locked, so the write is under way when its caller stops waiting.
        async with database.locked(user_id):
            spending = asyncio.create_task(hasty.spend_credits(user_id, amount=1))
            await eventually(database.waits_for_a_lock, every=0.01)
            with pytest.raises(OutcomeUnknown) as unknown:
                await spending
        key = unknown.value.key
        again = await client.spend_credits(user_id, amount=1, idempotency_key=key)
        assert again.replayed
        assert (again.credit.balance, again.credit.seq) == (9, 2)
        found = await client.get_transaction(user_id, idempotency_key=key)
        assert found == again.transaction
    assert not await database.faults()


async def test_repeating_the_call_with_its_key_shows_that_an_unanswered_write_did_not_happen(
    database,
):
    user_id = await database.user(10)
    port = free_port()
    async with CreditClient(f"127.0.0.1:{port}", deadline_seconds=0.2) as client:
        with pytest.raises(OutcomeUnknown) as unknown:
            await client.spend_credits(user_id, amount=1)
    settings = server_settings(database.service_url, listen=f"127.0.0.1:{port}")
    async with running(settings) as service:
        client = await service.client()
        with pytest.raises(errors.TransactionNotFound):
            await client.get_transaction(user_id, idempotency_key=unknown.value.key)
        spent = await client.spend_credits(user_id, amount=1, idempotency_key=unknown.value.key)
    assert not spent.replayed


# Requests that are too large.


def batch_of(size):
    """A batch of one item, of so many bytes."""
    items = [pb.BatchSpendItem(user_id=str(USER), amount=1, idempotency_key="k")]
    request = pb.BatchSpendCreditsRequest(items=items, mode=pb.BATCH_MODE_ATOMIC)
    request.items[0].description = "d" * size
    request.items[0].description = "d" * (2 * size - request.ByteSize())
    assert request.ByteSize() == size
    return request


async def test_a_request_too_large_for_the_service_is_refused_with_its_size(client):
    largest, larger = batch_of(REQUEST_BYTES_MAX), batch_of(REQUEST_BYTES_MAX + 1)
    (answered,) = await client.batch_spend_credits(largest.items, mode=largest.mode)
    by_the_service = item_error(answered)
    assert isinstance(by_the_service, InvalidRequest)
    assert "description" in by_the_service.field
    with pytest.raises(InvalidRequest, match=str(REQUEST_BYTES_MAX + 1)) as by_the_client:
        await client.batch_spend_credits(larger.items, mode=larger.mode)
    assert by_the_client.value.field == "request"


async def test_what_grpc_refuses_as_too_large_says_so(client):
    """A service behind a proxy may take less than this client sends."""
    larger = batch_of(REQUEST_BYTES_MAX + 1)
    with pytest.raises(grpc.aio.AioRpcError) as failure:
        await client.stub.BatchSpendCredits(larger)
    error = typed(failure.value)
    assert isinstance(error, UnknownRefusal)
    assert error.reason == "RESOURCE_EXHAUSTED"
    assert "larger than max" in str(error)
