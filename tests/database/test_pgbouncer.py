"""The service behind a real PgBouncer that pools by transaction."""

import asyncio
import os
import shutil
import signal
import subprocess
import tempfile
from itertools import chain
from pathlib import Path
from urllib.parse import parse_qs, quote, urlsplit

import grpc
import pytest
from kit.requests import payment
from kit.services import running, server_settings
from kit.waiting import eventually, patience
from structlog.testing import capture_logs

from credit_service.database.postgres import Address, missing_protection, unreachable
from credit_service.database.programs import ROOTS_STAND_IN, account
from credit_service.database.statements import Connection, loses_statements
from credit_service.errors import LedgerUnavailable, OutcomeUnknown
from credit_service.v1 import credit_service_pb2 as pb
from credit_service.v1 import credit_service_pb2_grpc as pb_grpc

# Fewer connections than the service opens to it, so that they are shared.
POOL_SIZE = 3

SETTINGS = """\
[databases]
{name} = host={sockets} dbname={name}

[pgbouncer]
listen_addr =
unix_socket_dir = {directory}
listen_port = 6432
auth_type = scram-sha-256
auth_file = {directory}/users.txt
pool_mode = transaction
default_pool_size = {pool_size}
max_client_conn = 200
query_wait_timeout = 5
"""


class Pooler:
    """A PgBouncer in front of a database; it may be killed and started again."""

    def __init__(self, program, directory, database):
        self._program = program
        self._directory = directory
        self._database = database
        self._configure(POOL_SIZE)
        (directory / "users.txt").write_text('"credit_service" "secret"\n')
        self.address = Address(
            f"postgresql://credit_service:secret@/{database.name}"
            f"?host={quote(str(directory))}&port=6432",
            statement_cache_size=0,
        )

    def _configure(self, pool_size):
        sockets = parse_qs(urlsplit(self._database.service_url).query)["host"][0]
        settings = SETTINGS.format(
            name=self._database.name,
            sockets=sockets,
            directory=self._directory,
            pool_size=pool_size,
        )
        (self._directory / "pgbouncer.ini").write_text(settings)

    def resize(self, pool_size):
        """Gives it another number of connections to PostgreSQL, from its next start or reload."""
        self._configure(pool_size)

    def reload(self):
        self._process.send_signal(signal.SIGHUP)

    @property
    def caching(self):
        """The address of a service that leaves the cache of statements on."""
        return Address(self.address.url)

    async def start(self):
        self._launch()
        await eventually(self._answers)

    def _launch(self):
        # It changes its user by itself: with user= Popen forks, which gRPC does not survive.
        run_as = ("-u", ROOTS_STAND_IN) if os.geteuid() == 0 else ()
        self._process = subprocess.Popen(
            [self._program, "-q", *run_as, self._directory / "pgbouncer.ini"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd="/",
        )

    async def _answers(self):
        assert self._process.poll() is None, "PgBouncer ended"
        try:
            connection = await self.address.connect()
        except Exception as fault:
            if unreachable(fault):
                return False
            raise
        await connection.close()
        return True

    def kill(self):
        self._process.kill()
        self._process.wait()


@pytest.fixture
async def pooler(database):
    program = shutil.which("pgbouncer", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")
    if program is None:
        pytest.skip("PgBouncer is not installed here (apt-get install pgbouncer)")
    directory = Path(tempfile.mkdtemp(prefix="pgbouncer-", dir="/tmp"))
    if run_as := account():
        os.chown(directory, run_as["user"], run_as["group"])
    pooler = Pooler(program, directory, database)
    try:
        await pooler.start()
        yield pooler
    finally:
        pooler.kill()
        shutil.rmtree(directory)


def settings_for(pooler):
    return server_settings("", address=pooler.address)


async def test_calls_share_few_connections_and_the_books_add_up(database, pooler):
    users = [await database.user(100) for _ in range(6)]
    async with running(settings_for(pooler)) as one, running(settings_for(pooler)) as other:
        clients = [await one.client(), await other.client()]

        async def job(number):
            client, user_id = clients[number % 2], users[number % 6]
            spent = await client.spend_credits(
                user_id, operation="render", idempotency_key=f"job {number}"
            )
            assert (await client.get_user_credit(user_id, history_size=3)).balance < 101
            if number % 3 == 0:
                await client.refund_credits(user_id, spent.transaction.id, amount=1)
            await client.purchase_credits(user_id, 2, payment=payment(f"pi_{number}"))
            found = await client.get_transaction(user_id, idempotency_key=f"job {number}")
            assert found.id == spent.transaction.id

        await asyncio.gather(*(job(number) for number in range(60)))
        backends = await database.fetch(
            "SELECT pid FROM pg_stat_activity"
            " WHERE datname = current_database() AND usename = 'credit_service'"
        )
        assert len(backends) <= POOL_SIZE
    balances = await database.fetch("SELECT sum(balance)::int FROM user_credits")
    assert balances[0][0] == 6 * 100 - 60 * 5 + 20 + 60 * 2
    assert await database.faults() == []


async def test_the_roles_time_limits_come_through(pooler):
    connection = await pooler.address.connect()
    assert await missing_protection(connection) == []
    await connection.close()


async def test_a_killed_pooler_loses_no_answered_write_and_doubles_none(database, pooler):
    user_id = await database.user(10_000)
    answered = []
    async with running(settings_for(pooler)) as service:
        client = await service.client()

        async def spend(key):
            while True:
                try:
                    spent = await client.spend_credits(user_id, amount=1, idempotency_key=key)
                except OutcomeUnknown:
                    continue
                answered.append(spent.transaction.id)
                return

        async def worker(name):
            for number in range(40):
                await spend(f"{name} {number}")

        workers = [asyncio.create_task(worker(name)) for name in range(8)]
        for count in (40, 140):
            await eventually(lambda count=count: len(answered) >= count)
            pooler.kill()
            with pytest.raises(LedgerUnavailable):
                await client.get_user_credit(user_id)
            await pooler.start()
        await asyncio.gather(*workers)
        assert (await client.get_user_credit(user_id)).balance == 10_000 - 320
    assert len(set(answered)) == 320
    entries = await database.fetch("SELECT id FROM credit_transactions WHERE type = 'spend'")
    assert {row[0] for row in entries} == set(answered)
    assert await database.faults() == []


WARNING = "a pooler loses prepared statements"


def warnings(log):
    return [line for line in log if line["event"].startswith(WARNING)]


async def codes_of_many_calls(service, users, name):
    """Makes calls of every kind at once; returns the codes of their answers.

    A call that is UNAVAILABLE, because the few connections are busy, is made again.
    """
    options = (("grpc.enable_retries", 0),)
    async with grpc.aio.insecure_channel(service.target, options) as channel:
        stub = pb_grpc.CreditServiceStub(channel)

        async def job(number):
            user_id = str(users[number % len(users)])
            past = pb.GetUserCreditRequest(user_id=user_id, history_size=3)
            past.as_of.FromJsonString("2020-01-01T00:00:00Z")
            codes = []
            for turn in range(5):
                key = f"{name} {number} {turn}"
                for method, request in (
                    (
                        stub.SpendCredits,
                        pb.SpendCreditsRequest(user_id=user_id, amount=1, idempotency_key=key),
                    ),
                    (stub.GetUserCredit, pb.GetUserCreditRequest(user_id=user_id)),
                    (stub.GetUserCredit, past),
                    (stub.GetTransactionHistory, pb.GetTransactionHistoryRequest(user_id=user_id)),
                    (stub.ListHolds, pb.ListHoldsRequest(user_id=user_id)),
                ):
                    code = "UNAVAILABLE"
                    while code == "UNAVAILABLE":
                        code = (await method(request, timeout=patience(20)).code()).name
                    codes.append(code)
            return codes

        return set(chain(*await asyncio.gather(*(job(number) for number in range(8)))))


async def spends(database):
    """How many spends there are, and how many credits they took."""
    rows = await database.fetch(
        "SELECT count(*), sum(amount)::int FROM credit_transactions WHERE type = 'spend'"
    )
    return tuple(rows[0])


async def test_a_cache_of_statements_is_given_up_at_the_start(database, pooler):
    """Behind a pooler by transaction a third of the calls would be INTERNAL otherwise."""
    users = [await database.user(1000) for _ in range(8)]
    with capture_logs() as log:
        async with running(server_settings("", address=pooler.caching, lanes=4)) as service:
            assert await codes_of_many_calls(service, users, "all") == {"OK"}
    assert len(warnings(log)) == 1
    assert await spends(database) == (40, 40)
    assert await database.faults() == []


async def test_a_cache_of_statements_is_given_up_at_the_first_one_that_is_lost(database, pooler):
    """The pooler has one connection and loses nothing; then it gets more, and does."""
    users = [await database.user(1000) for _ in range(8)]
    pooler.kill()
    pooler.resize(1)
    await pooler.start()
    with capture_logs() as log:
        async with running(server_settings("", address=pooler.caching, lanes=4)) as service:
            assert await codes_of_many_calls(service, users, "before") == {"OK"}
            assert not warnings(log)
            pooler.resize(POOL_SIZE)
            pooler.reload()
            assert await codes_of_many_calls(service, users, "after") == {"OK"}
            assert await codes_of_many_calls(service, users, "later") == {"OK"}
    assert len(warnings(log)) == 1
    assert await spends(database) == (120, 120)
    assert await database.faults() == []


async def test_a_pooler_that_loses_statements_is_detected(pooler):
    await eventually(lambda: loses_statements(pooler.caching.connect))


async def test_without_a_pooler_statements_are_kept(database):
    address = Address(database.service_url)
    assert not await loses_statements(address.connect)
    async with running(server_settings("", address=address)) as service:
        client = await service.client()
        await client.get_user_credit(await database.user(10))
    assert address.statements.size == 100


async def test_no_two_processes_give_statements_the_same_names(database):
    """Behind a pooler one would run what the other has prepared under the same name."""
    connection = await Address(database.service_url).connect()
    await connection.fetchval("SELECT 1")
    (name,) = await connection.fetch("SELECT name FROM pg_prepared_statements LIMIT 1")
    await connection.close()
    assert name[0].endswith(Connection._process)
