"""Callers that do not read their answers: their unsent bytes are bounded, others are served."""

import asyncio
from pathlib import Path

from kit.http2 import silent_reader
from kit.metrics import scrape
from kit.programs import free_port, process
from kit.services import running, server_settings
from kit.waiting import eventually, patience
from kit.wire import SERVICE

from credit_service.client import CreditClient
from credit_service.rpc import open_calls
from credit_service.rpc.open_calls import CONNECTION_UNSENT_BYTES_MAX
from credit_service.v1 import credit_service_pb2 as pb

CALLS = 300
PAGE_BYTES = 900_000

# An account of long entries; every answer with its history has a page of about 1 MiB.
ENTRY = {"description": "d" * 500, "metadata": {"note": "n" * 4_000}}


async def user_with_long_history(client, database):
    user_id = await database.user(1_000)
    await asyncio.gather(
        *(client.spend_credits(user_id, amount=1, **ENTRY) for _ in range(250)),
    )
    return user_id


def path(method):
    return f"/{SERVICE.full_name}/{method}"


def history_of(user_id):
    return pb.GetUserCreditRequest(user_id=str(user_id), history_size=1_000).SerializeToString()


def resident_bytes(pid):
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition("VmRSS:")[2].split()[0]) * 1024


async def test_answers_that_are_not_read_take_little_memory_and_others_are_served(database):
    metrics = free_port()
    with process(
        CREDIT_DATABASE_URL=database.service_url, CREDIT_METRICS_PORT=str(metrics)
    ) as service:
        port = await asyncio.to_thread(service.wait_until_listening)
        async with CreditClient(f"127.0.0.1:{port}", deadline_seconds=patience(10)) as client:
            user_id = await user_with_long_history(client, database)
            for _ in range(5):  # memory that the service keeps in any case
                credit = await client.get_user_credit(user_id, history_size=1_000)
            assert pb.GetUserCreditResponse(credit=credit).ByteSize() > PAGE_BYTES
            before = resident_bytes(service.popen.pid)
            async with silent_reader(port) as silent:
                for _ in range(CALLS):
                    await silent.call(path("GetUserCredit"), history_of(user_id))
                read = 0

                async def all_are_held_or_refused():
                    nonlocal read
                    read = await scrape(metrics)
                    # At first all of them are open because none has been answered yet.
                    has_answers = read.value("credit_unsent_bytes") > PAGE_BYTES
                    return has_answers and read.value("credit_open_calls") + silent.ended == CALLS

                await eventually(all_are_held_or_refused, seconds=60)
                assert read.value("credit_open_calls") > 0
                assert read.value("credit_unsent_bytes") <= CONNECTION_UNSENT_BYTES_MAX
                # Half of what the answers would take; a few are being made at the same time.
                grown = resident_bytes(service.popen.pid) - before
                assert grown < CALLS * PAGE_BYTES / 2
                assert (await client.spend_credits(user_id, amount=1)).credit.balance == 749

            async def all_is_given_back():
                now = await scrape(metrics)
                return (now.value("credit_open_calls"), now.value("credit_unsent_bytes")) == (0, 0)

            await eventually(all_is_given_back)


async def test_a_connection_that_neither_reads_nor_sends_is_closed(database, monkeypatch, capsys):
    monkeypatch.setattr(open_calls, "SILENCE_SECONDS_MAX", 1.0)
    user_id = await database.user(100)
    watch = pb.WatchUserCreditRequest(user_id=str(user_id)).SerializeToString()
    async with running(server_settings(database.service_url)) as service:
        client = await service.client()
        for method, request in (
            ("GetUserCredit", history_of(user_id)),
            ("WatchUserCredit", watch),
            ("SpendCredits", None),
        ):
            async with silent_reader(service.port) as silent:
                await silent.call(path(method), request)
                async with asyncio.timeout(patience(20)):
                    await silent.closed.wait()
            assert (await client.get_user_credit(user_id)).balance == 100
    said = capsys.readouterr()
    assert "closing silent connections" in said.out + said.err
    assert "INTERNAL" not in said.out + said.err


async def test_a_connection_has_a_bounded_number_of_streams(database):
    settings = server_settings(database.service_url, calls_in_flight=10)
    async with running(settings) as service, silent_reader(service.port) as silent:
        await eventually(lambda: silent.streams_max)
        assert silent.streams_max == 10 + open_calls.CONNECTION_STREAMS_MAX
