"""Credits that expire soon are announced, once for each expiry of each grant."""

from datetime import UTC, datetime, timedelta

from kit.alerts import alerts_of, all_is_read, announced_of, making_alerts
from kit.waiting import eventually

# That many accounts, each with a grant, all expiring on one day.
GRANTS = """
    WITH users AS (
        INSERT INTO auth.users SELECT gen_random_uuid() FROM generate_series(1, {count})
        RETURNING id
    ),
    accounts AS (
        INSERT INTO user_credits (user_id, balance, seq, last_updated, in_grants, open_grants,
            grants_made)
        SELECT id, 10, 1, now(), 10, 1, 1 FROM users RETURNING user_id
    ),
    entries AS (
        INSERT INTO credit_transactions (user_id, seq, type, call, amount, balance_change,
            held_change, balance_after, held_after, description, timestamp, reference, caller,
            idempotency_key)
        SELECT user_id, 1, 'grant', '{call}', 10, 10, 0, 10, 0, '', now() - interval '{age}', '',
            'test', 'k'
        FROM accounts RETURNING user_id, seq
    )
    INSERT INTO credit_grants
    SELECT user_id, seq, 10, 10, 0, 50, now() + interval '{left}', NULL, NULL, FALSE, NULL, FALSE,
        TRUE, 0, 0, 0
    FROM entries
"""


async def add_grants(database, count, *, call="GrantCredits", age="0 days", left="3 days"):
    await database.execute(GRANTS.format(count=count, call=call, age=age, left=left))


async def count(database):
    (row,) = await database.fetch(
        "SELECT count(*) FROM credit_alerts WHERE type = 'credits.expiring'"
    )
    return row[0]


async def test_a_grant_is_announced_when_it_expires_within_the_days(database, client):
    user_id = await database.user(100)
    soon, later = (datetime.now(UTC) + timedelta(days=days) for days in (3, 30))
    await client.grant_credits(user_id, 40, reason="later", expire_time=later)
    given = await client.grant_credits(user_id, 50, reason="soon", expire_time=soon)
    await client.spend_credits(user_id, amount=20)
    await client.hold_credits(user_id, amount=10)
    async with making_alerts(database):
        await eventually(lambda: alerts_of(database, user_id))
        await all_is_read(database)
    (alert,) = await alerts_of(database, user_id)
    assert alert.type == "credits.expiring"
    written = alert.data.pop("expire_time")
    assert written.endswith("Z")
    expire_time = datetime.fromisoformat(written)
    assert abs(expire_time - soon) < timedelta(milliseconds=1)
    assert alert.data == {
        "user_id": str(user_id),
        "grant_id": given.transaction.id,
        "remaining": 30,
        "held": 10,
    }


async def test_an_expiry_is_announced_once_and_a_changed_one_again(database, client):
    user_id = await database.user(100)
    given = await client.grant_credits(user_id, 40, reason="a test", valid_for=timedelta(seconds=2))
    spent = await client.spend_credits(user_id, amount=30)
    for _ in range(2):
        async with making_alerts(database, expiring_days=8):
            await eventually(lambda: alerts_of(database, user_id))
            marker = await database.user(100)
            await client.grant_credits(marker, 1, reason="m", valid_for=timedelta(days=1))
            await eventually(lambda user=marker: alerts_of(database, user))
    assert await announced_of(database, user_id) == [("credits.expiring", None)]

    async def lapsed():
        rows = await database.fetch("SELECT FROM credit_transactions WHERE type = 'lapse'")
        return len(rows) == 1

    await eventually(lapsed)
    # Credits that return to a grant whose time has passed last for seven more days.
    await client.refund_credits(user_id, transaction_id=spent.transaction.id)

    async def twice():
        return len(await alerts_of(database, user_id)) == 2

    async with making_alerts(database, expiring_days=8):
        await eventually(twice)
    first, second = await alerts_of(database, user_id)
    assert first.data["grant_id"] == second.data["grant_id"] == given.transaction.id
    assert first.data["expire_time"] < second.data["expire_time"]


async def test_a_short_allowance_is_not_announced_each_time_it_is_granted(database):
    await add_grants(database, 3, call="allowance", age="4 days", left="2 days")
    await add_grants(database, 2, call="allowance", age="20 days", left="2 days")
    # The last account of the walk: when it is announced, all others were checked.
    await add_grants(database, 1, left="5 days")
    async with making_alerts(database):

        async def the_last():
            return await database.fetch(
                "SELECT FROM credit_alerts WHERE (data ->> 'expire_time')::timestamptz"
                " > now() + interval '4 days'"
            )

        await eventually(the_last)
    assert await count(database) == 3


async def test_thousands_that_expire_at_one_instant_are_announced_once_despite_interruptions(
    database,
):
    await add_grants(database, 3000)
    seen = 0
    while seen < 3000:
        async with making_alerts(database) as task:

            async def some_more(before=seen):
                return await count(database) > before

            await eventually(some_more)
            task.cancel()
        seen = await count(database)
    async with making_alerts(database):
        await add_grants(database, 1, left="1 day")

        async def one_more():
            return await count(database) > 3000

        await eventually(one_more)
    rows = await database.fetch(
        "SELECT count(*), count(DISTINCT user_id), max(alert) FROM credit_alerts"
    )
    assert tuple(rows[0]) == (3001, 3001, 1)


async def test_the_grants_of_a_deleted_user_are_forgotten(database, client):
    user_id = await database.user()
    async with making_alerts(database):
        await client.grant_credits(user_id, 50, reason="a test", valid_for=timedelta(days=1))
        await eventually(lambda: alerts_of(database, user_id))
        await database.execute("DELETE FROM auth.users WHERE id = $1", user_id)
        assert not await database.fetch("SELECT FROM credit_expiring_alerts")
        await database.execute("INSERT INTO auth.users (id) VALUES ($1)", user_id)
        await client.grant_credits(user_id, 50, reason="a test", valid_for=timedelta(days=1))
        await eventually(lambda: alerts_of(database, user_id))
