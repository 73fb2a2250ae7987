"""Ten thousand streams requested at once: as many as fit are served, the rest refused early."""

import asyncio
import json
import re
import resource
import signal
from collections import Counter
from pathlib import Path

import pytest
from kit.gateways import bearer, gateway_program
from kit.waiting import eventually, patience

ASKED = 10_000
STREAMS = 2_000  # by default
USERS = 500


@pytest.fixture
def open_files():
    """Lets this process and those that it starts open enough files."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = ASKED + 2_000
    if before[1] != resource.RLIM_INFINITY and before[1] < wanted:
        pytest.skip("this account may not open 12,000 files")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(wanted, before[0]), before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


class Asking:
    """One connection that requests a stream: the answer, and the events since."""

    def __init__(self) -> None:
        self.status = 0
        self.reason = ""
        self.retry_after = 0
        self.balance = None
        self.ended = None

    async def listen(self, port, user_id):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        headers = {"Host": f"127.0.0.1:{port}", **bearer(user_id)}
        lines = "".join(f"{name}: {text}\r\n" for name, text in headers.items())
        writer.write(f"GET /account/stream HTTP/1.1\r\n{lines}\r\n".encode())
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            if found := re.search(r"content-length: (\d+)", head):
                self.reason = json.loads(await reader.readexactly(int(found[1])))["reason"]
                self.retry_after = int(re.search(r"retry-after: (\d+)", head)[1])
            self.status = int(head.split()[1])
            if self.status != 200:
                return
            while line := await reader.readline():
                if found := re.search(rb'"balance":(\d+)', line):
                    self.balance = int(found[1])
                elif found := re.search(rb'"reason":"(\w+)"', line):
                    self.ended = found[1].decode()
        finally:
            writer.close()


def memory_mib(pid):
    status = Path(f"/proc/{pid}/status").read_text()
    return int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) / 1024


@pytest.mark.long
@pytest.mark.timeout(600)
async def test_ten_thousand_streams_are_refused_beyond_the_limit_and_the_admitted_ones_live_on(
    service, database, client, open_files
):
    users = [await database.user(10) for _ in range(USERS)]
    settings = {"LISTEN": "127.0.0.1:0", "CREDIT_TARGET": service.target, "DEVELOPMENT": "true"}
    with gateway_program(**settings) as program:
        port = program.wait_until_listening()
        asked = [Asking() for _ in range(ASKED)]
        listening = [
            asyncio.create_task(asking.listen(port, users[at % USERS]))
            for at, asking in enumerate(asked)
        ]
        await eventually(lambda: all(asking.status for asking in asked), seconds=120, every=0.5)
        assert Counter((asking.status, asking.reason) for asking in asked) == {
            (200, ""): STREAMS,
            (503, "TOO_MANY_STREAMS"): ASKED - STREAMS,
        }
        assert min(asking.retry_after for asking in asked if asking.reason) >= 1
        admitted = [asking for asking in asked if asking.status == 200]
        await eventually(lambda: {asking.balance for asking in admitted} == {10}, seconds=60)
        for start in range(0, USERS, 50):
            some = users[start : start + 50]
            await asyncio.gather(*(client.spend_credits(user, amount=1) for user in some))
        await eventually(lambda: {asking.balance for asking in admitted} == {9}, seconds=60)
        assert memory_mib(program.popen.pid) < 300
        program.signal(signal.SIGTERM)
        await asyncio.wait(listening, timeout=patience(30))
        assert {asking.ended for asking in admitted} == {"stopping"}
        assert program.wait() == 0
