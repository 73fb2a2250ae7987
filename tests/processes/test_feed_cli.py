"""`credit-service feed`: shows whether the feed runs, and lets it go on after a failover."""

import asyncio

from kit.command_line import ran


async def feed(database, command, *options, owner=True):
    urls = {"CREDIT_DATABASE_URL": database.service_url}
    if owner:
        urls["CREDIT_MIGRATE_URL"] = database.owner_url
    return await asyncio.to_thread(ran, "feed", command, *options, **urls)


async def advances(database):
    return await database.fetch("SELECT number, reason FROM credit_feed_advances ORDER BY number")


async def move_to_another_server(database):
    """From now on the owner's row describes another server."""
    await database.execute("UPDATE credit_feed SET system_identifier = 7")


async def test_a_stopped_feed_is_shown_and_goes_on_by_the_owner_s_command(database):
    done = await feed(database, "status", owner=False)
    assert done.returncode == 0
    assert "it goes on" in done.stdout
    await move_to_another_server(database)
    done = await feed(database, "status", owner=False)
    assert done.returncode == 1
    assert "it waits: the database is on another server" in done.stdout
    assert "credit-service feed advance" in done.stdout
    done = await feed(database, "advance")
    assert done.returncode == 0
    assert "readers go on, after the item `advanced`" in done.stdout
    [(number, reason)] = await advances(database)
    assert number == 1
    assert "another server" in reason
    done = await feed(database, "advance")
    assert done.returncode == 0
    assert done.stdout.startswith("nothing to do")
    assert len(await advances(database)) == 1
    assert (await feed(database, "status")).returncode == 0


async def test_readers_are_not_told_of_a_failover_that_lost_nothing(database):
    await move_to_another_server(database)
    done = await feed(database, "advance", "--nothing-lost")
    assert done.returncode == 0
    assert await advances(database) == []
    assert (await feed(database, "status")).returncode == 0


async def test_only_the_owner_knows_that_files_were_restored(database):
    done = await feed(database, "advance", "--restored")
    assert done.returncode == 0
    [(_, reason)] = await advances(database)
    assert "copy of its files" in reason


async def test_an_impossible_request_is_refused_in_one_line(database):
    done = await feed(database, "advance", "--restored", "--nothing-lost")
    assert done.returncode == 2
    assert "--restored says that transactions are gone" in done.stderr
    await move_to_another_server(database)
    done = await feed(database, "advance", owner=False)
    assert done.returncode == 2
    assert "set CREDIT_MIGRATE_URL to connect as the owner" in done.stderr
    assert await advances(database) == []
