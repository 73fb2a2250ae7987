"""Credits that expire, through the socket: how they come, are used, are shown, and go."""

from datetime import UTC

import pytest

from credit_service.errors import UserNotFound


async def listed(client, user_id, **options):
    return [grant async for grant in client.list_grants(user_id, **options)]


async def test_a_user_without_grants_has_none_and_an_unknown_one_is_refused(client, database):
    for user_id in (await database.user(), await database.user(5)):
        assert await listed(client, user_id, include_closed=True) == []
    with pytest.raises(UserNotFound):
        await listed(client, "00000000-0000-0000-0000-000000000001")


async def test_the_liability_report_never_nets_debt(client, database):
    for credits_ in (100, 7):
        await database.user(credits_)
    indebted = await database.user(10)
    before = await client.get_liability_report()
    assert (before.undated, before.debt, before.accounts_in_debt) == (117, 0, 0)
    at = (await client.get_user_credit(indebted)).last_updated.ToDatetime(UTC)
    await client.set_account_policy(indebted, min_balance=-50)
    await client.spend_credits(indebted, amount=40)
    after = await client.get_liability_report()
    assert (after.undated, after.debt, after.accounts_in_debt) == (107, 30, 1)
    assert await client.get_liability_report(at) == before
