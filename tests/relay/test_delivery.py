"""Endpoints get every event, in order per user, despite failing receivers."""

import asyncio
from contextlib import asynccontextmanager
from uuid import uuid4

import pytest
from kit.receivers import OK, answer, receiver
from kit.relays import endpoint, relaying, write_endpoints
from kit.services import running, server_settings
from kit.waiting import eventually
from structlog.testing import capture_logs

from credit_service.v1 import credit_service_pb2 as pb


@pytest.fixture
def file(tmp_path):
    return tmp_path / "endpoints.toml"


@asynccontextmanager
async def client_of(database):
    async with running(server_settings(database.service_url)) as service:
        yield await service.client()


async def users_with_spends(database, client, users=3, spends=3, reference=""):
    """Makes users with one purchase and some spends each."""
    made = [await database.user() for _ in range(users)]
    for user_id in made:
        await client.purchase_credits(user_id, 100, payment=None)
    for _ in range(spends):
        for user_id in made:
            await client.spend_credits(user_id, amount=1, reference=reference)
    return made


async def parked(database, *, dead=False):
    rows = await database.fetch(
        "SELECT user_id, number FROM credit_parked_events WHERE (dead_at IS NOT NULL) = $1"
        " ORDER BY user_id, tx, kind, number",
        dead,
    )
    return [(row[0], row[1]) for row in rows]


async def test_every_endpoint_gets_every_event_of_its_types_in_order(database, file):
    async with client_of(database) as client, receiver() as one, receiver() as two:
        users = await users_with_spends(database, client)
        write_endpoints(
            file, endpoint("one", one.port), endpoint("two", two.port, '"entry.purchase"')
        )
        async with relaying(database, file):
            await eventually(lambda: len(one.taken) == 12 and len(two.taken) == 3)
            await client.spend_credits(users[0], amount=1, reference="job 7")
            await eventually(lambda: len(one.taken) == 13)
    assert all(one.seqs(user_id)[:4] == [1, 2, 3, 4] for user_id in users)
    assert not one.overlapping
    last = one.taken[-1]
    assert last.id.endswith(f".{users[0]}.5.entry.spend")
    assert last.event["type"] == "entry.spend"
    assert last.event["data"]["reference"] == "job 7"
    assert last.event["data"]["balance_after"] == 96
    assert last.headers["host"] == f"127.0.0.1:{one.port}"
    assert last.head.startswith("POST /one HTTP/1.1")


async def test_an_event_that_fails_is_parked_with_the_later_ones_of_its_user(database, file):
    async with client_of(database) as client, receiver() as hook:
        users = await users_with_spends(database, client)
        poisoned = str(users[1])
        broken = True

        async def reply(request):
            return answer(500) if broken and request.user == poisoned else OK

        hook.reply = reply
        write_endpoints(file, endpoint("one", hook.port))
        async with relaying(database, file, retry=0.2):
            await eventually(lambda: len(hook.taken) == 8)

            async def is_parked():
                return await parked(database)

            assert await eventually(is_parked) == [(users[1], seq) for seq in (1, 2, 3, 4)]
            # A later event of the same user waits behind them, and one of another user does not.
            await client.spend_credits(users[1], amount=1)
            await client.spend_credits(users[2], amount=1)
            await eventually(lambda: hook.seqs(users[2]) == [1, 2, 3, 4, 5])

            async def all_parked():
                return len(await parked(database)) == 5

            await eventually(all_parked)
            assert {one.seq for one in hook.got if one.user == poisoned} == {1}
            broken = False
            await eventually(lambda: hook.seqs(users[1]) == [1, 2, 3, 4, 5])

            async def none_parked():
                return await parked(database) == []

            await eventually(none_parked)
    assert not hook.overlapping


async def test_while_an_endpoint_takes_nothing_its_cursor_does_not_move(database, file):
    async with client_of(database) as client, receiver() as hook:
        users = await users_with_spends(database, client, users=20, spends=1)
        down = True

        async def reply(_request):
            return answer(503) if down else OK

        hook.reply = reply
        write_endpoints(file, endpoint("one", hook.port))
        async with relaying(database, file):
            with capture_logs() as lines:
                await eventually(lambda: len(hook.got) > 60)
            assert await parked(database) == []
            place = await database.fetch("SELECT tx FROM credit_relay_readers")
            assert place[0][0] == -1
            down = False
            await eventually(lambda: all(hook.seqs(user_id) == [1, 2] for user_id in users))
    assert not [line for line in lines if line["event"] == "event parked"]
    assert await parked(database) == []


async def test_an_event_alone_that_fails_is_parked_when_another_is_taken(database, file):
    async with client_of(database) as client, receiver() as hook:
        (first,) = await users_with_spends(database, client, users=1, spends=0)

        async def reply(request):
            return answer(500) if request.user == str(first) else OK

        hook.reply = reply
        write_endpoints(file, endpoint("one", hook.port))
        async with relaying(database, file):
            await eventually(lambda: len(hook.got) >= 3)
            assert await parked(database) == []
            (second,) = await users_with_spends(database, client, users=1, spends=0)
            await eventually(lambda: hook.seqs(second) == [1])

            async def is_parked():
                return await parked(database)

            assert await eventually(is_parked) == [(first, 1)]


async def test_events_behind_thousands_of_a_failing_user_are_found(database, file):
    async with client_of(database) as client, receiver() as hook:
        first = await database.user()
        await client.purchase_credits(first, 10_000, payment=None)
        for _ in range(3):
            items = [
                pb.BatchSpendItem(user_id=str(first), amount=1, idempotency_key=uuid4().hex)
                for _ in range(500)
            ]
            await client.batch_spend_credits(items, mode=pb.BATCH_MODE_ATOMIC)
        second = await database.user()
        await client.purchase_credits(second, 1, payment=None)

        async def reply(request):
            return answer(500) if request.user == str(first) else OK

        hook.reply = reply
        write_endpoints(file, endpoint("one", hook.port))
        async with relaying(database, file):
            await eventually(lambda: hook.seqs(second) == [1])

            async def is_parked():
                return len(await parked(database)) == 1_501

            await eventually(is_parked)


async def test_a_dead_event_is_listed_and_lets_the_later_ones_of_its_user_follow(database, file):
    async with client_of(database) as client, receiver() as hook:
        poisoned, other = await users_with_spends(database, client, users=2, spends=1)

        async def reply(request):
            failing = request.user == str(poisoned) and request.seq == 1
            return answer(400) if failing else OK

        hook.reply = reply
        write_endpoints(file, endpoint("one", hook.port))
        async with relaying(database, file, dead=0.5):
            await eventually(lambda: hook.seqs(poisoned) == [2])
            assert await parked(database, dead=True) == [(poisoned, 1)]
            assert await parked(database) == []
            assert hook.seqs(other) == [1, 2]


async def test_a_removed_endpoint_ends_and_a_changed_one_resumes_where_it_was(database, file):
    async with client_of(database) as client, receiver() as one, receiver() as two:
        users = await users_with_spends(database, client)
        write_endpoints(file, endpoint("one", one.port), endpoint("gone", two.port))
        async with relaying(database, file):
            await eventually(lambda: len(one.taken) == 12 and len(two.taken) == 12)
            # The same name at another address; the other endpoint is gone.
            write_endpoints(file, endpoint("one", two.port))
            with capture_logs() as lines:
                await eventually(
                    lambda: any(line["event"] == "webhooks begin" for line in lines), 30
                )
            await client.spend_credits(users[0], amount=1)
            await eventually(lambda: len(two.taken) == 13)
            await asyncio.sleep(0)
    assert len(one.taken) == 12
    assert two.taken[-1].head.startswith("POST /one ")


async def test_a_slow_endpoint_does_not_delay_the_others(database, file):
    async with client_of(database) as client, receiver() as slow, receiver() as quick:
        await users_with_spends(database, client, users=40, spends=1)
        hang = asyncio.Event()

        async def reply(_request):
            await hang.wait()
            return OK

        slow.reply = reply
        write_endpoints(file, endpoint("slow", slow.port), endpoint("quick", quick.port))
        async with relaying(database, file):
            await eventually(lambda: len(quick.taken) == 80)
            assert slow.taken == []
            assert slow.in_flight_max > 1
            hang.set()
            await eventually(lambda: len(slow.taken) == 80)
    assert not slow.overlapping


async def test_events_of_a_user_who_is_deleted_are_dropped(database, file):
    async with client_of(database) as client, receiver() as hook:
        poisoned, other = await users_with_spends(database, client, users=2, spends=1)

        async def reply(request):
            return answer(500) if request.user == str(poisoned) else OK

        hook.reply = reply
        write_endpoints(file, endpoint("one", hook.port))
        async with relaying(database, file):

            async def is_parked():
                return await parked(database)

            await eventually(is_parked)
            await database.execute("DELETE FROM auth.users WHERE id = $1", poisoned)

            async def gone():
                return await parked(database) == []

            await eventually(gone)
            assert hook.seqs(other) == [1, 2]
