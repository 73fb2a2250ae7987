"""Accounts that a lane opens, and users that are deleted while it works."""

import asyncio
import random
from uuid import uuid4

import pytest
from kit.commands import (
    answers,
    ask,
    kinds,
    lanes,
    purchase,
    refund,
    spend,
    submit,
)
from kit.fault_proxy import COMMIT, LOAD_KEYS, Kind
from kit.waiting import eventually

from credit_service.errors import (
    BalanceLimitExceeded,
    PaymentReused,
    UserDeleted,
    UserNotFound,
)
from credit_service.fields import AMOUNT_MAX, BALANCE_MAX
from credit_service.rules.model import Outcome

DELETE = "DELETE FROM auth.users WHERE id = $1"


async def balance(database, user_id):
    rows = await database.fetch("SELECT balance FROM user_credits WHERE user_id = $1", user_id)
    return rows[0]["balance"] if rows else None


async def test_two_lanes_may_open_one_account_at_once(database, proxy):
    user_id = await database.user()
    held = proxy.on("INSERT INTO user_credits", Kind.HOLD)
    async with lanes(proxy.url) as slow, lanes(database.service_url) as fast:
        late = submit(slow, purchase(user_id, 10))
        await held.met.wait()
        first = await ask(fast, purchase(user_id, 5))
        held.release()
        given = first + await answers(late)
    assert [(a.entry.seq, a.account.balance, a.replayed) for a in given] == [
        (1, 5, False),
        (2, 15, False),
    ]
    assert not await database.faults()


async def test_two_lanes_may_open_one_account_by_one_key(database, proxy):
    user_id = await database.user()
    command = purchase(user_id, 10, ref="pi_1")
    held = proxy.on(COMMIT, Kind.HOLD)
    async with lanes(proxy.url) as one, lanes(database.service_url) as two:
        first = submit(one, command)
        await held.met.wait()
        second = submit(two, command)
        await eventually(database.waits_for_a_lock, every=0.005)
        held.release()
        given = await answers(first + second)
    assert [answer.replayed for answer in given] == [False, True]
    assert await balance(database, user_id) == 10
    assert not await database.faults()


async def test_a_repeat_shows_the_account_that_was_opened_after_it_looked(database, proxy):
    user_id = await database.user()
    command = purchase(user_id, 10, ref="pi_1")
    held = proxy.on(LOAD_KEYS, Kind.HOLD)
    async with lanes(proxy.url) as slow, lanes(database.service_url) as fast:
        late = submit(slow, command)
        await held.met.wait()
        await ask(fast, command)
        held.release()
        (given,) = await answers(late)
    assert (given.replayed, given.account.balance, given.account.seq) == (True, 10, 1)


@pytest.mark.parametrize("place", ["INSERT INTO credit_purchases", COMMIT])
async def test_one_payment_for_two_users_at_once_is_credited_to_one(database, proxy, place):
    one, two = await database.user(), await database.user()
    held = proxy.on(place, Kind.HOLD)
    async with lanes(proxy.url) as first_lane, lanes(database.service_url) as second_lane:
        first = submit(first_lane, purchase(one, 10, ref="pi_1"))
        await held.met.wait()
        second = submit(second_lane, purchase(two, 10, ref="pi_1"))
        if place == COMMIT:
            await eventually(database.waits_for_a_lock, every=0.005)
        else:
            await asyncio.wait(second)
        held.release()
        given = await answers(first + second)
    assert sorted(kinds(given), key=str) == sorted([Outcome, PaymentReused], key=str)
    balances = [await balance(database, one), await balance(database, two)]
    assert sorted(balances, key=str) == [10, None]
    assert not await database.faults()


async def test_one_payment_under_two_keys_at_once_is_credited_once(database):
    user_id = await database.user()
    async with lanes(database.service_url) as one, lanes(database.service_url) as two:
        given = await answers(
            submit(one, *(purchase(user_id, ref="pi_1") for _ in range(3)))
            + submit(two, *(purchase(user_id, ref="pi_1") for _ in range(3)))
        )
    assert [answer.replayed for answer in given].count(False) == 1
    assert len({answer.entry.seq for answer in given}) == 1
    assert await balance(database, user_id) == 10
    assert not await database.faults()


async def test_many_payments_crossing_between_lanes_are_each_credited_once(database):
    users = [await database.user() for _ in range(4)]
    refs = [f"pi_{n}" for n in range(12)]
    lots = random.Random(7)

    given = []

    async def credit(clerk):
        for _ in range(4):
            lots.shuffle(refs)
            given.extend(await ask(clerk, *(purchase(lots.choice(users), ref=r) for r in refs)))

    async with lanes(database.service_url) as one, lanes(database.service_url) as two:
        await asyncio.gather(credit(one), credit(two))
    assert set(kinds(given)) <= {Outcome, PaymentReused}
    assert sum(1 for a in given if isinstance(a, Outcome) and not a.replayed) == len(refs)
    assert sum([await balance(database, user_id) or 0 for user_id in users]) == 10 * len(refs)
    assert not await database.faults()


async def test_a_purchase_adds_the_user_where_users_are_managed(database):
    buyer, stranger = uuid4(), uuid4()
    async with lanes(database.service_url, adds_users=True) as clerk:
        given = await ask(clerk, spend(stranger), purchase(buyer, 10), spend(buyer, 4))
    assert kinds(given) == [UserNotFound, Outcome, Outcome]
    users = await database.fetch("SELECT id FROM auth.users")
    assert [row["id"] for row in users] == [buyer]
    assert not await database.faults()


async def test_two_lanes_may_add_one_user_at_once(database, proxy):
    user_id = uuid4()
    held = proxy.on("INSERT INTO auth.users", Kind.HOLD)
    async with (
        lanes(proxy.url, adds_users=True) as slow,
        lanes(database.service_url, adds_users=True) as fast,
    ):
        late = submit(slow, purchase(user_id, 10))
        await held.met.wait()
        first = await ask(fast, purchase(user_id, 5))
        held.release()
        given = first + await answers(late)
    assert [(a.entry.seq, a.account.balance) for a in given] == [(1, 5), (2, 15)]
    assert not await database.faults()


async def test_a_purchase_does_not_add_a_user_where_users_exist_elsewhere(database):
    async with lanes(database.service_url) as clerk:
        assert kinds(await ask(clerk, purchase(uuid4()))) == [UserNotFound]
    assert not await database.fetch("SELECT FROM auth.users")


@pytest.mark.parametrize("adds_users", [False, True])
async def test_a_purchase_refused_or_only_validated_opens_no_account(database, adds_users):
    payer, user_id = await database.user(), await database.user()
    unknown = uuid4()
    async with lanes(database.service_url, adds_users=adds_users) as clerk:
        await ask(clerk, purchase(payer, ref="pi_1"))
        given = await ask(
            clerk,
            purchase(user_id, validate_only=True),
            purchase(user_id, ref="pi_1"),
            spend(user_id, 0 + 1, validate_only=True),
            purchase(unknown, validate_only=True),
        )
        validated, reused, _, of_unknown = given
        assert kinds([validated, reused]) == [Outcome, PaymentReused]
        assert isinstance(of_unknown, Outcome if adds_users else UserNotFound)
    assert await balance(database, user_id) is None
    assert len(await database.fetch("SELECT FROM auth.users")) == 2
    assert not await database.faults()


async def test_a_validated_command_changes_nothing_for_those_behind_it(database):
    user_id = await database.user(10)
    async with lanes(database.service_url) as clerk:
        given = await ask(clerk, spend(user_id, 10, validate_only=True), spend(user_id, 10))
    assert [(a.entry.seq, a.replayed) for a in given] == [(2, False), (2, False)]
    assert await balance(database, user_id) == 0


async def test_a_balance_beyond_the_books_range_is_refused_alone(database):
    full, other = await database.user(), await database.user(1)
    async with lanes(database.service_url) as clerk:
        most = [purchase(full, AMOUNT_MAX) for _ in range(BALANCE_MAX // AMOUNT_MAX)]
        for start in range(0, len(most), 500):
            assert set(kinds(await ask(clerk, *most[start : start + 500]))) == {Outcome}
        given = await ask(clerk, purchase(full, 1), spend(other))
    assert kinds(given) == [BalanceLimitExceeded, Outcome]
    assert await balance(database, full) == BALANCE_MAX
    assert not await database.faults()


async def test_a_spend_behind_the_deletion_of_its_user_finds_no_user(database):
    user_id, other = await database.user(10), await database.user(10)
    deleting = await database.connect()
    async with lanes(database.service_url) as clerk:
        async with deleting.transaction():
            await deleting.execute(DELETE, user_id)
            waiting = submit(clerk, spend(user_id), spend(other))
            await eventually(database.waits_for_a_lock, every=0.005)
        assert kinds(await answers(waiting)) == [UserNotFound, Outcome]
    await deleting.close()
    assert not await database.faults()


@pytest.mark.parametrize("neighbours", [0, 1, 4])
async def test_a_first_purchase_behind_the_deletion_of_its_user_finds_no_user(database, neighbours):
    user_id, other = await database.user(), await database.user(10)
    deleting = await database.connect()
    async with lanes(database.service_url) as clerk:
        async with deleting.transaction():
            await deleting.execute(DELETE, user_id)
            waiting = submit(clerk, purchase(user_id), *(spend(other) for _ in range(neighbours)))
            await eventually(database.waits_for_a_lock, every=0.005)
        assert kinds(await answers(waiting)) == [UserNotFound, *[Outcome] * neighbours]
    await deleting.close()
    assert not await database.faults()


async def test_the_deletion_of_a_user_waits_for_the_spend_before_it(database, proxy):
    user_id = await database.user(10)
    held = proxy.on(COMMIT, Kind.HOLD)
    async with lanes(proxy.url) as clerk:
        waiting = submit(clerk, spend(user_id), refund(user_id, 2))
        await held.met.wait()
        deleting = asyncio.create_task(database.execute(DELETE, user_id))
        await eventually(database.waits_for_a_lock, every=0.005)
        held.release()
        assert kinds(await answers(waiting)) == [Outcome, Outcome]
        await deleting
        assert kinds(await ask(clerk, spend(user_id))) == [UserNotFound]
    assert not await database.fetch("SELECT FROM credit_transactions")


async def test_a_payment_of_a_deleted_user_is_never_credited_again(database):
    user_id, other = await database.user(), await database.user()
    async with lanes(database.service_url) as clerk:
        await ask(clerk, purchase(user_id, ref="pi_1"))
        await database.execute(DELETE, user_id)
        await database.execute("INSERT INTO auth.users (id) VALUES ($1)", user_id)
        given = await ask(
            clerk,
            purchase(user_id, ref="pi_1"),
            purchase(other, ref="pi_1"),
            purchase(user_id, ref="pi_2"),
            purchase(user_id, ref="pi_1"),
        )
    assert kinds(given) == [UserDeleted, UserDeleted, Outcome, UserDeleted]


async def test_users_deleted_under_load_bring_no_other_refusal_and_no_deadlock(database):
    users = [await database.user(1000) for _ in range(12)]
    newcomers = [await database.user() for _ in range(12)]
    lots = random.Random(11)
    given = []

    async def pay(clerk):
        while not done.is_set() or len(given) < 200:
            buys = [purchase(lots.choice(newcomers)) for _ in range(2)]
            given.extend(await ask(clerk, *buys, *(spend(lots.choice(users)) for _ in range(6))))

    done = asyncio.Event()
    async with lanes(database.service_url) as one, lanes(database.service_url) as two:
        callers = [asyncio.create_task(pay(clerk)) for clerk in (one, two)]
        connection = await database.connect()
        # Deleting several users at once may deadlock with a batch; the lane gives way.
        await connection.execute("SET deadlock_timeout = '30s'")
        for n in range(0, 8, 2):
            await connection.execute(DELETE, users[n])
            await connection.execute(DELETE, newcomers[n])
            pair = [users[n + 1], newcomers[n + 1]]
            await connection.execute("DELETE FROM auth.users WHERE id = ANY($1)", pair)
        done.set()
        await asyncio.gather(*callers)
        await connection.close()
    assert set(kinds(given)) == {Outcome, UserNotFound}
    assert not await database.faults()
