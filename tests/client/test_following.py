"""The client's stream of all transactions goes on after every kill, and a cursor survives one."""

import asyncio
import os
import signal
import threading

import pytest
from kit.feed import all_readable
from kit.programs import free_port, process
from kit.waiting import eventually, patience

from credit_service.client import BlockingCreditClient, CreditClient, CursorFile
from credit_service.errors import InvalidRequest


def entries(batch):
    return [
        (item.transaction.user_id, item.transaction.seq)
        for item in batch.items
        if item.HasField("transaction")
    ]


def in_order_and_whole(read, user_id, last):
    """Whether every entry of a user came, each after all earlier ones."""
    seqs = [seq for user, seq in read if user == str(user_id)]
    return list(dict.fromkeys(seqs)) == list(range(1, last + 1))


async def test_a_stream_goes_on_after_the_service_was_killed(database):
    users = [await database.user(1000) for _ in range(3)]
    port = free_port()
    place = {"CREDIT_DATABASE_URL": database.service_url, "CREDIT_LISTEN": f"127.0.0.1:{port}"}
    read, spent = [], 0

    async with CreditClient(f"127.0.0.1:{port}", deadline_seconds=patience(30)) as client:

        async def follow():
            async for batch in client.stream_transactions(page_size=3):
                read.extend(entries(batch))

        reader = asyncio.create_task(follow())
        try:
            for _ in range(3):
                with process(**place) as service:
                    await asyncio.to_thread(service.wait_until_listening)
                    for user_id in users * 5:
                        await client.spend_credits(user_id, amount=1)
                    spent += 5
                    newest = {(str(user_id), spent + 1) for user_id in users}
                    await eventually(lambda newest=newest: newest <= set(read))
                    service.signal(signal.SIGKILL)
            assert not reader.done()
        finally:
            reader.cancel()
    for user_id in users:
        assert in_order_and_whole(read, user_id, spent + 1)


async def test_a_stream_that_has_fallen_silent_is_opened_again(
    database, service, client, capfd, monkeypatch
):
    monkeypatch.setattr("credit_service.client.feed._SILENT_SECONDS", 0.5)
    user_id = await database.user(100)
    read = []

    async def follow():
        async for batch in client.stream_transactions():
            read.extend(entries(batch))

    opened = 0

    async def was_opened_again():
        nonlocal opened
        opened += capfd.readouterr().out.count("StreamTransactions")
        return opened >= 2

    reader = asyncio.create_task(follow())
    try:
        # The service says that it is alive every ten seconds, which is too rare here.
        await eventually(was_opened_again)
        await client.spend_credits(user_id, amount=1)
        await eventually(lambda: (str(user_id), 2) in read)
    finally:
        reader.cancel()
    assert read == [(str(user_id), 1), (str(user_id), 2)]


async def test_a_blocking_reader_stores_its_cursor_and_another_goes_on(
    database, service, client, tmp_path
):
    user_id = await database.user(100)
    for _ in range(7):
        await client.spend_credits(user_id, amount=1)
    cursors = CursorFile(tmp_path / "cursor")

    await all_readable(database)

    def reads(until):
        """Reads on from the stored cursor, as a restarted process does."""
        read = []
        with BlockingCreditClient(service.target) as blocking:
            for batch in blocking.stream_transactions(cursor=cursors.load(), page_size=3):
                read.extend(entries(batch))
                cursors.save(batch.cursor)
                if until(read, batch):
                    return read
        raise AssertionError("a stream has no end")

    first = await asyncio.to_thread(reads, lambda read, _: read)
    rest = await asyncio.to_thread(reads, lambda _, batch: batch.caught_up)
    assert [seq for _, seq in first + rest] == list(range(1, 9))
    assert len(first) == 3
    left = [thread for thread in threading.enumerate() if thread.name == "credit client"]
    assert left == []


async def test_a_client_ends_its_streams_when_it_is_closed(database, service):
    await database.user(100)
    client = await service.client()
    stream = client.stream_transactions()
    assert (await anext(stream)).cursor
    waiting = asyncio.ensure_future(anext(stream))
    await client.close()
    with pytest.raises((asyncio.CancelledError, RuntimeError)):
        await waiting


async def test_a_forged_cursor_is_raised_and_not_tried_again(client):
    with pytest.raises(InvalidRequest, match="cursor"):
        await anext(client.stream_transactions(cursor="forged"))


def test_a_cursor_file_has_the_old_cursor_or_the_new_one(tmp_path, monkeypatch):
    cursors = CursorFile(tmp_path / "cursor")
    assert cursors.load() == ""
    cursors.save("one")
    assert CursorFile(tmp_path / "cursor").load() == "one"

    def full(_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(OSError):
            cursors.save("two")
    assert cursors.load() == "one"
    cursors.save("three")
    assert cursors.load() == "three"
    with pytest.raises(OSError):
        CursorFile(tmp_path / "no" / "cursor").save("one")
