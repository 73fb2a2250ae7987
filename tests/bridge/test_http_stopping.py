"""How the bridge starts and stops: its port, readiness, signals, and the requests in flight."""

import asyncio
import json
import signal
import socket
from dataclasses import replace

import httpx
import pytest
from kit.bridge_http import Raw, balance, head, locked, status_and_outcome
from kit.bridges import NOWHERE, bridge_settings, event_of, paid_session, running_bridge, signature
from kit.http_clients import http_client
from kit.programs import free_port
from kit.services import running, server_settings
from kit.stripe_fakes import KEY, bridge_process, bridge_url
from kit.waiting import eventually, patience
from prometheus_client import REGISTRY

from credit_service.runtime import http
from credit_service.runtime.start_errors import StartRefusedError
from stripe_bridge.app import Probes, Webhooks, make_app
from stripe_bridge.request_bodies import Limits
from stripe_bridge.settle import Settler
from stripe_bridge.stripe_api import StripeReads, stripe_client


async def test_a_request_is_finished_although_the_sender_hangs_up(database):
    user_id = await database.user(1)
    holder = await locked(database, user_id)
    body = json.dumps(event_of(paid_session(user_id))).encode()
    request = head(len(body), f"Stripe-Signature: {signature(body)}") + body
    async with running(server_settings(database.service_url)) as service:
        async with running_bridge(bridge_settings(service.target)) as bridge:
            connection = await Raw.to(bridge, request)
            await eventually(database.waits_for_a_lock)
            connection.close()
            bridge.stop.set()
            await holder.execute("COMMIT")
        client = await service.client()
        assert await balance(client, user_id) == 101
    await holder.close()


async def test_a_server_that_cancels_its_handler_leaves_nothing_half_done(
    service, client, database
):
    user_id = await database.user(1)
    holder = await locked(database, user_id)
    body = json.dumps(event_of(paid_session(user_id))).encode()
    async with stripe_client(KEY, address="http://127.0.0.1:9") as unreachable:
        settings = bridge_settings(service.target)
        webhooks = Webhooks(
            Settler(StripeReads(unreachable), client, settings.policy),
            secrets=settings.secrets,
            limits=Limits(),
        )
        app = make_app(webhooks, None, Probes(client), settings.policy.catalog)
        transport = httpx.ASGITransport(app)
        async with http_client(transport=transport, base_url="http://a") as http:
            header = {"Stripe-Signature": signature(body)}
            handler = asyncio.create_task(
                http.post("/stripe/webhooks", content=body, headers=header)
            )
            await eventually(database.waits_for_a_lock)
            handler.cancel()
            await asyncio.wait({handler})
            assert handler.cancelled()
            drained = asyncio.create_task(webhooks.drained())
            await asyncio.sleep(0)
            assert not drained.done()
            await holder.execute("COMMIT")
            await drained
        assert await balance(client, user_id) == 101
    await holder.close()


async def test_a_bridge_that_stops_answers_its_requests_and_takes_no_more(database):
    user_id = await database.user(1)
    await database.wait_longer_for_locks()
    holder = await locked(database, user_id)
    limits = Limits(budget_seconds=patience(30))
    async with (
        running(server_settings(database.service_url)) as service,
        running_bridge(bridge_settings(service.target, limits=limits)) as bridge,
    ):
        paid = [event_of(paid_session(user_id)) for _ in range(100)]
        answers = [asyncio.create_task(bridge.deliver(event)) for event in paid]
        await eventually(lambda: REGISTRY.get_sample_value("stripe_bridge_in_flight_events") == 100)
        bridge.stop.set()

        async def is_closed():
            try:
                (await Raw.to(bridge)).close()
            except ConnectionRefusedError:
                return True
            return False

        await eventually(is_closed)
        assert not any(answer.done() for answer in answers)
        await holder.execute("COMMIT")
        for answer in await asyncio.gather(*answers):
            assert status_and_outcome(answer) == (200, "committed")
        await bridge.task
        assert await balance(await service.client(), user_id) == 1 + 100 * 100
    await holder.close()


async def test_sigterm_makes_it_unready_first_and_then_ends_it_with_exit_code_0(service, database):
    user_id = await database.user()
    with bridge_process(
        "http://127.0.0.1:9", service.target, unready_seconds=str(patience(1))
    ) as process:
        url = bridge_url(process)
        async with http_client(base_url=url) as http:
            assert (await http.get("/readyz")).json() == {"status": "ready"}
            process.signal(signal.SIGTERM)

            async def is_stopping():
                return status_and_outcome(await http.get("/readyz")) == (503, "stopping")

            await eventually(is_stopping)
            assert (await http.get("/healthz")).status_code == 200
            body = json.dumps(event_of(paid_session(user_id))).encode()
            answer = await http.post(
                "/stripe/webhooks", content=body, headers={"Stripe-Signature": signature(body)}
            )
            assert status_and_outcome(answer) == (200, "committed")
        assert await asyncio.to_thread(process.wait) == 0, process.output


async def test_a_second_sigterm_ends_it_at_once():
    with bridge_process("http://127.0.0.1:9", NOWHERE, unready_seconds="600") as process:
        bridge_url(process)
        process.signal(signal.SIGTERM)
        process.wait_for("stopping")
        process.signal(signal.SIGTERM)
        assert await asyncio.to_thread(process.wait) == 1
        process.wait_for("second stop signal")


async def test_without_the_credit_service_it_is_not_ready_and_with_it_ready_again(database):
    port = free_port()
    async with running_bridge(bridge_settings(f"127.0.0.1:{port}")) as bridge:
        assert status_and_outcome(await bridge.http.get("/readyz")) == (
            503,
            "credit_service_silent",
        )
        assert (await bridge.http.get("/healthz")).json() == {"status": "ok"}
        settings = server_settings(database.service_url)
        async with running(replace(settings, listen=f"127.0.0.1:{port}")):

            async def is_ready():
                return (await bridge.http.get("/readyz")).status_code == 200

            await eventually(is_ready)


async def test_a_port_in_use_is_refused_with_its_setting():
    async with running_bridge(bridge_settings(NOWHERE)) as bridge:
        taken = f"127.0.0.1:{bridge.port}"
        for changes, setting in (
            ({"listen": taken}, "STRIPE_BRIDGE_LISTEN"),
            ({"metrics_port": bridge.port}, "STRIPE_BRIDGE_METRICS_PORT"),
        ):
            with pytest.raises(StartRefusedError, match=f"{taken}: Address.*{setting}"):
                async with running_bridge(bridge_settings(NOWHERE, **changes)):
                    pass


def test_answers_are_sent_at_once_and_not_held_back_by_the_kernel():
    # asyncio turns Nagle's algorithm off only for sockets that name their protocol.
    with http.bound("127.0.0.1:0", setting="STRIPE_BRIDGE_LISTEN") as listener:
        assert listener.proto == socket.IPPROTO_TCP


async def test_it_listens_on_ipv6_too():
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError:
        pytest.skip("this machine has no IPv6")
    async with running_bridge(bridge_settings(NOWHERE, listen="[::1]:0")) as bridge:
        answer = await bridge.http.get(f"http://[::1]:{bridge.port}/healthz")
        assert answer.status_code == 200
