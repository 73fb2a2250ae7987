"""What readers see of holds: lists, single ones, balances, and the past, recorded or not.

Where an expiry must stay unrecorded, the test keeps the account's row locked: writers wait and
readers do not.
"""

from datetime import UTC, datetime, timedelta
from uuid import uuid4

import grpc
import pytest
from kit.commands import ask, lanes, spend
from kit.held_jobs import SHORT
from kit.hold_tables import hold as hold_command
from kit.refusals import refused
from kit.services import running, server_settings
from kit.shown_holds import (
    CAPTURED,
    EXPIRED,
    HELD,
    INSTANT,
    RELEASED,
    SECOND,
    figures,
    recorded,
    shows,
)
from kit.waiting import eventually

from credit_service.errors import (
    InsufficientCredits,
    UserNotFound,
)
from credit_service.ledger import store
from credit_service.v1 import credit_service_pb2 as pb

pytestmark = pytest.mark.shared


async def test_holds_are_listed_newest_first_a_page_at_a_time(client, stub, database):
    user_id = await database.user(100)
    made = [(await client.hold_credits(user_id, amount=n)).hold for n in range(1, 8)]
    await client.hold_credits(await database.user(100), amount=9)
    await client.capture_hold(user_id, made[1].id)
    await client.release_hold(user_id, made[2].id)
    await client.release_hold(user_id, made[5].id)

    async def listed(**filters):
        return [hold.amount async for hold in client.list_holds(user_id, **filters)]

    for page_size in (0, 1, 2, 3, 7, 5000):
        assert await listed(page_size=page_size) == [7, 6, 5, 4, 3, 2, 1]
        assert await listed(page_size=page_size, state=HELD) == [7, 5, 4, 1]
        assert await listed(page_size=page_size, state=RELEASED) == [6, 3]
    assert await listed(state=CAPTURED) == [2]
    assert await listed(state=EXPIRED) == []
    page = await stub.ListHolds(pb.ListHoldsRequest(user_id=str(user_id), page_size=7))
    assert (len(page.holds), page.next_page_token) == (7, "")
    nothing = await stub.ListHolds(pb.ListHoldsRequest(user_id=str(await database.user())))
    assert (len(nothing.holds), nothing.next_page_token) == (0, "")


async def test_a_page_token_of_holds_is_bound_to_user_and_state(client, stub, database):
    one, two = await database.user(100), await database.user(100)
    for user_id in (one, one, one, two, two):
        await client.hold_credits(user_id, amount=1)
    asked = pb.ListHoldsRequest(user_id=str(one), state=HELD, page_size=1)
    token = (await stub.ListHolds(asked)).next_page_token
    history = pb.GetTransactionHistoryRequest(
        user_id=str(one), page_size=1, types=[pb.TRANSACTION_TYPE_HOLD]
    )
    foreign = (await stub.GetTransactionHistory(history)).next_page_token
    assert token
    assert foreign
    for changes in (
        {"user_id": str(two), "page_token": token},
        {"state": RELEASED, "page_token": token},
        {"state": pb.HOLD_STATE_UNSPECIFIED, "page_token": token},
        {"page_token": token[:-1]},
        {"page_token": foreign},
        {"page_token": "rubbish"},
    ):
        fields = {"user_id": str(one), "state": HELD, "page_size": 1, **changes}
        with pytest.raises(grpc.aio.AioRpcError) as failure:
            await stub.ListHolds(pb.ListHoldsRequest(**fields))
        assert list(refused(failure.value).violations) == ["page_token"]
    asked.page_token, asked.page_size = token, 2
    assert len((await stub.ListHolds(asked)).holds) == 2


@pytest.mark.parametrize(("field", "value"), [("page_size", -1), ("state", 99)])
async def test_a_bad_listing_is_refused(stub, database, field, value):
    request = pb.ListHoldsRequest(user_id=str(await database.user(1)), **{field: value})
    with pytest.raises(grpc.aio.AioRpcError) as failure:
        await stub.ListHolds(request)
    assert list(refused(failure.value).violations) == [field]


async def test_an_unknown_user_has_no_list_of_holds(client):
    with pytest.raises(UserNotFound):
        await anext(client.list_holds(uuid4()))


async def test_readers_see_the_end_of_a_hold_that_is_not_yet_recorded(client, database):
    user_id = await database.user(100)
    lasting = (await client.hold_credits(user_id, amount=30)).hold
    ending = (await client.hold_credits(user_id, amount=60, ttl=SHORT)).hold
    async with database.locked(user_id):
        await eventually(lambda: shows(client, user_id, ending.id, EXPIRED))
        assert await recorded(database, user_id) == ["held", "held"]
        assert figures(await client.get_user_credit(user_id)) == (100, 30, 70)
        connection = await database.connect()
        (watched,) = await store.changed_accounts(connection, [(user_id, -1, 0, None)])
        await connection.close()
        assert (watched.balance, watched.held) == (100, 30)
        quote = await client.quote_cost({"render": 14}, user_id=user_id)
        assert (quote.available, quote.affordable, quote.shortfall) == (70, True, 0)
        listed = {state: [] for state in (HELD, EXPIRED, pb.HOLD_STATE_UNSPECIFIED)}
        for state, found in listed.items():
            async for hold in client.list_holds(user_id, state=state):
                found.append((hold.id, hold.state))
        open_, over = (lasting.id, HELD), (ending.id, EXPIRED)
        assert list(listed.values()) == [[open_], [over], [over, open_]]
        shown = await client.get_hold(user_id, ending.id)
        assert (shown.captured_amount, shown.settled_transaction_id) == (0, "")
    assert not await database.faults()


@pytest.mark.shared(False)
async def test_a_spend_needs_no_sweeper_to_use_the_credits_of_an_expired_hold(database):
    user_id = await database.user(100)
    async with lanes(database.service_url) as clerk:
        (made,) = await ask(clerk, hold_command(100, user=user_id, ttl=SECOND))

        async def is_over():
            return await database.fetch(
                "SELECT FROM credit_holds WHERE expires_at <= clock_timestamp()"
            )

        refused_, *_ = await ask(clerk, spend(user_id, 1))
        assert isinstance(refused_, InsufficientCredits)
        await eventually(is_over)
        assert await recorded(database, user_id) == ["held"]
        (paid,) = await ask(clerk, spend(user_id, 100))
    assert (paid.account.balance, paid.account.held) == (0, 0)
    assert paid.entry.seq == made.entry.seq + 2
    assert await recorded(database, user_id) == ["expired"]
    assert not await database.faults()


async def test_the_past_shows_a_hold_until_its_end_whenever_that_was_recorded(client, database):
    user_id = await database.user(100)
    hold = (await client.hold_credits(user_id, amount=60, ttl=SHORT)).hold
    end = hold.expire_time.ToDatetime(tzinfo=UTC)

    async def held_around_the_end():
        return [
            figures(await client.get_user_credit(user_id, as_of=time))
            for time in (hold.create_time.ToDatetime(tzinfo=UTC), end - INSTANT, end)
        ]

    truth = [(100, 60, 40), (100, 60, 40), (100, 0, 100)]
    async with database.locked(user_id):
        await eventually(lambda: shows(client, user_id, hold.id, EXPIRED))
        assert await held_around_the_end() == truth
        assert await recorded(database, user_id) == ["held"]

    async def is_recorded():
        return await recorded(database, user_id) == ["expired"]

    await eventually(is_recorded)
    assert await held_around_the_end() == truth
    await client.capture_hold(user_id, hold.id)
    assert await held_around_the_end() == truth


LONG_AGO = datetime.now(UTC).replace(microsecond=0) - timedelta(days=30)


async def _account_of_old(database):
    """A user who had 100 credits and held 60 for an hour, 30 days ago; no call came since."""
    user_id = await database.user()
    connection = await database.connect()
    end = LONG_AGO + timedelta(hours=1)
    async with connection.transaction():
        await connection.execute(
            "INSERT INTO user_credits"
            " (user_id, balance, held, seq, last_updated, open_holds, next_hold_expiry)"
            " VALUES ($1, 100, 60, 2, $2, 1, $3)",
            user_id,
            LONG_AGO,
            end,
        )
        await connection.execute(
            "INSERT INTO credit_transactions (user_id, seq, type, call, amount, requested_amount,"
            " balance_change, held_change, balance_after, held_after, floor, description,"
            " timestamp, reference, idempotency_key, caller, hold_seq) VALUES"
            " ($1, 1, 'purchase', 'PurchaseCredits', 100, 100, 100, 0, 100, 0, NULL, '', $2, '',"
            " '1', 'test', NULL),"
            " ($1, 2, 'hold', 'HoldCredits', 60, 60, 0, 60, 100, 60, 0, '', $2, '',"
            " '2', 'test', 2)",
            user_id,
            LONG_AGO,
        )
        await connection.execute(
            "INSERT INTO credit_holds (user_id, seq, state, amount, created_at, expires_at,"
            " reference) VALUES ($1, 2, 'held', 60, $2, $3, '')",
            user_id,
            LONG_AGO,
            end,
        )
    await connection.close()
    return user_id


async def test_the_past_is_right_where_an_expiry_was_recorded_a_month_later(database):
    user_id = await _account_of_old(database)
    assert not await database.faults()
    end = LONG_AGO + timedelta(hours=1)
    times = end - INSTANT, end, end + timedelta(days=2), end + timedelta(days=4)

    async def held_then(client):
        return [(await client.get_user_credit(user_id, as_of=time)).held for time in times]

    async with database.locked(user_id), running(server_settings(database.service_url)) as service:
        assert await held_then(await service.client()) == [60, 0, 0, 0]
        assert await recorded(database, user_id) == ["held"]
    async with running(server_settings(database.service_url)) as service:
        client = await service.client()
        await client.hold_credits(user_id, amount=100)
        assert await recorded(database, user_id) == ["expired", "held"]
        assert await held_then(client) == [60, 0, 0, 0]
    assert not await database.faults()
