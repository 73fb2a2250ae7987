"""The feed: everything at least once, in order per user, and nothing uncommitted."""

from itertools import pairwise

from kit.commands import answers, ask, grant, lanes, spend, submit
from kit.feed import all_readable, entries, read, reading, reads_so_many
from kit.waiting import eventually

from credit_service.rules.commands import SetPolicy
from credit_service.rules.feed_values import BEGINNING, KIND_ENTRY, KIND_POLICY
from credit_service.rules.model import PolicyChange


def policy(user_id, **values):
    own = {"frozen": None, "min_balance": None, "limits": None}
    return SetPolicy(user_id=user_id, caller="test", **(own | values))


async def test_everything_that_happened_comes_in_one_order_in_pages_of_any_size(database):
    users = [await database.user() for _ in range(3)]
    async with lanes(database.service_url) as clerk, reading(database.service_url) as feed:
        for number in range(4):
            await ask(clerk, *(grant(user_id, 10 + number) for user_id in users))
        await ask(clerk, policy(users[1], frozen=True), spend(users[0], 3))
        whole = await reads_so_many(feed, 14)
        places = [item.place for item in whole]
        assert places == sorted(places)
        for user_id in users:
            seqs = [seq for user, seq in entries(whole) if user == user_id]
            assert seqs == list(range(1, len(seqs) + 1))
        [change] = [item for item in whole if type(item.value) is PolicyChange]
        assert change.value.policy.frozen
        assert change.value.user_id == users[1]
        for limit in (1, 2, 5):
            assert (await read(feed, limit=limit))[0] == whole
        for item, following in pairwise(whole):
            assert (await feed.page(item.place, 1)).items == [following]
    assert not await database.faults()


async def test_a_change_of_policy_follows_the_entries_of_its_transaction(database):
    user_id = await database.user()
    async with lanes(database.service_url) as clerk, reading(database.service_url) as feed:
        await ask(clerk, policy(user_id, min_balance=-5), grant(user_id, 10), spend(user_id, 12))
        items = await reads_so_many(feed, 3)
    assert [item.place.kind for item in items] == [KIND_ENTRY, KIND_ENTRY, KIND_POLICY]
    assert len({item.place.tx for item in items}) == 1


async def test_only_the_requested_types_and_kinds_come_and_the_cursor_passes_the_others(database):
    user_id = await database.user()
    async with lanes(database.service_url) as clerk, reading(database.service_url) as feed:
        await ask(clerk, grant(user_id, 10), policy(user_id, frozen=False, min_balance=0))
        await ask(clerk, *(spend(user_id) for _ in range(5)))
        whole = await reads_so_many(feed, 7)
        spends, place = await read(feed, types=["spend"], kinds=[KIND_ENTRY])
        assert [item.value.type for item in spends] == ["spend"] * 5
        assert place == whole[-1].place
        [change] = (await read(feed, kinds=[KIND_POLICY]))[0]
        assert type(change.value) is PolicyChange
        first = await feed.page(BEGINNING, 3, kinds=[KIND_ENTRY], types=["purchase"])
        assert first.items == []
        assert not first.caught_up
        assert first.place == whole[3].place


async def test_entries_from_before_the_feed_come_first(database):
    old = await database.user(10)
    await database.execute(
        "ALTER TABLE credit_transactions DISABLE TRIGGER entries_never_change;"
        "UPDATE credit_transactions SET tx = 0; UPDATE user_credits SET tx = 0;"
        "ALTER TABLE credit_transactions ENABLE TRIGGER entries_never_change"
    )
    async with lanes(database.service_url) as clerk, reading(database.service_url) as feed:
        await ask(clerk, spend(old))
        items = await reads_so_many(feed, 2)
    assert [item.place.tx > 0 for item in items] == [False, True]
    assert entries(items) == [(old, 1), (old, 2)]


async def test_a_batch_that_waited_does_not_put_a_users_later_entry_before_an_earlier_one(
    make_database,
):
    # A transaction gets its number with its first lock. So the one that began first may write an
    # entry of a user after the one that began second.
    database = await make_database()
    await database.wait_longer_for_locks()
    first, blocked, user_id = sorted([await database.user(10) for _ in range(3)])
    async with (
        lanes(database.service_url) as early,
        lanes(database.service_url) as late,
        reading(database.service_url) as feed,
    ):
        [*_] = await ask(early, spend(first))
        await all_readable(database)
        async with database.locked(blocked):
            waiting = submit(early, spend(first), spend(blocked), spend(user_id, 2))
            await eventually(database.waits_for_a_lock)
            [in_between] = await ask(late, spend(user_id, 3))
            assert in_between.entry.seq == 2
            seen, place = await read(feed)
            assert (user_id, 2) not in entries(seen)
        assert [answer.entry.seq for answer in await answers(waiting)][-1] == 3
        rest = await reads_so_many(feed, 4, place)
    assert [seq for user, seq in entries(rest) if user == user_id] == [2, 3]
    rows = await database.fetch(
        "SELECT tx FROM credit_transactions WHERE user_id = $1 ORDER BY seq", user_id
    )
    assert rows[1][0] == rows[2][0]
    assert not await database.faults()


async def test_a_transaction_left_open_in_another_database_holds_the_feed_and_nothing_is_skipped(
    make_database,
):
    database, elsewhere = await make_database(), await make_database()
    user_id = await database.user(10)
    open_for_long = await elsewhere.connect()
    async with lanes(database.service_url) as clerk, reading(database.service_url) as feed:
        await reads_so_many(feed, 1)
        await open_for_long.execute("BEGIN")
        await open_for_long.execute("SELECT pg_current_xact_id()")
        for _ in range(3):
            await ask(clerk, spend(user_id))
        seen, place = await read(feed)
        assert entries(seen) == [(user_id, 1)]
        await open_for_long.execute("COMMIT")
        rest = await reads_so_many(feed, 3, place)
        assert entries(rest) == [(user_id, 2), (user_id, 3), (user_id, 4)]
    await open_for_long.close()


async def test_a_batch_that_is_rolled_back_and_run_again_is_read_once(make_database):
    database = await make_database()
    await database.wait_longer_for_locks()
    user_id = await database.user(10)
    async with lanes(database.service_url) as clerk, reading(database.service_url) as feed:
        async with database.locked(user_id):
            waiting = submit(clerk, spend(user_id))
            await eventually(database.waits_for_a_lock)
            await database.execute(
                "SELECT pg_cancel_backend(pid) FROM pg_stat_activity"
                " WHERE datname = current_database() AND wait_event_type = 'Lock'"
            )
        await answers(waiting)
        await ask(clerk, spend(user_id))
        [[written]] = await database.fetch("SELECT count(*) FROM credit_transactions")
        items = await reads_so_many(feed, written)
    assert entries(items) == [(user_id, seq) for seq in range(1, written + 1)]


async def test_writes_of_an_older_release_are_numbered_in_the_order_of_seq(database):
    user_id = await database.user(10)
    account = "SELECT tx FROM user_credits WHERE user_id = $1"
    [[before]] = await database.fetch(account, user_id)
    assert before > 0
    await database.execute("UPDATE user_credits SET tx = tx + 1000000 WHERE user_id = $1", user_id)
    older = await database.connect()
    async with older.transaction():
        await older.execute(
            "UPDATE user_credits SET balance = 9, seq = 2 WHERE user_id = $1", user_id
        )
        await older.execute(
            "INSERT INTO credit_transactions (user_id, seq, type, call, amount, balance_change,"
            " held_change, balance_after, held_after, floor, description, timestamp, reference,"
            " idempotency_key, caller) VALUES ($1, 2, 'spend', 'SpendCredits', 1, -1, 0, 9, 0, 0,"
            " '', now(), '', 'older', 'test')",
            user_id,
        )
        await older.execute(
            "UPDATE user_credits SET policy_changes = 1 WHERE user_id = $1", user_id
        )
        await older.execute(
            "INSERT INTO credit_policy_changes (user_id, change, changed_at, caller, frozen)"
            " VALUES ($1, 1, now(), 'test', false)",
            user_id,
        )
    await older.close()
    rows = await database.fetch(
        "SELECT tx FROM credit_transactions WHERE user_id = $1 AND seq = 2"
        " UNION ALL SELECT tx FROM credit_policy_changes WHERE user_id = $1"
        " UNION ALL SELECT tx FROM user_credits WHERE user_id = $1",
        user_id,
    )
    assert [row[0] for row in rows] == [before + 1000000] * 3


async def test_the_end_is_after_everything_readable_and_before_everything_later(database):
    user_id = await database.user(10)
    async with lanes(database.service_url) as clerk, reading(database.service_url) as feed:
        await reads_so_many(feed, 1)
        end = await feed.end()
        assert (await feed.page(end, 10)).items == []
        await ask(clerk, spend(user_id))
        assert entries(await reads_so_many(feed, 1, end)) == [(user_id, 2)]
