"""Two server processes on one book: calls at the same instant take effect in some order."""

import asyncio
import random
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from uuid import uuid4

import grpc
import pytest
from kit.extent import unless_long
from kit.programs import free_port, process
from kit.refusals import refused
from kit.requests import payment
from kit.storm import Storm, call, connected

from credit_service.v1 import credit_service_pb2 as pb


@contextmanager
def two_processes(url):
    with (
        process("serve", CREDIT_DATABASE_URL=url) as one,
        process("serve", CREDIT_DATABASE_URL=url) as two,
    ):
        yield [f"127.0.0.1:{server.wait_until_listening()}" for server in (one, two)]


@contextmanager
def two_on_one_port(url):
    target = f"127.0.0.1:{free_port()}"
    arguments = ("serve", "--processes", "2")
    with process(*arguments, CREDIT_DATABASE_URL=url, CREDIT_LISTEN=target) as server:
        server.wait_until_listening()
        yield [target, target]


@pytest.fixture(params=[two_processes, two_on_one_port])
async def targets(request, database):
    """The addresses of two processes that write to the same accounts."""
    with request.param(database.service_url) as found:
        yield found


@asynccontextmanager
async def callers(targets, count=8):
    """Stubs with a connection each, half of them to each target."""
    async with AsyncExitStack() as stack:
        yield [
            await stack.enter_async_context(connected(targets[n % len(targets)]))
            for n in range(count)
        ]


async def at_once(stubs, requests):
    """Sends all requests at the same time, spread over the stubs."""
    return await asyncio.gather(
        *(call(stubs[n % len(stubs)], request) for n, request in enumerate(requests))
    )


def ok(answers):
    return [answer for answer in answers if not isinstance(answer, grpc.aio.AioRpcError)]


def reasons(answers):
    failed = [answer for answer in answers if isinstance(answer, grpc.aio.AioRpcError)]
    return {refused(failure).reason for failure in failed}


def spend(user_id, amount=1, key=None):
    return pb.SpendCreditsRequest(
        user_id=str(user_id), amount=amount, idempotency_key=key or uuid4().hex
    )


def purchase(user_id, amount, ref, key=None):
    return pb.PurchaseCreditsRequest(
        user_id=str(user_id),
        amount=amount,
        payment=payment(ref),
        idempotency_key=key or uuid4().hex,
    )


def reversal(payment_ref, reversal_ref, revision):
    return pb.ReversePurchaseRequest(
        payment_ref=payment_ref,
        reversal_ref=reversal_ref,
        revision=revision,
        reversed_minor=999,
        paid_minor=999,
        currency="eur",
        reason="refund",
    )


def refund(user_id, transaction_id, amount=None):
    return pb.RefundCreditsRequest(
        user_id=str(user_id),
        transaction_id=transaction_id,
        amount=amount,
        idempotency_key=uuid4().hex,
    )


async def test_races_between_two_processes_are_decided_by_the_book(database, targets):
    async with callers(targets) as stubs:
        await of_a_hundred_spends_exactly_those_are_paid_that_can_be(database, stubs)
        await one_key_from_many_callers_makes_one_entry(database, stubs)
        await one_key_for_two_requests_makes_one_of_them(database, stubs)
        await refunds_never_exceed_their_spend(database, stubs)
        await one_payment_is_credited_once(database, stubs)
        await an_account_is_opened_once(database, stubs)
        await of_two_payments_one_gets_the_reversal(database, stubs)
        await one_key_for_a_repeated_payment_and_a_spend_belongs_to_one(database, stubs)
    assert not await database.faults()


async def of_a_hundred_spends_exactly_those_are_paid_that_can_be(database, stubs):
    user_id = await database.user(30)
    answers = await at_once(stubs, [spend(user_id) for _ in range(100)])
    assert len(ok(answers)) == 30
    assert reasons(answers) == {"INSUFFICIENT_CREDITS"}
    assert {answer.transaction.balance_after for answer in ok(answers)} == set(range(30))


async def one_key_from_many_callers_makes_one_entry(database, stubs):
    user_id = await database.user(30)
    answers = await at_once(stubs, [spend(user_id, 2, key="same")] * 50)
    assert len(ok(answers)) == 50
    assert [answer.replayed for answer in ok(answers)].count(True) == 49
    assert len({answer.transaction.id for answer in ok(answers)}) == 1
    assert {answer.credit.balance for answer in ok(answers)} == {28}


async def one_key_for_two_requests_makes_one_of_them(database, stubs):
    user_id = await database.user(100)
    answers = await at_once(stubs, [spend(user_id, 1 + n // 2 % 2, "key") for n in range(40)])
    assert len(ok(answers)) == 20
    assert reasons(answers) == {"IDEMPOTENCY_KEY_REUSED"}
    assert len({answer.transaction.id for answer in ok(answers)}) == 1


async def refunds_never_exceed_their_spend(database, stubs):
    user_id = await database.user(100)
    (spent,) = await at_once(stubs, [spend(user_id, 20)])
    asked = [refund(user_id, spent.transaction.id, 3) for _ in range(20)]
    asked += [refund(user_id, spent.transaction.id) for _ in range(5)]
    random.Random(3).shuffle(asked)
    answers = await at_once(stubs, asked)
    assert reasons(answers) == {"REFUND_EXCEEDS_SPEND"}
    assert sum(answer.transaction.amount for answer in ok(answers)) == 20
    (again,) = await at_once(stubs, [spend(user_id, 100)])
    assert again.credit.balance == 0


async def one_payment_is_credited_once(database, stubs):
    one, two = await database.user(), await database.user()
    ref = uuid4().hex
    answers = await at_once(stubs, [purchase((one, two)[n // 2 % 2], 10, ref) for n in range(24)])
    assert reasons(answers) == {"PAYMENT_REUSED"}
    assert len(ok(answers)) == 12
    assert [answer.replayed for answer in ok(answers)].count(False) == 1
    assert len({answer.transaction.id for answer in ok(answers)}) == 1


async def of_two_payments_one_gets_the_reversal(database, stubs):
    for _ in range(20):
        refs = [uuid4().hex for _ in range(2)]
        await at_once(stubs, [purchase(await database.user(), 10, ref) for ref in refs])
        reversal_ref = uuid4().hex
        asked = [reversal(ref, reversal_ref, n) for n, ref in enumerate(refs, 1)]
        answers = await at_once(stubs, [asked[n // 2 % 2] for n in range(4)])
        assert reasons(answers) == {"REVERSAL_REUSED"}
        assert len({answer.transaction.user_id for answer in ok(answers)}) == 1
        assert len(ok(answers)) == 2


async def one_key_for_a_repeated_payment_and_a_spend_belongs_to_one(database, stubs):
    for _ in range(20):
        user_id, ref = await database.user(), uuid4().hex
        await at_once(stubs, [purchase(user_id, 10, ref)])
        asked = [purchase(user_id, 10, ref, "key"), spend(user_id, 1, "key")]
        answers = await at_once(stubs, [asked[n // 2 % 2] for n in range(8)])
        assert reasons(answers) == {"IDEMPOTENCY_KEY_REUSED"}
        assert len(ok(answers)) == 4
        assert len({answer.transaction.id for answer in ok(answers)}) == 1


async def an_account_is_opened_once(database, stubs):
    users = [await database.user() for _ in range(5)]
    answers = await at_once(stubs, [purchase(users[n % 5], 7, uuid4().hex) for n in range(40)])
    assert [answer.replayed for answer in ok(answers)] == [False] * 40
    seqs = sorted((a.transaction.user_id, a.transaction.seq) for a in ok(answers))
    assert seqs == sorted((str(user_id), n) for user_id in users for n in range(1, 9))


@pytest.mark.parametrize("seed", unless_long([1], [1, 2]))
async def test_a_storm_over_two_processes_leaves_a_book_that_adds_up(database, seed):
    users = [await database.user(100) for _ in range(3)]
    with two_processes(database.service_url) as targets:
        async with Storm(targets, users, callers=16, seed=seed) as storm:
            await storm.more(1500)
        await storm.settle()
    await storm.check(database)
    assert set(storm.codes) <= {"OK", "FAILED_PRECONDITION"}
