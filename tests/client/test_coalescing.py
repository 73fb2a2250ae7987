"""Calls in flight together share few requests, and each gets the answer it would get alone."""

import asyncio
import re
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager

import pytest
from kit.call_proxy import call_proxy, singles
from kit.callers import EVERY_ROLE
from kit.refusals import refused
from kit.requests import limits
from kit.services import running, server_settings
from kit.waiting import eventually, patience

from credit_service.client import BlockingCreditClient, CreditClient
from credit_service.client.call_queue import BYTES_MAX, ITEMS_MAX
from credit_service.client.connection import REQUEST_BYTES_MAX
from credit_service.errors import (
    CreditError,
    InvalidRequest,
    PermissionDenied,
)
from credit_service.fields import A_USER
from credit_service.rpc.access import Authenticator

_TIMES = re.compile(r"(last_updated|\w*time\w*) \{[^}]*\}")


@pytest.fixture
async def proxy(service):
    async with call_proxy(service.target) as running_proxy:
        yield running_proxy


@pytest.fixture
async def client(proxy):
    async with coalescing(proxy.target) as client:
        yield client


def coalescing(target, **options):
    options.setdefault("deadline_seconds", patience(10))
    return CreditClient(target, coalesce=True, **options)


async def users(database, count, credits_=100):
    async with database.kept_open() as connected:
        return [await connected.user(credits_) for _ in range(count)]


@asynccontextmanager
async def held_up(proxy, client, database):
    """Holds a call up at the proxy, so that the calls made in the block are not alone."""
    (user_id,) = await users(database, 1)
    proxy.flowing.clear()
    first = asyncio.create_task(client.spend_credits(user_id, amount=1))
    await eventually(lambda: proxy.received, every=0.01)
    yield
    proxy.flowing.set()
    await first


# Few requests.


async def test_calls_in_flight_together_are_few_requests(database, proxy, client):
    user_ids = await users(database, 100)
    answers = await asyncio.gather(
        *(client.spend_credits(user_id, amount=7, reference=str(user_id)) for user_id in user_ids)
    )
    assert [answer.transaction.reference for answer in answers] == [str(u) for u in user_ids]
    assert {answer.credit.balance for answer in answers} == {93}
    assert len(set(proxy.keys)) == len(proxy.keys) == 100
    assert len(proxy.received) <= 4
    assert not await database.faults()


async def test_calls_that_follow_each_other_are_single_calls(database, proxy, client):
    (user_id,) = await users(database, 1)
    for _ in range(5):
        await client.spend_credits(user_id, amount=1)
    held = await client.hold_credits(user_id, amount=1)
    await client.capture_hold(user_id, held.hold.id)
    assert proxy.methods == ["SpendCredits"] * 5 + ["HoldCredits", "CaptureHold"]


async def test_a_call_that_nothing_waits_with_is_a_single_call(database, proxy, client):
    user_ids = await users(database, 2)
    await asyncio.gather(*(client.spend_credits(user_id, amount=1) for user_id in user_ids))
    assert proxy.methods == ["SpendCredits"] * 2


async def test_calls_that_only_validate_are_single_calls(database, proxy, client):
    user_ids = await users(database, 10)
    answers = await asyncio.gather(
        *(client.spend_credits(user_id, amount=1, validate_only=True) for user_id in user_ids),
        *(client.hold_credits(user_id, amount=1, validate_only=True) for user_id in user_ids),
    )
    assert {answer.credit.balance for answer in answers} == {100}
    assert sorted(proxy.methods) == ["HoldCredits"] * 10 + ["SpendCredits"] * 10


async def test_without_coalescing_each_call_is_a_request(database, proxy):
    user_ids = await users(database, 10)
    async with CreditClient(proxy.target, coalesce=False) as client:
        await asyncio.gather(*(client.spend_credits(user_id, amount=1) for user_id in user_ids))
    assert proxy.methods == ["SpendCredits"] * 10


async def test_no_request_has_more_than_the_service_takes(database, proxy, client):
    user_ids = await users(database, 900)
    # 4 KiB each is the maximum; the 900 together are seven times the maximum of a request.
    metadata = {"notes": "n" * 4000}
    answers = await asyncio.gather(
        *(client.spend_credits(user_id, amount=1, metadata=metadata) for user_id in user_ids),
    )
    assert len(answers) == 900
    answers = await asyncio.gather(
        *(client.hold_credits(user_id, amount=1) for user_id in user_ids)
    )
    assert len(answers) == 900
    for method, request in proxy.received:
        if method == "CallMany":
            assert len(request.items) <= ITEMS_MAX
            assert request.ByteSize() <= BYTES_MAX
    assert len(proxy.received) < 40


async def test_a_call_that_is_too_large_is_refused_as_a_single_call_is(database, proxy, client):
    user_ids = await users(database, 3)
    large, larger = "d" * (BYTES_MAX + 1), "d" * (REQUEST_BYTES_MAX + 1)
    async with held_up(proxy, client, database):
        calls = asyncio.gather(
            client.spend_credits(user_ids[0], amount=1),
            client.spend_credits(user_ids[1], amount=1, description=large),
            client.spend_credits(user_ids[1], amount=1, description=larger),
            client.spend_credits(user_ids[2], amount=1),
            return_exceptions=True,
        )
        await asyncio.sleep(0)
    first, by_the_service, by_the_client, last = await calls
    assert first.credit.balance == last.credit.balance == 99
    assert isinstance(by_the_service, InvalidRequest)
    assert isinstance(by_the_client, InvalidRequest)
    assert str(REQUEST_BYTES_MAX) in str(by_the_client)


# The same answers.


def mixed_calls(client, user_ids, hold_ids):
    """Calls that succeed and calls that are refused, some of them of one user."""
    rich, poor, frozen, limited, holder = user_ids
    spend, hold, capture = client.spend_credits, client.hold_credits, client.capture_hold
    return [
        spend(rich, amount=5, idempotency_key="s1", metadata={"a": "b"}),
        spend(rich, operation="render", quantity=2, idempotency_key="s2"),
        spend(rich, amount=5, idempotency_key="s1", metadata={"a": "b"}),
        spend(rich, amount=6, idempotency_key="s1"),
        spend(rich, operation="nonsense"),
        spend(rich, operation="render", expected_cost=4),
        spend(rich, amount=1, idempotency_key="k\0"),
        spend(rich, amount=1, idempotency_key=""),
        spend(rich, amount=10**13),
        spend(rich, amount=1, description="d" * 501),
        spend("no user", amount=1),
        spend(A_USER, amount=1),
        spend(poor, amount=101),
        hold(poor, amount=101),
        spend(frozen, amount=1),
        hold(frozen, amount=1),
        spend(limited, amount=11),
        hold(holder, amount=5, idempotency_key="h1", reference="job"),
        hold(holder, amount=5, idempotency_key="h1", reference="job"),
        capture(holder, hold_ids[0], amount=3, idempotency_key="c1"),
        capture(holder, hold_ids[0], amount=3, idempotency_key="c1"),
        capture(holder, hold_ids[0], idempotency_key="c2"),
        capture(holder, hold_ids[1], amount=50),
        capture(holder, hold_ids[1], quantity=2),
        capture(holder, f"{holder}-99"),
        capture(holder, "no hold"),
    ]


async def stage(client, database):
    user_ids = await users(database, 5)
    _, _, frozen, limited, holder = user_ids
    await client.set_account_policy(frozen, frozen=True)
    await client.set_account_policy(limited, spend_limits=limits(day=10))
    hold_ids = [(await client.hold_credits(holder, amount=9)).hold.id for _ in range(2)]
    return user_ids, mixed_calls(client, user_ids, hold_ids)


async def outcome(call):
    """The outcome of a call: its entry and hold, or its error with every detail that was sent.

    The account in an answer is as it was after all calls that were carried out together.
    """
    try:
        answer = await call
    except CreditError as error:
        return type(error), str(error), vars(error), refused(error)
    return answer.transaction, answer.replayed, getattr(answer, "hold", None)


def comparable(outcomes, user_ids):
    """The outcomes as text, without times and with a number for each user."""
    text = _TIMES.sub("", "\n".join(map(str, outcomes)))
    for number, user_id in enumerate(user_ids):
        text = text.replace(str(user_id), f"user {number}")
    return text


async def test_every_answer_and_every_refusal_is_that_of_the_single_call(database, proxy, client):
    async with CreditClient(proxy.target, coalesce=False) as single:
        user_ids, calls = await stage(single, database)
        expected = comparable([await outcome(call) for call in calls], user_ids)
    user_ids, calls = await stage(client, database)
    proxy.received.clear()
    async with held_up(proxy, client, database):
        tasks = [asyncio.create_task(outcome(call)) for call in calls]
        await asyncio.sleep(0)
    found = comparable(await asyncio.gather(*tasks), user_ids)
    assert found == expected
    assert "CallMany" in proxy.methods
    assert not await database.faults()


async def test_a_caller_without_the_right_is_refused_as_by_the_single_call(database, tmp_path):
    """A gateway may hold and not spend, and may not make CallMany."""
    user_ids = await users(database, 10)
    identities = tmp_path / "identities"
    identities.write_text(EVERY_ROLE)
    settings = server_settings(database.service_url, authenticator=Authenticator(identities))
    async with (
        running(settings) as service,
        call_proxy(service.target) as proxy,
        coalescing(proxy.target, token="token of gateway") as client,
    ):
        held = await asyncio.gather(
            *(client.hold_credits(user_id, amount=1) for user_id in user_ids)
        )
        assert {answer.credit.held for answer in held} == {1}
        refusals = await asyncio.gather(
            *(client.spend_credits(user_id, amount=1) for user_id in user_ids),
            return_exceptions=True,
        )
    assert {type(refusal) for refusal in refusals} == {PermissionDenied}
    assert {refusal.action for refusal in refusals} == {"call SpendCredits"}
    assert proxy.methods.count("CallMany") == 1


# The order of a user, and keys.


async def test_the_calls_of_a_user_are_carried_out_in_the_order_of_calling(database, client):
    user_ids = await users(database, 3, 1000)
    calls = [
        client.spend_credits(user_id, amount=1, idempotency_key=f"{n:03}")
        for n in range(200)
        for user_id in user_ids
    ]
    await asyncio.gather(*calls)
    for user_id in user_ids:
        entries = [entry async for entry in client.get_transaction_history(user_id, page_size=300)]
        keys = [entry.idempotency_key for entry in reversed(entries) if entry.seq > 1]
        assert keys == [f"{n:03}" for n in range(200)]


async def test_a_call_waits_for_an_earlier_request_with_a_call_of_its_user(database, proxy, client):
    """The earlier request could arrive later, or be carried out later by another replica."""
    user_id, *others = await users(database, 20)
    proxy.flowing.clear()
    first = asyncio.gather(
        *(client.spend_credits(other, amount=1) for other in others[:9]),
        client.spend_credits(user_id, amount=1, idempotency_key="first"),
    )
    await eventually(lambda: "first" in proxy.keys, every=0.01)
    second = asyncio.gather(
        client.spend_credits(user_id, amount=1, idempotency_key="second"),
        client.spend_credits(str(user_id).upper(), amount=1, idempotency_key="third"),
        *(client.spend_credits(other, amount=1) for other in others[9:]),
    )
    # The other users' calls were sent, so this user's calls could have been sent too.
    await eventually(lambda: len(proxy.keys) == 20, every=0.01)
    assert {"second", "third"}.isdisjoint(proxy.keys)
    proxy.flowing.set()
    *_, earliest = await first
    earlier, later, *_ = await second
    assert [a.transaction.seq for a in (earliest, earlier, later)] == [2, 3, 4]


async def test_fifty_deliveries_of_one_key_are_one_charge_with_fifty_equal_answers(
    database, proxy, client
):
    (user_id,) = await users(database, 1)
    deliveries = [client.spend_credits(user_id, amount=7, idempotency_key="one") for _ in range(50)]
    answers = await asyncio.gather(*deliveries)
    assert [answer.replayed for answer in answers].count(False) == 1
    assert {answer.transaction.SerializeToString(deterministic=True) for answer in answers} == {
        answers[0].transaction.SerializeToString(deterministic=True)
    }
    assert (await client.get_user_credit(user_id)).balance == 93
    spends = [singles(request) for method, request in proxy.received if method != "GetUserCredit"]
    assert max(len(requests) for requests in spends) == 1
    assert not await database.faults()


# The blocking client.


async def test_threads_share_the_requests_of_a_blocking_client(database, proxy):
    user_ids = await users(database, 32)

    def work(client, user_id):
        answers = [client.spend_credits(user_id, amount=1) for _ in range(20)]
        with client.hold(user_id, amount=5, job="song") as held:
            pass
        return [answer.credit.balance for answer in answers], held.captured.credit.balance

    def all_threads():
        with (
            BlockingCreditClient(
                proxy.target, coalesce=True, deadline_seconds=patience(10)
            ) as client,
            ThreadPoolExecutor(32) as threads,
        ):
            return list(threads.map(work, [client] * 32, user_ids))

    found = await asyncio.to_thread(all_threads)
    assert found == [(list(range(99, 79, -1)), 75)] * 32
    assert "CallMany" in proxy.methods
    assert len(proxy.received) < 32 * 22 / 2
    assert not await database.faults()
