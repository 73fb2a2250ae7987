"""The previous release's calls get the answers it gave, and its book is used as it is."""

import asyncio

import grpc
import pytest
from kit.command_line import ran
from kit.previous_release import BOOK, LAST_MIGRATION, USERS, Contract, calls, without_times
from kit.programs import process

from credit_service.client import CreditClient
from credit_service.database import migrations


async def migrate(database, files):
    await migrations.migrate(database.owner_url, "credit_service", lambda _: None, files)


@pytest.fixture
async def book(make_database):
    """A database with the book that the previous release left, brought to the newest version."""
    database = await make_database(empty=True)
    files = migrations.migrations()
    await migrate(database, [file for file in files if file.version <= LAST_MIGRATION])
    await database.execute(BOOK.read_text())
    await migrate(database, files)
    return database


def asked(port, requests):
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        contract = Contract(channel)
        return [contract.ask(method, request) for method, request in requests]


async def test_calls_of_the_previous_release_get_the_answers_it_gave(make_database):
    database = await make_database()
    await database.execute("INSERT INTO auth.users SELECT unnest($1::uuid[])", USERS)
    with process("serve", CREDIT_DATABASE_URL=database.service_url) as service:
        port = service.wait_until_listening()
        requests = [(method, request) for method, request, _ in calls()]
        answers = await asyncio.to_thread(asked, port, requests)
    for (method, request, expected), answer in zip(calls(), answers, strict=True):
        assert without_times(answer) == without_times(expected), (method, request)
    assert not await database.faults()


async def test_a_book_of_the_previous_release_is_verified_and_replays_what_it_holds(book):
    verified = await asyncio.to_thread(ran, "verify", CREDIT_DATABASE_URL=book.service_url)
    assert verified.stdout == "2 accounts verified, 0 with faults\n"
    kept = [
        (method, request, answer)
        for method, request, answer in calls()
        if "idempotencyKey" in request and "transaction" in answer and method != "GetTransaction"
    ]
    assert len(kept) >= 10
    reading = ("GetTransactionHistory", {"userId": USERS[0], "pageSize": 100})
    (history,) = [expected for method, _, expected in calls() if method == reading[0]]
    with process("serve", CREDIT_DATABASE_URL=book.service_url) as service:
        port = service.wait_until_listening()
        requests = [*((method, request) for method, request, _ in kept), reading]
        *answers, read = await asyncio.to_thread(asked, port, requests)
        for (method, request, expected), answer in zip(kept, answers, strict=True):
            assert answer.get("replayed"), (method, request)
            assert answer["transaction"] == expected["transaction"], (method, request)
        # The holds it left open may have expired meanwhile, which makes newer entries.
        assert read["transactions"][-len(history["transactions"]) :] == history["transactions"]
        async with CreditClient(f"127.0.0.1:{port}") as client:
            granted = await client.grant_credits(USERS[1], 15, reason="new")
            assert granted.credit.balance == 3
            spent = await client.spend_credits(USERS[0], amount=3)
            assert spent.transaction.balance_change == -3
    assert not await book.faults()
    again = await asyncio.to_thread(ran, "verify", CREDIT_DATABASE_URL=book.service_url)
    assert again.returncode == 0
