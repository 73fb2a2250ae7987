"""The events of a user stay in order and wait for their time, in rare interleavings."""

import asyncio

import pytest
from kit.receivers import OK, answer, receiver
from kit.relays import endpoint, relaying, write_endpoints
from kit.services import running, server_settings
from kit.waiting import eventually
from prometheus_client import REGISTRY

from credit_service.relay import parked_store
from credit_service.relay.events import event

_PARKED = "SELECT user_id, number FROM credit_parked_events ORDER BY user_id, tx, kind, number"


@pytest.fixture
def file(tmp_path):
    return tmp_path / "endpoints.toml"


def refusals(name):
    labels = {"endpoint": name, "result": "refused"}
    return REGISTRY.get_sample_value("credit_relay_attempts_total", labels) or 0


async def test_an_event_that_fails_while_a_page_is_processed_holds_back_the_later_ones(
    database, file, monkeypatch
):
    armed = False
    looked, go_on, fail = asyncio.Event(), asyncio.Event(), asyncio.Event()
    find = parked_store.find_parked_users

    async def find_slowly(connection, name, user_ids):
        found = await find(connection, name, user_ids)
        if armed:
            looked.set()
            await go_on.wait()
        return found

    monkeypatch.setattr(parked_store, "find_parked_users", find_slowly)
    async with (
        running(server_settings(database.service_url)) as service,
        receiver() as hook,
    ):
        client = await service.client()
        first, other = await database.user(), await database.user()

        async def reply(request):
            if request.user == str(first) and request.seq == 2:
                await fail.wait()
                return answer(500)
            return OK

        hook.reply = reply
        write_endpoints(file, endpoint("held", hook.port))
        await client.purchase_credits(first, 100, payment=None)
        async with relaying(database, file, retry=600, retry_max=600):
            await eventually(lambda: hook.seqs(first) == [1])
            await client.spend_credits(first, amount=1)
            await eventually(lambda: len(hook.got) == 2)
            await client.purchase_credits(other, 100, payment=None)
            await eventually(lambda: hook.seqs(other) == [1])
            armed, before = True, refusals("held")
            await client.spend_credits(first, amount=1)
            await eventually(looked.is_set)
            fail.set()
            await eventually(lambda: refusals("held") == before + 1)
            go_on.set()

            async def came_out():
                parked = [(row[0], row[1]) for row in await database.fetch(_PARKED)]
                return parked == [(first, 2), (first, 3)] or hook.seqs(first) != [1]

            await eventually(came_out)
            assert hook.seqs(first) == [1]


async def test_dead_events_of_a_user_that_are_sent_again_and_fail_wait_their_time(database, file):
    async with (
        running(server_settings(database.service_url)) as service,
        receiver() as hook,
    ):
        client = await service.client()
        poisoned, other = await database.user(), await database.user()
        await client.purchase_credits(poisoned, 100, payment=None)
        await client.spend_credits(poisoned, amount=1)
        await client.purchase_credits(other, 100, payment=None)

        async def reply(request):
            return answer(500) if request.user == str(poisoned) else OK

        hook.reply = reply
        write_endpoints(file, endpoint("one", hook.port))
        async with relaying(database, file, retry=600, retry_max=600):

            async def is_parked():
                return len(await database.fetch(_PARKED)) == 2

            await eventually(is_parked)
            # As if three days had passed and an operator had requested both of them.
            await database.execute(
                "UPDATE credit_parked_events SET tries = 7, next_try = clock_timestamp()"
            )

            async def failed():
                return await database.fetch(
                    "SELECT FROM credit_parked_events WHERE number = 1 AND tries = 8"
                )

            await eventually(failed)
            due = await database.fetch(
                "SELECT number FROM credit_parked_events WHERE next_try <= clock_timestamp()"
            )
            assert due == []


async def test_an_event_that_the_relay_cannot_render_is_parked_and_others_go_on(
    database, file, monkeypatch
):
    rendered = []

    def render(place, item):
        rendered.append(place.user_id)
        if place.user_id == first:
            raise ValueError("planted")
        return event(place, item)

    monkeypatch.setattr("credit_service.relay.delivery.event", render)
    async with (
        running(server_settings(database.service_url)) as service,
        receiver() as hook,
    ):
        client = await service.client()
        first, other = await database.user(), await database.user()
        write_endpoints(file, endpoint("sound", hook.port))
        async with relaying(database, file, retry=600, retry_max=600):
            await client.purchase_credits(first, 100, payment=None)
            await client.purchase_credits(other, 100, payment=None)
            for seq in (2, 3):
                await client.spend_credits(other, amount=1)
                await eventually(lambda seq=seq: seq in hook.seqs(other))

            async def is_parked():
                return [row[0] for row in await database.fetch(_PARKED)] == [first]

            await eventually(is_parked)
            tries = rendered.count(first)
            assert tries < 100  # each after a pause
            await client.spend_credits(other, amount=1)
            await eventually(lambda: 4 in hook.seqs(other))
            assert hook.seqs(first) == []
            assert rendered.count(first) == tries
