"""The lanes on a real database: what a batch is, which calls it may disturb, when it answers."""

import asyncio
from uuid import uuid4

import pytest
from kit.commands import (
    answers,
    ask,
    kinds,
    lanes,
    spend,
    submit,
    transactions,
    written,
)
from kit.fault_proxy import BEGIN, COMMIT, UPDATE, Kind
from kit.services import writer_settings
from kit.waiting import eventually, patience

from credit_service.errors import (
    IdempotencyKeyReused,
    InsufficientCredits,
    InternalError,
    LedgerUnavailable,
    Overloaded,
    UserNotFound,
)
from credit_service.ledger import store
from credit_service.ledger.batches import BatchRunner, Waiting
from credit_service.ledger.transactions import Transactions
from credit_service.rules import decide
from credit_service.rules.model import Account, Outcome


async def test_queued_calls_are_written_in_one_transaction(database, proxy):
    users = [await database.user(100) for _ in range(5)]
    held = proxy.on(COMMIT, Kind.HOLD)
    async with lanes(proxy.url) as clerk:
        first = submit(clerk, spend(users[0]))
        await held.met.wait()
        pile = submit(clerk, *(spend(user_id) for user_id in users for _ in range(10)))
        held.release()
        assert set(kinds(await answers(first + pile))) == {Outcome}
    assert await transactions(database) == 2
    assert not await database.faults()


async def test_a_transaction_takes_no_more_commands_than_its_limit(database):
    user_id = await database.user(100)
    async with lanes(database.service_url, batch_limit=10) as clerk:
        await ask(clerk, *(spend(user_id) for _ in range(25)))
    assert await transactions(database) == 3


async def test_calls_that_had_to_wait_together_are_written_in_as_many_transactions(database):
    user_id = await database.user(100)
    settings = writer_settings(database.service_url, batch_limit=10)
    runner = BatchRunner(Transactions(settings), settings.batch_limit)
    loop = asyncio.get_running_loop()
    # As many as a lane hands over after the row, or what was due before them, is out of the way.
    waiting = [
        Waiting(spend(user_id), loop.create_future(), loop.time() + patience(10)) for _ in range(35)
    ]
    await runner.serve(waiting)
    runner.close()
    assert set(kinds(await answers(each.answer for each in waiting))) == {Outcome}
    assert await transactions(database) == 4


async def test_a_user_who_is_in_a_batch_many_times_is_served_in_order(database):
    user_id = await database.user(100)
    async with lanes(database.service_url) as clerk:
        given = await ask(clerk, *(spend(user_id, amount) for amount in range(1, 14)))
    assert [(a.entry.seq, a.entry.amount) for a in given[:13]] == [(n + 1, n) for n in range(1, 14)]
    assert {a.account.balance for a in given} == {100 - sum(range(1, 14))}
    assert not await database.faults()


async def test_no_call_is_answered_before_the_commit(database, proxy):
    user_id = await database.user(5)
    held = proxy.on(COMMIT, Kind.HOLD)
    async with lanes(proxy.url) as clerk:
        paid = spend(user_id, 5)
        waiting = submit(clerk, paid, spend(user_id, 1), paid)
        await held.met.wait()
        assert not any(answer.done() for answer in waiting)
        assert await written(database, paid) == 0
        held.release()
        assert kinds(await answers(waiting)) == [Outcome, InsufficientCredits, Outcome]


async def test_a_refused_command_leaves_no_trace_and_disturbs_no_other(database):
    rich, poor = await database.user(100), await database.user(3)
    used = spend(rich, 1)
    async with lanes(database.service_url) as clerk:
        await ask(clerk, used)
        refused = [spend(poor, 4), spend(uuid4()), spend(rich, 2, key=used.idempotency_key)]
        given = await ask(
            clerk, spend(rich, 10), refused[0], refused[1], spend(poor, 3), refused[2], spend(rich)
        )
    assert kinds(given) == [
        Outcome,
        InsufficientCredits,
        UserNotFound,
        Outcome,
        IdempotencyKeyReused,
        Outcome,
    ]
    assert await written(database, *refused[:2]) == 0
    assert (given[0].account.balance, given[3].account.balance) == (88, 0)
    assert not await database.faults()


@pytest.mark.parametrize("poisoned", [{0}, {3, 10}, {0, 1, 11}])
async def test_a_command_the_database_rejects_fails_alone(database, poisoned):
    await database.execute(
        "ALTER TABLE credit_transactions ADD CONSTRAINT harmless CHECK (description <> 'poison')"
    )
    users = [await database.user(10) for _ in range(4)]
    commands = [
        spend(users[n % 4], description="poison" if n in poisoned else "") for n in range(12)
    ]
    async with lanes(database.service_url) as clerk:
        given = await ask(clerk, *commands)
    failed = {n for n, answer in enumerate(given) if isinstance(answer, InternalError)}
    assert failed == poisoned
    assert await written(database, *commands) == 12 - len(poisoned)
    assert not await database.faults()


async def _failing(database, sqlstate, times, table, event):
    """Makes the first `times` statements on a table fail."""
    await database.execute(
        f"""
        CREATE SEQUENCE failures;
        CREATE FUNCTION fail() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS $$
        BEGIN
            -- A sequence is not rolled back with the transaction that fails.
            IF nextval('public.failures') <= {times} THEN
                RAISE EXCEPTION 'as ordered' USING ERRCODE = '{sqlstate}';
            END IF;
            RETURN NULL;
        END $$;
        CREATE TRIGGER failing AFTER {event} ON {table}
        FOR EACH STATEMENT EXECUTE FUNCTION fail();
        """
    )


@pytest.mark.parametrize("sqlstate", ["40001", "40P01"])
@pytest.mark.parametrize("statement", ["credit_transactions INSERT", "user_credits UPDATE"])
async def test_a_collision_that_passes_goes_unnoticed(database, sqlstate, statement):
    users = [await database.user(10) for _ in range(3)]
    await _failing(database, sqlstate, 3, *statement.split())
    commands = [spend(user_id) for user_id in users]
    async with lanes(database.service_url) as clerk:
        given = await ask(clerk, *commands)
    assert [answer.replayed for answer in given] == [False] * 3
    assert await written(database, *commands) == 3
    assert not await database.faults()


async def test_a_collision_that_does_not_pass_fails_only_its_own_call(database):
    await database.execute(
        """
        CREATE FUNCTION fail() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN
            IF NEW.description = 'colliding' THEN
                RAISE EXCEPTION 'as ordered' USING ERRCODE = '40001';
            END IF;
            RETURN NEW;
        END $$;
        CREATE TRIGGER failing BEFORE INSERT ON credit_transactions
        FOR EACH ROW EXECUTE FUNCTION fail();
        """
    )
    users = [await database.user(10) for _ in range(3)]
    async with lanes(database.service_url) as clerk:
        colliding = spend(users[1], description="colliding")
        given = await ask(clerk, spend(users[0]), colliding, spend(users[2]))
    assert kinds(given) == [Outcome, LedgerUnavailable, Outcome]
    assert not await database.faults()


async def test_a_deadlock_with_another_program_goes_unnoticed(database):
    await database.wait_longer_for_locks()
    first, second = sorted([await database.user(10), await database.user(10)])
    lock = "SELECT FROM user_credits WHERE user_id = $1 FOR UPDATE"
    other = await database.connect()
    await other.execute("SET deadlock_timeout = '30s'")  # so that it is the lane that gives way
    async with lanes(database.service_url) as clerk:
        async with other.transaction():
            await other.execute(lock, second)
            waiting = submit(clerk, spend(first), spend(second))
            await eventually(database.waits_for_a_lock, every=0.005)
            await other.execute(lock, first)
        assert kinds(await answers(waiting)) == [Outcome, Outcome]
    await other.close()
    assert not await database.faults()


async def test_an_account_is_written_only_at_the_seq_it_was_locked_at(database):
    user_id = await database.user(10)
    connection = await database.connect()
    row = await connection.fetchrow("SELECT * FROM user_credits")
    changed = Account(user_id, 9, 0, 3, row["last_updated"])
    for stale in (0, 2):
        with pytest.raises(store.StaleAccountError):
            await store.update_accounts(connection, [(changed, stale)])
    assert await connection.fetchrow("SELECT * FROM user_credits") == row
    await connection.close()


async def test_without_the_lock_the_guard_alone_keeps_the_book_right(database, proxy, monkeypatch):
    unlocked = store.SQL["lock_accounts"].replace("FOR NO KEY UPDATE", "")
    monkeypatch.setitem(store.SQL, "lock_accounts", unlocked)
    user_id = await database.user(10)
    held = proxy.on(UPDATE, Kind.HOLD)
    async with lanes(proxy.url) as slow, lanes(database.service_url) as fast:
        late = submit(slow, spend(user_id, 6))
        await held.met.wait()
        assert kinds(await ask(fast, spend(user_id, 6))) == [Outcome]
        held.release()
        assert kinds(await answers(late)) == [InsufficientCredits]
    assert not await database.faults()


async def test_columns_added_under_load_go_unnoticed(database):
    users = [await database.user(1000) for _ in range(4)]
    given = []

    async def pay(clerk, user_id):
        while not changed.is_set() or len(given) < 100:
            given.extend(await ask(clerk, spend(user_id), spend(user_id)))

    changed = asyncio.Event()
    async with lanes(database.service_url) as one, lanes(database.service_url) as two:
        callers = [asyncio.create_task(pay((one, two)[n % 2], users[n])) for n in range(4)]
        await eventually(lambda: given)
        for table in ("user_credits", "credit_transactions", "credit_purchases", "auth.users"):
            await database.execute(f"ALTER TABLE {table} ADD COLUMN added text DEFAULT 'new'")
        changed.set()
        await asyncio.gather(*callers)
    assert set(kinds(given)) == {Outcome}
    assert not await database.faults()


async def test_a_full_queue_refuses_at_once_and_forgets_the_refused_calls(database, proxy):
    user_id = await database.user(100)
    held = proxy.on(COMMIT, Kind.HOLD)
    async with lanes(proxy.url, queue_limit=3) as clerk:
        running = submit(clerk, spend(user_id))
        await held.met.wait()
        queued = submit(clerk, *(spend(user_id) for _ in range(3)))
        refused = spend(user_id)
        with pytest.raises(Overloaded):
            submit(clerk, refused)
        held.release()
        assert kinds(await answers(running + queued)) == [Outcome] * 4
        assert await written(database, refused) == 0
        assert kinds(await ask(clerk, refused)) == [Outcome]


async def test_a_command_is_not_begun_when_no_caller_waits_for_it_any_more(database, proxy):
    user_id = await database.user(100)
    loop = asyncio.get_running_loop()
    held = proxy.on(COMMIT, Kind.HOLD)
    async with lanes(proxy.url) as clerk:
        running = submit(clerk, spend(user_id))
        await held.met.wait()
        gone, late, patient = spend(user_id), spend(user_id), spend(user_id)
        (left,) = submit(clerk, gone)
        left.cancel()
        (overdue,) = submit(clerk, late, seconds=0.01)
        due = loop.time() + 0.01
        waiting = submit(clerk, patient)
        await eventually(lambda: loop.time() > due)
        held.release()
        assert kinds(await answers([*running, overdue, *waiting])) == [
            Outcome,
            LedgerUnavailable,
            Outcome,
        ]
    assert await written(database, gone, late) == 0
    assert await written(database, patient) == 1


async def test_a_command_that_has_begun_is_written_although_no_caller_waits(database, proxy):
    user_id = await database.user(100)
    held = proxy.on(BEGIN, Kind.HOLD)
    async with lanes(proxy.url) as clerk:
        command = spend(user_id)
        (left,) = submit(clerk, command)
        await held.met.wait()
        left.cancel()
        held.release()
        (again,) = await ask(clerk, command)
    assert again.replayed
    assert await written(database, command) == 1


async def test_a_lane_that_closes_writes_the_queued_commands_and_takes_no_more(database, proxy):
    user_id = await database.user(100)
    held = proxy.on(COMMIT, Kind.HOLD)
    async with lanes(proxy.url) as clerk:
        running = submit(clerk, spend(user_id))
        await held.met.wait()
        queued = submit(clerk, *(spend(user_id) for _ in range(5)))
        closing = asyncio.create_task(clerk.of(user_id).close())
        await asyncio.sleep(0)
        with pytest.raises(LedgerUnavailable):
            submit(clerk, spend(user_id))
        held.release()
        await closing
        assert kinds(await answers(running + queued)) == [Outcome] * 6


async def test_a_fault_in_the_rules_fails_a_call_and_not_the_lane(database, monkeypatch):
    user_id = await database.user(100)
    as_ever = decide.decide

    def broken(state, command, terms):
        if command.description == "broken":
            raise ZeroDivisionError
        return as_ever(state, command, terms)

    monkeypatch.setattr(decide, "decide", broken)
    async with lanes(database.service_url) as clerk:
        given = await ask(clerk, spend(user_id), spend(user_id, description="broken"))
        assert kinds(given) == [Outcome, InternalError]
        assert kinds(await ask(clerk, spend(user_id))) == [Outcome]
    assert not await database.faults()
