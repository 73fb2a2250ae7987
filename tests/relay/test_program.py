"""`credit-service relay`: it sends, stops, hands over, and answers operators."""

import asyncio
import signal
from contextlib import asynccontextmanager

import httpx
import pytest
from kit.command_line import ran
from kit.programs import free_port, process
from kit.receivers import OK, SECRET, answer, receiver
from kit.relays import endpoint, write_endpoints
from kit.services import running, server_settings
from kit.waiting import eventually


@pytest.fixture
def file(tmp_path):
    return tmp_path / "endpoints.toml"


def settings(database, file):
    return {
        "CREDIT_DATABASE_URL": database.service_url,
        "CREDIT_WEBHOOKS": str(file),
        "CREDIT_WEBHOOKS_PRIVATE": "true",
        "CREDIT_LOG_FORMAT": "json",
    }


def command(database, file, *arguments):
    """Runs a command while the receiver runs in this process."""
    return asyncio.to_thread(ran, "relay", *arguments, **settings(database, file))


@asynccontextmanager
async def spending(database):
    async with running(server_settings(database.service_url)) as service:
        client = await service.client()

        async def spend(users=3, spends=3):
            made = [await database.user() for _ in range(users)]
            for user_id in made:
                await client.purchase_credits(user_id, 100, payment=None)
            for _ in range(spends):
                for user_id in made:
                    await client.spend_credits(user_id, amount=1)
            return made

        yield spend


async def sends(started):
    await asyncio.to_thread(started.wait_for, '"event":"webhooks begin"')


async def test_it_sends_and_stops_when_it_is_asked_to(database, file):
    async with spending(database) as spend, receiver() as hook:
        users = await spend()
        write_endpoints(file, endpoint("one", hook.port))
        port = free_port()
        with process("relay", **settings(database, file), CREDIT_METRICS_PORT=str(port)) as started:
            await eventually(lambda: len(hook.taken) == 12, 30)
            async with httpx.AsyncClient() as http:
                shown = (await http.get(f"http://127.0.0.1:{port}/metrics")).text
            started.signal(signal.SIGTERM)
            assert await asyncio.to_thread(started.wait) == 0
        assert 'credit_relay_attempts_total{endpoint="one",result="taken"} 12.0' in shown
        assert "credit_relay_active 1.0" in shown
        assert 'credit_relay_lag_seconds{endpoint="one"}' in shown
        assert SECRET not in started.output
        # Its cursor was stored when it stopped, so the next one sends nothing twice.
        with process("relay", **settings(database, file)) as again:
            await sends(again)
            (user_id,) = await spend(users=1, spends=0)
            await eventually(lambda: hook.seqs(user_id) == [1], 30)
    assert len(hook.got) == 13
    assert all(hook.seqs(user_id) == [1, 2, 3, 4] for user_id in users)


async def test_a_second_sigterm_ends_it_at_once(database, file):
    async with receiver() as hook:
        arrived = asyncio.Event()

        async def reply(_request):
            arrived.set()
            await asyncio.Event().wait()

        hook.reply = reply
        write_endpoints(file, endpoint("one", hook.port))
        await database.user(100)
        with process("relay", **settings(database, file)) as started:
            await eventually(arrived.is_set, 30)
            started.signal(signal.SIGTERM)
            await asyncio.to_thread(started.wait_for, "stopping")
            started.signal(signal.SIGTERM)
            assert await asyncio.to_thread(started.wait) == 1
            await asyncio.to_thread(started.wait_for, "second stop signal")


async def test_a_service_with_endpoints_sends_too(database, file):
    async with receiver() as hook:
        write_endpoints(file, endpoint("one", hook.port))
        user_id = await database.user(100)
        with process("serve", **settings(database, file)) as started:
            await eventually(lambda: hook.seqs(user_id) == [1], 30)
            started.signal(signal.SIGTERM)
            assert await asyncio.to_thread(started.wait) == 0


async def test_one_of_two_relays_sends_and_the_other_takes_over_after_a_kill(database, file):
    async with spending(database) as spend, receiver() as hook:
        write_endpoints(file, endpoint("one", hook.port))
        with process("relay", **settings(database, file)) as first:
            await sends(first)
            with process("relay", **settings(database, file)) as second:
                await asyncio.to_thread(second.wait_for, "relay sends to 1 endpoint$")
                users = await spend()
                await eventually(lambda: len(hook.taken) == 12, 30)
                assert '"event":"webhooks begin"' not in second.output
                first.signal(signal.SIGKILL)
                more = await spend()
                await sends(second)
                await eventually(
                    lambda: all(hook.seqs(user_id) == [1, 2, 3, 4] for user_id in (*users, *more)),
                    30,
                )
    assert not hook.overlapping


async def test_a_mistake_in_the_file_ends_the_start_with_one_line(database, file):
    write_endpoints(file, endpoint("one", 80, '"entry.purchas"'))
    for arguments in ((), ("status",), ("test", "one")):
        done = await command(database, file, *arguments)
        assert done.returncode == 2
        assert "did you mean entry.purchase?" in done.stderr
        assert SECRET not in done.stderr
    done = await asyncio.to_thread(ran, "relay", CREDIT_DATABASE_URL=database.service_url)
    assert done.returncode == 2
    assert "set CREDIT_WEBHOOKS to the file of endpoints" in done.stderr


async def test_an_operator_tries_an_endpoint(database, file):
    async with receiver() as hook:
        write_endpoints(file, endpoint("one", hook.port))
        done = await command(database, file, "test", "one")
        assert (done.returncode, done.stdout[:10]) == (0, "one: taken")
        assert hook.taken[0].event["type"] == "relay.test"

        async def reply(_request):
            return answer(418)

        hook.reply = reply
        done = await command(database, file, "test", "one")
        assert done.returncode == 1
        assert "answered 418" in done.stdout
        done = await command(database, file, "test", "two")
        assert done.returncode == 2
        assert "has no endpoint two" in done.stderr


async def test_an_operator_sees_dead_events_and_sends_them_again(database, file):
    async with spending(database) as spend, receiver() as hook:
        poisoned, other = await spend(users=2, spends=1)
        broken = True

        async def reply(request):
            return answer(400) if broken and request.user == str(poisoned) else OK

        hook.reply = reply
        write_endpoints(file, endpoint("one", hook.port))
        done = await command(database, file, "status")
        assert "no relay runs" in done.stdout
        assert f"one: http://127.0.0.1:{hook.port}, has not begun, 0 parked" in done.stdout
        with process("relay", **settings(database, file)):
            await eventually(lambda: hook.seqs(other) == [1, 2], 30)

            async def is_parked():
                return await database.fetch("SELECT FROM credit_parked_events HAVING count(*) = 2")

            await eventually(is_parked)
            # Three days pass for the first of them.
            await database.execute(
                "UPDATE credit_parked_events SET parked_at = now() - interval '4 days',"
                " next_try = now() WHERE number = 1"
            )

            async def dead():
                return await database.fetch(
                    "SELECT FROM credit_parked_events WHERE dead_at IS NOT NULL"
                )

            await eventually(dead, 30)
            done = await command(database, file, "status", "one", "--events")
            assert "1 parked, 1 dead" in done.stdout
            assert "sends, lease 1" in done.stdout
            (line,) = [one for one in done.stdout.splitlines() if one.startswith("  dead ")]
            assert f".{poisoned}.1.entry.purchase since " in line
            assert "answered 400" in line
            assert f".{poisoned}.2.entry.spend" in done.stdout
            name = line.split()[1]
            for wrong in ("1.2.3", name.replace(".1.", ".9.")):
                done = await command(database, file, "retry", "one", wrong)
                assert done.returncode == 2
                assert "has no event" in done.stderr
            broken = False
            done = await command(database, file, "retry", "one", name)
            assert done.stdout == "1 event is sent again\n"
            await eventually(lambda: hook.seqs(poisoned) == [1, 2], 30)
            done = await command(database, file, "retry", "one")
            assert done.stdout == "0 events are sent again\n"
            done = await command(database, file, "status", "one")
            assert "has everything, 0 parked, 0 dead" in done.stdout


async def test_it_makes_alerts_and_sends_them_after_the_events_that_caused_them(database, file):
    async with spending(database) as spend, receiver() as hook:
        write_endpoints(file, endpoint("one", hook.port))
        with process("relay", **settings(database, file), CREDIT_ALERT_BELOW="100"):

            async def follows():
                return await database.fetch(
                    "SELECT FROM credit_relay_readers WHERE reader = 'alerts'"
                )

            await eventually(follows, 30)
            (user_id,) = await spend(users=1, spends=1)
            await eventually(lambda: len(hook.taken) == 3, 30)
    assert [one.event["type"] for one in hook.taken] == [
        "entry.purchase",
        "entry.spend",
        "balance.low",
    ]
    alert = hook.taken[2].event["data"]
    assert (alert["user_id"], alert["available"]) == (str(user_id), 99)
    assert hook.taken[2].id.endswith(f".{user_id}.a1.balance.low")
