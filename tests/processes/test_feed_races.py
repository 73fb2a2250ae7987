"""Readers of the feed while two services write, and while services and readers are killed."""

import asyncio
import random
import signal
from collections import defaultdict
from contextlib import ExitStack

import pytest
from kit.feed import reading
from kit.programs import free_port, process
from kit.storm import Storm
from kit.waiting import eventually

from credit_service.errors import LedgerUnavailable
from credit_service.rules.feed_values import BEGINNING
from credit_service.rules.model import Entry


class Reader:
    """Reads the feed, is killed every few pages, and resumes from its last stored cursor."""

    def __init__(self, url, seed):
        self._url = url
        self._random = random.Random(seed)
        self._place = BEGINNING
        self.seqs = defaultdict(list)

    async def run(self):
        while True:
            async with reading(self._url) as feed:
                await self._live(feed, self._random.randint(1, 12))

    async def _live(self, feed, pages):
        place = self._place
        for _ in range(pages):
            try:
                page = await feed.page(place, self._random.choice((1, 3, 50, 1000)))
            except LedgerUnavailable:
                return
            for item in page.items:
                assert item.place > place
                if type(item.value) is Entry:
                    self.seqs[item.value.user_id].append(item.value.seq)
            place = page.place
            # A reader that dies before it has stored its cursor gets the items again.
            if self._random.random() < 0.7:
                self._place = place
            await asyncio.sleep(self._random.choice((0, 0, 0.01)))

    def has(self, book):
        return {user: set(seqs) for user, seqs in self.seqs.items()} == book


def in_order(seqs):
    """Whether each number comes for the first time after all smaller ones."""
    newest = 0
    for seq in seqs:
        if seq > newest + 1:
            return False
        newest = max(newest, seq)
    return True


@pytest.mark.parametrize("seed", [1, 2])
async def test_readers_miss_nothing_while_two_services_write_and_all_are_killed(database, seed):
    users = [await database.user(500) for _ in range(5)]
    ports = [free_port(), free_port()]
    readers = [Reader(database.service_url, seed * 10 + number) for number in range(3)]
    tasks = [asyncio.create_task(reader.run()) for reader in readers]
    targets = [f"127.0.0.1:{port}" for port in ports]
    async with Storm(targets, users, seed=seed) as storm:
        with ExitStack() as stack:

            def started(port):
                listen = {
                    "CREDIT_DATABASE_URL": database.service_url,
                    "CREDIT_LISTEN": f"127.0.0.1:{port}",
                }
                return stack.enter_context(process("serve", **listen))

            servers = [started(port) for port in ports]
            for server in servers:
                await asyncio.to_thread(server.wait_until_listening)
            for victim in (0, 1):
                await storm.more(60)
                servers[victim].signal(signal.SIGKILL)
                await asyncio.to_thread(servers[victim].wait)
                await storm.more(20)
                servers[victim] = started(ports[victim])
                await asyncio.to_thread(servers[victim].wait_until_listening)
            await storm.more(60)
            await storm.stop()
            await storm.settle()
            await storm.check(database)
    book = defaultdict(set)
    for user_id, seq in await database.fetch("SELECT user_id, seq FROM credit_transactions"):
        book[user_id].add(seq)
    try:
        await eventually(lambda: all(reader.has(book) for reader in readers))
    finally:
        for task in tasks:
            task.cancel()
    for reader in readers:
        assert all(in_order(seqs) for seqs in reader.seqs.values())
