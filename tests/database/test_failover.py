"""The service while its database is elsewhere: unavailable, never wrong, and back by itself."""

import asyncio
import contextlib
import os
import shutil
import signal
import tempfile
from pathlib import Path
from urllib.parse import parse_qs, urlsplit
from uuid import uuid4

import asyncpg
import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from kit.clusters import through
from kit.command_line import ran
from kit.fault_proxy import fault_proxy
from kit.refusals import refused
from kit.services import running, server_settings
from kit.standbys import Pair
from kit.storm import call, connected
from kit.waiting import eventually, patience

from credit_service.database import migrations
from credit_service.database.postgres import Absence, Address, NotWritableError, absence
from credit_service.v1 import credit_service_pb2 as pb

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


@contextlib.contextmanager
def primary():
    """A primary with a migrated database, and an address that leads to it."""
    place = Path(tempfile.mkdtemp(prefix="failover-"))
    place.chmod(0o755)
    pair = Pair(place)
    try:
        pair.first.start()
        pair.lead_to(pair.first)
        asyncio.run(migrations.migrate(pair.first.owner_url, "credit_service", lambda _line: None))
        yield pair
    finally:
        pair.stop()
        shutil.rmtree(place)


@pytest.fixture
def pair():
    """A primary and a standby that follows it."""
    with primary() as pair:
        pair.second.follow(pair.first)
        yield pair


@pytest.fixture(scope="module")
def alone():
    """A primary that is shared by all tests that restore it."""
    with primary() as pair:
        yield pair


def spend(user_id, key=None):
    return pb.SpendCreditsRequest(
        user_id=str(user_id), amount=1, idempotency_key=key or uuid4().hex
    )


class Caller:
    """A caller that spends, reads and asks for the service's health."""

    def __init__(self, stub, channel, user_id):
        self._stub = stub
        self._health = health_pb2_grpc.HealthStub(channel)
        self._user_id = user_id

    async def state(self):
        request = health_pb2.HealthCheckRequest()
        return (await self._health.Check(request, timeout=patience(10))).status

    async def spend(self, key=None):
        return await call(self._stub, spend(self._user_id, key))

    async def read(self):
        try:
            request = pb.GetUserCreditRequest(user_id=str(self._user_id), history_size=1)
            return (await self._stub.GetUserCredit(request, timeout=patience(10))).credit
        except grpc.aio.AioRpcError as failure:
            return failure

    async def finds_it_away(self):
        """Every call is UNAVAILABLE, reads included, and health reports NOT_SERVING."""
        for answer in (await self.spend(), await self.read()):
            if not isinstance(answer, grpc.aio.AioRpcError):
                return False
            assert refused(answer).code is grpc.StatusCode.UNAVAILABLE, refused(answer)
            assert refused(answer).reason == "LEDGER_UNAVAILABLE"
            assert refused(answer).retry_seconds
        return await self.state() == NOT_SERVING

    async def finds_it_back(self):
        answer = await self.spend()
        if isinstance(answer, grpc.aio.AioRpcError):
            assert refused(answer).code is grpc.StatusCode.UNAVAILABLE, refused(answer)
            return False
        return await self.state() == SERVING


@contextlib.asynccontextmanager
async def calling(url, user_id):
    async with (
        running(server_settings(url)) as service,
        connected(service.target) as stub,
        grpc.aio.insecure_channel(service.target) as channel,
    ):
        yield Caller(stub, channel, user_id)


async def copied(pair):
    """Waits until the standby has all that the primary has."""
    ((written,),) = await pair.first.database.fetch("SELECT pg_current_wal_lsn()")

    async def replayed():
        rows = await pair.second.database.fetch(
            "SELECT pg_last_wal_replay_lsn() >= $1::pg_lsn", written
        )
        return rows[0][0]

    await eventually(replayed)


async def test_the_address_leads_to_a_standby_and_then_to_the_promoted_one(pair):
    user_id = await pair.first.database.user(100)
    async with calling(pair.service_url, user_id) as caller:
        assert (await caller.spend("before")).credit.balance == 99
        await copied(pair)
        pair.first.demote()
        pair.lead_to(pair.first)
        # Its book can be read, but may already be out of date.
        for _ in range(20):
            assert isinstance(await caller.read(), grpc.aio.AioRpcError)
        await eventually(caller.finds_it_away)
        # It stays away, however often it is asked.
        for _ in range(10):
            assert await caller.finds_it_away()
        await pair.second.database.execute("SELECT pg_promote()")
        assert (await pair.second.database.fetch("SELECT pg_is_in_recovery()"))[0][0] is False
        pair.lead_to(pair.second)
        await eventually(caller.finds_it_back)
        again = await caller.spend("before")
        assert again.replayed
        credit = await caller.read()
        assert credit.balance == again.credit.balance < 99
        assert credit.seq == credit.transaction_history[0].seq
        assert not await pair.second.database.faults()


async def test_the_address_moves_while_connections_to_the_old_primary_stay_open(pair):
    user_id = await pair.first.database.user(100)
    async with calling(pair.service_url, user_id) as caller:
        assert (await caller.spend("before")).credit.balance == 99
        assert (await caller.read()).balance == 99
        await pair.first.database.execute("ALTER SYSTEM SET default_transaction_read_only = on")
        await pair.first.database.execute("SELECT pg_reload_conf()")
        await eventually(caller.finds_it_away)
        await copied(pair)
        await pair.second.database.execute("SELECT pg_promote()")
        pair.lead_to(pair.second)
        await eventually(caller.finds_it_back)
        assert (await caller.spend("before")).replayed
        assert not await pair.second.database.faults()


def statements(*there, back):
    """A way to make a database unavailable and available again, as its administrator can."""

    @contextlib.asynccontextmanager
    async def away(pair):
        administrator = await asyncpg.connect(_with_path(pair.first.owner_url, "/postgres"))
        try:
            for statement in there:
                await administrator.execute(statement)
            yield
            for statement in back:
                await administrator.execute(statement)
        finally:
            await administrator.close()

    return away


def _with_path(url, path):
    return urlsplit(url)._replace(path=path).geturl()


END_CONNECTIONS = (
    "SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity WHERE usename = 'credit_service'"
)


async def test_a_server_that_shuts_down_and_starts_again_is_unavailable_meanwhile(pair):
    user_id = await pair.first.database.user(100)
    async with calling(pair.service_url, user_id) as caller:
        assert (await caller.spend()).credit.balance == 99
        assert (await caller.read()).balance == 99
        # It waits for the connections that are open, and refuses new ones.
        other = await pair.first.database.connect()
        os.kill(pair.first.pid, signal.SIGTERM)

        async def refuses():
            await other.execute(END_CONNECTIONS)
            return await caller.finds_it_away()

        await eventually(refuses)
        with pytest.raises(asyncpg.CannotConnectNowError):
            await asyncpg.connect(pair.first.database.service_url)
        await other.close()
        pair.first.stop()
        assert await caller.finds_it_away()
        pair.first.start()
        pair.lead_to(pair.first)
        await eventually(caller.finds_it_back)


WAYS = {
    "it is read-only from the next connection on": statements(
        "ALTER DATABASE credit SET default_transaction_read_only = on",
        END_CONNECTIONS,
        back=["ALTER DATABASE credit RESET default_transaction_read_only"],
    ),
    "it is made read-only under open connections": statements(
        "ALTER SYSTEM SET default_transaction_read_only = on",
        "SELECT pg_reload_conf()",
        back=["ALTER SYSTEM RESET default_transaction_read_only", "SELECT pg_reload_conf()"],
    ),
    "the role is refused": statements(
        "ALTER ROLE credit_service NOLOGIN",
        END_CONNECTIONS,
        back=["ALTER ROLE credit_service LOGIN"],
    ),
    "there are too many connections": statements(
        "ALTER ROLE credit_service CONNECTION LIMIT 0",
        END_CONNECTIONS,
        back=["ALTER ROLE credit_service CONNECTION LIMIT -1"],
    ),
    "the database takes no connections": statements(
        "ALTER DATABASE credit ALLOW_CONNECTIONS false",
        END_CONNECTIONS,
        back=["ALTER DATABASE credit ALLOW_CONNECTIONS true"],
    ),
    "the database is gone": statements(
        "ALTER DATABASE credit ALLOW_CONNECTIONS false",
        END_CONNECTIONS,
        "ALTER DATABASE credit RENAME TO gone",
        back=[
            "ALTER DATABASE gone RENAME TO credit",
            "ALTER DATABASE credit ALLOW_CONNECTIONS true",
        ],
    ),
}


@pytest.mark.parametrize("way", WAYS)
async def test_a_database_that_says_not_here_is_unavailable_until_it_is_back(alone, way):
    user_id = await alone.first.database.user(100)
    async with calling(alone.service_url, user_id) as caller:
        assert (await caller.spend()).credit.balance == 99
        assert (await caller.read()).balance == 99
        async with WAYS[way](alone):
            await eventually(caller.finds_it_away)
            for _ in range(5):
                assert await caller.finds_it_away()
        await eventually(caller.finds_it_back)
        assert (await caller.read()).transaction_history
    assert not await alone.first.database.faults()


def beside(pair, *sockets):
    """A URL that names several hosts."""
    return through(pair.first.database.service_url, ",".join(map(str, sockets)))


@contextlib.asynccontextmanager
async def relayed(sockets):
    """Yields a TCP port that leads to the server of a socket directory."""
    joined = set()

    async def pump(reader, writer):
        with contextlib.suppress(OSError):
            while chunk := await reader.read(1 << 16):
                writer.write(chunk)
        writer.transport.abort()

    async def join(reader, writer):
        there = await asyncio.open_unix_connection(str(sockets / ".s.PGSQL.5432"))
        pumps = asyncio.gather(pump(reader, there[1]), pump(there[0], writer))
        joined.add(pumps)
        await pumps

    server = await asyncio.start_server(join, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        await asyncio.gather(*joined)


async def test_of_several_hosts_the_one_that_can_be_written_serves(pair):
    user_id = await pair.first.database.user(100)
    first, second = pair.first.sockets, pair.second.sockets
    for url in (beside(pair, second, first), beside(pair, "/nowhere", first)):
        async with calling(url + "&target_session_attrs=read-write", user_id) as caller:
            assert (await caller.spend()).credit
            assert (await caller.read()).balance
    async with relayed(second) as standby, relayed(first) as writable:
        hosts = f"127.0.0.1:1,127.0.0.1:{standby},127.0.0.1:{writable}"
        async with calling(f"postgresql://credit_service@{hosts}/credit", user_id) as caller:
            assert (await caller.spend()).credit.balance == 97
    await copied(pair)
    async with calling(beside(pair, first, second), user_id) as caller:
        assert (await caller.spend("before")).credit.balance == 96
        await copied(pair)
        pair.first.stop()
        await eventually(caller.finds_it_away)
        await pair.second.database.execute("SELECT pg_promote()")
        await eventually(caller.finds_it_back)
        assert (await caller.spend("before")).replayed


async def test_a_silent_host_does_not_keep_the_others_from_serving(alone):
    user_id = await alone.first.database.user(100)
    async with fault_proxy(alone.first.database.service_url) as silent:
        silent.black_hole()
        (sockets,) = parse_qs(urlsplit(silent.url).query)["host"]
        url = beside(alone, sockets, alone.first.sockets)
        async with calling(url, user_id) as caller:
            assert (await caller.spend()).credit.balance == 99
            assert (await caller.read()).balance == 99
            await alone.first.database.execute(END_CONNECTIONS)
            await eventually(caller.finds_it_back)
        silent.heal()


async def test_a_rotated_password_is_read_from_its_file(pair, tmp_path, monkeypatch):
    database = pair.first.database
    user_id = await database.user(100)
    pair.first.ask_for_passwords()
    await database.execute("SELECT pg_reload_conf()")
    passwords = tmp_path / "passwords"
    monkeypatch.setenv("PGPASSFILE", str(passwords))

    async def rotate(password):
        await database.execute(f"ALTER ROLE credit_service PASSWORD '{password}'")
        passwords.write_text(f"*:*:credit:credit_service:{password}\n")
        passwords.chmod(0o600)

    await rotate("one")
    async with calling(pair.service_url, user_id) as caller:
        assert (await caller.spend()).credit.balance == 99
        await database.execute("ALTER ROLE credit_service PASSWORD 'two'")
        await database.execute(END_CONNECTIONS)
        await eventually(caller.finds_it_away)
        await rotate("two")
        await eventually(caller.finds_it_back)


async def test_a_standby_is_refused_by_name_but_its_book_can_be_verified(pair):
    address = Address(pair.second.database.service_url)
    with pytest.raises(NotWritableError, match="is a standby or read-only"):
        await address.connect()
    connection = await address.connect(writable=False)
    with pytest.raises(asyncpg.PostgresError) as fault:
        await connection.execute("BEGIN READ WRITE")
    assert absence(fault.value) is Absence.ELSEWHERE
    await connection.close()
    await pair.first.database.user(100)
    await copied(pair)
    verified = ran("verify", CREDIT_DATABASE_URL=pair.second.database.service_url)
    assert (verified.returncode, verified.stderr) == (0, "")
    assert "1 accounts verified, 0 with faults" in verified.stdout
