"""Many holds that expire together: all are recorded, and the calls of others go on meanwhile."""

import asyncio
import json
import time

import asyncpg
import pytest
from kit.commands import answers, ask, kinds, lanes, spend, submit
from kit.due_holds import add_due, all_are_recorded, states
from kit.extent import unless_long
from kit.services import running, server_settings
from kit.waiting import eventually, patience

from credit_service.errors import Overloaded
from credit_service.ledger import batches, store, sweeper, transactions
from credit_service.ledger.batches import EXPIRIES_MAX
from credit_service.rules import decide
from credit_service.rules.model import Outcome


@pytest.fixture(autouse=True)
def unhurried(monkeypatch):
    """Lets calls wait for as long as a slow machine takes to record what is due."""
    monkeypatch.setattr(batches, "_DUE_PATIENCE_SECONDS", patience(30))


@pytest.mark.timeout(300)
async def test_others_are_served_while_a_crashed_fleet_of_workers_expires(database):
    users = unless_long(150, 500)
    await add_due(database, users=users, each=100)
    other = await database.user(1_000_000)
    async with running(server_settings(database.service_url, lanes=1)) as service:
        client = await service.client()
        recorded = asyncio.create_task(all_are_recorded(database, users * 100))
        while not recorded.done():
            # Each within the client's deadline, with nothing repeated.
            assert not (await client.spend_credits(other, amount=1)).replayed
        await recorded


async def test_a_user_with_more_due_than_a_batch_takes_is_served_after_all_of_it(database):
    [user_id] = await add_due(database, each=10_000)
    other = await database.user(100)
    async with lanes(database.service_url) as clerk:
        [waiting] = submit(clerk, spend(user_id, 100_000), seconds=patience(30))
        while not waiting.done():
            # Others are served between the batches.
            assert kinds(await ask(clerk, spend(other, validate_only=True))) == [Outcome]
        assert (await waiting).account.balance == 0
    assert await states(database) == ({"expired": 10_000}, 10_000)
    rows = await database.fetch(
        "SELECT entry.type, entry.timestamp, hold.expires_at FROM credit_transactions AS entry"
        " LEFT JOIN credit_holds AS hold"
        " ON entry.user_id = hold.user_id AND entry.seq = hold.settled_seq"
        " WHERE entry.user_id = $1 AND entry.seq > 10001 ORDER BY entry.seq",
        user_id,
    )
    assert [row["type"] for row in rows] == ["expire"] * 10_000 + ["spend"]
    ends = [row["expires_at"] for row in rows[:-1]]
    assert ends == sorted(ends)
    # In batches of at most that many, each at a time of its own.
    sizes = [[row["timestamp"] for row in rows].count(time_) for time_ in {r[1] for r in rows}]
    assert max(sizes) <= EXPIRIES_MAX + 1
    assert not await database.faults()


async def test_callers_of_many_users_with_due_holds_are_all_served(database):
    users = await add_due(database, users=30, each=100)
    async with lanes(database.service_url) as clerk:
        given = await ask(clerk, *(spend(user_id, 1000) for user_id in users for _ in range(2)))
        assert sorted(kind.__name__ for kind in kinds(given)) == (
            ["InsufficientCredits"] * 30 + ["Outcome"] * 30
        )
        # A user's calls are decided in the order in which they came.
        assert kinds(given)[::2] == [Outcome] * 30
    assert await states(database) == ({"expired": 3000}, 3000)
    assert not await database.faults()


async def test_every_state_between_two_batches_is_right_for_an_instant(database, monkeypatch):
    monkeypatch.setattr(batches, "EXPIRIES_MAX", 7)
    monkeypatch.setattr(batches, "_MORE_EXPIRIES", 0)
    [user_id] = await add_due(database, each=50)
    seen = set()
    async with lanes(database.service_url) as clerk, database.kept_open() as kept:
        [waiting] = submit(clerk, spend(user_id, 1))
        while not waiting.done():
            assert not await kept.faults()
            seen.add((await kept.fetch("SELECT open_holds FROM user_credits"))[0][0])
            await asyncio.sleep(0)
        await waiting
    assert {(50 - left) % 7 for left in seen} <= {0, 1}
    assert not await database.faults()


async def test_a_call_that_waits_too_long_for_due_holds_is_overloaded(database, monkeypatch):
    monkeypatch.setattr(batches, "EXPIRIES_MAX", 1)
    monkeypatch.setattr(batches, "_DUE_PATIENCE_SECONDS", 0.0)
    [user_id] = await add_due(database, each=20)
    other = await database.user(100)
    async with lanes(database.service_url) as clerk:
        given = await ask(clerk, spend(user_id), spend(other))
        assert kinds(given) == [Overloaded, Outcome]
    assert not await database.fetch(
        "SELECT FROM credit_transactions WHERE user_id = $1 AND type = 'spend'", user_id
    )
    assert not await database.faults()


async def test_calls_that_wait_for_due_holds_take_no_room_from_others(database, monkeypatch):
    monkeypatch.setattr(batches, "EXPIRIES_MAX", 1)
    [user_id] = await add_due(database, each=30)
    other = await database.user(100)
    async with lanes(database.service_url, batch_limit=5) as clerk:
        waiting = submit(clerk, *(spend(user_id) for _ in range(20)))
        [served] = submit(clerk, spend(other))
        assert kinds(await answers([served])) == [Outcome]
        assert not any(each.done() for each in waiting)
        assert set(kinds(await answers(waiting))) == {Outcome}
    assert not await database.faults()


async def slow_down(database, seconds):
    """Makes every new entry take `seconds`, and limits the service's statements to 0.3 s."""
    await database.execute(
        "CREATE FUNCTION dawdle() RETURNS trigger LANGUAGE plpgsql AS"
        f" $$ BEGIN PERFORM pg_sleep({seconds}); RETURN NEW; END $$"
    )
    await database.execute(
        "CREATE TRIGGER dawdle BEFORE INSERT ON credit_transactions"
        " FOR EACH ROW EXECUTE FUNCTION dawdle()"
    )
    await database.execute(
        f"ALTER ROLE credit_service IN DATABASE {database.name} SET statement_timeout = '300ms'"
    )


async def test_expiries_that_exceed_the_statement_timeout_are_split_into_smaller_batches(database):
    [user_id] = await add_due(database, each=EXPIRIES_MAX)
    await slow_down(database, 0.001)
    async with lanes(database.service_url) as clerk:
        assert kinds(await ask(clerk, spend(user_id))) == [Outcome]
    assert await states(database) == ({"expired": EXPIRIES_MAX}, EXPIRIES_MAX)
    assert not await database.faults()


async def test_commands_that_exceed_the_statement_timeout_are_split_into_smaller_batches(database):
    user_id = await database.user(1000)
    await slow_down(database, 0.001)
    async with lanes(database.service_url) as clerk:
        given = await ask(clerk, *(spend(user_id) for _ in range(400)))
        assert set(kinds(given)) == {Outcome}
    assert not await database.faults()


async def test_a_batch_whose_connection_is_lost_because_it_is_slow_is_halved(database, monkeypatch):
    """The server ends a transaction that is idle for too long while the batch is decided."""
    monkeypatch.setattr(transactions, "_SLOW_SECONDS", patience(0.1))
    user_id = await database.user(1000)
    await database.execute(
        f"ALTER ROLE credit_service IN DATABASE {database.name}"
        f" SET idle_in_transaction_session_timeout = '{patience(100):.0f}ms'"
    )
    as_ever = decide.decide

    def slow(state, command, terms):
        time.sleep(patience(0.01))  # the test is about a loop that is held up
        return as_ever(state, command, terms)

    monkeypatch.setattr(decide, "decide", slow)
    async with lanes(database.service_url) as clerk:
        given = await ask(clerk, *(spend(user_id) for _ in range(20)))
        assert set(kinds(given)) == {Outcome}
    assert not await database.faults()


def rows_read(plan):
    """How many rows the scans of a plan gave out."""
    read = plan["Actual Rows"] * plan["Actual Loops"] if "Index Name" in plan else 0
    return read + sum(map(rows_read, plan.get("Plans", [])))


async def test_a_batch_reads_no_more_due_holds_than_it_takes(database):
    users = await add_due(database, users=20, each=50)
    now = (await database.fetch("SELECT clock_timestamp()"))[0][0]
    connection = await asyncpg.connect(database.service_url)
    try:
        found = await store.load_due_holds(connection, users[::-1], now, 120)
        explain = f"EXPLAIN (ANALYZE, FORMAT JSON) {store.SQL['load_due_holds']}"
        explained = await connection.fetchval(explain, users[::-1], now, 120)
    finally:
        await connection.close()
    asked = [*[users[-1]] * 50, *[users[-2]] * 50, *[users[-3]] * 20]
    assert [hold.user_id for hold in found] == asked
    for user_id in users[-3:]:
        ends = [hold.expires_at for hold in found if hold.user_id == user_id]
        assert ends == sorted(ends)
    assert rows_read(json.loads(explained)[0]["Plan"]) <= 150


async def test_the_due_holds_of_a_locked_account_do_not_hide_the_others(database, monkeypatch):
    monkeypatch.setattr(sweeper, "_LOOK", 10)
    [locked] = await add_due(database, each=40)
    for column, table in (("expires_at", "credit_holds"), ("next_hold_expiry", "user_credits")):
        await database.execute(f"UPDATE {table} SET {column} = {column} - interval '9 minutes'")
    await add_due(database, users=5)
    async with database.kept_open() as kept:

        async def others_are_recorded():
            return (await states(kept))[0].get("expired", 0) == 5

        async with (
            database.locked(locked),
            running(server_settings(database.service_url, lanes=1)),
        ):
            await eventually(others_are_recorded)
        assert not await kept.faults()
