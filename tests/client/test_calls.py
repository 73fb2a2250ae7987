"""CreditClient: deadlines, retries with the same key, and outcomes that are not known."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from uuid import uuid4

import grpc
import pytest
from google.protobuf.message import Message
from kit.harness import payment, running, server_settings
from kit.programs import free_port
from kit.waiting import eventually, patience
from kit.wire import METHODS, SERVICE, request_of

from credit_service import errors, status
from credit_service.client import CreditClient
from credit_service.errors import (
    InsufficientCredits,
    InternalError,
    LedgerUnavailable,
    OutcomeUnknown,
    Overloaded,
)
from credit_service.v1 import credit_service_pb2 as pb

USER = uuid4()
OPERATION = {"operation": "render"}


@dataclass
class Received:
    """A call as a server saw it."""

    method: str
    request: Message
    metadata: dict[str, str | bytes]
    seconds_left: float


@dataclass
class Answering:
    """A server that gives prepared answers, in order, and keeps what it was asked.

    An answer is an error, a status code without details, or "none": the caller waits in vain. When
    they are used up every call is OK.
    """

    target: str
    answers: list[errors.CreditError | grpc.StatusCode | str] = field(default_factory=list)
    received: list[Received] = field(default_factory=list)

    async def answer(self, method: str, request: Message, context) -> Message:
        metadata = dict(context.invocation_metadata())
        self.received.append(Received(method, request, metadata, context.time_remaining()))
        answer = self.answers.pop(0) if self.answers else None
        if isinstance(answer, errors.CreditError):
            sent = status.render(answer)
            await context.abort(sent.code, sent.message, sent.trailing_metadata)
        if isinstance(answer, grpc.StatusCode):
            await context.abort(answer, "said the server")
        if answer == "none":
            await asyncio.Event().wait()
        return getattr(pb, f"{method}Response")()


@asynccontextmanager
async def answering(*answers) -> AsyncIterator[Answering]:
    server = grpc.aio.server()
    port = server.add_insecure_port("127.0.0.1:0")
    made = Answering(f"127.0.0.1:{port}", list(answers))

    def handler(method):
        async def answer(request, context):
            return await made.answer(method, request, context)

        return grpc.unary_unary_rpc_method_handler(
            answer,
            request_deserializer=request_of(method).FromString,
            response_serializer=lambda response: response.SerializeToString(),
        )

    handlers = {method: handler(method) for method in METHODS}
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler(SERVICE.full_name, handlers),)
    )
    await server.start()
    try:
        yield made
    finally:
        await server.stop(None)


def writes(client: CreditClient, **arguments):
    return {
        "PurchaseCredits": lambda: client.purchase_credits(USER, 5, payment=payment(), **arguments),
        "SpendCredits": lambda: client.spend_credits(USER, amount=5, **arguments),
        "RefundCredits": lambda: client.refund_credits(USER, f"{USER}-2", **arguments),
        "HoldCredits": lambda: client.hold_credits(USER, amount=5, **arguments),
        "CaptureHold": lambda: client.capture_hold(USER, f"{USER}-2", **arguments),
        "ReleaseHold": lambda: client.release_hold(USER, f"{USER}-2", **arguments),
        "GrantCredits": lambda: client.grant_credits(USER, 5, reason="goodwill", **arguments),
    }


def reads(client: CreditClient):
    return {
        "GetUserCredit": lambda: client.get_user_credit(USER),
        "GetTransactionHistory": lambda: anext(client.get_transaction_history(USER), None),
        "GetTransaction": lambda: client.get_transaction(USER, idempotency_key="k"),
        "ListPrices": client.list_prices,
        "QuoteCost": lambda: client.quote_cost({"render": 1}),
        "ExtendHold": lambda: client.extend_hold(USER, f"{USER}-2"),
        "GetHold": lambda: client.get_hold(USER, f"{USER}-2"),
        "ListHolds": lambda: anext(client.list_holds(USER), None),
        "ReversePurchase": lambda: client.reverse_purchase(
            "pi_1",
            reversal_ref="re_1",
            revision=1,
            reversed_minor=1,
            paid_minor=1,
            currency="eur",
            reason="refund",
        ),
        "SetAccountPolicy": lambda: client.set_account_policy(USER, frozen=True),
        "BatchSpendCredits": lambda: client.batch_spend_credits(
            [pb.BatchSpendItem()], mode=pb.BATCH_MODE_ATOMIC
        ),
    }


# Retries. A server that stops answers CANCELLED to a call it has not looked at.

REPEATED = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED)


@pytest.mark.parametrize("refusal", [*REPEATED, Overloaded(), LedgerUnavailable()], ids=repr)
@pytest.mark.parametrize("times", [1, 4])
async def test_without_an_answer_it_calls_again_with_the_very_same_request(refusal, times):
    async with answering(*[refusal] * times) as server, CreditClient(server.target) as client:
        await client.spend_credits(USER, **OPERATION, metadata={"a": "b"})
    requests = [received.request for received in server.received]
    assert len(requests) == times + 1
    assert len(requests[0].idempotency_key) >= 32
    assert all(request == requests[0] for request in requests)


async def test_every_call_is_repeated_when_unavailable():
    unavailable = grpc.StatusCode.UNAVAILABLE
    async with answering() as server, CreditClient(server.target) as client:
        for method, call in (writes(client) | reads(client)).items():
            server.answers, server.received[:] = [unavailable, unavailable], []
            await call()
            assert [received.method for received in server.received] == [method] * 3
            assert (
                len({r.request.SerializeToString(deterministic=True) for r in server.received}) == 1
            )


@pytest.mark.parametrize(
    "code",
    sorted(set(grpc.StatusCode) - {*REPEATED, grpc.StatusCode.OK}, key=str),
    ids=lambda code: code.name,
)
async def test_any_other_status_is_not_called_again(code):
    no_answer = code is grpc.StatusCode.DEADLINE_EXCEEDED
    async with answering(code, code) as server, CreditClient(server.target) as client:
        with pytest.raises(OutcomeUnknown) as unknown:
            await client.spend_credits(USER, amount=5, idempotency_key="k")
        with pytest.raises(LedgerUnavailable if no_answer else InternalError):
            await client.get_user_credit(USER)
    assert unknown.value.key == "k"
    assert [received.method for received in server.received] == ["SpendCredits", "GetUserCredit"]


async def test_a_refusal_is_raised_as_it_is_and_not_called_again():
    refusal = InsufficientCredits(required=10, available=3, held=1, shortfall=7)
    async with answering(refusal) as server, CreditClient(server.target) as client:
        with pytest.raises(InsufficientCredits) as raised:
            await client.spend_credits(USER, **OPERATION)
    assert vars(raised.value) == vars(refusal)
    assert len(server.received) == 1


async def test_when_the_service_stays_unavailable_a_write_is_unknown_and_a_read_is_told():
    async with answering() as server, CreditClient(server.target) as client:
        for refusal in (Overloaded(), LedgerUnavailable()):
            server.answers, server.received[:] = [refusal] * 100, []
            calls = writes(client, idempotency_key="k") | reads(client)
            failures = await asyncio.gather(
                *(call() for call in calls.values()), return_exceptions=True
            )
            for method, failure in zip(calls, failures, strict=True):
                tries = [r.request for r in server.received if r.method == method]
                assert len(tries) == 5, method
                if method in writes(client):
                    assert type(failure) is OutcomeUnknown, method
                    assert failure.key == "k"
                    assert "k" in str(failure)
                    assert all(request == tries[0] for request in tries)
                else:
                    assert type(failure) is type(refusal), method


# Keys and arguments.


async def test_a_key_is_made_once_per_call_and_told_when_the_outcome_is_unknown():
    async with answering() as server, CreditClient(server.target) as client:
        for call in writes(client).values():
            for _ in range(2):
                await call()
        server.answers = [InternalError()]
        with pytest.raises(OutcomeUnknown) as unknown:
            await client.spend_credits(USER, amount=5)
    keys = [received.request.idempotency_key for received in server.received]
    assert len(set(keys)) == len(keys) == 2 * len(writes(client)) + 1
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


async def test_calls_that_cannot_be_meant_are_not_sent():
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
                for call in (writes(client) | reads(client)).values():
                    await call()
            # The report has a deadline of its own, and so a test of its own.
            assert {r.method for r in server.received} == set(METHODS) - {"GetUsageReport"}
            assert {r.metadata.get("authorization") for r in server.received} == {sent}


# Deadlines, and a service that is away.


async def test_every_call_has_a_deadline_of_five_seconds_or_what_is_asked_for():
    async with answering() as server:
        for options, most in (({}, 5), ({"deadline_seconds": 60}, 60)):
            server.received.clear()
            async with CreditClient(server.target, **options) as client:
                for call in (writes(client) | reads(client)).values():
                    await call()
            assert all(most - 4 < received.seconds_left < most + 1 for received in server.received)


async def test_no_answer_in_time_is_unknown_for_a_write_and_unavailable_for_a_read():
    async with (
        answering() as server,
        CreditClient(server.target, deadline_seconds=0.2) as client,
    ):
        for call in writes(client, idempotency_key="k").values():
            server.answers = ["none"]
            with pytest.raises(OutcomeUnknown) as unknown:
                await call()
            assert unknown.value.key == "k"
        for call in reads(client).values():
            server.answers = ["none"]
            with pytest.raises(LedgerUnavailable):
                await call()


async def test_nobody_listening_is_unknown_for_a_write_and_unavailable_for_a_read():
    async with CreditClient(f"127.0.0.1:{free_port()}", deadline_seconds=0.2) as client:
        for call in writes(client, idempotency_key="k").values():
            with pytest.raises(OutcomeUnknown) as unknown:
                await call()
            assert unknown.value.key == "k"
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


async def test_asking_again_with_the_key_tells_that_an_unanswered_write_happened(database):
    user_id = await database.user(10)
    await database.wait_longer_for_locks()
    async with running(server_settings(database.service_url)) as service:
        client = await service.client()
        hasty = await service.client(deadline_seconds=1)
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


async def test_asking_again_with_the_key_tells_that_an_unanswered_write_did_not_happen(database):
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
