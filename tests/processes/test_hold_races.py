"""Holds in two server processes on one book: each has one outcome, and all callers see it."""

import asyncio
import random
import signal
import time
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from datetime import timedelta

import pytest
from kit.commands import ask, lanes
from kit.fault_proxy import COMMIT, Kind
from kit.hold_tables import capture, extend, hold, release
from kit.programs import process
from kit.shown_holds import CAPTURED, EXPIRED, HELD, RELEASED
from kit.waiting import eventually

from credit_service.client import CreditClient
from credit_service.errors import (
    CreditError,
    HoldExpired,
    HoldNotActive,
    InsufficientCredits,
    OutcomeUnknown,
)

SECOND = timedelta(seconds=1)
ROUNDS = 15


@contextmanager
def two_processes(url):
    with (
        process("serve", CREDIT_DATABASE_URL=url) as one,
        process("serve", CREDIT_DATABASE_URL=url) as two,
    ):
        yield [f"127.0.0.1:{server.wait_until_listening()}" for server in (one, two)]


@asynccontextmanager
async def clients_of(targets):
    async with AsyncExitStack() as stack:
        yield [await stack.enter_async_context(CreditClient(target)) for target in targets]


async def at_once(*calls):
    """The answers to calls that are made at the same instant; a refusal is an answer."""
    answers = await asyncio.gather(*calls, return_exceptions=True)
    for answer in answers:
        assert isinstance(answer, CreditError) or not isinstance(answer, BaseException), answer
    return answers


async def made(client, user_id, amount, **how):
    return (await client.hold_credits(user_id, amount=amount, **how)).hold.id


async def figures(client, user_id):
    credit = await client.get_user_credit(user_id)
    return credit.balance, credit.held


async def test_races_for_a_hold_have_one_winner_each(database):
    with two_processes(database.service_url) as targets:
        async with clients_of(targets) as (one, two):
            await two_captures_take_the_credits_once(database, one, two)
            await one_key_captures_once_and_is_answered_twice(database, one, two)
            await a_capture_and_a_release_exclude_each_other(database, one, two)
            await two_releases_write_one_entry(database, one, two)
            await of_fifty_holds_those_are_made_that_can_be_paid(database, one, two)
            await one_key_makes_one_hold(database, one, two)
    assert not await database.faults()


async def two_captures_take_the_credits_once(database, one, two):
    user_id = await database.user(1000)
    for n in range(1, ROUNDS + 1):
        hold_id = await made(one, user_id, 10)
        answers = await at_once(
            one.capture_hold(user_id, hold_id), two.capture_hold(user_id, hold_id)
        )
        refusals = [answer for answer in answers if isinstance(answer, CreditError)]
        assert [(type(r), r.state) for r in refusals] == [(HoldNotActive, "CAPTURED")]
        assert await figures(two, user_id) == (1000 - 10 * n, 0)


async def one_key_captures_once_and_is_answered_twice(database, one, two):
    user_id = await database.user(1000)
    for n in range(ROUNDS):
        hold_id = await made(one, user_id, 10)
        calls = [
            client.capture_hold(user_id, hold_id, idempotency_key=f"capture:{n}")
            for client in (one, two) * 3
        ]
        answers = await at_once(*calls)
        assert sorted(answer.replayed for answer in answers) == [False] + 5 * [True]
        assert len({answer.transaction.id for answer in answers}) == 1
    assert await figures(one, user_id) == (1000 - 10 * ROUNDS, 0)


async def a_capture_and_a_release_exclude_each_other(database, one, two):
    user_id = await database.user(1000)
    captures = 0
    for n in range(2 * ROUNDS):
        first, second = (one, two) if n % 2 else (two, one)
        hold_id = await made(one, user_id, 10)
        captured, released = await at_once(
            first.capture_hold(user_id, hold_id), second.release_hold(user_id, hold_id)
        )
        state = (await one.get_hold(user_id, hold_id)).state
        if isinstance(captured, CreditError):
            assert (type(captured), captured.state) == (HoldNotActive, "RELEASED")
            assert (released.hold.state, state) == (RELEASED, RELEASED)
        else:
            captures += 1
            assert (type(released), released.state) == (HoldNotActive, "CAPTURED")
            assert (captured.hold.state, state) == (CAPTURED, CAPTURED)
    assert await figures(one, user_id) == (1000 - 10 * captures, 0)


async def two_releases_write_one_entry(database, one, two):
    user_id = await database.user(10)
    hold_id = await made(one, user_id, 10)
    answers = await at_once(*(client.release_hold(user_id, hold_id) for client in (one, two) * 4))
    assert sorted(answer.replayed for answer in answers) == [False] + 7 * [True]
    assert len({answer.transaction.id for answer in answers}) == 1


async def of_fifty_holds_those_are_made_that_can_be_paid(database, one, two):
    user_id = await database.user(20)
    answers = await at_once(*(made((one, two)[n % 2], user_id, 1) for n in range(50)))
    refusals = [answer for answer in answers if isinstance(answer, CreditError)]
    assert {type(refusal) for refusal in refusals} == {InsufficientCredits}
    assert len(refusals) == 30
    assert await figures(one, user_id) == (20, 20)


async def one_key_makes_one_hold(database, one, two):
    user_id = await database.user(20)
    calls = [
        client.hold_credits(user_id, amount=3, idempotency_key="job") for client in (one, two) * 5
    ]
    answers = await at_once(*calls)
    assert sorted(answer.replayed for answer in answers) == [False] + 9 * [True]
    assert len({answer.hold.id for answer in answers}) == 1
    assert await figures(one, user_id) == (20, 3)


async def about(moment, chance):
    """Waits until about a moment; the assertions hold on either side of it."""
    await asyncio.sleep(max(0, moment.ToMicroseconds() / 1e6 - time.time() + chance))


async def test_calls_at_the_moment_of_an_expiry_have_one_outcome(database):
    chance = random.Random(7)
    with two_processes(database.service_url) as targets:
        async with clients_of(targets) as (one, two):
            settled = [
                kind(database, *((one, two) if n % 2 else (two, one)), chance.uniform(-0.02, 0.02))
                for n in range(ROUNDS)
                for kind in (
                    a_capture_as_it_expires_or_somebody_else_gets_the_credits,
                    an_extension_comes_in_time_or_is_refused,
                    a_release_as_it_expires_tells_what_ended_the_hold,
                )
            ]
            await asyncio.gather(*settled)
    assert not await database.faults()
    entries = await database.fetch(
        "SELECT count(*) FROM credit_transactions WHERE held_change < 0 GROUP BY user_id, hold_seq"
    )
    assert {row[0] for row in entries} == {1}


async def a_capture_as_it_expires_or_somebody_else_gets_the_credits(database, one, two, chance):
    user_id = await database.user(10)
    hold = (await one.hold_credits(user_id, amount=10, ttl=SECOND)).hold

    async def spend_as_soon_as_it_is_free():
        while True:
            try:
                return await two.spend_credits(user_id, amount=10)
            except InsufficientCredits:
                if capture.done():
                    raise
                await asyncio.sleep(0.005)

    async def capture_in_the_last_moment():
        await about(hold.expire_time, chance)
        return await one.capture_hold(user_id, hold.id)

    capture = asyncio.create_task(capture_in_the_last_moment())
    spent, captured = await at_once(spend_as_soon_as_it_is_free(), capture)
    shown = await two.get_hold(user_id, hold.id)
    if isinstance(captured, CreditError):
        assert isinstance(captured, HoldExpired)
        assert spent.transaction.amount == 10
        assert (shown.state, shown.captured_amount) == (EXPIRED, 0)
    else:
        assert isinstance(spent, InsufficientCredits)
        assert shown.captured_amount == 10
        assert shown.state == (EXPIRED if captured.late else CAPTURED)
    assert await figures(one, user_id) == (0, 0)


async def an_extension_comes_in_time_or_is_refused(database, one, two, chance):
    user_id = await database.user(10)
    hold = (await one.hold_credits(user_id, amount=10, ttl=SECOND)).hold
    await about(hold.expire_time, chance)
    extended, seen = await at_once(
        one.extend_hold(user_id, hold.id, ttl=timedelta(minutes=1)),
        two.hold_credits(user_id, amount=10),
    )
    shown = await two.get_hold(user_id, hold.id)
    if isinstance(extended, CreditError):
        assert isinstance(extended, HoldExpired)
        assert shown.state == EXPIRED
        assert shown.expire_time == hold.expire_time
        # A call at the same time may have come a moment too early.
        assert isinstance(seen, InsufficientCredits) or seen.hold.state == HELD
    else:
        assert extended.expire_time.ToMicroseconds() > hold.expire_time.ToMicroseconds()
        assert shown == extended
        assert isinstance(seen, InsufficientCredits)
        assert await figures(one, user_id) == (10, 10)


async def a_release_as_it_expires_tells_what_ended_the_hold(database, one, two, chance):
    user_id = await database.user(10)
    hold = (await one.hold_credits(user_id, amount=10, ttl=SECOND)).hold
    await about(hold.expire_time, chance)
    answers = await at_once(one.release_hold(user_id, hold.id), two.release_hold(user_id, hold.id))
    shown = await two.get_hold(user_id, hold.id)
    assert {answer.transaction.id for answer in answers} == {shown.settled_transaction_id}
    news = [answer.replayed for answer in answers].count(False)
    assert news == (1 if shown.state == RELEASED else 0)
    assert await figures(two, user_id) == (10, 0)


@pytest.mark.parametrize(
    ("kind", "happened"), [(Kind.HOLD, False), (Kind.SWALLOW, True)], ids=["before", "after"]
)
async def test_a_service_killed_around_a_commit_leaves_one_outcome(database, proxy, kind, happened):
    user_id = await database.user(100)
    with (
        process("serve", CREDIT_DATABASE_URL=proxy.url) as doomed,
        process("serve", CREDIT_DATABASE_URL=database.service_url) as other,
    ):
        targets = [
            f"127.0.0.1:{await asyncio.to_thread(server.wait_until_listening)}"
            for server in (doomed, other)
        ]
        async with clients_of(targets) as (one, two):
            hold_id = await made(two, user_id, 10)
            fault = proxy.on(COMMIT, kind)
            lost = asyncio.create_task(
                one.capture_hold(user_id, hold_id, idempotency_key="capture:1")
            )
            await fault.met.wait()
            doomed.signal(signal.SIGKILL)
            await asyncio.to_thread(doomed.wait)
            proxy.cut_all()
            with pytest.raises(OutcomeUnknown):
                await lost
            proxy.forget()

            async def ask_again():
                return await two.capture_hold(user_id, hold_id, idempotency_key="capture:1")

            again = await ask_again()
            assert again.replayed == happened
            assert (await ask_again()).replayed
            assert (again.hold.state, again.hold.captured_amount) == (CAPTURED, 10)
            with pytest.raises(HoldNotActive):
                await two.release_hold(user_id, hold_id)
            assert await figures(two, user_id) == (90, 0)
    assert not await database.faults()


async def test_the_credits_of_a_killed_service_come_back_when_its_holds_end(database):
    user_id = await database.user(100)
    with process("serve", CREDIT_DATABASE_URL=database.service_url) as doomed:
        async with CreditClient(f"127.0.0.1:{doomed.wait_until_listening()}") as client:
            await made(client, user_id, 100, ttl=SECOND)
        doomed.signal(signal.SIGKILL)
        doomed.wait()
    with process("serve", CREDIT_DATABASE_URL=database.service_url) as other:
        async with CreditClient(f"127.0.0.1:{other.wait_until_listening()}") as client:

            async def they_are_free():
                return await figures(client, user_id) == (100, 0)

            await eventually(they_are_free)
            await client.spend_credits(user_id, amount=100)
    assert not await database.faults()


@pytest.mark.parametrize("kind", [Kind.CUT_BEFORE, Kind.CUT_AFTER, Kind.SWALLOW])
async def test_a_release_after_the_end_stays_a_repeat_behind_a_lost_commit(database, proxy, kind):
    user_id = await database.user(100)
    async with lanes(proxy.url) as clerk:
        (held,) = await ask(clerk, hold(10, user=user_id, ttl=SECOND))

        async def it_is_over():
            return await database.fetch(
                "SELECT FROM credit_holds WHERE expires_at <= clock_timestamp()"
            )

        await eventually(it_is_over)
        fault = proxy.on(COMMIT, kind)
        (released,) = await ask(clerk, release(held.entry.seq, user=user_id))
        assert fault.met.is_set()
    assert (released.entry.type, released.replayed) == ("expire", True)
    assert not await database.faults()


@pytest.mark.parametrize("kind", [Kind.CUT_BEFORE, Kind.CUT_AFTER, Kind.SWALLOW])
async def test_a_hold_s_whole_life_in_one_batch_survives_a_lost_commit(database, proxy, kind):
    user_id = await database.user(100)
    fault = proxy.on(COMMIT, kind)
    async with lanes(proxy.url) as clerk:
        given = await ask(
            clerk,
            hold(10, "h", user=user_id),
            capture(2, 4, user=user_id),
            hold(5, "h2", user=user_id),
            release(4, user=user_id),
            release(4, "r2", user=user_id),
            extend(4, user=user_id),
        )
    assert fault.met.is_set()
    assert [answer.replayed for answer in given[:5]] == [False, False, False, False, True]
    assert [answer.entry.seq for answer in given[:5]] == [2, 3, 4, 5, 5]
    assert isinstance(given[5], HoldNotActive)
    assert not await database.faults()
