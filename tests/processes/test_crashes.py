"""Processes are killed under load: the service's, and PostgreSQL's on a durable cluster."""

import asyncio
import os
import re
import shutil
import signal
import tempfile
from datetime import timedelta
from pathlib import Path
from urllib.parse import parse_qs, urlsplit
from uuid import uuid4

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from kit import many_calls
from kit.citus import needs_socket
from kit.clusters import Cluster, lead, through
from kit.fault_proxy import COMMIT, UPDATE, Kind
from kit.programs import free_port, process
from kit.services import running, server_settings
from kit.storm import GrantStorm, Storm, call, connected
from kit.waiting import eventually, patience

from credit_service.database import migrations
from credit_service.ledger import store
from credit_service.ledger.verify import verify
from credit_service.v1 import credit_service_pb2 as pb


@pytest.fixture
async def cluster():
    directory = Path(tempfile.mkdtemp(prefix="credit-cluster-"))
    os.chmod(directory, 0o755)  # noqa: PTH101  # if root runs this, the server runs as `nobody`
    made = Cluster(directory)
    try:
        await asyncio.to_thread(made.start)
        await migrations.migrate(made.database.owner_url, "credit_service", lambda _line: None)
        yield made
    finally:
        made.stop()
        shutil.rmtree(directory)


async def health(target):
    async with grpc.aio.insecure_channel(target) as channel:
        answer = await health_pb2_grpc.HealthStub(channel).Check(
            health_pb2.HealthCheckRequest(), timeout=patience(10)
        )
    return health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status)


@pytest.mark.long
async def test_a_database_that_stops_and_crashes_loses_nothing_and_doubles_nothing(cluster):
    database = cluster.database
    users = [await database.user(500) for _ in range(4)]
    async with running(server_settings(database.service_url)) as service:

        async def healthy(state):
            return await health(service.target) == state

        async with Storm([service.target], users, seed=5) as storm:
            storm.seconds = 3.0
            await storm.more(200)
            for end in (cluster.stop, cluster.kill):
                await asyncio.to_thread(end)
                await eventually(lambda: healthy("NOT_SERVING"))
                away = storm.codes["UNAVAILABLE"]
                await eventually(lambda away=away: storm.codes["UNAVAILABLE"] > away)
                await asyncio.to_thread(cluster.start)
                await eventually(lambda: healthy("SERVING"))
                await storm.more(200)
            for _ in range(3):
                await asyncio.to_thread(cluster.kill)
                await asyncio.to_thread(cluster.start)
                await storm.more(100)
        await storm.settle()
        await storm.check(database)


async def test_a_server_killed_under_load_loses_nothing_and_doubles_nothing(database):
    users = [await database.user(500) for _ in range(4)]
    port = free_port()
    listen = {"CREDIT_DATABASE_URL": database.service_url, "CREDIT_LISTEN": f"127.0.0.1:{port}"}
    async with Storm([f"127.0.0.1:{port}"], users, seed=6) as storm:
        for acknowledged in (40, 111, 7):
            with process("serve", **listen) as server:
                await asyncio.to_thread(server.wait_until_listening)
                await storm.more(acknowledged)
                server.signal(signal.SIGKILL)
                await asyncio.to_thread(server.wait)
        with process("serve", **listen) as server:
            await storm.more(50)
            await storm.stop()
            await storm.settle()
    await storm.check(database)


async def all_has_lapsed(database):
    """Whether nothing is due any more."""
    due = await database.fetch(
        "SELECT FROM user_credits WHERE next_lapse <= now() OR next_hold_expiry <= now()"
    )
    return not due


async def everything_happens(storm, database):
    """Lets the callers go on until every kind of event has occurred."""
    met = set()
    while not met >= {"lapse", "expiry", "RevokeGrant", "CaptureHold"}:
        await storm.more(50)
        met = {row[0] for row in await database.fetch("SELECT call FROM credit_transactions")}


async def is_whole(storm, database):
    """Nothing is lost or doubled, the law of grants holds, and every sum adds up."""
    await eventually(lambda: all_has_lapsed(database), seconds=60)
    await storm.check(database)
    connection = await database.connect()
    faults = []
    try:
        accounts, faulty = await verify(connection, None, faults.append, lambda _count: None)
    finally:
        await connection.close()
    assert (accounts, faulty) == (4, 0), faults


async def test_a_server_killed_while_credits_lapse_loses_nothing_and_doubles_nothing(database):
    users = [await database.user(100) for _ in range(4)]
    port = free_port()
    listen = {"CREDIT_DATABASE_URL": database.service_url, "CREDIT_LISTEN": f"127.0.0.1:{port}"}
    async with GrantStorm([f"127.0.0.1:{port}"], users, seed=7) as storm:
        for acknowledged in (60, 111, 30):
            with process("serve", **listen) as server:
                await asyncio.to_thread(server.wait_until_listening)
                await storm.more(acknowledged)
                server.signal(signal.SIGKILL)
                await asyncio.to_thread(server.wait)
        with process("serve", **listen):
            await everything_happens(storm, database)
            await storm.stop()
            await storm.settle()
            await is_whole(storm, database)


@pytest.mark.parametrize("name", ["upsert_grants", "insert_grant_changes"])
async def test_a_server_killed_before_it_has_written_grants_has_written_nothing(
    database, proxy, name
):
    user_id = await database.user()
    async with running(server_settings(database.service_url)) as service:
        client = await service.client()
        await client.grant_credits(user_id, 10, reason="test", valid_for=timedelta(hours=1))
    request = pb.SpendCreditsRequest(user_id=str(user_id), amount=3, idempotency_key=uuid4().hex)
    held = proxy.on("^" + re.escape(store.SQL[name].splitlines()[0]), Kind.HOLD)
    with process("serve", CREDIT_DATABASE_URL=proxy.url) as server:
        port = await asyncio.to_thread(server.wait_until_listening)
        async with connected(f"127.0.0.1:{port}") as stub:
            asking = asyncio.create_task(call(stub, request))
            await held.met.wait()
            server.signal(signal.SIGKILL)
            assert (await asking).code() is grpc.StatusCode.UNAVAILABLE
    proxy.cut_all()
    held.release()
    assert not await database.faults()
    async with (
        running(server_settings(database.service_url)) as service,
        connected(service.target) as stub,
    ):
        again = await call(stub, request)
    assert (again.replayed, again.credit.balance) == (False, 7)
    assert [change.remaining_after for change in again.transaction.grant_changes] == [7]
    assert not await database.faults()


@pytest.mark.long
async def test_a_database_killed_while_credits_lapse_loses_nothing_and_doubles_nothing(cluster):
    database = cluster.database
    users = [await database.user(100) for _ in range(4)]
    async with running(server_settings(database.service_url)) as service:
        async with GrantStorm([service.target], users, seed=8) as storm:
            storm.seconds = 3.0
            await storm.more(200)
            for _ in range(3):
                await asyncio.to_thread(cluster.kill)
                await asyncio.to_thread(cluster.start)
                await storm.more(150)
            await everything_happens(storm, database)
        await storm.settle()
        await is_whole(storm, database)


@pytest.mark.parametrize("arrives", [False, True])
async def test_a_server_killed_at_its_commit_leaves_the_truth_in_the_book(database, proxy, arrives):
    user_id = await database.user(10)
    request = pb.SpendCreditsRequest(user_id=str(user_id), amount=3, idempotency_key=uuid4().hex)
    held = proxy.on(COMMIT, Kind.HOLD)
    with process("serve", CREDIT_DATABASE_URL=proxy.url) as server:
        port = await asyncio.to_thread(server.wait_until_listening)
        async with connected(f"127.0.0.1:{port}") as stub:
            asking = asyncio.create_task(call(stub, request))
            await held.met.wait()
            server.signal(signal.SIGKILL)
            assert (await asking).code() is grpc.StatusCode.UNAVAILABLE
    if not arrives:
        proxy.cut_all()
    held.release()
    async with (
        running(server_settings(database.service_url)) as service,
        connected(service.target) as stub,
    ):
        again = await call(stub, request)
    assert (again.replayed, again.credit.balance) == (arrives, 7)
    assert not await database.faults()


@pytest.mark.parametrize("arrives", [False, True])
async def test_calls_sent_together_to_a_server_killed_at_their_commit_can_be_repeated(
    database, proxy, arrives
):
    users = await database.users_of_one_shard(3, 10)
    items = [many_calls.spend(users[0], 3), many_calls.hold(users[1]), many_calls.spend(users[2])]
    held = proxy.on(COMMIT, Kind.HOLD)
    with process("serve", CREDIT_DATABASE_URL=proxy.url) as server:
        port = await asyncio.to_thread(server.wait_until_listening)
        async with connected(f"127.0.0.1:{port}") as stub:
            asking = asyncio.create_task(many_calls.responses(stub, items))
            await held.met.wait()
            server.signal(signal.SIGKILL)
            with pytest.raises(grpc.aio.AioRpcError) as failure:
                await asking
            assert failure.value.code() is grpc.StatusCode.UNAVAILABLE
    if not arrives:
        proxy.cut_all()
    held.release()
    async with (
        running(server_settings(database.service_url)) as service,
        connected(service.target) as stub,
    ):
        first, second, third = await many_calls.results(stub, items)
    assert [first.spend.replayed, second.hold.replayed, third.spend.replayed] == [arrives] * 3
    assert first.spend.credit.balance == 7
    assert not await database.faults()


@pytest.mark.parametrize("arrives", [False, True])
async def test_a_server_killed_at_two_commits_of_a_lane_leaves_the_truth_in_the_book(
    database, proxy, arrives
):
    users = await database.users_of_one_shard(12, 10)
    first, requests = (
        [
            pb.SpendCreditsRequest(user_id=str(user_id), amount=3, idempotency_key=uuid4().hex)
            for user_id in users
        ]
        for _ in range(2)
    )
    with process("serve", CREDIT_DATABASE_URL=proxy.url, CREDIT_LANE_BATCH="4") as server:
        port = await asyncio.to_thread(server.wait_until_listening)
        async with connected(f"127.0.0.1:{port}") as stub:
            # Opens both connections of the lane, which may take as long as the wait for a commit.
            await asyncio.gather(*(call(stub, request) for request in first))
            commits = proxy.on(COMMIT, Kind.HOLD, times=2)
            asking = [asyncio.create_task(call(stub, request)) for request in requests]
            await eventually(lambda: commits.seen == 2, every=0.005)
            server.signal(signal.SIGKILL)
            codes = {answer.code() for answer in await asyncio.gather(*asking)}
            assert codes == {grpc.StatusCode.UNAVAILABLE}
    if not arrives:
        proxy.cut_all()
    commits.release()
    async with (
        running(server_settings(database.service_url)) as service,
        connected(service.target) as stub,
    ):
        again = [await call(stub, request) for request in requests]
    # At least one call was in the first batch, and the second was full.
    replayed = [answer.replayed for answer in again].count(True)
    assert replayed >= 5 if arrives else replayed == 0
    assert [answer.credit.balance for answer in again] == [4] * 12
    assert not await database.faults()


async def test_a_frozen_server_frees_its_users_and_thaws_without_harm(database, proxy):
    user_id = await database.user(10)
    request = pb.SpendCreditsRequest(user_id=str(user_id), amount=3, idempotency_key=uuid4().hex)
    async with (
        running(server_settings(database.service_url)) as service,
        connected(service.target) as stub,
    ):
        with process("serve", CREDIT_DATABASE_URL=proxy.url) as server:
            port = await asyncio.to_thread(server.wait_until_listening)
            async with connected(f"127.0.0.1:{port}") as frozen:
                held = proxy.on(UPDATE, Kind.HOLD)
                asking = asyncio.create_task(call(frozen, request, 60))
                await held.met.wait()
                server.signal(signal.SIGSTOP)
                held.release()
                # Its transaction keeps the row locked until the database ends it.
                assert (await call(stub, request)).code() is grpc.StatusCode.UNAVAILABLE

                async def paid():
                    answer = await call(stub, request)
                    return None if isinstance(answer, grpc.aio.AioRpcError) else answer

                given = await eventually(paid)
                assert not given.replayed
                server.signal(signal.SIGCONT)
                late = await asking
                # The call failed within its transaction, or its COMMIT did and the key decided.
                assert isinstance(late, grpc.aio.AioRpcError) or late.replayed
                again = await call(frozen, request)
    assert again.replayed
    assert again.transaction == given.transaction
    assert not await database.faults()


@needs_socket
async def test_a_server_that_starts_before_its_database_waits_for_it_and_says_so(database):
    directory = Path(tempfile.mkdtemp(prefix="credit-link-"))
    sockets = parse_qs(urlsplit(database.service_url).query)["host"][0]
    user_id = await database.user(10)
    try:
        url = through(database.service_url, directory / "sockets")
        with process("serve", CREDIT_DATABASE_URL=url) as server:
            line = await asyncio.to_thread(server.wait_for, "not reachable, trying again")
            assert "FileNotFoundError" in line.string
            lead(directory / "sockets", sockets)
            port = await asyncio.to_thread(server.wait_until_listening)
            async with connected(f"127.0.0.1:{port}") as stub:
                request = pb.SpendCreditsRequest(
                    user_id=str(user_id), amount=3, idempotency_key=uuid4().hex
                )
                assert (await call(stub, request)).credit.balance == 7
    finally:
        shutil.rmtree(directory)
