"""A client uses every replica of the service, and goes on when one of them is killed."""

import asyncio
import signal

import grpc
import pytest
import trustme
from kit.name_server import NAME, name_server
from kit.programs import free_port, process
from kit.services import running, server_settings
from kit.waiting import eventually, patience

from credit_service.client import BlockingCreditClient, CreditClient
from credit_service.client.channel import target_of
from credit_service.errors import LedgerUnavailable
from credit_service.rpc.tls import ServerCertificate


@pytest.fixture
async def replicas(database):
    """Two replicas on one port of two addresses of this machine."""
    port = free_port()
    with (
        process(CREDIT_DATABASE_URL=database.service_url, CREDIT_LISTEN=f"127.0.0.1:{port}") as one,
        process(CREDIT_DATABASE_URL=database.service_url, CREDIT_LISTEN=f"127.0.0.2:{port}") as two,
    ):
        for replica in (one, two):
            await asyncio.to_thread(replica.wait_until_listening)
        yield port, (one, two)


def calls_of(replica):
    return sum("SpendCredits" in line for line in replica.lines)


async def spends_on_both_and_then_on_one(client, database, replicas):
    user_id = await database.user(10_000)
    spent = 0

    async def both_answer():
        nonlocal spent
        await asyncio.gather(*(client.spend_credits(user_id, amount=1) for _ in range(10)))
        spent += 10
        return all(calls_of(replica) > 5 for replica in replicas)

    await eventually(both_answer)
    spending = asyncio.gather(*(client.spend_credits(user_id, amount=1) for _ in range(300)))
    await asyncio.sleep(0)
    replicas[0].signal(signal.SIGKILL)
    await spending
    for _ in range(20):
        await client.spend_credits(user_id, amount=1)
    assert (await client.get_user_credit(user_id)).balance == 10_000 - spent - 320
    assert not await database.faults()


async def test_a_client_of_several_addresses_survives_the_kill_of_one(database, replicas):
    port, processes = replicas
    target = f"127.0.0.1:{port},127.0.0.2:{port}"
    async with CreditClient(target, deadline_seconds=patience(30)) as client:
        await spends_on_both_and_then_on_one(client, database, processes)


@pytest.mark.parametrize("coalesce", [True, False])
async def test_every_call_that_a_killed_service_had_in_flight_is_repeated(database, coalesce):
    """More calls than a client could repeat if they failed one after another."""
    calls, port = 700, free_port()
    environment = {
        "CREDIT_DATABASE_URL": database.service_url,
        "CREDIT_LISTEN": f"127.0.0.1:{port}",
    }
    await database.wait_longer_for_locks()
    lonely, busy = await database.user(1), await database.user(calls)
    options = {"deadline_seconds": patience(60), "coalesce": coalesce}
    async with CreditClient(f"127.0.0.1:{port}", **options) as client:
        with process(**environment) as server:
            await asyncio.to_thread(server.wait_until_listening)
            async with database.locked(lonely, busy):
                # The first call is sent by itself, and the others together.
                spends = [
                    client.spend_credits(user_id, amount=1) for user_id in (lonely, *[busy] * calls)
                ]
                spending = asyncio.gather(*spends)
                requests = 2 if coalesce else 1
                await eventually(lambda: database.waits_for_a_lock(requests), every=0.01)
                server.signal(signal.SIGKILL)
                await asyncio.to_thread(server.wait)
        with process(**environment) as server:
            await asyncio.to_thread(server.wait_until_listening)
            await spending
            for user_id in (lonely, busy):
                assert (await client.get_user_credit(user_id)).balance == 0
    assert not await database.faults()


async def test_a_client_of_a_name_with_several_addresses_survives_the_kill_of_one(
    database, replicas
):
    port, processes = replicas
    async with name_server(["127.0.0.1", "127.0.0.2"]) as names:
        target = f"dns://{names}/{NAME}:{port}"
        async with CreditClient(target, deadline_seconds=patience(30)) as client:
            await spends_on_both_and_then_on_one(client, database, processes)


async def test_a_blocking_client_takes_several_addresses_too(database, service):
    user_id = await database.user(10)
    addresses = [f"127.0.0.1:{free_port()}", service.target]

    def spends():
        with BlockingCreditClient(addresses) as client:
            return client.spend_credits(user_id, amount=1).credit.balance

    assert await asyncio.to_thread(spends) == 9


async def test_replicas_with_a_certificate_prove_its_name(database, tmp_path):
    """The addresses are not in the certificate."""
    authority, chain, key = trustme.CA(), tmp_path / "chain.pem", tmp_path / "key.pem"
    certificate = authority.issue_cert("credits.internal")
    for part in certificate.cert_chain_pems:
        part.write_to_path(chain, append=True)
    certificate.private_key_pem.write_to_path(key)
    settings = server_settings(
        database.service_url, certificate=ServerCertificate(chain, key, None)
    )
    credentials = grpc.ssl_channel_credentials(authority.cert_pem.bytes())
    async with running(settings) as service:
        addresses = [f"127.0.0.1:{free_port()}", service.target]
        trusting = {"credentials": credentials, "server_name": "credits.internal"}
        async with CreditClient(addresses, deadline_seconds=patience(30), **trusting) as client:
            assert len((await client.list_prices()).prices) == 2
        trusting["server_name"] = "other.internal"
        async with CreditClient(addresses, deadline_seconds=2, **trusting) as client:
            with pytest.raises(LedgerUnavailable):
                await client.list_prices()


@pytest.mark.parametrize(
    ("target", "rendered"),
    [
        ("localhost:50051", "localhost:50051"),
        (["credits.internal:50051"], "credits.internal:50051"),
        ("dns:///credits.internal:50051", "dns:///credits.internal:50051"),
        ("unix:/run/credits.sock", "unix:/run/credits.sock"),
        ("10.0.0.1:50051,10.0.0.2:50052", "ipv4:10.0.0.1:50051,10.0.0.2:50052"),
        (("10.0.0.1:50051", "10.0.0.2:50051"), "ipv4:10.0.0.1:50051,10.0.0.2:50051"),
        ("[::1]:50051, [fd00::2]:50051", "ipv6:[::1]:50051,[fd00::2]:50051"),
        ("ipv4:10.0.0.1:50051,10.0.0.2:50051", "ipv4:10.0.0.1:50051,10.0.0.2:50051"),
    ],
)
def test_a_target_is_rendered_as_grpc_takes_it(target, rendered):
    assert target_of(target) == rendered


@pytest.mark.parametrize(
    ("target", "problem"),
    [
        ("", "names no address"),
        ([], "names no address"),
        ("10.0.0.1:50051,", "names no address"),
        ("credits-1:50051,credits-2:50051", "use one name that resolves to all of them"),
        ("10.0.0.1:50051,[::1]:50051", "all IPv4 or all IPv6"),
        ("10.0.0.1,10.0.0.2", "port"),
    ],
)
def test_a_target_that_is_no_address_is_refused_when_the_client_is_made(target, problem):
    with pytest.raises(ValueError, match=problem):
        CreditClient(target)
    with pytest.raises(ValueError, match=problem):
        BlockingCreditClient(target)
