"""Credits that expire, through the socket: how they are added, used and shown, and lapse."""

import asyncio
from datetime import UTC, datetime, timedelta

import grpc
import pytest
from kit.refusals import refused
from kit.requests import payment
from kit.waiting import eventually

from credit_service.errors import (
    GrantNotFound,
    IdempotencyKeyReused,
    InvalidRequest,
    TooManyGrants,
    UserNotFound,
)
from credit_service.rules.grants import OPEN_GRANTS_MAX
from credit_service.v1 import credit_service_pb2 as pb

pytestmark = pytest.mark.shared

DAY = timedelta(days=1)
SOON = timedelta(seconds=1)


def in_days(days):
    return datetime.now(UTC).replace(microsecond=0) + days * DAY


async def listed(client, user_id, **options):
    return [grant async for grant in client.list_grants(user_id, **options)]


async def rests(client, user_id):
    """The remaining credits of every open grant, by its original amount."""
    return {grant.amount: grant.remaining for grant in await listed(client, user_id)}


async def balance(client, user_id):
    return (await client.get_user_credit(user_id)).balance


def drawn(entry):
    return [(change.grant_id, change.remaining_change) for change in entry.grant_changes]


async def test_a_purchase_with_an_expiry_is_a_grant(client, database):
    user_id = await database.user(50)
    until = in_days(30)
    bought = await client.purchase_credits(
        user_id, 100, payment=payment(), expire_time=until, priority=20
    )
    assert bought.credit.balance == 150
    (change,) = bought.transaction.grant_changes
    assert change == pb.GrantChange(
        grant_id=bought.transaction.id, remaining_change=100, remaining_after=100
    )
    (grant,) = await listed(client, user_id)
    assert (grant.id, grant.user_id) == (bought.transaction.id, str(user_id))
    assert (grant.amount, grant.remaining, grant.held, grant.priority) == (100, 100, 0, 20)
    assert grant.expire_time.ToDatetime(UTC) == until
    assert (grant.category, grant.series, grant.revoked) == (pb.GRANT_CATEGORY_PAID, "", False)


async def test_valid_for_counts_from_the_entry(client, database):
    user_id = await database.user()
    given = await client.grant_credits(user_id, 5, reason="gift", valid_for=30 * DAY)
    (grant,) = await listed(client, user_id)
    at = given.transaction.timestamp.ToDatetime(UTC)
    assert grant.expire_time.ToDatetime(UTC) == at + 30 * DAY
    assert grant.category == pb.GRANT_CATEGORY_PROMOTIONAL


async def test_credits_without_a_life_are_no_grant(client, database):
    user_id = await database.user()
    for priority in (None, 50):
        given = await client.grant_credits(user_id, 5, reason="gift", priority=priority)
        assert not given.transaction.grant_changes
    assert await listed(client, user_id, include_closed=True) == []
    first = await client.grant_credits(
        user_id, 5, reason="for beta testers", priority=10, category=pb.GRANT_CATEGORY_PAID
    )
    (grant,) = await listed(client, user_id)
    assert (grant.id, grant.category) == (first.transaction.id, pb.GRANT_CATEGORY_PAID)
    assert not grant.HasField("expire_time")


async def test_a_spend_says_which_grants_paid_and_the_history_can_be_filtered_by_one(
    client, database
):
    user_id = await database.user(50)
    late = (await client.grant_credits(user_id, 30, reason="b", valid_for=2 * DAY)).transaction.id
    soon = (await client.grant_credits(user_id, 20, reason="a", valid_for=DAY)).transaction.id
    spend = await client.spend_credits(user_id, amount=40)
    assert drawn(spend.transaction) == [(soon, -20), (late, -20)]
    read = await client.get_transaction(user_id, transaction_id=spend.transaction.id)
    assert read.grant_changes == spend.transaction.grant_changes
    over = await client.spend_credits(user_id, amount=15)
    assert drawn(over.transaction) == [(late, -10)]
    assert await rests(client, user_id) == {}
    everything = await listed(client, user_id, include_closed=True)
    assert [(grant.id, grant.remaining) for grant in everything] == [(soon, 0), (late, 0)]
    for grant, entries in ((soon, [4, 3]), (late, [5, 4, 2])):
        history = [entry async for entry in client.get_transaction_history(user_id, grant_id=grant)]
        assert [entry.seq for entry in history] == entries
        assert all(grant in {c.grant_id for c in entry.grant_changes} for entry in history)


async def test_a_hold_sets_credits_of_grants_aside(client, database):
    user_id = await database.user(50)
    await client.grant_credits(user_id, 30, reason="gift", valid_for=DAY)
    held = await client.hold_credits(user_id, amount=20)
    (change,) = held.transaction.grant_changes
    assert (change.held_change, change.held_after, change.remaining_change) == (20, 20, 0)
    assert change.hold_id == held.hold.id
    (grant,) = await listed(client, user_id)
    assert (grant.remaining, grant.held) == (30, 20)
    captured = await client.capture_hold(user_id, held.hold.id, amount=5)
    assert sum(c.remaining_change for c in captured.transaction.grant_changes) == -5
    (grant,) = await listed(client, user_id)
    assert (grant.remaining, grant.held) == (25, 0)


async def test_the_account_shows_at_most_its_next_three_lapse_times(client, database):
    user_id = await database.user(50)
    assert not (await client.get_user_credit(user_id)).expiring
    until = [in_days(days) for days in (1, 2, 3, 4)]
    for time in (*until, until[1]):
        await client.grant_credits(user_id, 10, reason="gift", expire_time=time)
    before = await client.get_user_credit(user_id)
    expiring = [(e.expire_time.ToDatetime(UTC), e.amount) for e in before.expiring]
    assert expiring == [(until[0], 10), (until[1], 20), (until[2], 10)]
    await client.hold_credits(user_id, amount=7)
    after = await client.get_user_credit(user_id)
    assert [e.amount for e in after.expiring] == [3, 20, 10]
    past = before.last_updated.ToDatetime(UTC)
    then = await client.get_user_credit(user_id, as_of=past)
    assert then.expiring == before.expiring
    async for seen in client.watch_user_credit(user_id):
        assert seen.expiring == after.expiring
        break


async def test_a_grant_lapses_at_its_time_and_the_reports_say_so(client, database):
    user_id = await database.user(50)
    given = await client.grant_credits(user_id, 30, reason="gift", valid_for=SOON)
    await client.spend_credits(user_id, amount=10)

    async def lapsed():
        return await balance(client, user_id) == 50

    await eventually(lapsed)
    assert await listed(client, user_id) == []
    (grant,) = await listed(client, user_id, include_closed=True)
    assert (grant.id, grant.remaining) == (given.transaction.id, 0)
    lapses = [
        entry
        async for entry in client.get_transaction_history(
            user_id, types=[pb.TRANSACTION_TYPE_LAPSE]
        )
    ]
    assert [drawn(entry) for entry in lapses] == [[(given.transaction.id, -20)]]
    assert [entry.balance_change for entry in lapses] == [-20]
    end = datetime.now(UTC) + DAY
    for of in (user_id, None):
        lines = await client.get_usage_report(end - 3 * DAY, end, user_id=of)
        assert sum(line.lapsed for line in lines) == 20
        assert {line.operation for line in lines if line.lapsed} == {""}
    assert not await database.faults()


async def test_an_expiry_is_in_the_future_and_at_most_ten_years_ahead(client, database):
    user_id = await database.user()
    before = await database.book()
    for time in (datetime.now(UTC) - SOON, in_days(3660), datetime(2999, 1, 1, tzinfo=UTC)):
        with pytest.raises(InvalidRequest) as refusal:
            await client.grant_credits(user_id, 5, reason="gift", expire_time=time)
        assert refusal.value.field == "expire_time"
        with pytest.raises(InvalidRequest):
            await client.purchase_credits(user_id, 5, payment=None, expire_time=time)
    assert await database.book() == before


@pytest.mark.shared(False)
async def test_a_payment_is_accepted_after_the_expiry_of_its_credits(client, database):
    user_id = await database.user()
    late = await client.purchase_credits(
        user_id, 5, payment=payment(), expire_time=datetime.now(UTC) - 3 * DAY
    )
    (grant,) = await listed(client, user_id)
    at = late.transaction.timestamp.ToDatetime(UTC)
    assert grant.expire_time.ToDatetime(UTC) == at + 7 * DAY


async def test_a_repeat_must_name_the_same_life(client, database):
    user_id = await database.user()
    until = in_days(1)
    asked = {"reason": "gift", "expire_time": until, "priority": 10, "idempotency_key": "gift"}
    first = await client.grant_credits(user_id, 5, **asked)
    again = await client.grant_credits(user_id, 5, **asked)
    assert again.replayed
    assert again.transaction == first.transaction
    for field, other in (
        ("expire_time", {"expire_time": until + SOON}),
        ("expire_time", {"expire_time": None, "valid_for": DAY}),
        ("priority", {"priority": 11}),
        ("category", {"category": pb.GRANT_CATEGORY_PAID}),
    ):
        with pytest.raises(IdempotencyKeyReused) as refusal:
            await client.grant_credits(user_id, 5, **(asked | other))
        assert refusal.value.field == field


@pytest.mark.shared(False)
async def test_the_first_life_of_a_payment_stays(client, database):
    user_id = await database.user()
    asked = {"payment": payment(), "idempotency_key": "pi_1"}
    await client.purchase_credits(user_id, 5, valid_for=DAY, **asked)
    (grant,) = await listed(client, user_id)
    for life in ({}, {"valid_for": 2 * DAY}, {"priority": 3}, {"expire_time": in_days(9)}):
        assert (await client.purchase_credits(user_id, 5, **asked, **life)).replayed
    assert await listed(client, user_id) == [grant]


async def test_a_plan_keeps_what_rolls_over(client, database):
    user_id = await database.user(50)

    async def renew(invoice):
        return await client.purchase_credits(
            user_id,
            100,
            payment=payment(invoice),
            valid_for=60 * DAY,
            rollover=pb.Rollover(series="sub_7", cap=40),
        )

    assert (await renew("in_1")).credit.balance == 150
    assert (await renew("in_2")).credit.balance == 190
    await client.spend_credits(user_id, amount=20)
    # 20 of the first invoice are left and 100 of the second; 40 of them stay.
    assert (await renew("in_3")).credit.balance == 190
    grants = await listed(client, user_id)
    assert {grant.series for grant in grants} == {"sub_7"}
    assert [grant.remaining for grant in grants] == [100, 40]
    assert not await database.faults()


async def test_a_revoked_grant_is_taken_once(client, database):
    user_id = await database.user(50)
    given = await client.grant_credits(user_id, 30, reason="gift", valid_for=DAY)
    await client.spend_credits(user_id, amount=10)
    grant = given.transaction.id
    asked = {"reason": "a mistake", "idempotency_key": "revoke"}
    checked = await client.revoke_grant(user_id, grant, validate_only=True, **asked)
    assert (checked.transaction.id, await balance(client, user_id)) == ("", 70)
    revoked = await client.revoke_grant(user_id, grant, **asked)
    entry = revoked.transaction
    assert (entry.type, entry.balance_change) == (pb.TRANSACTION_TYPE_REVOCATION, -20)
    assert (entry.description, entry.caller) == ("a mistake", "local")
    assert drawn(entry) == [(grant, -20)]
    assert (revoked.credit.balance, revoked.replayed) == (50, False)
    for key in ("revoke", "revoke again"):
        again = await client.revoke_grant(user_id, grant, reason="again", idempotency_key=key)
        assert (again.credit.balance, again.replayed) == (50, True)
    (shown,) = await listed(client, user_id, include_closed=True)
    assert shown.revoked
    for unknown in (f"{user_id}-1", f"{user_id}-99", f"{await database.user()}-1"):
        with pytest.raises(GrantNotFound) as refusal:
            await client.revoke_grant(user_id, unknown, reason="no grant")
        assert refusal.value.grant_id == unknown
    assert not await database.faults()


async def test_grants_are_listed_a_page_at_a_time(client, database):
    user_id = await database.user()
    for number in range(1, 6):
        await client.grant_credits(user_id, number, reason="gift", valid_for=DAY)
    grants = await listed(client, user_id, page_size=2)
    assert [grant.amount for grant in grants] == [5, 4, 3, 2, 1]
    with pytest.raises(UserNotFound):
        await listed(client, "00000000-0000-0000-0000-000000000001")


@pytest.mark.shared(False)
async def test_the_liability_report_adds_up_what_all_users_have(client, database):
    rich, poor, indebted = [await database.user(credits_) for credits_ in (100, 0, 10)]
    await client.set_account_policy(indebted, min_balance=-50)
    await client.spend_credits(indebted, amount=40)
    await client.purchase_credits(
        rich, 30, payment=payment(), expire_time=datetime(2027, 3, 1, tzinfo=UTC)
    )
    await client.grant_credits(
        rich, 5, reason="gift", expire_time=datetime(2027, 3, 1, 0, 0, 1, tzinfo=UTC)
    )
    await client.grant_credits(poor, 7, reason="gift", priority=3)
    before = await client.get_liability_report()
    assert [(line.month, line.paid, line.promotional) for line in before.lines] == [
        ("2027-02", 30, 0),
        ("2027-03", 0, 5),
        ("", 0, 7),
    ]
    assert (before.undated, before.debt, before.accounts_in_debt) == (100, 30, 1)
    at = (await client.get_user_credit(poor)).last_updated.ToDatetime(UTC)
    await client.spend_credits(rich, amount=20)
    await client.hold_credits(rich, amount=4)
    await client.spend_credits(poor, amount=7)
    assert await client.get_liability_report(at) == before
    after = await client.get_liability_report()
    assert [(line.month, line.paid, line.promotional) for line in after.lines] == [
        ("2027-02", 10, 0),
        ("2027-03", 0, 5),
    ]
    with pytest.raises(InvalidRequest):
        await client.get_liability_report(datetime.now(UTC) + DAY)


@pytest.mark.parametrize(("grants", "more"), [(100, False), (101, True)])
async def test_an_entry_shows_a_hundred_changes_of_grants(client, database, grants, more):
    user_id = await database.user()
    await asyncio.gather(
        *(client.grant_credits(user_id, 1, reason="test", valid_for=DAY) for _ in range(grants))
    )
    spent = (await client.spend_credits(user_id, amount=grants)).transaction
    replayed = await client.spend_credits(
        user_id, amount=grants, idempotency_key=spent.idempotency_key
    )
    found = await client.get_transaction(user_id, transaction_id=spent.id)
    listed_first = await anext(client.get_transaction_history(user_id))
    for entry in (spent, replayed.transaction, found, listed_first):
        assert len(entry.grant_changes) == 100
        assert entry.more_grant_changes == more


async def test_a_page_token_of_grants_is_bound_to_user_filter_and_call(client, stub, database):
    one, two = await database.user(), await database.user()
    for user_id in (one, one, one, two, two):
        await client.grant_credits(user_id, 1, reason="campaign", valid_for=DAY)
    asked = pb.ListGrantsRequest(user_id=str(one), page_size=1)
    token = (await stub.ListGrants(asked)).next_page_token
    history = pb.GetTransactionHistoryRequest(user_id=str(one), page_size=1)
    foreign = (await stub.GetTransactionHistory(history)).next_page_token
    for text in (token, foreign):
        assert text
    for changes in (
        {"user_id": str(two), "page_token": token},
        {"include_closed": True, "page_token": token},
        {"page_token": token[:-1]},
        {"page_token": foreign},
        {"page_token": "rubbish"},
    ):
        fields = {"user_id": str(one), "page_size": 1, **changes}
        with pytest.raises(grpc.aio.AioRpcError) as failure:
            await stub.ListGrants(pb.ListGrantsRequest(**fields))
        assert list(refused(failure.value).violations) == ["page_token"]
    for other in (
        stub.GetTransactionHistory(
            pb.GetTransactionHistoryRequest(user_id=str(one), page_token=token)
        ),
        stub.ListHolds(pb.ListHoldsRequest(user_id=str(one), page_token=token)),
    ):
        with pytest.raises(grpc.aio.AioRpcError) as failure:
            await other
        assert list(refused(failure.value).violations) == ["page_token"]
    asked.page_token, asked.page_size = token, 2
    assert len((await stub.ListGrants(asked)).grants) == 2


@pytest.mark.shared(False)
async def test_more_grants_than_an_account_may_have_open_are_refused(client, database):
    """Purchases never are, and credits without an expiry go to the pool."""
    user_id = await database.user()
    for first in range(0, OPEN_GRANTS_MAX, 100):
        await asyncio.gather(
            *(
                client.purchase_credits(user_id, 1, payment=payment(f"pi_{n}"), valid_for=DAY)
                for n in range(first, first + 100)
            )
        )
    with pytest.raises(TooManyGrants) as failure:
        await client.grant_credits(user_id, 1, reason="campaign", valid_for=DAY)
    read = refused(failure.value)
    assert (read.code, read.reason) == (
        grpc.StatusCode.FAILED_PRECONDITION,
        "TOO_MANY_GRANTS",
    )
    assert read.facts == {"limit": str(OPEN_GRANTS_MAX)}
    assert (await client.grant_credits(user_id, 1, reason="goodwill")).credit.balance == 1001
    bought = await client.purchase_credits(user_id, 1, payment=payment("last"), valid_for=DAY)
    assert bought.credit.balance == 1002
