"""StreamTransactions through the socket: its items, their order, and its cursors."""

import asyncio
from contextlib import aclosing

import pytest
from kit.feed import all_readable
from kit.requests import payment
from kit.services import running, server_settings
from kit.waiting import patience

from credit_service.errors import InvalidRequest
from credit_service.rpc.feed_cursors import Cursor
from credit_service.v1 import credit_service_pb2 as pb


async def batches(client, *, until, **options):
    """Reads batches until their items fulfil a condition; returns the batches."""
    read = []
    async with asyncio.timeout(patience(30)):
        async with aclosing(client.stream_transactions(**options)) as stream:
            async for batch in stream:
                read.append(batch)
                if until(read):
                    return read
    raise AssertionError("a stream has no end")


def items(read):
    return [item for batch in read for item in batch.items]


def caught_up(read):
    return read[-1].caught_up


def places(read):
    return [(item.transaction.user_id, item.transaction.seq) for item in items(read)]


async def test_everything_that_happened_comes_in_the_order_of_each_user(database, client):
    users = [await database.user() for _ in range(3)]
    for n, user_id in enumerate(users):
        await client.purchase_credits(user_id, 100, payment=payment(f"pi_{n}"))
    for user_id in users * 4:
        await client.spend_credits(user_id, amount=1, metadata={"n": "1"})
    changed = await client.set_account_policy(users[0], min_balance=-5)
    await all_readable(database)
    read = await batches(client, until=caught_up, page_size=4)
    entries = [item.transaction for item in items(read) if item.HasField("transaction")]
    for user_id in users:
        mine = [entry for entry in entries if entry.user_id == str(user_id)]
        assert [entry.seq for entry in mine] == [1, 2, 3, 4, 5]
        history = [entry async for entry in client.get_transaction_history(user_id)]
        assert mine == history[::-1]
    (policy,) = [item.policy_change for item in items(read) if item.HasField("policy_change")]
    assert (policy.user_id, policy.change, policy.caller) == (str(users[0]), 1, "local")
    assert policy.policy == changed.policy
    assert all(len(batch.items) <= 4 for batch in read)
    assert [batch.caught_up for batch in read][:2] == [False, False]


async def test_a_stream_resumes_after_any_of_its_cursors(database, client):
    user_id = await database.user(100)
    for _ in range(9):
        await client.spend_credits(user_id, amount=1)
    await all_readable(database)
    whole = await batches(client, until=caught_up, page_size=2)
    assert [seq for _, seq in places(whole)] == list(range(1, 11))
    for n, batch in enumerate(whole):
        rest = await batches(client, until=caught_up, cursor=batch.cursor, page_size=2)
        assert places(rest) == places(whole[n + 1 :])


async def test_a_stream_sends_new_entries_as_they_are_written(database, client):
    user_id = await database.user(100)
    seen = asyncio.Queue()

    async def follow():
        async for batch in client.stream_transactions():
            for item in batch.items:
                seen.put_nowait(item.transaction.seq)

    reader = asyncio.create_task(follow())
    try:
        async with asyncio.timeout(patience(20)):
            assert await seen.get() == 1
            for seq in (2, 3):
                await client.spend_credits(user_id, amount=1)
                assert await seen.get() == seq
    finally:
        reader.cancel()


async def test_only_entries_of_the_requested_types_come_and_the_cursor_still_moves(
    database, client, monkeypatch
):
    # A reader learns at once that there is no more, and not only after the longest silence.
    monkeypatch.setattr("credit_service.rpc.feed_calls._SILENT_SECONDS_MAX", 3600)
    user_id = await database.user(100)
    held = await client.hold_credits(user_id, amount=5)
    await client.set_account_policy(user_id, frozen=False)
    await client.capture_hold(user_id, held.hold.id)
    await client.spend_credits(user_id, amount=1)
    await all_readable(database)
    read = await batches(client, until=caught_up, types=[pb.TRANSACTION_TYPE_CAPTURE])
    assert [item.transaction.type for item in items(read)] == [pb.TRANSACTION_TYPE_CAPTURE]
    rest = await batches(client, until=caught_up, cursor=read[-1].cursor)
    assert items(rest) == []


async def test_an_entry_waits_for_a_transaction_that_began_before_it(database, client):
    user_id = await database.user(100)
    await all_readable(database)
    older = await database.connect()
    try:
        await older.execute("BEGIN")
        await older.fetchval("SELECT pg_current_xact_id()")
        await client.spend_credits(user_id, amount=1)
        read = await batches(client, until=caught_up)
        assert [seq for _, seq in places(read)] == [1]
    finally:
        await older.close()
    rest = await batches(client, until=items, cursor=read[-1].cursor)
    assert [seq for _, seq in places(rest)] == [2]


async def test_a_large_page_is_sent_in_parts_that_can_be_resumed(database, client):
    user_id = await database.user(1000)
    metadata = {f"key {n}": "x" * 490 for n in range(8)}
    await asyncio.gather(
        *(client.spend_credits(user_id, amount=1, metadata=metadata) for _ in range(300))
    )
    await all_readable(database)
    read = await batches(client, until=caught_up, page_size=1000)
    assert len(read) > 1
    assert all(batch.ByteSize() < 1_100_000 for batch in read)
    assert [seq for _, seq in places(read)] == list(range(1, 302))
    rest = await batches(client, until=caught_up, cursor=read[0].cursor, page_size=1000)
    assert places(rest) == places(read[1:])


async def test_a_cursor_that_is_damaged_foreign_or_ahead_is_refused(
    database, client, make_database
):
    await database.user(100)
    (*_, last) = await batches(client, until=caught_up)
    cursor = Cursor.parse(last.cursor)
    ahead = str(Cursor(cursor.feed_id, cursor.place._replace(tx=2**50)))
    other = await make_database()
    # Test databases are copies, and a copy has the same feed id.
    await other.execute("UPDATE credit_feed SET feed_id = gen_random_uuid()")
    async with running(server_settings(other.service_url)) as service:
        await other.user(1)
        (*_, foreign) = await batches(await service.client(), until=caught_up)
    for text, words in (
        ("x", "is damaged"),
        (last.cursor[:-2], "is damaged"),
        (last.cursor.swapcase(), "is damaged"),
        (foreign.cursor, "is from another database"),
        (ahead, "is ahead of the feed"),
    ):
        with pytest.raises(InvalidRequest, match=words) as refused:
            await batches(client, until=caught_up, cursor=text)
        assert refused.value.field == "cursor"


async def test_a_stream_needs_types_and_sizes_that_exist(client):
    for options in ({"types": [99]}, {"page_size": -1}):
        with pytest.raises(InvalidRequest):
            await batches(client, until=caught_up, **options)


async def test_an_idle_reader_learns_that_the_stream_is_alive(database, client, monkeypatch):
    await database.user(1)
    await all_readable(database)
    monkeypatch.setattr("credit_service.rpc.feed_calls._SILENT_SECONDS_MAX", 0.3)
    read = await batches(client, until=lambda read: len(read) == 4)
    assert [len(batch.items) for batch in read] == [1, 0, 0, 0]
    assert all(batch.cursor for batch in read)
