"""Two services on one book while a grant expires, and when an allowance is due."""

import asyncio
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, timedelta

from kit.held_jobs import SHORT
from kit.services import TERMS, running, server_settings
from kit.waiting import eventually

from credit_service.errors import InsufficientCredits
from credit_service.rules.grant_values import Allowance
from credit_service.v1 import credit_service_pb2 as pb

# A month, because no test may run across the end of a day.
TWENTY = replace(TERMS, allowance=Allowance(20, "month"))


@asynccontextmanager
async def two_clients(database, terms):
    settings = server_settings(database.service_url, terms=terms)
    async with running(settings) as one, running(settings) as other:
        yield [await one.client(), await other.client()]


async def _spend(client, user):
    try:
        return await client.spend_credits(user, amount=1)
    except InsufficientCredits:
        return None


async def test_an_allowance_is_granted_once_to_simultaneous_calls(database):
    user = await database.user()
    async with two_clients(database, TWENTY) as clients:
        answers = await asyncio.gather(*(_spend(clients[n % 2], user) for n in range(40)))
        assert sum(answer is not None for answer in answers) == 20
        credit = await clients[0].get_user_credit(user)
    assert credit.balance == 0
    grants = await database.fetch("SELECT amount, remaining FROM credit_grants")
    assert [tuple(grant) for grant in grants] == [(20, 0)]
    assert not await database.faults()


async def test_a_user_who_is_deleted_and_comes_back_gets_no_second_allowance(database):
    user = await database.user()
    async with two_clients(database, TWENTY) as clients:
        assert await _spend(clients[0], user) is not None
        await database.execute("DELETE FROM auth.users WHERE id = $1", user)
        await database.execute("INSERT INTO auth.users (id) VALUES ($1)", user)
        await clients[1].grant_credits(user, 5, reason="test")
        answers = await asyncio.gather(*(_spend(clients[n % 2], user) for n in range(10)))
        assert sum(answer is not None for answer in answers) == 5
    assert not await database.faults()


async def test_an_allowance_that_is_changed_is_not_granted_twice_in_a_period(database):
    user = await database.user()
    async with two_clients(database, TWENTY) as clients:
        assert await _spend(clients[0], user) is not None
    larger = replace(TERMS, allowance=Allowance(50, "day"))
    async with two_clients(database, larger) as clients:
        assert await _spend(clients[0], user) is not None
        assert (await clients[1].get_user_credit(user)).balance == 18
    assert len(await database.fetch("SELECT FROM credit_grants")) == 1


async def test_credits_that_expire_while_two_services_spend_them_are_spent_or_lapse(database):
    user = await database.user()
    amount = 10_000
    async with two_clients(database, TERMS) as clients:
        given = await clients[0].grant_credits(
            user, amount, reason="test", valid_for=timedelta(seconds=1)
        )

        async def spend_until_refused(client):
            spent = 0
            while await _spend(client, user) is not None:
                spent += 1
            return spent

        spent = sum(await asyncio.gather(*(spend_until_refused(clients[n % 2]) for n in range(8))))
        lapses = [
            entry
            async for entry in clients[0].get_transaction_history(
                user, types=[pb.TRANSACTION_TYPE_LAPSE]
            )
        ]
    assert 0 < spent < amount
    assert [lapse.amount for lapse in lapses] == [amount - spent]
    expire = given.transaction.timestamp.ToDatetime() + timedelta(seconds=1)
    rows = await database.fetch(
        "SELECT type, timestamp AT TIME ZONE 'UTC' AS at FROM credit_transactions"
        " WHERE user_id = $1 AND seq > 1",
        user,
    )
    assert {row["type"] for row in rows if row["at"] >= expire} == {"lapse"}
    assert {row["type"] for row in rows if row["at"] < expire} == {"spend"}
    assert not await database.faults()


async def test_credits_of_an_ended_hold_are_shown_to_expire_before_that_is_recorded(database):
    user = await database.user()
    async with two_clients(database, TERMS) as (client, other):
        await client.grant_credits(user, 10, reason="test", valid_for=timedelta(minutes=5))
        held = await client.hold_credits(user, amount=4, ttl=timedelta(seconds=1))

        async def ended():
            return (await client.get_user_credit(user)).held == 0

        await eventually(ended)
        ends = held.hold.expire_time.ToDatetime(UTC)
        for record in (False, True):
            if record:
                await other.spend_credits(user, amount=1)
            then = await client.get_user_credit(user, as_of=ends)
            assert (then.balance, then.held) == (10, 0)
            assert [each.amount for each in then.expiring] == [10]
            before = await client.get_user_credit(user, as_of=ends - timedelta(microseconds=1))
            assert (before.balance, before.held) == (10, 4)
            assert [each.amount for each in before.expiring] == [6]


async def test_credits_that_a_revoked_grant_loses_with_its_hold_are_gone_from_that_moment(database):
    user = await database.user()
    async with two_clients(database, TERMS) as (client, other):
        given = await client.grant_credits(user, 10, reason="test", valid_for=timedelta(minutes=5))
        held = await client.hold_credits(user, amount=4, ttl=SHORT)
        await client.revoke_grant(user, given.transaction.id, reason="test")

        async def ended():
            return (await client.get_user_credit(user)).held == 0

        await eventually(ended)
        ends = held.hold.expire_time.ToDatetime(UTC)
        for record in (False, True):
            if record:
                await other.grant_credits(user, 1, reason="test")
            then = await client.get_user_credit(user, as_of=ends)
            assert (then.balance, then.held) == (0, 0)
