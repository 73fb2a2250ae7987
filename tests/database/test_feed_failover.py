"""The feed after a failover or restore: it stops, says why, and then skips nothing."""

import asyncio
import shutil
import tempfile
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from kit.commands import ask, lanes, spend
from kit.feed import entries, read, reading, reads_so_many
from kit.standbys import Pair
from kit.waiting import eventually

from credit_service.database import feed_numbers, migrations
from credit_service.rules.feed_values import Advanced
from credit_service.rules.model import Entry


@pytest.fixture
def pair():
    """A primary with a migrated database, and room for a second server."""
    place = Path(tempfile.mkdtemp(prefix="feed-"))
    place.chmod(0o755)
    pair = Pair(place)
    try:
        pair.first.start()
        asyncio.run(migrations.migrate(pair.first.owner_url, "credit_service", lambda _line: None))
        yield pair
    finally:
        pair.stop()
        shutil.rmtree(place)


@asynccontextmanager
async def at(server):
    """The lanes and the feed of a server."""
    url = server.database.service_url
    async with lanes(url) as clerk, reading(url) as feed:
        yield clerk, feed


async def advance(server, *, nothing_lost=False, restored=False):
    owner = await server.database.connect()
    try:
        return await feed_numbers.advance(owner, nothing_lost=nothing_lost, restored=restored)
    finally:
        await owner.close()


async def test_after_a_failover_that_lost_commits_an_old_cursor_skips_nothing(pair):
    user_id = await pair.first.database.user(100)
    pair.second.follow(pair.first)
    standby = await pair.second.database.connect()
    await eventually(lambda: standby.fetch("SELECT FROM user_credits"))
    await standby.execute("ALTER SYSTEM SET primary_conninfo = ''")
    await standby.execute("SELECT pg_reload_conf()")
    await eventually(lambda: not_streaming(standby))
    async with at(pair.first) as (clerk, feed):
        for _ in range(20):
            await ask(clerk, spend(user_id))
        seen = await reads_so_many(feed, 21)
        place = seen[-1].place
    pair.first.stop()
    await standby.execute("SELECT pg_promote()")
    await standby.close()
    async with at(pair.second) as (clerk, feed):
        for _ in range(3):
            [answer] = await ask(clerk, spend(user_id))
        assert answer.entry.seq == 4
        page = await feed.page(place, 100)
        assert page.standing
        assert page.items == []
        assert not page.caught_up
        before = await advance(pair.second)
        assert "timeline 2, before 1" in before.problem
        assert await advance(pair.second) is None
        await ask(clerk, spend(user_id))
        rest = await reads_so_many(feed, 5, place)
        assert type(rest[0].value) is Advanced
        assert entries(rest) == [(user_id, seq) for seq in (2, 3, 4, 5)]
        whole, _ = await read(feed)
        assert entries(whole) == [(user_id, seq) for seq in (1, 2, 3, 4, 5)]
    assert not await pair.second.database.faults()


def not_streaming(standby):
    async def look():
        return not await standby.fetch("SELECT FROM pg_stat_wal_receiver")

    return look()


async def test_where_nothing_was_lost_readers_go_on_without_the_item(pair):
    user_id = await pair.first.database.user(100)
    async with at(pair.first) as (clerk, feed):
        await ask(clerk, spend(user_id))
        place = (await reads_so_many(feed, 2))[-1].place
        # As it looks after the tables were brought to another server.
        await pair.first.database.execute("UPDATE credit_feed SET system_identifier = 7")
        await ask(clerk, spend(user_id))
        assert (await feed.page(place, 10)).standing
        before = await advance(pair.first, nothing_lost=True)
        assert "another server" in before.problem
        await ask(clerk, spend(user_id))
        rest = await reads_so_many(feed, 2, place)
        assert entries(rest) == [(user_id, 3), (user_id, 4)]
        assert all(type(item.value) is Entry for item in rest)


async def test_after_a_restore_of_the_files_an_old_cursor_skips_nothing(pair):
    user_id = await pair.first.database.user(100)
    pair.first.stop()
    shutil.copytree(pair.first._data, pair.second._data, copy_function=shutil.copy2)
    own_as_before(pair.first._data, pair.second._data)
    pair.first.start()
    async with at(pair.first) as (clerk, feed):
        for _ in range(20):
            await ask(clerk, spend(user_id))
        place = (await reads_so_many(feed, 21))[-1].place
    pair.first.stop()
    pair.second.start()
    async with at(pair.second) as (clerk, feed):
        page = await feed.page(place, 10)
        assert not page.standing
        assert place.tx >= page.boundary  # the service refuses such a cursor
        assert await advance(pair.second) is None
        assert await advance(pair.second, restored=True)
        await ask(clerk, spend(user_id))
        rest = await reads_so_many(feed, 2, place)
        assert [type(item.value) for item in rest] == [Advanced, Entry]
        assert entries((await read(feed))[0]) == [(user_id, 1), (user_id, 2)]


def own_as_before(original, copy):
    for path in (original, *original.rglob("*")):
        if path.is_symlink() or not (copy / path.relative_to(original)).exists():
            continue
        state = path.stat()
        shutil.chown(copy / path.relative_to(original), state.st_uid, state.st_gid)
