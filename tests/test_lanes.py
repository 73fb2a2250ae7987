"""The lanes against a real database: what a batch is, who it may disturb, when it answers."""

import asyncio
from uuid import uuid4

import pytest
from commands import (
    answers,
    ask,
    kinds,
    lane,
    lanes,
    purchase,
    spend,
    submit,
    transactions,
    written,
)
from fault_proxy import BEGIN, COMMIT, UPDATE, Kind
from harness import eventually
from prometheus_client import REGISTRY

from credit_service import rules, store
from credit_service.errors import (
    IdempotencyKeyReused,
    InsufficientCredits,
    InternalError,
    LedgerUnavailable,
    Overloaded,
    UserNotFound,
)
from credit_service.model import Account, Outcome


async def test_what_has_piled_up_is_written_in_one_transaction(database, proxy):
    users = [await database.user(100) for _ in range(5)]
    held = proxy.on(COMMIT, Kind.HOLD)
    async with lane(proxy.url) as clerk:
        first = submit(clerk, spend(users[0]))
        await held.met.wait()
        pile = submit(clerk, *(spend(user_id) for user_id in users for _ in range(10)))
        held.release()
        assert set(kinds(await answers(first + pile))) == {Outcome}
    assert await transactions(database) == 2
    assert not await database.faults()


async def test_a_transaction_takes_no_more_commands_than_its_limit(database):
    user_id = await database.user(100)
    async with lane(database.service_url, batch_limit=10) as clerk:
        await ask(clerk, *(spend(user_id) for _ in range(25)))
    assert await transactions(database) == 3


async def test_a_user_who_stands_in_a_batch_many_times_is_served_in_order(database):
    user_id = await database.user(100)
    async with lane(database.service_url) as clerk:
        given = await ask(clerk, *(spend(user_id, amount) for amount in range(1, 14)))
    assert [(a.entry.seq, a.entry.amount) for a in given[:13]] == [(n + 1, n) for n in range(1, 14)]
    assert {a.account.balance for a in given} == {100 - sum(range(1, 14))}
    assert not await database.faults()


async def test_nobody_is_answered_before_the_commit(database, proxy):
    user_id = await database.user(5)
    held = proxy.on(COMMIT, Kind.HOLD)
    async with lane(proxy.url) as clerk:
        paid = spend(user_id, 5)
        waiting = submit(clerk, paid, spend(user_id, 1), paid)
        await held.met.wait()
        assert not any(answer.done() for answer in waiting)
        assert await written(database, paid) == 0
        held.release()
        assert kinds(await answers(waiting)) == [Outcome, InsufficientCredits, Outcome]


async def test_a_refused_command_leaves_no_trace_and_disturbs_nobody(database):
    rich, poor = await database.user(100), await database.user(3)
    used = spend(rich, 1)
    async with lane(database.service_url) as clerk:
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
    async with lane(database.service_url) as clerk:
        given = await ask(clerk, *commands)
    failed = {n for n, answer in enumerate(given) if isinstance(answer, InternalError)}
    assert failed == poisoned
    assert await written(database, *commands) == 12 - len(poisoned)
    assert not await database.faults()


async def test_a_locked_account_holds_up_its_own_user_only(database):
    locked, *free = [await database.user(10) for _ in range(5)]
    kept = [spend(locked), spend(locked)]
    async with lane(database.service_url) as clerk:
        async with database.locked(locked):
            given = await ask(clerk, kept[0], *(spend(user_id) for user_id in free), kept[1])
        assert kinds(given) == [LedgerUnavailable, *[Outcome] * 4, LedgerUnavailable]
        assert await written(database, *kept) == 0
        again = await ask(clerk, *kept)
    assert [answer.replayed for answer in again] == [False, False]
    assert not await database.faults()


async def test_once_an_account_was_found_locked_nobody_else_waits_for_it(database):
    locked, free = [await database.user(10) for _ in range(2)]
    async with lanes(database.service_url, count=1) as clerks:
        async with database.locked(locked):
            [found] = await ask(clerks.of(locked), spend(locked))
            assert kinds([found]) == [LedgerUnavailable]
            [kept] = submit(clerks.of(locked), spend(locked))
            [served] = submit(clerks.of(free), spend(free))
            done, _ = await asyncio.wait({kept, served}, return_when=asyncio.FIRST_COMPLETED)
            assert done == {served}
        given = await answers([kept, served, *submit(clerks.of(locked), spend(locked))])
    assert kinds(given)[1:] == [Outcome, Outcome]
    assert not await database.faults()


async def test_what_came_before_an_account_was_found_locked_holds_up_nobody_either(database):
    locked, free = [await database.user(10) for _ in range(2)]
    async with lanes(database.service_url, count=1) as clerks:
        usual = clerks.of(locked)
        async with database.locked(locked):
            [first] = submit(usual, spend(locked))
            await eventually(database.waits_for_a_lock)
            kept, served = submit(usual, spend(locked), spend(free))
            done, _ = await asyncio.wait({kept, served}, return_when=asyncio.FIRST_COMPLETED)
            assert done == {served}
        given = await answers([first, kept, served])
    assert kinds(given) == [Outcome] * 3
    assert not await database.faults()


def waits_for_locks():
    """How many batches of this process waited for a lock in vain so far."""
    faults = {"fault": "LockNotAvailableError"}
    return REGISTRY.get_sample_value("credit_lane_batch_faults_total", faults) or 0


async def test_many_locked_accounts_hold_up_the_others_no_longer_than_one(database):
    users = sorted([await database.user(10) for _ in range(12)])
    locked, free = users[::2], users[1::2]
    before = waits_for_locks()
    async with lanes(database.service_url, count=1) as clerks:
        usual = clerks.of(users[0])
        async with database.locked(*locked):
            waiting = dict(zip(users, submit(usual, *map(spend, users)), strict=True))
            served = {waiting[user_id] for user_id in free}
            assert set(kinds(await answers(served))) == {Outcome}
            assert not any(waiting[user_id].done() for user_id in locked)
            assert set(kinds(await answers(set(waiting.values()) - served))) == {LedgerUnavailable}
        assert waits_for_locks() - before == 1
        assert set(kinds(await answers(submit(usual, *map(spend, users))))) == {Outcome}
    assert not await database.faults()


async def test_aside_nobody_waits_for_the_row_of_another_nor_is_held_by_who_waits(database):
    free, locked = sorted([await database.user(1000) for _ in range(2)])
    async with lanes(database.service_url, count=1) as clerks, database.locked(locked):
        async with database.locked(free):
            for user_id in (free, locked):
                [found] = await ask(clerks.of(user_id), spend(user_id))
                assert kinds([found]) == [LedgerUnavailable]
        aside = clerks.of(free)
        kept, served = submit(aside, spend(locked), spend(free))
        done, _ = await asyncio.wait({kept, served}, return_when=asyncio.FIRST_COMPLETED)
        assert done == {served}
        # Another process could write there meanwhile.
        await database.execute(
            "SELECT FROM user_credits WHERE user_id = $1 FOR UPDATE NOWAIT", free
        )
        assert kinds(await answers([served, kept])) == [Outcome, LedgerUnavailable]
    assert not await database.faults()


async def test_aside_a_lock_that_no_account_shows_fails_its_own_user_only(database):
    newcomer, free = await database.user(), await database.user(10)
    async with lanes(database.service_url, count=1) as clerks:
        async with database.locked(free):
            await ask(clerks.of(free), spend(free))
        holder = await database.connect()
        async with holder.transaction():
            await holder.execute("SELECT FROM auth.users WHERE id = $1 FOR UPDATE", newcomer)
            given = await ask(clerks.of(free), purchase(newcomer), spend(free))
            assert kinds(given) == [LedgerUnavailable, Outcome]
        await holder.close()
        assert kinds(await ask(clerks.of(newcomer), purchase(newcomer))) == [Outcome]
    assert not await database.faults()


async def test_who_waits_aside_is_served_while_the_lanes_close(database):
    users = sorted([await database.user(10) for _ in range(2)])
    async with lanes(database.service_url, count=1) as clerks:
        usual = clerks.of(users[0])
        async with database.locked(users[0]):
            [first] = submit(usual, spend(users[0]))
            await eventually(database.waits_for_a_lock)
            behind = submit(usual, *map(spend, users))
            closing = asyncio.create_task(clerks.close())
            await answers(behind[1:])
        await closing
        assert set(kinds(await answers([first, *behind]))) == {Outcome}
    assert not await database.faults()


async def test_a_locked_table_fails_the_batch_and_not_one_user_after_the_other(database):
    users = [await database.user(10) for _ in range(4)]
    before = waits_for_locks()
    async with lane(database.service_url) as clerk:
        other = await database.connect()
        async with other.transaction():
            await other.execute("LOCK TABLE user_credits")
            given = await ask(clerk, *map(spend, users))
        await other.close()
        assert set(kinds(given)) == {LedgerUnavailable}
        assert waits_for_locks() - before == 2
        assert set(kinds(await ask(clerk, *map(spend, users)))) == {Outcome}
    assert not await database.faults()


async def test_a_user_whose_row_was_locked_comes_back_to_the_others(database, monkeypatch):
    monkeypatch.setattr("credit_service.lanes._ASIDE_SECONDS", 0.0)
    user_id = await database.user(10)
    async with lanes(database.service_url, count=1) as clerks:
        usual = clerks.of(user_id)
        async with database.locked(user_id):
            await ask(usual, spend(user_id))
        assert clerks.of(user_id) is usual


async def _failing(database, sqlstate, times, table, event):
    """Makes the first such statements on a table fail."""
    await database.execute(
        f"""
        CREATE SEQUENCE failures;
        CREATE FUNCTION fail() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS $$
        BEGIN
            -- A sequence is not rolled back with the transaction that fails.
            IF nextval('public.failures') <= {times} THEN
                RAISE EXCEPTION 'as told' USING ERRCODE = '{sqlstate}';
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
    async with lane(database.service_url) as clerk:
        given = await ask(clerk, *commands)
    assert [answer.replayed for answer in given] == [False] * 3
    assert await written(database, *commands) == 3
    assert not await database.faults()


async def test_a_collision_that_does_not_pass_is_no_fault_of_the_neighbours(database):
    await database.execute(
        """
        CREATE FUNCTION fail() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN
            IF NEW.description = 'colliding' THEN
                RAISE EXCEPTION 'as told' USING ERRCODE = '40001';
            END IF;
            RETURN NEW;
        END $$;
        CREATE TRIGGER failing BEFORE INSERT ON credit_transactions
        FOR EACH ROW EXECUTE FUNCTION fail();
        """
    )
    users = [await database.user(10) for _ in range(3)]
    async with lane(database.service_url) as clerk:
        colliding = spend(users[1], description="colliding")
        given = await ask(clerk, spend(users[0]), colliding, spend(users[2]))
    assert kinds(given) == [Outcome, LedgerUnavailable, Outcome]
    assert not await database.faults()


async def test_a_deadlock_with_another_program_goes_unnoticed(database):
    first, second = sorted([await database.user(10), await database.user(10)])
    lock = "SELECT FROM user_credits WHERE user_id = $1 FOR UPDATE"
    other = await database.connect()
    await other.execute("SET deadlock_timeout = '30s'")  # so that it is the lane that gives way
    async with lane(database.service_url) as clerk:
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
    async with lane(proxy.url) as slow, lane(database.service_url) as fast:
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
    async with lane(database.service_url) as one, lane(database.service_url) as two:
        callers = [asyncio.create_task(pay((one, two)[n % 2], users[n])) for n in range(4)]
        await eventually(lambda: given)
        for table in ("user_credits", "credit_transactions", "credit_purchases", "auth.users"):
            await database.execute(f"ALTER TABLE {table} ADD COLUMN added text DEFAULT 'new'")
        changed.set()
        await asyncio.gather(*callers)
    assert set(kinds(given)) == {Outcome}
    assert not await database.faults()


async def test_a_full_queue_refuses_at_once_and_forgets_what_it_refused(database, proxy):
    user_id = await database.user(100)
    held = proxy.on(COMMIT, Kind.HOLD)
    async with lane(proxy.url, queue_limit=3) as clerk:
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


async def test_a_command_is_not_begun_when_nobody_waits_for_it_any_more(database, proxy):
    user_id = await database.user(100)
    loop = asyncio.get_running_loop()
    held = proxy.on(COMMIT, Kind.HOLD)
    async with lane(proxy.url) as clerk:
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


async def test_a_command_that_has_begun_is_written_though_nobody_waits(database, proxy):
    user_id = await database.user(100)
    held = proxy.on(BEGIN, Kind.HOLD)
    async with lane(proxy.url) as clerk:
        command = spend(user_id)
        (left,) = submit(clerk, command)
        await held.met.wait()
        left.cancel()
        held.release()
        (again,) = await ask(clerk, command)
    assert again.replayed
    assert await written(database, command) == 1


async def test_a_lane_that_closes_writes_what_is_queued_and_takes_no_more(database, proxy):
    user_id = await database.user(100)
    held = proxy.on(COMMIT, Kind.HOLD)
    async with lane(proxy.url) as clerk:
        running = submit(clerk, spend(user_id))
        await held.met.wait()
        queued = submit(clerk, *(spend(user_id) for _ in range(5)))
        closing = asyncio.create_task(clerk.close())
        await asyncio.sleep(0)
        with pytest.raises(LedgerUnavailable):
            submit(clerk, spend(user_id))
        held.release()
        await closing
        assert kinds(await answers(running + queued)) == [Outcome] * 6


async def test_a_fault_in_the_rules_fails_a_call_and_not_the_lane(database, monkeypatch):
    user_id = await database.user(100)
    decide = rules.decide

    def broken(desk, command, terms):
        if command.description == "broken":
            raise ZeroDivisionError
        return decide(desk, command, terms)

    monkeypatch.setattr(rules, "decide", broken)
    async with lane(database.service_url) as clerk:
        given = await ask(clerk, spend(user_id), spend(user_id, description="broken"))
        assert kinds(given) == [Outcome, InternalError]
        assert kinds(await ask(clerk, spend(user_id))) == [Outcome]
    assert not await database.faults()
