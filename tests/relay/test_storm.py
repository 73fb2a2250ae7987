"""Two relays, receivers and writers are killed: nothing is lost or out of order."""

import asyncio
import random
import signal
from contextlib import AsyncExitStack

import pytest
from kit.programs import process
from kit.receivers import OK, answer, receiver
from kit.relays import endpoint, relaying, write_endpoints
from kit.services import running, server_settings
from kit.waiting import eventually

SETTINGS = {"CREDIT_WEBHOOKS_PRIVATE": "true", "CREDIT_LOG_FORMAT": "json"}


async def spend(service, users, rounds):
    client = await service.client()
    for user_id in users:
        await client.purchase_credits(user_id, 1_000, payment=None)
    for _ in range(rounds):
        await asyncio.gather(*(client.spend_credits(user_id, amount=1) for user_id in users))


def in_order(hook, user_id, count):
    return hook.seqs(user_id) == list(range(1, count + 1))


async def test_a_receiver_that_is_killed_and_comes_back_gets_everything(database, tmp_path):
    file = tmp_path / "endpoints.toml"
    async with running(server_settings(database.service_url)) as service:
        users = [await database.user() for _ in range(8)]
        taken = []
        async with receiver() as first:
            port = first.port
            write_endpoints(file, endpoint("one", port))
            async with AsyncExitStack() as relay:
                await relay.enter_async_context(relaying(database, file))
                spending = asyncio.create_task(spend(service, users, 10))
                await eventually(lambda: len(first.taken) > 20)
                taken += first.taken
                lives = [first]
                await relay.pop_all().aclose()
        await spending
        async with relaying(database, file):
            await asyncio.sleep(0)
            async with receiver(port=port) as second:
                lives.append(second)

                def all_there():
                    order = {str(user_id): [] for user_id in users}
                    for life in lives:
                        for one in life.taken:
                            if one.seq not in order[one.user]:
                                order[one.user].append(one.seq)
                    return all(seqs == list(range(1, 12)) for seqs in order.values())

                await eventually(all_there, 30)


async def test_the_cursor_of_an_endpoint_never_goes_back(database, tmp_path):
    file = tmp_path / "endpoints.toml"
    places = []
    await database.execute(
        "CREATE TABLE seen (at bigint GENERATED ALWAYS AS IDENTITY, tx bigint, user_id uuid,"
        " kind bigint, number bigint, fence bigint)"
    )
    await database.execute(
        "CREATE FUNCTION see() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS $$ BEGIN"
        " INSERT INTO seen (tx, user_id, kind, number, fence)"
        " VALUES (NEW.tx, NEW.user_id, NEW.kind, NEW.number, NEW.fence); RETURN NEW; END $$"
    )
    await database.execute(
        "CREATE TRIGGER see AFTER INSERT OR UPDATE ON credit_relay_readers"
        " FOR EACH ROW EXECUTE FUNCTION see()"
    )
    async with running(server_settings(database.service_url)) as service, receiver() as hook:
        users = [await database.user() for _ in range(5)]
        write_endpoints(file, endpoint("one", hook.port))
        for _ in range(4):
            async with relaying(database, file):
                count = len(hook.taken)
                # Each relay has more to deliver than the test waits for.
                spending = asyncio.create_task(spend(service, users, 4))
                await eventually(lambda count=count: len(hook.taken) > count + 10)
            await spending
        # The last one too, because the one before may have delivered everything.
        async with relaying(database, file):
            await spend(service, users, 4)
            await eventually(lambda: all(in_order(hook, user_id, 25) for user_id in users))
    rows = await database.fetch("SELECT tx, user_id, kind, number, fence FROM seen ORDER BY at")
    places = [tuple(row)[:4] for row in rows]
    assert places == sorted(places)
    assert [row["fence"] for row in rows] == sorted(row["fence"] for row in rows)
    assert rows[-1]["fence"] >= 5


async def test_a_database_outage_delays_events_and_loses_nothing(database, tmp_path):
    file = tmp_path / "endpoints.toml"
    async with running(server_settings(database.service_url)) as service, receiver() as hook:
        users = [await database.user() for _ in range(5)]
        write_endpoints(file, endpoint("one", hook.port))
        async with relaying(database, file):
            for turn in range(3):
                await spend(service, users, 4)
                await database.execute(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                    " WHERE usename = 'credit_service' AND datname = current_database()"
                )
                count = 5 * (turn + 1)
                await eventually(
                    lambda count=count: all(in_order(hook, user_id, count) for user_id in users)
                )


@pytest.mark.long
@pytest.mark.timeout(600)
async def test_a_storm_of_kills_loses_nothing_and_keeps_the_order(database, tmp_path):
    file = tmp_path / "endpoints.toml"
    settings = {
        "CREDIT_DATABASE_URL": database.service_url,
        "CREDIT_WEBHOOKS": str(file),
        **SETTINGS,
    }
    users = [await database.user() for _ in range(20)]
    rounds = 60
    async with (
        running(server_settings(database.service_url)) as service,
        receiver() as steady,
        receiver() as flaky,
    ):
        stormy = True

        async def reply(_request):
            await asyncio.sleep(random.random() / 50)
            return answer(500) if stormy and random.random() < 0.03 else OK

        flaky.reply = reply
        write_endpoints(file, endpoint("steady", steady.port), endpoint("flaky", flaky.port))
        spending = asyncio.create_task(spend(service, users, rounds))
        async with AsyncExitStack() as programs:
            relays = [programs.enter_context(process("relay", **settings)) for _ in range(2)]
            for _ in range(4):
                count = len(steady.taken)
                await eventually(
                    lambda count=count: len(steady.taken) > count + 100 or spending.done(), 60
                )
                relays.pop(0).signal(signal.SIGKILL)
                relays.append(programs.enter_context(process("relay", **settings)))
            await spending
            stormy = False
            await eventually(
                lambda: all(in_order(steady, user_id, rounds + 1) for user_id in users), 120
            )
            # Parked events are tried again after some seconds, and then after four times as many.
            await eventually(
                lambda: all(in_order(flaky, user_id, rounds + 1) for user_id in users), 240
            )
    assert not steady.overlapping
    assert not flaky.overlapping
    written = {
        (str(row[0]), row[1])
        for row in await database.fetch("SELECT user_id, seq FROM credit_transactions")
    }
    assert {(one.user, one.seq) for one in steady.got} == written
