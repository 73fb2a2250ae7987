"""CreditClient repeats a call that got no answer: the same request, later, and within a budget."""

import asyncio
import itertools

import grpc
import pytest
from google.protobuf import any_pb2
from google.rpc import error_details_pb2, status_pb2
from kit.answering import USER, answering, every_call, keyed_writes, keyless_writes
from kit.waiting import patience

from credit_service.client import CreditClient
from credit_service.client.retries import Pauses, RetryBudget
from credit_service.errors import (
    InsufficientCredits,
    InternalError,
    LedgerUnavailable,
    OutcomeUnknown,
    Overloaded,
)

pytestmark = pytest.mark.shared

OPERATION = {"operation": "render"}

# A server that stops, or is overloaded, answers CANCELLED to a call it has not looked at.
REPEATED = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED)

# The answers of a service or proxy that failed: the outcome is not known.
FAILED = (grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN, grpc.StatusCode.DATA_LOSS)


def patient(target):
    """A client whose repeats all fit into its deadline."""
    return CreditClient(target, deadline_seconds=patience(30))


@pytest.mark.parametrize("refusal", [*REPEATED, Overloaded(), LedgerUnavailable()], ids=repr)
@pytest.mark.parametrize("times", [1, 4])
async def test_without_an_answer_it_calls_again_with_the_very_same_request(refusal, times):
    async with answering(*[refusal] * times) as server, patient(server.target) as client:
        await client.spend_credits(USER, **OPERATION, metadata={"a": "b"})
    requests = [received.request for received in server.received]
    assert len(requests) == times + 1
    assert len(requests[0].idempotency_key) >= 32
    assert all(request == requests[0] for request in requests)


async def test_every_call_is_repeated_when_unavailable():
    unavailable = grpc.StatusCode.UNAVAILABLE
    async with answering() as server, CreditClient(server.target) as client:
        for method, call in every_call(client).items():
            server.answers, server.received[:] = [unavailable, unavailable], []
            await call()
            assert [received.method for received in server.received] == [method] * 3
            assert (
                len({r.request.SerializeToString(deterministic=True) for r in server.received}) == 1
            )


@pytest.mark.parametrize("code", [grpc.StatusCode.DEADLINE_EXCEEDED, *FAILED], ids=repr)
async def test_a_call_that_may_have_happened_is_not_made_again(code):
    no_answer = code is grpc.StatusCode.DEADLINE_EXCEEDED
    async with answering(code, code, code) as server, CreditClient(server.target) as client:
        with pytest.raises(OutcomeUnknown) as unknown:
            await client.spend_credits(USER, amount=5, idempotency_key="k")
        with pytest.raises(OutcomeUnknown) as keyless:
            await client.set_account_policy(USER, frozen=True)
        with pytest.raises(LedgerUnavailable if no_answer else InternalError):
            await client.get_user_credit(USER)
    assert (unknown.value.key, keyless.value.key) == ("k", "")
    methods = [received.method for received in server.received]
    assert methods == ["SpendCredits", "SetAccountPolicy", "GetUserCredit"]


async def test_a_refusal_is_raised_as_it_is_and_the_call_is_not_repeated():
    refusal = InsufficientCredits(required=10, available=3, held=1, shortfall=7)
    async with answering(refusal) as server, CreditClient(server.target) as client:
        with pytest.raises(InsufficientCredits) as raised:
            await client.spend_credits(USER, **OPERATION)
    assert vars(raised.value) == vars(refusal)
    assert len(server.received) == 1


@pytest.mark.parametrize("refusal", [Overloaded(), LedgerUnavailable()], ids=repr)
async def test_five_tries_without_an_answer_leave_the_outcome_of_a_write_unknown(refusal):
    async with answering() as server, patient(server.target) as client:
        server.always = refusal
        keyed = keyed_writes(client, idempotency_key="k")
        calls = every_call(client) | keyed
        failures = await asyncio.gather(
            *(call() for call in calls.values()), return_exceptions=True
        )
        for method, failure in zip(calls, failures, strict=True):
            tries = [r.request for r in server.received if r.method == method]
            assert len(tries) == 5, method
            assert all(request == tries[0] for request in tries)
            if method in keyed | keyless_writes(client):
                assert type(failure) is OutcomeUnknown, method
                assert failure.key == ("k" if method in keyed else "")
                assert ("idempotency key k" in str(failure)) == (method in keyed)
            else:
                assert type(failure) is type(refusal), method


# When a call is repeated.


def asking_to_wait(seconds):
    """OVERLOADED with a RetryInfo of its own."""
    details = [
        error_details_pb2.ErrorInfo(reason="OVERLOADED", domain="credit_service"),
        error_details_pb2.RetryInfo(),
    ]
    details[1].retry_delay.FromMilliseconds(int(seconds * 1000))
    answer = status_pb2.Status(code=grpc.StatusCode.UNAVAILABLE.value[0])
    for detail in details:
        packed = any_pb2.Any()
        packed.Pack(detail)
        answer.details.append(packed)
    return answer


def pauses_between(received):
    times = [call.at for call in received]
    return [later - earlier for earlier, later in itertools.pairwise(times)]


async def test_a_repeat_waits_as_long_as_the_service_asks():
    async with answering(asking_to_wait(0.7), asking_to_wait(0.4)) as server:
        async with CreditClient(server.target) as client:
            await client.spend_credits(USER, amount=5)
        first, second = pauses_between(server.received)
    assert first >= 0.7
    assert second >= 0.4


async def test_a_wait_that_the_deadline_does_not_allow_ends_the_call_at_once():
    async with answering(asking_to_wait(3600)) as server, CreditClient(server.target) as client:
        with pytest.raises(Overloaded):
            await client.list_prices()
        assert len(server.received) == 1


@pytest.mark.parametrize("code", REPEATED, ids=repr)
async def test_no_call_is_repeated_at_once(code):
    async with answering(*[code] * 4) as server, patient(server.target) as client:
        await client.list_prices()
        assert all(
            pause >= shortest
            for pause, shortest in zip(
                pauses_between(server.received), (0.05, 0.1, 0.2, 0.4), strict=True
            )
        )


def test_pauses_double_up_to_a_maximum_and_differ_from_client_to_client():
    drawn = [[pauses.next() for _ in range(6)] for pauses in (Pauses(0.1, 1.0) for _ in range(50))]
    for step, column in zip((0.1, 0.2, 0.4, 0.8, 1.0, 1.0), zip(*drawn, strict=True), strict=True):
        assert all(step / 2 <= pause <= step * 1.5 for pause in column)
        assert len(set(column)) > 40
    asked = [Pauses().next(2.0) for _ in range(50)]
    assert all(2.0 <= pause <= 2.4 for pause in asked)
    assert len(set(asked)) > 40


async def test_a_service_that_is_away_gets_few_more_calls_than_are_made():
    """Without a budget every one of the calls would be made five times."""
    async with answering() as server, patient(server.target) as client:
        server.always = grpc.StatusCode.UNAVAILABLE
        for _ in range(4):
            calls = (client.spend_credits(USER, amount=1) for _ in range(500))
            outcomes = await asyncio.gather(*calls, return_exceptions=True)
            assert {type(outcome) for outcome in outcomes} == {OutcomeUnknown}
        assert 2000 + 200 <= len(server.received) <= 2000 + 800
        # And when it is back, a call is repeated again as soon as enough have succeeded.
        server.always = None
        for _ in range(20):
            await asyncio.gather(*(client.spend_credits(USER, amount=1) for _ in range(500)))
        server.answers = [grpc.StatusCode.UNAVAILABLE]
        await client.spend_credits(USER, amount=1)


def test_a_budget_allows_repeats_until_half_of_it_is_used_and_earns_it_back(monkeypatch):
    now = 0.0
    monkeypatch.setattr("credit_service.client.retries.time.monotonic", lambda: now)

    def repeats(budget, calls_in_flight=1):
        return sum(budget.failed(calls_in_flight) for _ in range(1000))

    budget = RetryBudget()
    assert repeats(budget) == 249
    for _ in range(2600):
        budget.succeeded(calls_in_flight=1)
    assert 5 <= repeats(budget) <= 15
    now = 300.0  # seconds later
    assert 45 <= repeats(budget) <= 55
    now = 10_000.0
    assert repeats(budget) == 249
    now = 20_000.0
    assert repeats(budget, calls_in_flight=1000) == 1000
    assert 200 <= repeats(budget, calls_in_flight=1000) <= 300


@pytest.mark.parametrize("calls_in_flight", [1, 300, 10_000])
def test_a_budget_ends_the_repeats_of_a_client_a_third_of_whose_calls_fail(
    monkeypatch, calls_in_flight
):
    monkeypatch.setattr("credit_service.client.retries.time.monotonic", lambda: 0.0)
    budget = RetryBudget()
    repeated = []
    for _ in range(40_000):
        budget.succeeded(calls_in_flight)
        budget.succeeded(calls_in_flight)
        repeated.append(budget.failed(calls_in_flight))
    assert repeated[0]
    assert not any(repeated[20_000:])
