"""The limits of requests to the bridge: their form, size, duration and number at a time."""

import asyncio
import json

from kit.bridge_http import BODY, Raw, balance, head, locked, status_and_outcome
from kit.bridges import NOWHERE, bridge_settings, event_of, paid_session, running_bridge, signature
from kit.waiting import eventually, patience

from credit_service.runtime import http
from stripe_bridge.request_bodies import Limits


async def test_a_request_that_is_not_http_is_a_400_and_the_end(alone):
    start = b"POST /stripe/webhooks HTTP/1.1\r\nHost: a\r\n"
    for sent in (
        b"\x00\x01\x02\r\n\r\n",
        b"GET\r\n\r\n",
        b"POST /\r\n\r\n",
        b"POST /\xff HTTP/1.1\r\nHost: a\r\n\r\n",
        start + b"Content-Length: x\r\n\r\n",
        start + b"Content-Length: -1\r\n\r\n",
        start + b"Stripe-Signature: a\x00b\r\n\r\n",
    ):
        connection = await Raw.to(alone, sent)
        assert (await connection.end()).startswith(b"HTTP/1.1 400")
    assert (await alone.http.get("/healthz")).status_code == 200


async def test_a_body_over_the_limit_is_a_413_however_it_is_sent(alone):
    limit = Limits().body_bytes

    async def chunks():
        for _ in range(10):
            yield b" " * 1024 * 1024

    for body in (b" " * (limit + 1), b" " * 10 * limit, chunks()):
        answer = await alone.http.post("/stripe/webhooks", content=body)
        assert status_and_outcome(answer) == (413, "refused")
    text = BODY.decode().ljust(limit)
    assert status_and_outcome(await alone.post(text.encode())) == (200, "nothing")


async def test_an_announced_body_over_the_limit_is_not_waited_for(alone):
    connection = await Raw.to(alone, head(10**9))
    assert await connection.head() == 413
    connection.close()


async def test_a_body_that_does_not_come_is_a_408_and_others_are_served_meanwhile():
    limits = Limits(read_seconds=patience(0.25), budget_seconds=patience(4))
    async with running_bridge(bridge_settings(NOWHERE, limits=limits)) as bridge:
        slow = [await Raw.to(bridge, head(100) + b"{") for _ in range(20)]
        assert status_and_outcome(await bridge.post(BODY)) == (200, "nothing")
        for connection in slow:
            assert (await connection.end()).startswith(b"HTTP/1.1 408")


async def test_a_sender_who_hangs_up_within_the_body_does_no_harm(alone):
    for _ in range(5):
        (await Raw.to(alone, head(1000) + b"{")).close()
    assert status_and_outcome(await alone.post(BODY)) == (200, "nothing")


async def test_connections_that_send_no_whole_head_are_closed_and_others_are_served(
    monkeypatch,
):
    monkeypatch.setattr(http, "_HEAD_SECONDS", patience(0.25))
    async with running_bridge(bridge_settings(NOWHERE)) as bridge:
        answered = await Raw.to(bridge, b"GET /healthz HTTP/1.1\r\nHost: a\r\n\r\n")
        assert await answered.head() == 200
        waiting = [await Raw.to(bridge) for _ in range(50)]
        waiting += [await Raw.to(bridge, b"POST /stripe/webhooks HTT") for _ in range(50)]
        await answered.send(b"POST /str")
        assert status_and_outcome(await bridge.post(BODY)) == (200, "nothing")
        for connection in waiting:
            assert await connection.end() == b""
        assert (await answered.end()).endswith(b"}")


async def test_a_request_in_hand_is_not_cut_as_a_connection_that_sends_no_head(
    service, monkeypatch, database, client
):
    monkeypatch.setattr(http, "_HEAD_SECONDS", 0.3)
    user_id = await database.user()
    body = json.dumps(event_of(paid_session(user_id))).encode()
    async with running_bridge(bridge_settings(service.target)) as bridge:
        connection = await Raw.to(
            bridge, head(len(body), f"Stripe-Signature: {signature(body)}") + body[:10]
        )
        idle = await Raw.to(bridge)
        assert await idle.end() == b""
        await connection.send(body[10:])
        assert await connection.head() == 200
        connection.close()
    assert await balance(client, user_id) == 100


async def test_unsigned_slow_bodies_take_no_place_of_an_event():
    limits = Limits(requests_in_flight=1)
    async with running_bridge(bridge_settings(NOWHERE, limits=limits)) as bridge:
        slow = [await Raw.to(bridge, head(100) + b"{") for _ in range(5)]
        assert status_and_outcome(await bridge.post(BODY)) == (200, "nothing")
        for connection in slow:
            connection.close()


async def test_more_events_than_may_be_in_flight_are_a_503_until_one_ends(service, database):
    user_id = await database.user(1)
    holder = await locked(database, user_id)
    limits = Limits(requests_in_flight=1)
    async with running_bridge(bridge_settings(service.target, limits=limits)) as bridge:
        first = asyncio.create_task(bridge.deliver(event_of(paid_session(user_id))))
        await eventually(database.waits_for_a_lock)
        answer = await bridge.post(BODY)
        assert status_and_outcome(answer) == (503, "too_many_requests")
        assert int(answer.headers["retry-after"]) > 0
        assert (await bridge.http.get("/healthz")).status_code == 200
        await holder.execute("COMMIT")
        assert status_and_outcome(await first) == (200, "committed")
        assert status_and_outcome(await bridge.post(BODY)) == (200, "nothing")
    await holder.close()


async def test_arriving_bodies_never_take_more_memory_than_the_limit():
    limits = Limits(arriving_bytes=10_000)
    async with running_bridge(bridge_settings(NOWHERE, limits=limits)) as bridge:
        half = await Raw.to(bridge, head(9_999) + b" " * 9_990)

        async def is_full():
            return status_and_outcome(await bridge.post(BODY)) == (503, "too_many_bytes")

        await eventually(is_full)
        half.close()

        async def has_room():
            return status_and_outcome(await bridge.post(BODY)) == (200, "nothing")

        await eventually(has_room)


async def test_a_request_is_answered_within_its_budget_and_the_repeat_finds_its_effect(
    service, database, client
):
    user_id = await database.user(1)
    await database.wait_longer_for_locks()
    event = event_of(paid_session(user_id))
    limits = Limits(budget_seconds=0.7)
    async with running_bridge(bridge_settings(service.target, limits=limits)) as bridge:
        async with database.locked(user_id):
            assert status_and_outcome(await bridge.deliver(event)) == (503, "out_of_time")

        async def is_there():
            return (await bridge.deliver(event)).status_code == 200

        await eventually(is_there)
    assert await balance(client, user_id) == 101
    assert not await database.faults()
