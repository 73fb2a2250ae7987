"""An answer that takes several statements shows one moment, despite writes between them."""

import asyncio
import re
from datetime import UTC, datetime, timedelta
from uuid import uuid4

import pytest
from kit.fault_proxy import Kind
from kit.services import running, server_settings
from kit.waiting import eventually, patience

from credit_service.errors import UserNotFound
from credit_service.ledger import store

EPOCH = datetime(2020, 1, 1, tzinfo=UTC)


def statement(name):
    """An expression for a statement of the ledger, by the line that it begins with."""
    return "^" + re.escape(store.SQL[name].splitlines()[0])


async def past_balance(client, user_id):
    credit = await client.get_user_credit(user_id, as_of=datetime.now(UTC) - timedelta(seconds=1))
    return [credit.balance]


async def past_balance_and_entries(client, user_id):
    credit = await client.get_user_credit(
        user_id, as_of=datetime.now(UTC) - timedelta(seconds=1), history_size=5
    )
    return [credit.balance, *(entry.amount for entry in credit.transaction_history)]


async def balance_and_entries(client, user_id):
    credit = await client.get_user_credit(user_id, history_size=5)
    return [credit.balance, *(entry.amount for entry in credit.transaction_history)]


async def entries_since(client, user_id):
    history = client.get_transaction_history(user_id, start_time=EPOCH)
    return [entry.amount async for entry in history]


async def entries_between(client, user_id):
    until = datetime.now(UTC) + timedelta(days=1)
    history = client.get_transaction_history(user_id, start_time=EPOCH, end_time=until)
    return [entry.amount async for entry in history]


async def usage(client, user_id):
    now = datetime.now(UTC)
    day = timedelta(days=1)
    lines = await client.get_usage_report(now - day, now + day, user_id=user_id)
    return [line.spent for line in lines]


# The read, the statement that is held up, and the answer from before.
READS = [
    (past_balance, "count_entries_before", [100]),
    (past_balance, "load_entries", [100]),
    (past_balance, "expired_unrecorded_at", [100]),
    (past_balance_and_entries, "list_entries", [100, 100]),
    (balance_and_entries, "list_entries", [100, 100]),
    (entries_since, "list_entries", [100]),
    (entries_between, "list_entries", [100]),
]


@pytest.fixture
async def client(proxy):
    async with running(server_settings(proxy.url)) as service:
        yield await service.client(deadline_seconds=patience(20))


async def long_ago(database, user_id):
    """Moves the times of a user's rows back, so that they existed a second ago."""
    await database.execute(
        "ALTER TABLE credit_transactions DISABLE TRIGGER entries_never_change;"
        "UPDATE credit_transactions SET timestamp = now() - interval '1 hour';"
        "ALTER TABLE credit_transactions ENABLE TRIGGER entries_never_change;"
        "UPDATE user_credits SET last_updated = now() - interval '1 hour'"
    )


@pytest.mark.parametrize(("read", "held_up", "answer"), READS)
@pytest.mark.parametrize("meanwhile", ["deleted", "created again"])
async def test_a_write_between_two_statements_is_not_seen(  # noqa: PLR0917
    client, database, proxy, read, held_up, answer, meanwhile
):
    user_id = await database.user(100)
    await long_ago(database, user_id)
    pause = proxy.on(statement(held_up), Kind.HOLD)
    reading = asyncio.create_task(read(client, user_id))
    await pause.met.wait()
    if meanwhile == "deleted":
        await database.execute("DELETE FROM auth.users WHERE id = $1", user_id)
    else:
        await database.make_anew(user_id, 55)
    pause.release()
    assert await reading == answer


async def test_a_report_on_a_user_shows_one_moment(client, database, proxy):
    user_id = await database.user(100)
    await client.spend_credits(user_id, amount=30)
    pause = proxy.on(statement("report_usage_of_user"), Kind.HOLD)
    reading = asyncio.create_task(usage(client, user_id))
    await pause.met.wait()
    await client.spend_credits(user_id, amount=1)
    await database.make_anew(user_id, 55)
    pause.release()
    assert await reading == [30]


async def test_a_user_who_appears_between_two_statements_is_never_shown_empty(
    client, database, proxy
):
    """The first statement finds no account; before the second, the user and an account exist."""
    user_id = uuid4()
    pause = proxy.on(statement("list_known_accounts"), Kind.HOLD)
    reading = asyncio.create_task(client.get_user_credit(user_id))
    await pause.met.wait()
    await database.make_anew(user_id, 55)
    pause.release()
    assert (await reading).balance == 55


# A read that finds nothing looks once more, to tell an unknown user from a known one.
NOTHING_FOUND = [
    lambda client, user_id: client.get_transaction(user_id, transaction_id=f"{user_id}-7"),
    lambda client, user_id: client.get_transaction(user_id, idempotency_key="never used"),
    lambda client, user_id: client.get_hold(user_id, f"{user_id}-7"),
    lambda client, user_id: anext(client.list_holds(user_id)),
    lambda client, user_id: anext(client.get_transaction_history(user_id)),
]


@pytest.mark.parametrize("read", NOTHING_FOUND)
async def test_a_user_deleted_before_the_second_look_is_not_found(client, database, proxy, read):
    user_id = await database.user()
    pause = proxy.on(statement("find_users"), Kind.HOLD)
    reading = asyncio.ensure_future(read(client, user_id))
    await pause.met.wait()
    await database.execute("DELETE FROM auth.users WHERE id = $1", user_id)
    pause.release()
    with pytest.raises(UserNotFound):
        await reading


async def test_reads_during_deletions_are_whole_or_not_found(client, database):
    """One loop deletes a user and makes the user again; every other answer is of one account."""
    user_id = await database.user(1)
    done = asyncio.Event()
    answered = {"found": 0, "not found": 0}

    async def disturb():
        async with database.kept_open() as kept:
            for credits_ in range(2, 400):
                if credits_ % 2:
                    await kept.execute("DELETE FROM auth.users WHERE id = $1", user_id)
                else:
                    await kept.make_anew(user_id, credits_)
        done.set()

    async def read(way):
        while not done.is_set():
            try:
                answer = await way(client, user_id)
            except UserNotFound:
                answered["not found"] += 1
                continue
            # A book begins with one purchase, so the balance and the only entry are the same.
            assert len(set(answer)) <= 1, (way, answer)
            answered["found"] += 1

    disturbing = asyncio.create_task(disturb())
    ways = (past_balance, past_balance_and_entries, balance_and_entries, entries_between, usage)
    await asyncio.gather(*(read(way) for way in ways for _ in range(2)))
    await disturbing
    assert answered["found"]
    assert answered["not found"]


async def test_a_hold_captured_while_the_account_is_read_is_not_shown_as_expired(client, database):
    """The rows are read before the capture, and the clock after the expiry.

    The account then seemed to have 100 credits with none held, which it never had.
    """
    user_id = await database.user(100)
    owner = await database.connect()
    await owner.execute("SELECT pg_advisory_lock(1)")
    await database.execute(
        "CREATE FUNCTION waits(uuid) RETURNS boolean LANGUAGE plpgsql AS"
        " $$ BEGIN PERFORM pg_advisory_lock_shared(1), pg_advisory_unlock_shared(1);"
        " RETURN true; END $$"
    )
    await client.hold_credits(user_id, amount=60)
    await database.wait_longer_for_locks()
    async with running(server_settings(database.service_url)) as slow:
        reader = await slow.client(deadline_seconds=patience(20))
        await database.execute(
            "CREATE POLICY slow_reads ON user_credits FOR SELECT USING (waits(user_id));"
            "CREATE POLICY writes ON user_credits FOR UPDATE USING (true);"
            "ALTER TABLE user_credits ENABLE ROW LEVEL SECURITY"
        )
        while True:
            expire_time = await owner.fetchval(
                "UPDATE credit_holds SET expires_at = now() + interval '1 second'"
                " RETURNING expires_at"
            )
            await owner.execute("UPDATE user_credits SET next_hold_expiry = $1", expire_time)
            reading = asyncio.create_task(reader.get_user_credit(user_id))
            await eventually(lambda: waits_for_the_advisory_lock(database))
            if await owner.fetchval("SELECT now() < $1", expire_time):
                break
            # The machine was too slow: the read began after the hold had expired.
            await owner.execute("SELECT pg_advisory_unlock(1)")
            await reading
            await owner.execute("SELECT pg_advisory_lock(1)")
        # The capture as a lane would write it, by the owner whom no policy holds up.
        await owner.execute(
            "UPDATE credit_holds SET state = 'captured', captured = 60, settled_seq = 3,"
            " captured_seq = 3 WHERE user_id = $1",
            user_id,
        )
        await owner.execute(
            "UPDATE user_credits SET balance = 40, held = 0, seq = 3, open_holds = 0"
            " WHERE user_id = $1",
            user_id,
        )
        await eventually(lambda: owner.fetchval("SELECT now() > $1", expire_time))
        await owner.execute("SELECT pg_advisory_unlock(1)")
        credit = await reading
    await owner.close()
    assert (credit.balance, credit.held) == (100, 60)


async def waits_for_the_advisory_lock(database):
    return await database.fetch(
        "SELECT FROM pg_stat_activity"
        " WHERE datname = current_database() AND wait_event = 'advisory'"
    )
