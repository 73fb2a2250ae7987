"""The service behind a real PgBouncer that pools by transaction."""

import asyncio
import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from urllib.parse import parse_qs, quote, urlsplit

import pytest
from kit.requests import payment
from kit.services import running, server_settings
from kit.waiting import eventually

from credit_service.database.postgres import Address, missing_protection, unreachable
from credit_service.database.programs import ROOTS_STAND_IN, account
from credit_service.errors import LedgerUnavailable, OutcomeUnknown

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
        sockets = parse_qs(urlsplit(database.service_url).query)["host"][0]
        settings = SETTINGS.format(
            name=database.name, sockets=sockets, directory=directory, pool_size=POOL_SIZE
        )
        (directory / "pgbouncer.ini").write_text(settings)
        (directory / "users.txt").write_text('"credit_service" "secret"\n')
        self.address = Address(
            f"postgresql://credit_service:secret@/{database.name}"
            f"?host={quote(str(directory))}&port=6432",
            statement_cache_size=0,
        )

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


async def test_a_killed_pooler_costs_no_answered_write_and_doubles_none(database, pooler):
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
