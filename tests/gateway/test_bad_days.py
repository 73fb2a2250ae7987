"""Failures and attacks: servers that are away, and requests too large, slow, many, or forged."""

import asyncio
import contextlib
import hashlib
import socket
import time
from dataclasses import replace
from uuid import uuid4

import pytest
from kit.bridges import bridge_settings, running_bridge
from kit.callers import EVERY_ROLE
from kit.gateways import bearer, gateway_settings, opened_page, problem, running_gateway
from kit.issuers import running_issuer
from kit.programs import free_port
from kit.services import running, server_settings
from kit.stripe_fakes import fake_stripe
from kit.waiting import eventually, patience
from prometheus_client import REGISTRY

from credit_service.gateway import Bridge, Limits, Rate, SupabaseUsers, streams
from credit_service.gateway.server import CreditService
from credit_service.rpc import access

pytestmark = pytest.mark.shared

LIMITS = Limits(link_seconds=0.2, streams_opened=Rate(1000, 1000))


@pytest.fixture
async def gateway(service):
    async with running_gateway(gateway_settings(service.target, limits=LIMITS)) as gateway:
        yield gateway


def alerts(reason):
    return REGISTRY.get_sample_value("credit_gateway_alerts_total", {"reason": reason}) or 0


async def test_while_the_service_is_away_nothing_is_made_up(database):
    target = f"127.0.0.1:{free_port()}"
    async with running_gateway(gateway_settings(target)) as gateway:
        answer = await gateway.get(uuid4(), "/account")
        assert problem(answer) == (503, "LEDGER_UNAVAILABLE")
        assert answer.headers["retry-after"]
        async with running(replace(server_settings(database.service_url), listen=target)):

            async def back():
                return (await gateway.get(uuid4(), "/account")).status_code == 200

            await eventually(back)


async def test_a_gateway_that_the_service_refuses_blames_no_user(database, tmp_path):
    file = tmp_path / "identities.toml"
    file.write_text(EVERY_ROLE)
    authenticator = access.Authenticator(file)
    settings = server_settings(database.service_url, authenticator=authenticator)
    user_id = await database.user(100)
    async with running(settings) as service:
        for token, path in (("unknown", "/account"), ("token of worker", "/transactions")):
            credit = CreditService(target=service.target, token=token, credentials=None)
            changed = gateway_settings("", credit_service=credit, limits=LIMITS)
            before = alerts("MISCONFIGURED")
            async with running_gateway(changed) as gateway:
                answer = await gateway.get(user_id, path)
                assert problem(answer) == (503, "MISCONFIGURED")
                assert "token" not in answer.text
                async with gateway.page(user_id) as page:
                    assert (await page.hears("link"))["up"] is False
            assert alerts("MISCONFIGURED") >= before + 2
        # The role `web` may make every call that the gateway makes.
        credit = CreditService(target=service.target, token="token of web", credentials=None)
        async with running_gateway(gateway_settings("", credit_service=credit)) as gateway:
            for path in ("/account", "/transactions", "/holds", "/prices", "/usage"):
                assert (await gateway.get(user_id, path)).status_code == 200
            work = {"items": [{"operation": "render"}]}
            assert (await gateway.post(user_id, "/quotes", work)).status_code == 200
            async with gateway.page(user_id) as page:
                await page.shows(100)


async def test_a_token_that_expires_ends_its_stream_and_a_fresh_one_goes_on(service, database):
    user_id = await database.user(100)
    async with running_issuer() as issuer:
        settings = gateway_settings(service.target, users=SupabaseUsers(issuer.url), limits=LIMITS)
        async with running_gateway(settings) as gateway:
            # The stream ends 5 s before its token, even if the machine needs part of that time.
            soon = issuer.token(user_id, exp=int(time.time() + 6 + patience(0.5)))
            headers = {"Authorization": f"Bearer {soon}"}
            async with opened_page(gateway.http, headers) as page:
                assert await page.ends() == "token_expiring"
            issuer.rotates()
            headers = {"Authorization": f"Bearer {issuer.token(user_id)}"}
            async with opened_page(gateway.http, headers) as page:
                await page.shows(100)
                # The issuer goes away during an open stream, which does not need it.
                issuer.mode = "away"
                assert (await gateway.http.get("/account", headers=headers)).status_code == 200
            forged = await gateway.http.get("/account", headers=bearer(user_id))
            assert problem(forged) == (401, "UNAUTHENTICATED")


async def test_a_bridge_that_comes_back_sells_again(service):
    async with fake_stripe() as fake:
        await fake.price(900, id="price_starter", currency="eur")
        settings = bridge_settings(
            service.target,
            stripe_address=fake.url,
            checkout_token_sha256=hashlib.sha256(b"token").hexdigest(),
        )
        port = free_port()
        selling = Bridge(
            f"http://127.0.0.1:{port}",
            token="token",
            success_url="https://app.example.com/paid",
            cancel_url="https://app.example.com/",
            checkout_hosts=(fake.url.removeprefix("http://"),),
        )
        user_id, key = uuid4(), {"Idempotency_Key": "one-intent"}
        order = {"pack": "starter"}
        async with running_gateway(gateway_settings(service.target, bridge=selling)) as gateway:
            answer = await gateway.post(user_id, "/checkouts", order, **key)
            assert problem(answer) == (503, "BRIDGE_UNAVAILABLE")
            async with running_bridge(replace(settings, listen=f"127.0.0.1:{port}")):
                first = await gateway.post(user_id, "/checkouts", order, **key)
                assert first.status_code == 201
                # Like a repeat after a lost answer: the same key finds the same checkout.
                again = await gateway.post(user_id, "/checkouts", order, **key)
                assert again.json() == first.json()
                await fake.api_faults({"kind": "status", "status": 500})
                answer = await gateway.get(user_id, f"/checkouts/{first.json()['id']}")
                assert problem(answer) == (503, "BRIDGE_UNAVAILABLE")


HEAD = "POST /quotes HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"


async def posted(gateway, *headers, body=b""):
    """Sends the head of a request and some of its body; returns the whole answer."""
    reader, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
    lines = "".join(f"{header}\r\n" for header in (f"Authorization: Bearer {uuid4()}", *headers))
    writer.write((HEAD + lines + "\r\n").encode() + body)
    try:
        async with asyncio.timeout(patience(30)):
            return await reader.read()
    finally:
        writer.close()


async def test_a_body_of_ten_megabytes_is_refused_unread(gateway):
    announced = await posted(gateway, "Content-Length: 10000000")
    chunk = b"1000\r\n" + b" " * 4096 + b"\r\n"
    grown = await posted(gateway, "Transfer-Encoding: chunked", body=chunk * 5)
    for answer in (announced, grown):
        assert answer.startswith(b"HTTP/1.1 413")
        assert b'"reason":"TOO_LARGE"' in answer
        assert b"connection: close" in answer.lower()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b"[" * 16_000,
        b'{"items": 1}',
        b'{"items": []}',
        b'{"items": [1]}',
        b'{"items": [{"operation": 1}]}',
        b'{"items": [{"operation": "render", "quantity": 0}]}',
        b'{"items": [{"operation": "render", "quantity": 1.5}]}',
        b'{"items": [{"operation": "render", "quantity": true}]}',
        b'{"items": [{"operation": "render", "quantity": 9999999999999}]}',
        b'{"items": [{"operation": "no such work"}]}',
        b'{"items": [{"operation": "render", "user_id": "x"}]}',
        b'{"items": [{"operation": "render"}], "user_id": "x"}',
        b'{"items": [' + b",".join([b'{"operation": "render"}'] * 101) + b"]}",
        b"\xff\xfe",
    ],
    ids=range(18),
)
async def test_a_malformed_body_is_refused(content, gateway):
    headers = bearer(uuid4()) | {"Content-Type": "application/json; charset=utf-8"}
    answer = await gateway.http.post("/quotes", content=content, headers=headers)
    assert problem(answer) == (400, "INVALID_REQUEST")


async def test_streams_beyond_the_process_limit_are_refused_and_the_others_live_on(
    service, database, client
):
    limits = replace(LIMITS, streams=50)
    users = [await database.user(10) for _ in range(50)]
    settings = gateway_settings(service.target, limits=limits)
    async with running_gateway(settings) as gateway, contextlib.AsyncExitStack() as stack:
        pages = [await stack.enter_async_context(gateway.page(user_id)) for user_id in users]
        answers = await asyncio.gather(
            *(gateway.get(uuid4(), "/account/stream") for _ in range(200))
        )
        assert {problem(answer) for answer in answers} == {(503, "TOO_MANY_STREAMS")}
        assert answers[0].headers["retry-after"]
        await client.spend_credits(users[0], amount=1)
        await pages[0].shows(9)


async def test_one_user_opens_streams_at_a_bounded_rate(service, database):
    limits = replace(LIMITS, streams_opened=Rate(5, 0.01))
    user_id = await database.user(10)
    async with running_gateway(gateway_settings(service.target, limits=limits)) as gateway:
        for _ in range(5):
            async with gateway.page(user_id) as page:
                await page.shows(10)
        refused = await gateway.get(user_id, "/account/stream")
        assert problem(refused) == (429, "TOO_MANY_REQUESTS")
        async with gateway.page(await database.user(7)) as page:
            await page.shows(7)


def ended_slow():
    slow = {"reason": "slow"}
    return REGISTRY.get_sample_value("credit_gateway_stream_ends_total", slow) or 0


async def test_a_stream_that_is_not_read_is_closed_and_does_not_delay_the_others(
    service, database, client, monkeypatch
):
    # Heartbeats that fill the buffers at both ends of a connection.
    monkeypatch.setattr(streams, "_HEARTBEAT", b": " + b"x" * 100_000 + b"\n\n")
    limits = replace(LIMITS, write_seconds=patience(0.25), heartbeat_seconds=0.05)
    user_id = await database.user(10)
    async with running_gateway(gateway_settings(service.target, limits=limits)) as gateway:
        before = ended_slow()
        with socket.socket() as slow:
            slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
            slow.connect(("127.0.0.1", gateway.port))
            token = f"Authorization: Bearer {user_id}"
            slow.sendall(f"GET /account/stream HTTP/1.1\r\nHost: a\r\n{token}\r\n\r\n".encode())
            async with gateway.page(user_id) as page:
                await page.shows(10)
                await client.spend_credits(user_id, amount=1)
                await page.shows(9)
                await eventually(lambda: ended_slow() > before, seconds=60)
                assert not page.closed


async def test_a_bug_in_the_gateway_reveals_nothing(service):
    async def broken(_):
        raise RuntimeError("with a secret")

    before = alerts("INTERNAL")
    async with running_gateway(gateway_settings(service.target, users=broken)) as gateway:
        answer = await gateway.get(uuid4(), "/account")
        assert problem(answer) == (500, "INTERNAL")
        assert answer.json().keys() == {"type", "title", "status", "reason"}
    assert alerts("INTERNAL") == before + 1


async def test_a_body_that_does_not_come_is_not_waited_for(gateway, monkeypatch):
    monkeypatch.setattr("credit_service.gateway.requests.BODY_SECONDS", 0.2)
    answer = await posted(gateway, "Content-Length: 100", body=b'{"items"')
    assert answer.startswith(b"HTTP/1.1 408")
    assert b'"reason":"TOO_SLOW"' in answer
