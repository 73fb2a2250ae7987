"""How components fail: the credit service, its database, Stripe's API, its events, the bridge."""

import asyncio
import re
import signal
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import asyncpg
import pytest
from kit.bridge_stage import Hasty
from kit.extent import unless_long
from kit.http_clients import http_client
from kit.programs import free_port
from kit.services import running, server_settings
from kit.stripe_fakes import bought, bridge_process, bridge_url
from kit.waiting import eventually

from stripe_bridge.reconcile import reconcile
from stripe_bridge.request_bodies import Limits


async def sell(stage, users):
    """Sells to all at once, and refunds half of the payments; returns the payment intents."""
    sold = await stage.fake.batch(*(("purchase", bought(user, 100, 900)) for user in users))
    paid = [each["payment_intent"] for each in sold]
    await stage.fake.batch(*(("refund", {"payment": each, "amount": 450}) for each in paid))
    return paid


async def all_entries(stage, users):
    async with stage.database.kept_open() as database:
        kept = replace(stage, database=database)
        return [await kept.entries(user) for user in users]


def service_at(stage, port):
    settings = server_settings(stage.database.service_url)
    return running(replace(settings, listen=f"127.0.0.1:{port}"))


async def refused_all(stage, payments):
    """Waits until a delivery about each payment has been answered; all answers must be 503."""

    async def is_refused():
        found = [await stage.statuses(each) for each in payments]
        assert {status for each in found for status in each} <= {503}
        return all(found)

    await eventually(is_refused)


async def test_12_events_of_a_short_outage_are_503s_and_granted_by_stripes_next_tries(stage):
    users, port = await stage.users(10), free_port()
    away = Hasty(target=f"127.0.0.1:{port}")
    async with (
        stage.another_bridge(credit_service=away) as bridge,
        stage.delivering_to(str(bridge.http.base_url)),
    ):
        paid = await sell(stage, users)
        await refused_all(stage, paid)
        assert await all_entries(stage, users) == [[]] * 10
        async with service_at(stage, port):
            await stage.fake.deliver_all()
    assert await all_entries(stage, users) == [[100, -50]] * 10
    assert not await stage.database.faults()


async def test_12_after_a_long_outage_the_poller_grants_all_before_stripe_tries_again(stage):
    users, port = await stage.users(10), free_port()
    away = Hasty(target=f"127.0.0.1:{port}")
    await stage.fake.settings(clock_offset_seconds=-600)
    async with (
        stage.another_bridge(credit_service=away, poll_seconds=0.1) as bridge,
        stage.delivering_to(str(bridge.http.base_url), retry_seconds=3600, retry_cap_seconds=3600),
    ):
        paid = await sell(stage, users)
        await refused_all(stage, paid)
        async with service_at(stage, port):

            async def is_drained():
                return await all_entries(stage, users) == [[100, -50]] * 10

            await eventually(is_drained)
            for each in paid:
                assert await stage.statuses(each) == [503]
            await stage.fake.settings(retry_seconds=0.05, retry_cap_seconds=1)
            await stage.fake.deliver_all()
    assert await all_entries(stage, users) == [[100, -50]] * 10


async def test_13_collisions_in_the_database_under_load_lose_and_double_nothing(stage):
    users = await stage.users(40)
    await stage.database.execute(
        """
        CREATE SEQUENCE failures;
        CREATE FUNCTION fail() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS $$
        DECLARE
            -- A sequence is not rolled back with the transaction that fails.
            turn bigint := nextval('public.failures');
        BEGIN
            IF turn % 2 = 1 AND turn < 40 THEN
                RAISE EXCEPTION 'arranged'
                    USING ERRCODE = CASE turn % 4 WHEN 1 THEN '40001' ELSE '40P01' END;
            END IF;
            RETURN NULL;
        END $$;
        CREATE TRIGGER failing AFTER INSERT ON credit_transactions
        FOR EACH STATEMENT EXECUTE FUNCTION fail();
        """
    )
    await stage.delivering()
    await sell(stage, users)
    await stage.fake.idle()
    ((failed,),) = await stage.database.fetch("SELECT last_value FROM failures")
    await stage.database.execute("DROP FUNCTION fail CASCADE; DROP SEQUENCE failures")
    assert failed > 3  # each of the two at least once
    assert await all_entries(stage, users) == [[100, -50]] * 40
    assert not await stage.database.faults()


async def test_13_a_restart_of_the_database_under_load_loses_and_doubles_nothing(
    stage, cluster_owner_url
):
    users, name = await stage.users(40), stage.database.name
    owner = await asyncpg.connect(cluster_owner_url)
    before = (await stage.fake.counts())["attempts"]
    await stage.delivering()
    await stage.fake.batch(*(("purchase", bought(user, 100, 900)) for user in users[:20]))
    # A restart, as open and new connections see it.
    await owner.execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS false")
    await owner.execute(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = $1", name
    )
    await stage.fake.batch(*(("purchase", bought(user, 100, 900)) for user in users[20:]))

    async def is_refused():
        return 503 in {each["status"] for each in await stage.fake.deliveries(since=before)}

    await eventually(is_refused)
    await owner.execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS true")
    await owner.close()
    await stage.fake.deliver_all()
    assert await all_entries(stage, users) == [[100]] * 40
    assert not await stage.database.faults()


def reconciled(stage):
    """Runs `stripe-bridge reconcile`; returns the numbers of repaired and unresolved objects."""
    command = ("reconcile", "--since", "35d")
    with bridge_process(stage.fake.url, stage.service.target, *command) as process:
        code = process.wait()
        counts = re.search(r"(\d+) repaired.* (\d+) unresolved", process.output)
    assert counts, process.output
    repaired, unresolved = map(int, counts.groups())
    assert code == (1 if unresolved else 0)
    return repaired, unresolved


async def test_41_reconcile_repairs_payments_without_events_and_a_second_one_nothing(stage):
    lost, never_made, while_away, delivered = await stage.users(4)
    await sell(stage, [lost])
    await stage.fake.faults(unmade=1.0)
    await sell(stage, [never_made])
    await stage.fake.faults()
    days = -4 * 24 * 60 * 60
    await stage.fake.settings(clock_offset_seconds=days)
    async with stage.delivering_to(f"http://127.0.0.1:{free_port()}", attempts=3):
        (paid,) = await sell(stage, [while_away])
        await stage.fake.idle()
        assert await stage.statuses(paid) == [None] * 3
    await stage.delivering()
    await sell(stage, [delivered])
    await stage.fake.idle()
    users = [lost, never_made, while_away, delivered]
    assert await all_entries(stage, users) == [[], [], [], [100, -50]]
    assert await asyncio.to_thread(reconciled, stage) == (6, 0)
    assert await all_entries(stage, users) == [[100, -50]] * 4
    assert await asyncio.to_thread(reconciled, stage) == (0, 0)
    assert await all_entries(stage, users) == [[100, -50]] * 4


async def test_42_two_reconciles_while_the_events_arrive_make_one_entry_each(stage):
    count = unless_long(15, 40)
    users = await stage.users(count)
    await stage.fake.hold()
    await sell(stage, users)
    since = datetime.now(UTC) - timedelta(hours=1)

    async def walk():
        return await reconcile(
            stage.reads,
            stage.settler(),
            since=since,
            disputes_since=since,
            progress=lambda _name, _summary: None,
        )

    one, other, _ = await asyncio.gather(walk(), walk(), stage.fake.deliver_all())
    assert one.unresolved == other.unresolved == []
    assert await all_entries(stage, users) == [[100, -50]] * count
    assert not await stage.database.faults()


@pytest.mark.parametrize(
    "fault",
    [{"status": 429}, {"status": 500}, {"kind": "cut"}, {"kind": "hang", "seconds": 3}],
    ids=lambda fault: str(fault.get("status") or fault["kind"]),
)
async def test_43_a_failure_of_stripes_api_is_a_503_and_right_when_it_passes(stage, fault):
    user = await stage.user()
    refund = await stage.fake.refund(await stage.bought(user), amount=450)
    (event,) = await stage.events(refund["id"])
    await stage.fake.api_faults({"path": "charges", **fault})
    async with stage.another_bridge(limits=Limits(budget_seconds=1.5)) as bridge:
        ((status, reason),) = await stage.tell(event, bridge=bridge)
        assert (status, reason in ("stripe_away", "out_of_time")) == (503, True)
        assert await stage.entries(user) == [100]
        await stage.fake.api_faults()

        async def is_granted():
            return await stage.tell(event, bridge=bridge) == [(200, "reversal")]

        # Like Stripe, send it again while a busy machine needs longer than the budget.
        await eventually(is_granted)
    assert await stage.entries(user) == [100, -50]


async def test_44_a_thin_and_a_snapshot_destination_together_make_one_entry_each(stage):
    user = await stage.user()
    url = f"{stage.bridge.http.base_url}/stripe/webhooks"
    thin = await stage.fake.deliver_to(url, thin=True)
    await stage.delivering()
    paid = await stage.fake.purchase(user)
    await stage.fake.refund(paid, amount=450)
    dispute = await stage.fake.dispute(paid, amount=225)
    await stage.fake.idle()
    for about in (paid, dispute["id"]):
        attempts = await stage.fake.deliveries(object=about)
        assert {each["endpoint"] for each in attempts} == {stage.endpoint, thin["id"]}
        assert {each["status"] for each in attempts} == {200}
    for about, reason in ((paid, "purchase"), (dispute["id"], "reversal")):
        attempts = await stage.fake.deliveries(object=about)
        assert all(reason in each["answer"] for each in attempts)
    await stage.fake.delete_endpoint(thin["id"])
    entries = await stage.entries(user)
    assert (entries[0], sorted(entries[1:])) == (100, [-50, -25])


async def test_46_sigterm_with_100_requests_in_flight_leaves_nothing_half_done(stage):
    user, port, metrics_port = await stage.user(1), free_port(), free_port()
    holder = await stage.database.connect()
    here = stage.fake.url, stage.service.target
    before = (await stage.fake.counts())["attempts"]
    with bridge_process(*here, port=port, metrics_port=str(metrics_port)) as process:
        async with (
            http_client() as http,
            stage.delivering_to(bridge_url(process), concurrency=100),
        ):
            async with holder.transaction():
                await holder.execute("SELECT FROM user_credits WHERE user_id = $1 FOR UPDATE", user)
                await stage.fake.batch(*[("purchase", bought(user, 100, 900))] * 50)

                async def is_full():
                    scraped = await http.get(f"http://127.0.0.1:{metrics_port}/metrics")
                    return "stripe_bridge_in_flight_events 100.0" in scraped.text

                await eventually(is_full)
                process.signal(signal.SIGTERM)

                async def is_closed():
                    try:
                        _, writer = await asyncio.open_connection("127.0.0.1", port)
                    except ConnectionRefusedError:
                        return True
                    writer.transport.abort()
                    return False

                await eventually(is_closed)
                await stage.refused_once()
            assert await asyncio.to_thread(process.wait, 15) == 0, process.output
            attempts = await stage.fake.deliveries(since=before)
            answers = [each["status"] for each in attempts if each["status"] is not None]
            assert len(answers) >= 100
            assert 200 in answers
            assert set(answers) <= {200, 503}
            with bridge_process(*here, port=port) as restarted:
                await asyncio.to_thread(bridge_url, restarted)
                await stage.fake.deliver_all()
    await holder.close()
    assert await stage.entries(user) == [1] + [100] * 50
    assert not await stage.database.faults()
