"""A blocking worker is interrupted at any instant: its hold is ended, or it expires by itself.

Python can interrupt a thread between any two of its steps: by a signal in the main thread (Ctrl-C,
RQ, Celery), by PyThreadState_SetAsyncExc in another (Dramatiq).
"""

import asyncio
import sys
from datetime import timedelta
from functools import partial

import pytest
from kit.extent import unless_long
from kit.interruptions import struck_after, struck_at_step
from kit.paths import ROOT
from kit.waiting import eventually, patience

from credit_service.client import BlockingCreditClient
from credit_service.v1 import credit_service_pb2 as pb

TTL = timedelta(seconds=2)

pytestmark = [
    # A call that is interrupted as it is made leaves a coroutine that was never started.
    pytest.mark.filterwarnings("ignore:coroutine .* was never awaited:RuntimeWarning"),
    # A finaliser that is interrupted cannot pass the exception on.
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


@pytest.fixture
async def worker(service):
    """A client whose process, and so whose heartbeats, go on after the interruptions."""
    client = await asyncio.to_thread(BlockingCreditClient, service.target, deadline_seconds=60)
    yield client
    await asyncio.to_thread(client.close)


def captures_itself(client, user_id, job):
    with client.hold(user_id, amount=1, job=job, ttl=TTL) as held:
        held.capture()


def is_captured_on_leaving(client, user_id, job):
    with client.hold(user_id, amount=1, job=job, ttl=TTL):
        pass


def fails(client, user_id, job):
    try:
        with client.hold(user_id, amount=1, job=job, ttl=TTL):
            raise ValueError
    except ValueError:
        pass


WORK = (captures_itself, is_captured_on_leaving, fails)


async def nothing_is_kept(client, user_ids):
    """Waits until no hold is left: the hold of interrupted work must not be extended any more."""

    async def kept():
        return [
            hold
            for user_id in user_ids
            async for hold in client.list_holds(user_id, state=pb.HOLD_STATE_HELD)
        ]

    async def none_is():
        return not await kept()

    await eventually(none_is, seconds=15)


@pytest.mark.parametrize("work", WORK)
async def test_an_interruption_at_any_step_leaves_no_hold_alive(database, client, worker, work):
    user_ids = [await database.user(1000) for _ in range(10)]
    # The three works have most steps in common.
    stride = unless_long(3, 1)

    def sweep():
        step = WORK.index(work) + 1 - stride
        while True:
            step += stride
            user_id = user_ids[step % len(user_ids)]
            if not struck_at_step(step, partial(work, worker, user_id, f"song-{step}")):
                return step

    steps = await asyncio.to_thread(sweep)
    assert steps > 100
    # The client and its thread have survived.
    await asyncio.to_thread(captures_itself, worker, user_ids[0], "the last")
    await nothing_is_kept(client, user_ids)
    assert not await database.faults()


@pytest.mark.parametrize("work", WORK)
async def test_an_error_from_another_thread_leaves_no_hold_alive(database, client, worker, work):
    user_ids = [await database.user(1000) for _ in range(10)]

    def sweep():
        for n in range(0, 150, unless_long(3, 1)):
            user_id = user_ids[n % len(user_ids)]
            struck_after(n * 0.0002, partial(work, worker, user_id, f"song-{n}"))

    await asyncio.to_thread(sweep)
    await asyncio.to_thread(captures_itself, worker, user_ids[0], "the last")
    await nothing_is_kept(client, user_ids)
    assert not await database.faults()


async def test_a_signal_leaves_no_hold_alive(database, service, client):
    user_ids = [await database.user(1000) for _ in range(10)]
    program = await asyncio.create_subprocess_exec(
        sys.executable,
        str(ROOT / "tests/kit/interrupted_worker.py"),
        service.target,
        *map(str, user_ids),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        cwd=ROOT,
    )
    try:
        async with asyncio.timeout(patience(60)):
            assert await program.stdout.readline() == b"swept\n"
        await nothing_is_kept(client, user_ids)
        program.stdin.write(b"\n")
        assert await program.wait() == 0
    finally:
        if program.returncode is None:
            program.kill()
            await program.wait()
    assert not await database.faults()
