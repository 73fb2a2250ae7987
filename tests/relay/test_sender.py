"""One attempt: the answers that count as taken, its limits, and the use of the checked address."""

import asyncio
import socket
import ssl
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime
from urllib.parse import urlsplit

import pytest
import trustme
from kit.receivers import OK, SECRET, answer, listening, receiver
from kit.waiting import eventually, patience
from standardwebhooks import Webhook

from credit_service.relay.endpoints import Endpoint
from credit_service.relay.event_types import EVENT_TYPES
from credit_service.relay.events import trial
from credit_service.relay.sender import ANSWER_BYTES_MAX, Result, Sender

NAME = "hook.test"


def endpoint_of(url, **changes):
    made = Endpoint("one", urlsplit(url), frozenset(EVENT_TYPES), (Webhook(SECRET),))
    return replace(made, **changes)


@asynccontextmanager
async def sender_to(url, *, private=True, seconds=10, **changes):
    sender = Sender(
        endpoint_of(url, **changes),
        private=private,
        connections=4,
        attempt_seconds=patience(seconds),
    )
    try:
        yield sender
    finally:
        await sender.close()


async def attempt(url, **options):
    async with sender_to(url, **options) as sender:
        return await sender.send(trial("one", datetime.now(UTC)))


@pytest.fixture
def names(monkeypatch):
    """Addresses of names, one list for each lookup; the last one stays."""
    known = {}
    looked = []
    real = socket.getaddrinfo

    def look_up(host, port, *args, **options):
        if host not in known:
            return real(host, port, *args, **options)
        looked.append(host)
        answers = known[host]
        found = answers.pop(0) if len(answers) > 1 else answers[0]
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (one, port)) for one in found]

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    known["looked"] = looked
    return known


async def test_an_answer_of_2xx_is_taken_and_the_request_is_signed():
    async with receiver() as hook:
        ended = await attempt(f"http://127.0.0.1:{hook.port}/a/b?c=d")
    assert ended.taken
    (request,) = hook.got  # its signature was verified
    assert request.head.startswith("POST /a/b?c=d HTTP/1.1")
    assert request.headers["content-type"] == "application/json"
    assert request.event["type"] == "relay.test"


@pytest.mark.parametrize("status", [100, 199, 300, 400, 404, 410, 429, 500, 503])
async def test_any_other_answer_is_not_taken(status):
    async with receiver() as hook:

        async def reply(_request):
            return answer(status)

        hook.reply = reply
        ended = await attempt(f"http://127.0.0.1:{hook.port}/", seconds=1)
    if status >= 200:
        assert (ended.result, ended.problem) == (Result.REFUSED, f"answered {status}")
    else:
        assert ended.result in {Result.UNREACHABLE, Result.TIMEOUT}


async def test_a_redirect_is_not_followed():
    async with receiver() as hook, receiver() as other:

        async def reply(_request):
            return answer(307, f"Location: http://127.0.0.1:{other.port}/")

        hook.reply = reply
        ended = await attempt(f"http://127.0.0.1:{hook.port}/")
    assert ended.problem == "answered 307"
    assert other.got == []


async def test_little_is_read_of_an_answer_of_10_megabytes_and_the_status_counts():
    sent = 0

    async def handle(reader, writer):
        nonlocal sent
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 10000000\r\n\r\n")
        for _ in range(1000):
            writer.write(bytes(10_000))
            await writer.drain()
            sent += 10_000

    async with listening(handle) as port:
        ended = await attempt(f"http://127.0.0.1:{port}/")
    assert ended.taken
    # The buffers of the sockets between the two come on top.
    assert ANSWER_BYTES_MAX <= sent < 9_000_000


@pytest.mark.parametrize(
    "said", [b"", b"HTTP/1.1 200 OK\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n"]
)
async def test_a_receiver_that_hangs_ends_the_attempt_in_time(said):
    async def handle(reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        writer.write(said)
        await reader.read()  # until the relay closes

    async with listening(handle) as port:
        ended = await attempt(f"http://127.0.0.1:{port}/", seconds=0.3)
    assert ended.result is Result.TIMEOUT


async def test_a_receiver_that_drips_its_answer_ends_the_attempt_in_time():
    async def handle(reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        while True:
            writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            await writer.drain()
            await asyncio.sleep(0.01)

    async with listening(handle) as port:
        ended = await attempt(f"http://127.0.0.1:{port}/", seconds=0.3)
    assert ended.result is Result.TIMEOUT


async def test_an_answer_that_is_not_http_reveals_nothing_of_the_url():
    async def handle(reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"no HTTP at all\r\n\r\n")
        await writer.drain()

    async with listening(handle) as port:
        ended = await attempt(f"http://127.0.0.1:{port}/T0123/secret-path?token=secret-query")
    assert ended.result is Result.UNREACHABLE
    assert ended.problem
    # Path and query may be a credential, and a problem is logged and stored.
    assert "secret" not in ended.problem


async def test_a_receiver_that_is_not_there_is_unreachable():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        ended = await attempt(f"http://127.0.0.1:{taken.getsockname()[1]}/")
    assert ended.result is Result.UNREACHABLE


async def test_a_private_address_is_refused_before_anything_is_sent(names):
    names["private.test"] = [["10.0.0.1"]]
    async with receiver() as hook:
        for host in ("127.0.0.1", "localhost", "private.test"):
            ended = await attempt(f"https://{host}:{hook.port}/", private=False)
            assert ended.result is Result.ADDRESS
            assert "not globally routable" in ended.problem
    assert hook.got == []


async def test_a_name_that_changes_after_the_check_is_not_looked_up_again(names):
    names[NAME] = [["127.0.0.1"], ["127.0.0.2"]]
    async with (
        receiver(host="127.0.0.1") as hook,
        receiver(host="127.0.0.2", port=hook.port) as elsewhere,
        sender_to(f"http://{NAME}:{hook.port}/") as sender,
    ):
        assert (await sender.send(trial("one", datetime.now(UTC)))).taken
        assert names["looked"] == [NAME]
        assert len(hook.got) == 1
        assert elsewhere.got == []
        # The next attempt looks it up, although the connection to the old address is open.
        assert (await sender.send(trial("one", datetime.now(UTC)))).taken
        assert len(elsewhere.got) == 1
    assert hook.got[0].headers["host"] == f"{NAME}:{hook.port}"


async def test_a_name_that_changes_to_a_private_address_is_refused(names):
    names[NAME] = [["127.0.0.1"]]
    async with receiver() as hook, sender_to(f"http://{NAME}:{hook.port}/") as sender:
        assert (await sender.send(trial("one", datetime.now(UTC)))).taken
        sender._private = False
        ended = await sender.send(trial("one", datetime.now(UTC)))
        assert ended.result is Result.ADDRESS
        assert len(hook.got) == 1


async def test_of_several_addresses_one_that_does_not_answer_is_skipped(names):
    names[NAME] = [["127.0.0.3", "127.0.0.1"]]
    async with receiver() as hook:
        assert (await attempt(f"http://{NAME}:{hook.port}/")).taken


async def test_proxy_variables_change_nothing(monkeypatch):
    for name in ("HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    async with receiver() as hook:
        assert (await attempt(f"http://127.0.0.1:{hook.port}/")).taken


@pytest.fixture
def authority(tmp_path):
    made = trustme.CA()
    made.cert_pem.write_to_path(tmp_path / "ca.pem")
    return made, tmp_path / "ca.pem"


def tls(authority, name):
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert(name).configure_cert(context)
    return context


async def test_the_certificate_is_verified_against_the_name_although_the_address_is_connected_to(
    names, authority
):
    names[NAME] = [["127.0.0.1"]]
    made, ca = authority
    context = tls(made, NAME)
    asked = []
    context.sni_callback = lambda _socket, name, _context: asked.append(name)
    async with receiver(context) as hook:
        ended = await attempt(f"https://{NAME}:{hook.port}/", ca=ca)
    assert ended.taken
    assert asked == [NAME]
    assert hook.got[0].headers["host"] == f"{NAME}:{hook.port}"


@pytest.mark.parametrize("name", ["other.test", "127.0.0.1"])
async def test_a_certificate_of_another_name_or_only_of_the_address_is_refused(
    names, authority, name
):
    names[NAME] = [["127.0.0.1"]]
    made, ca = authority
    async with receiver(tls(made, name)) as hook:
        ended = await attempt(f"https://{NAME}:{hook.port}/", ca=ca)
    assert ended.result is Result.UNREACHABLE
    assert "CERTIFICATE_VERIFY_FAILED" in ended.problem
    assert hook.got == []


async def test_a_certificate_of_an_unknown_authority_is_refused(names, authority):
    names[NAME] = [["127.0.0.1"]]
    made, _ = authority
    async with receiver(tls(made, NAME)) as hook:
        ended = await attempt(f"https://{NAME}:{hook.port}/")
    assert ended.result is Result.UNREACHABLE
    assert hook.got == []


async def test_connections_are_kept_and_a_cancelled_attempt_leaves_the_sender_usable():
    async with receiver() as hook:
        answering = asyncio.Event()

        async def reply(_request):
            await answering.wait()
            return OK

        hook.reply = reply
        async with sender_to(f"http://127.0.0.1:{hook.port}/") as sender:
            tasks = [
                asyncio.create_task(sender.send(trial("one", datetime.now(UTC)))) for _ in range(8)
            ]
            await eventually(lambda: len(hook.got) == 4)
            assert hook.in_flight_max == 4  # the maximum of connections
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            answering.set()
            for _ in range(8):
                assert (await sender.send(trial("one", datetime.now(UTC)))).taken
