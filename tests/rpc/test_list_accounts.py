"""Lists over all accounts: filters, pages, the time of a page, and how much a page reads."""

from datetime import UTC, timedelta
from uuid import UUID, uuid4

import pytest
from kit.shown_holds import recorded
from kit.waiting import eventually

from credit_service.errors import InvalidRequest
from credit_service.fields import AMOUNT_MAX
from credit_service.ledger import reads
from credit_service.v1 import credit_service_pb2 as pb


async def listed(client, **filters):
    return [account.user_id async for account in client.list_accounts(**filters)]


async def opened(database, *balances):
    """Accounts with these balances, in the order of their users."""
    users = sorted([uuid4() for _ in balances])
    for user_id, balance in zip(users, balances, strict=True):
        await database.make_anew(user_id, balance)
    return [str(user_id) for user_id in users]


async def test_all_accounts_are_listed_once_in_the_order_of_users_for_any_page_size(
    database, client
):
    users = await opened(database, *[1] * 7)
    await database.user()
    for size in (0, 1, 2, 3, 7, 8, 1000, 5000):
        assert await listed(client, page_size=size) == users, size


async def test_the_first_and_the_last_possible_user_are_listed(database, client):
    ends = [UUID(int=0), UUID(int=2**128 - 1)]
    for user_id in ends:
        await database.make_anew(user_id, 1)
    for size in (1, 2):
        assert await listed(client, page_size=size) == [str(user_id) for user_id in ends]


async def test_each_filter_selects_its_accounts_and_all_filters_must_match(database, client):
    users = await opened(database, 5, 10, 15, 20)
    rich, poor, indebted, idle = users
    await client.adjust_credits(rich, 1000, reason="more")
    await client.adjust_credits(indebted, -20, reason="a test", allow_debt=True)
    await client.hold_credits(poor, amount=7)
    await client.set_account_policy(indebted, frozen=True)
    await client.set_account_policy(rich, frozen=True)
    for filters, expected in (
        ({}, users),
        ({"in_debt": True}, [indebted]),
        ({"frozen": True}, sorted([rich, indebted])),
        ({"frozen": False}, sorted([poor, idle])),
        ({"available_below": 3}, [indebted]),
        ({"available_below": 4}, sorted([poor, indebted])),
        ({"available_below": -5}, []),
        ({"available_below": -4}, [indebted]),
        ({"available_below": 2**63 - 1}, users),
        ({"available_below": -(2**63)}, []),
        ({"frozen": True, "in_debt": True}, [indebted]),
        ({"frozen": False, "available_below": 10}, [poor]),
        ({"frozen": False, "in_debt": True}, []),
    ):
        for size in (1, 50):
            assert await listed(client, page_size=size, **filters) == expected, filters


async def test_changed_since_includes_the_exact_time(database, client):
    first, second = await opened(database, 1, 1)
    await client.adjust_credits(first, 1, reason="a test")
    changed = await client.adjust_credits(second, 1, reason="a test")
    at = changed.transaction.timestamp.ToDatetime(UTC)
    assert await listed(client, changed_since=at) == [second]
    assert await listed(client, changed_since=at + timedelta(microseconds=1)) == []
    earlier = (await client.get_user_credit(first)).last_updated.ToDatetime(UTC)
    assert await listed(client, changed_since=earlier) == [first, second]


async def test_an_account_is_shown_as_get_user_credit_shows_it(database, client):
    (user_id,) = await opened(database, 100)
    await client.hold_credits(user_id, amount=30)
    await client.set_account_policy(user_id, min_balance=-5, frozen=True)
    page = await client.list_accounts_page()
    assert list(page.accounts) == [await client.get_user_credit(user_id)]
    assert page.next_page_token == ""


async def test_a_page_names_its_time(database, client):
    before = (await database.fetch("SELECT clock_timestamp()"))[0][0]
    page = await client.list_accounts_page()
    after = (await database.fetch("SELECT clock_timestamp()"))[0][0]
    assert not page.accounts
    assert before <= page.as_of.ToDatetime(UTC) <= after


async def test_a_hold_that_is_due_is_subtracted_before_it_is_recorded(database, client):
    (user_id,) = await opened(database, 10)

    async def free():
        (account,) = (await client.list_accounts_page()).accounts
        return (account.held, account.available) == (0, 10)

    await client.hold_credits(user_id, amount=8, ttl=timedelta(seconds=1))
    # While the row is locked, neither the sweeper nor a batch can record that the hold has ended.
    async with database.locked(UUID(user_id)):
        await eventually(free)
        assert await listed(client, available_below=10) == []
        assert await recorded(database, UUID(user_id)) == ["held"]


async def test_a_page_reads_a_bounded_number_of_accounts_and_has_a_token_for_the_rest(
    database, client, monkeypatch
):
    monkeypatch.setattr(reads, "SCAN_LIMIT", 3)
    users = await opened(database, 1, 1, 1, 1, 1, 1, 1, 9)
    sizes = []
    token = ""
    found = []
    while True:
        page = await client.list_accounts_page(available_below=2, page_token=token)
        sizes.append(len(page.accounts))
        found += [account.user_id for account in page.accounts]
        token = page.next_page_token
        if not token:
            break
    assert (found, sizes) == (users[:-1], [3, 3, 1])
    page = await client.list_accounts_page(in_debt=True)
    assert not page.accounts
    assert page.next_page_token
    assert await listed(client, in_debt=True) == []


async def test_accounts_that_come_and_go_between_pages_affect_no_others(database, client):
    users = await opened(database, *[1] * 4)
    page = await client.list_accounts_page(page_size=2)
    await database.execute("DELETE FROM auth.users WHERE id = $1", UUID(users[1]))
    await database.execute("DELETE FROM auth.users WHERE id = $1", UUID(users[2]))
    rest = await client.list_accounts_page(page_size=2, page_token=page.next_page_token)
    assert [account.user_id for account in rest.accounts] == users[3:]


async def test_a_token_belongs_to_its_filters(database, client):
    await opened(database, 1, 1)
    token = (await client.list_accounts_page(page_size=1, frozen=False)).next_page_token
    for filters in ({}, {"frozen": True}, {"frozen": False, "in_debt": True}):
        with pytest.raises(InvalidRequest) as refusal:
            await client.list_accounts_page(page_token=token, **filters)
        assert refusal.value.field == "page_token"
    again = await client.list_accounts_page(page_size=2, frozen=False, page_token=token)
    assert len(again.accounts) == 1


async def test_the_largest_balances_are_shown(database, client):
    (user_id,) = await opened(database, 1)
    await client.adjust_credits(user_id, AMOUNT_MAX, reason="a test")
    (account,) = (await client.list_accounts_page()).accounts
    assert account == pb.UserCredit.FromString(
        (await client.get_user_credit(user_id)).SerializeToString()
    )
    assert account.balance == AMOUNT_MAX + 1
