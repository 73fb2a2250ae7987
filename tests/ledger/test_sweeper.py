"""The sweeper: expiries that no call touches are recorded too, once, even after failures."""

from contextlib import asynccontextmanager
from datetime import timedelta

from kit.due_holds import add_due, all_are_recorded, states
from kit.fault_proxy import COMMIT, Kind
from kit.services import running, server_settings
from kit.waiting import eventually

# The statement with which the sweeper looks for due holds.
_LOOK = r"AND hold.expires_at <= \(SELECT clock_timestamp"


def service(database, url=None, **changes):
    return running(server_settings(url or database.service_url, **changes))


@asynccontextmanager
async def in_a_transaction(database):
    """A connection of the owner's in a transaction, rolled back unless it is committed."""
    connection = await database.connect()
    try:
        await connection.execute("BEGIN")
        yield connection
    finally:
        await connection.close()


async def test_an_expiry_without_any_call_is_recorded(database):
    user_id = await database.user(100)
    async with service(database) as running_service:
        client = await running_service.client()
        lasting = (await client.hold_credits(user_id, amount=1)).hold
        ending = (await client.hold_credits(user_id, amount=2, ttl=timedelta(seconds=1))).hold

        async def recorded():
            rows = await database.fetch("SELECT FROM credit_holds WHERE state = 'expired'")
            return len(rows) == 1

        await eventually(recorded)
        shown = await client.get_hold(user_id, ending.id)
        written = await client.get_transaction(user_id, transaction_id=shown.settled_transaction_id)
    assert (written.hold_id, written.amount, written.held_change) == (ending.id, 2, -2)
    assert (written.caller, written.idempotency_key) == ("credit_service", "")
    assert written.timestamp.ToMicroseconds() >= ending.expire_time.ToMicroseconds()
    rows = await database.fetch("SELECT seq, state, settled_seq FROM credit_holds ORDER BY seq")
    assert [tuple(row) for row in rows] == [
        (int(lasting.id.rpartition("-")[2]), "held", None),
        (int(ending.id.rpartition("-")[2]), "expired", written.seq),
    ]
    assert not await database.faults()


async def test_replicas_record_each_expiry_once_between_them(database):
    await add_due(database, users=60, each=5)
    async with service(database), service(database):
        await all_are_recorded(database, 300)


async def test_more_expiries_than_fit_one_round_are_recorded(database):
    await add_due(database, users=1000)
    async with service(database):
        await all_are_recorded(database, 1000)


async def test_the_holds_of_an_account_end_in_the_order_of_their_times(database):
    await add_due(database, users=1, each=10)
    async with service(database):
        await all_are_recorded(database, 10)
    ends = await database.fetch("SELECT expires_at FROM credit_holds ORDER BY settled_seq")
    assert ends == sorted(ends)


async def test_a_user_deleted_meanwhile_does_not_stop_the_sweeper(database):
    await add_due(database, users=2)
    await database.wait_longer_for_locks()
    (doomed,) = await database.fetch("SELECT user_id FROM user_credits ORDER BY user_id LIMIT 1")
    async with in_a_transaction(database) as connection:
        await connection.execute("DELETE FROM auth.users WHERE id = $1", doomed[0])
        async with service(database, lanes=1):
            # The account is found before the deletion commits, and gone when the lane gets to it.
            await eventually(database.waits_for_a_lock, every=0.01)
            await connection.execute("COMMIT")
            await all_are_recorded(database, 1)
            await add_due(database)
            await all_are_recorded(database, 2)


async def test_an_account_that_stays_locked_does_not_stop_the_others(database):
    await add_due(database, users=20)
    (kept,) = await database.fetch("SELECT user_id FROM user_credits ORDER BY user_id LIMIT 1")
    async with service(database, lanes=1), in_a_transaction(database) as connection:
        await connection.execute(
            "SELECT FROM user_credits WHERE user_id = $1 FOR NO KEY UPDATE", kept[0]
        )

        async def others_are_recorded():
            return (await states(database))[0].get("expired", 0) >= 19

        await eventually(others_are_recorded)
        await add_due(database, users=5)

        async def new_ones_are_recorded_too():
            return (await states(database))[0].get("expired", 0) >= 24

        await eventually(new_ones_are_recorded_too)
        await connection.execute("ROLLBACK")
        await all_are_recorded(database, 25)


async def test_a_database_that_goes_away_does_not_stop_the_sweeper(database, proxy):
    async with service(database, proxy.url):
        away = proxy.on(_LOOK, Kind.CUT_BEFORE, times=2)
        await away.met.wait()
        await add_due(database, users=3)
        await all_are_recorded(database, 3)


async def test_an_unforeseen_fault_does_not_stop_the_sweeper(database, proxy):
    await database.execute("REVOKE SELECT ON credit_holds FROM credit_service")
    async with service(database, proxy.url):
        tried = proxy.on(_LOOK, Kind.HOLD, nth=10**9)
        await eventually(lambda: tried.seen >= 1)
        await database.execute("GRANT SELECT ON credit_holds TO credit_service")
        await add_due(database, users=3)
        await all_are_recorded(database, 3)


async def test_a_lost_commit_of_expiries_is_no_second_expiry(database, proxy):
    async with service(database, proxy.url):
        lost = proxy.on(COMMIT, Kind.SWALLOW)
        await add_due(database, users=3)
        await lost.met.wait()
        await all_are_recorded(database, 3)
