"""Workers are killed in the middle of their work, and the service stops and starts."""

import asyncio
import os
import random
import signal
import subprocess
import sys
import time
from contextlib import asynccontextmanager
from uuid import uuid4

import pytest
from kit.extent import extent
from kit.paths import ROOT
from kit.programs import free_port, process
from kit.waiting import eventually, patience

from credit_service.client import CreditClient
from credit_service.v1 import credit_service_pb2 as pb

WORKER = ROOT / "tests/kit/storm_worker.py"
TTL_SECONDS = 2.0


@asynccontextmanager
async def worker(target, ttl_seconds=TTL_SECONDS):
    """A worker in a separate process, ready to take jobs."""
    made = await asyncio.create_subprocess_exec(
        sys.executable,
        str(WORKER),
        target,
        str(ttl_seconds),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    try:
        assert await made.stdout.readline() == b"ready\n"
        yield made
    finally:
        if made.returncode is None:
            made.kill()
        await made.wait()


@asynccontextmanager
async def serving(port, url):
    environment = {"CREDIT_DATABASE_URL": url, "CREDIT_LISTEN": f"127.0.0.1:{port}"}
    with process("serve", **environment) as server:
        await asyncio.to_thread(server.wait_until_listening)
        yield server


async def verified(url):
    """Runs `credit-service verify`; returns its exit code and its output."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith("CREDIT_")}
    ended = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-m", "credit_service", "verify"],
        env={**clean, "CREDIT_DATABASE_URL": url},
        capture_output=True,
        text=True,
        check=False,
    )
    return ended.returncode, ended.stdout + ended.stderr


async def test_the_credits_of_a_killed_worker_come_back(database):
    user_id = await database.user(7)
    port = free_port()
    async with serving(port, database.service_url):
        target = f"127.0.0.1:{port}"
        async with CreditClient(target) as client:
            async with worker(target) as made:
                made.stdin.write(f"{user_id} job-1 whole\n".encode())
                assert await made.stdout.readline() == b"working job-1\n"
                made.send_signal(signal.SIGSTOP)
                credit = await client.get_user_credit(user_id)
                assert (credit.balance, credit.available) in ((7, 0), (0, 0))
                made.kill()
                await made.wait()
            if credit.balance == 0:
                pytest.fail("the worker was stopped too late to be in the middle of its work")

            async def back():
                found = await client.get_user_credit(user_id)
                return (found.balance, found.available) == (7, 7)

            await eventually(back)
            # The job is delivered again, and paid by its next attempt.
            async with worker(target) as made:
                made.stdin.write(f"{user_id} job-1 whole\n".encode())
                assert await made.stdout.readline() == b"working job-1\n"
                assert await made.stdout.readline() == b"paid job-1\n"
            entry = await client.get_transaction(user_id, idempotency_key="capture:job-1:1")
            assert entry.amount == 7
    assert (await verified(database.service_url))[0] == 0
    assert not await database.faults()


class Jobs:
    """The delivered jobs and their results."""

    def __init__(self, users, seed):
        self.lots = random.Random(seed)
        self.users = users
        self.left = []
        self.owner = {}
        self.kind = {}
        self.said_paid = set()
        self.killed = 0

    def next(self):
        """A new job, or one of those whose worker died."""
        if self.left and self.lots.random() < 0.5:
            return self.left.pop()
        job = uuid4().hex
        self.owner[job] = self.lots.choice(self.users)
        self.kind[job] = self.lots.choice(["whole", "whole", "part", "fails"])
        return job

    async def deliver(self, made, job, seconds=60):
        """Gives a worker a job; kills the worker in the middle of some of them."""
        made.stdin.write(f"{self.owner[job]} {job} {self.kind[job]}\n".encode())
        dies_at = self.lots.choice(["working", "start", *[None] * 8])
        if dies_at == "start":
            await asyncio.sleep(self.lots.uniform(0, 0.05))
            return self._kill(made, job)
        async with asyncio.timeout(patience(seconds)):
            while True:
                said = (await made.stdout.readline()).split()
                if said[0] == b"working":
                    if dies_at == "working":
                        await asyncio.sleep(self.lots.uniform(0, 0.1))
                        return self._kill(made, job)
                    continue
                if said[0] in (b"paid", b"paid-before"):
                    self.said_paid.add(job)
                elif said[0] in (b"OUTCOME_UNKNOWN", b"LEDGER_UNAVAILABLE"):
                    self.left.append(job)
                return True

    def _kill(self, made, job):
        made.kill()
        self.killed += 1
        self.left.append(job)
        return False


async def storm(database, seconds, seed, workers):
    """For `seconds`, workers and service die at random; afterwards the book must be right."""
    print(f"seed {seed}")
    users = [await database.user(lots) for lots in (10**6, 10**6, 50)]
    jobs = Jobs(users, seed)
    port = free_port()
    target = f"127.0.0.1:{port}"
    end = time.monotonic() + seconds
    over = asyncio.Event()

    def going_on():
        # A slow machine needs longer for enough events.
        return time.monotonic() < end or len(jobs.said_paid) < 10 or jobs.killed < 3

    async def service():
        while not over.is_set():
            async with serving(port, database.service_url) as server:
                pause = random.Random(seed).uniform(seconds / 6, seconds / 4)
                try:
                    async with asyncio.timeout(pause):
                        await over.wait()
                except TimeoutError:
                    server.signal(jobs.lots.choice([signal.SIGKILL, signal.SIGTERM]))
                    await asyncio.to_thread(server.wait)

    async def crew():
        while going_on():
            async with worker(target) as made:
                while going_on():
                    if not await jobs.deliver(made, jobs.next()):
                        break

    serves = asyncio.create_task(service())
    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(workers):
                group.create_task(crew())
    finally:
        over.set()
        await serves
    async with serving(port, database.service_url), CreditClient(target) as client:
        for user_id in users:

            async def nothing_held(user_id=user_id):
                return (await client.get_user_credit(user_id)).held == 0

            await eventually(nothing_held, seconds=30)
        await check(database, client, jobs)
    code, said = await verified(database.service_url)
    assert code == 0, said
    assert not await database.faults()
    assert jobs.killed > 0


async def check(database, client, jobs):
    """Every job is paid once or not at all, and every answer that a worker got is in the ledger."""
    rows = await database.fetch(
        "SELECT reference, type, count(*), sum(amount)::bigint FROM credit_transactions"
        " WHERE type = 'capture' GROUP BY 1, 2"
    )
    paid = {row[0]: (row[2], row[3]) for row in rows}
    for job, (times, amount) in paid.items():
        assert times == 1, job
        assert amount == {"whole": 7, "part": 3}[jobs.kind[job]], job
    assert jobs.said_paid <= set(paid)
    assert len(paid) >= 10
    for user_id in jobs.users:
        states = [hold.state async for hold in client.list_holds(user_id)]
        assert pb.HOLD_STATE_HELD not in states


@pytest.mark.long
@pytest.mark.timeout(300)
async def test_a_storm_of_crashes_leaves_a_book_that_adds_up(database):
    await storm(database, extent(12, 60), seed=2, workers=extent(4, 6))
