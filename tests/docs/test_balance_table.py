"""The example that keeps a table of balances from the stream is right after every kill."""

import asyncio
import contextlib
import os
import signal
import sqlite3
import subprocess
import sys

import pytest
from kit.feed import all_readable
from kit.paths import ROOT
from kit.waiting import eventually, patience

EXAMPLE = ROOT / "docs/examples/balance_table.py"


@contextlib.contextmanager
def follower(file, target, *options):
    child = subprocess.Popen(
        [sys.executable, str(EXAMPLE), str(file), "--target", target, *options],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stderr=subprocess.PIPE,
    )
    try:
        yield child
    finally:
        child.kill()
        child.communicate()


def balances(file):
    with contextlib.closing(sqlite3.connect(file)) as table:
        try:
            return set(table.execute("SELECT user_id, balance, held FROM balances"))
        except sqlite3.OperationalError:
            return set()


async def in_the_ledger(client):
    return {(each.user_id, each.balance, each.held) async for each in client.list_accounts()}


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
async def test_the_table_is_right_again_after_its_process_was_ended(
    database, service, client, tmp_path, how
):
    users = [await database.user(100) for _ in range(3)]
    file = tmp_path / "balances.db"
    with follower(file, service.target) as child:
        for user_id in users * 3:
            await client.spend_credits(user_id, amount=1)
        expected = await in_the_ledger(client)
        await eventually(lambda: balances(file) == expected)
        child.send_signal(how)
        await asyncio.to_thread(child.wait, patience(30))
        assert child.returncode == (0 if how is signal.SIGINT else -how)
    await client.hold_credits(users[0], amount=7)
    await all_readable(database)
    with follower(file, service.target, "--once") as child:
        assert await asyncio.to_thread(child.wait, patience(30)) == 0
    assert balances(file) == await in_the_ledger(client)


async def test_the_table_begins_again_after_a_restore(database, service, client, tmp_path):
    user_id = await database.user(100)
    file = tmp_path / "balances.db"
    await all_readable(database)
    with follower(file, service.target, "--once") as child:
        assert await asyncio.to_thread(child.wait, patience(30)) == 0
    with contextlib.closing(sqlite3.connect(file)) as table, table:
        table.execute("INSERT INTO balances VALUES ('of a lost entry', 7, 0, 1, '')")
    await database.execute(
        "INSERT INTO credit_feed_advances (number, tx, advanced_at, reason)"
        " VALUES (1, (SELECT max(tx) + 1 FROM user_credits), now(), 'restored')"
    )
    await client.spend_credits(user_id, amount=1)
    await all_readable(database)
    for _ in range(2):
        with follower(file, service.target, "--once") as child:
            assert await asyncio.to_thread(child.wait, patience(30)) == 0
        assert balances(file) == {(str(user_id), 99, 0)}
