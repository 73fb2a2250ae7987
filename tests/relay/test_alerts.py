"""Alerts about balances from a real ledger: which states are announced, and which are not."""

import asyncio
from dataclasses import replace
from datetime import timedelta

from kit.alerts import (
    LOW_TERMS,
    alerts_of,
    all_is_read,
    announced_of,
    making_alerts,
    nothing_waits,
)
from kit.commands import SOON, ask, grant, lanes, spend
from kit.feed import all_readable
from kit.waiting import eventually

from credit_service.rules.commands import SetPolicy
from credit_service.rules.grant_values import Allowance
from credit_service.v1 import credit_service_pb2 as pb

# Short enough to wait for, and longer than it takes to make some calls.
SHORT = timedelta(seconds=2)


async def test_an_account_that_falls_below_its_threshold_is_announced_once(database, client):
    async with making_alerts(database):
        user_id = await database.user(20)
        for _ in range(3):
            await client.spend_credits(user_id, amount=5)
        await all_is_read(database)
    (alert,) = await alerts_of(database, user_id)
    assert (alert.type, alert.change) == ("balance.low", 4)
    assert alert.data == {
        "user_id": str(user_id),
        "balance": 5,
        "held": 0,
        "available": 5,
        "min_balance": 0,
        "alert_below": 10,
        "seq": 4,
        "policy_change": None,
    }


async def test_a_hold_counts_and_worse_is_announced_at_once(database, client):
    async with making_alerts(database):
        user_id = await database.user(20)
        await client.hold_credits(user_id, amount=15)
        await client.spend_credits(user_id, amount=5)
        await all_is_read(database)
    low, depleted = await alerts_of(database, user_id)
    assert (low.type, low.data["held"], low.data["available"]) == ("balance.low", 15, 5)
    assert (depleted.type, depleted.data["available"]) == ("balance.depleted", 0)


async def test_an_account_that_recovers_is_announced_when_the_cool_down_has_ended(database, client):
    async with making_alerts(database, cool_down=SHORT):
        user_id = await database.user(20)
        await client.spend_credits(user_id, amount=15)
        await client.grant_credits(user_id, 100, reason="a test")
        await all_is_read(database)
        await nothing_waits(database)
        low, recovered = await alerts_of(database, user_id)
        assert (low.type, recovered.type) == ("balance.low", "balance.recovered")
        assert (recovered.data["available"], recovered.data["seq"]) == (105, 3)
        times = await database.fetch("SELECT alerted_at FROM credit_alerts ORDER BY alert")
        assert times[1][0] - times[0][0] == SHORT
    # An account with enough credits needs no record.
    assert not await database.fetch("SELECT FROM credit_alert_states")


async def test_a_change_that_is_undone_in_the_cool_down_is_no_alert(database, client):
    async with making_alerts(database, cool_down=SHORT):
        user_id = await database.user(20)
        await client.spend_credits(user_id, amount=15)
        await client.grant_credits(user_id, 100, reason="a test")
        await client.spend_credits(user_id, amount=100)
        await all_is_read(database)
        await nothing_waits(database)
    assert await announced_of(database, user_id) == [("balance.low", 2)]


async def test_a_change_from_before_the_end_of_a_cool_down_counts_although_it_commits_later(
    database, client
):
    async with making_alerts(database, cool_down=SHORT):
        user_id = await database.user(20)
        await client.spend_credits(user_id, amount=15)
        await client.grant_credits(user_id, 100, reason="a test")
        await all_is_read(database)
        writer = await database.connect()
        try:
            async with writer.transaction():
                await writer.execute(
                    "UPDATE user_credits SET balance = 5, seq = 4, last_updated = clock_timestamp()"
                    " WHERE user_id = $1",
                    user_id,
                )
                await writer.execute(
                    "INSERT INTO credit_transactions (user_id, seq, type, call, amount, floor,"
                    " requested_amount, balance_change, held_change, balance_after, held_after,"
                    " description, timestamp, reference, idempotency_key, caller)"
                    " SELECT user_id, 4, 'spend', 'SpendCredits', 100, 0, 100, -100, 0, 5, 0, '',"
                    " last_updated, '', 'late', 'test' FROM user_credits WHERE user_id = $1",
                    user_id,
                )

                async def cooled():
                    return await database.fetch(
                        "SELECT FROM credit_alert_states"
                        " WHERE cools_until + interval '1 second' < clock_timestamp()"
                    )

                await eventually(cooled)
        finally:
            await writer.close()
        await all_is_read(database)
        await nothing_waits(database)
    assert await announced_of(database, user_id) == [("balance.low", 2)]


async def test_a_lapse_and_an_allowance_in_one_transaction_make_no_alert(database):
    user_id = await database.user()
    monthly = replace(LOW_TERMS, allowance=Allowance(50, "month"))
    # There is no sweeper, so the next call records the lapse and grants the allowance.
    async with lanes(database.service_url) as writers:
        await ask(writers, grant(user_id, 30, life=SOON))

    async def lapsed():
        rows = await database.fetch("SELECT expire_time < clock_timestamp() FROM credit_grants")
        return rows[0][0]

    await eventually(lapsed)
    async with (
        making_alerts(database),
        lanes(database.service_url, terms=monthly) as writers,
    ):
        await ask(writers, spend(user_id, 1))
        await all_is_read(database)
        assert await announced_of(database, user_id) == []
        await ask(writers, spend(user_id, 45))
        await all_is_read(database)
    rows = await database.fetch("SELECT type FROM credit_transactions ORDER BY seq")
    assert [row[0] for row in rows] == ["grant", "lapse", "grant", "spend", "spend"]
    assert await announced_of(database, user_id) == [("balance.low", 5)]


async def test_a_raised_threshold_is_announced_and_a_lowered_one_ends_the_alert(database, client):
    async with making_alerts(database, cool_down=SHORT):
        user_id = await database.user(20)
        await client.set_account_policy(user_id, alert_below=20)
        await client.set_account_policy(user_id, alert_below=21)
        await all_is_read(database)
        assert await announced_of(database, user_id) == [("balance.low", "p2")]
        await client.set_account_policy(user_id, reset=[pb.POLICY_FIELD_ALERT_BELOW])
        await all_is_read(database)
        await nothing_waits(database)
    assert await announced_of(database, user_id) == [
        ("balance.low", "p2"),
        ("balance.recovered", "p3"),
    ]


async def test_an_account_s_own_floor_and_threshold_apply_even_if_it_was_never_read(
    database, client
):
    fine, low, depleted = [await database.user(100) for _ in range(3)]
    await client.set_account_policy(fine, alert_below=-5)
    await client.set_account_policy(low, alert_below=200)
    await client.set_account_policy(depleted, min_balance=99)
    await client.set_account_policy(depleted, frozen=False)
    async with making_alerts(database):
        for user_id in (fine, low, depleted):
            await client.spend_credits(user_id, amount=1)
        await all_is_read(database)
    assert await announced_of(database, fine) == []
    assert await announced_of(database, low) == [("balance.low", 2)]
    assert await announced_of(database, depleted) == [("balance.depleted", 2)]


async def test_nothing_is_announced_of_a_frozen_account_until_it_is_unfrozen(database, client):
    async with making_alerts(database):
        user_id = await database.user(20)
        await client.set_account_policy(user_id, frozen=True)
        await client.adjust_credits(user_id, -15, reason="a test")
        await all_is_read(database)
        assert await announced_of(database, user_id) == []
        await client.set_account_policy(user_id, frozen=False)
        await all_is_read(database)
    assert await announced_of(database, user_id) == [("balance.low", "p2")]


async def test_an_account_without_an_entry_makes_no_alert(database, client):
    user_id = await database.user()
    async with making_alerts(database):
        await client.set_account_policy(user_id, alert_below=50)
        await all_is_read(database)
        assert await announced_of(database, user_id) == []
        await client.grant_credits(user_id, 20, reason="a test")
        await all_is_read(database)
    assert await announced_of(database, user_id) == [("balance.low", 1)]


async def test_the_first_start_begins_at_the_end_and_compares_an_account_at_its_next_change(
    database, client
):
    before, idle = await database.user(20), await database.user(20)
    for user_id in (before, idle):
        await client.spend_credits(user_id, amount=15)
    await all_readable(database)
    async with making_alerts(database):
        await client.spend_credits(before, amount=1)
        await all_is_read(database)
    assert await announced_of(database, before) == [("balance.low", 3)]
    assert await announced_of(database, idle) == []


async def test_a_policy_change_of_an_account_that_was_never_read_is_compared_with_its_balance_then(
    database, client
):
    user_id = await database.user(30)
    for _ in range(3):
        await client.spend_credits(user_id, amount=1)
    await all_readable(database)
    async with making_alerts(database) as made:
        made.cancel()
        await asyncio.wait({made})
    # While nothing makes alerts, the policy changes and the balance falls.
    await client.set_account_policy(user_id, alert_below=28)
    for _ in range(30):
        await client.grant_credits(user_id, 10, reason="a test")
    async with making_alerts(database):
        await all_is_read(database)
    (alert, *_) = await alerts_of(database, user_id)
    assert (alert.type, alert.change, alert.data["available"]) == ("balance.low", "p1", 27)


async def test_the_alerts_of_a_deleted_user_go_and_the_next_account_starts_afresh(database, client):
    async with making_alerts(database):
        user_id = await database.user(20)
        await client.spend_credits(user_id, amount=15)
        await all_is_read(database)
        assert await announced_of(database, user_id) == [("balance.low", 2)]
        await database.execute("DELETE FROM auth.users WHERE id = $1", user_id)
        for table in ("credit_alerts", "credit_alert_states"):
            assert not await database.fetch(f"SELECT FROM {table}")
        await database.execute("INSERT INTO auth.users (id) VALUES ($1)", user_id)
        await client.grant_credits(user_id, 5, reason="a test")
        await all_is_read(database)
    assert await announced_of(database, user_id) == [("balance.low", 1)]


async def test_a_threshold_crossed_back_and_forth_makes_few_alerts_and_the_right_last_one(database):
    user_id = await database.user(20)
    async with making_alerts(database, cool_down=SHORT), lanes(database.service_url) as writers:
        for _ in range(50):
            await ask(writers, spend(user_id, 15))
            await ask(writers, grant(user_id, 15))
        await all_is_read(database)
        await nothing_waits(database)
    alerts = await announced_of(database, user_id)
    assert len(alerts) < 20
    assert alerts[0][0] == "balance.low"
    assert alerts[-1] == ("balance.recovered", 101)


async def test_a_policy_and_a_spend_of_one_batch_are_compared_in_the_order_of_the_feed(database):
    user_id = await database.user(20)
    async with making_alerts(database), lanes(database.service_url) as writers:
        policy = keyed_policy(user_id, alert_below=18)
        await ask(writers, policy, spend(user_id, 5))
        await all_is_read(database)
    assert await announced_of(database, user_id) == [("balance.low", "p1")]


async def test_a_transaction_of_many_pages_of_the_feed_is_compared_once_at_its_end(database):
    user_id = await database.user(20)
    async with (
        making_alerts(database),
        lanes(database.service_url, batch_limit=1000) as writers,
    ):
        between = [each for _ in range(400) for each in (grant(user_id, 1), spend(user_id, 1))]
        await ask(writers, spend(user_id, 15), *between, grant(user_id, 15))
        await all_is_read(database)
        rows = await database.fetch("SELECT DISTINCT tx FROM credit_transactions WHERE seq > 1")
        assert len(rows) == 1
        assert await announced_of(database, user_id) == []
        await ask(writers, spend(user_id, 20))
        await all_is_read(database)
    assert await announced_of(database, user_id) == [("balance.depleted", 804)]


def keyed_policy(user_id, **changes):
    return SetPolicy(
        user_id=user_id, caller="test", frozen=None, min_balance=None, limits=None, **changes
    )
