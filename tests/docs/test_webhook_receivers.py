"""The receivers of docs/examples verify what the relay sends, and handle an event once."""

import sys
from contextlib import contextmanager
from datetime import UTC, datetime

import httpx
import pytest
from kit.npm_apps import install_web_examples, run
from kit.paths import ROOT
from kit.programs import Command
from kit.receivers import SECRET
from kit.relays import endpoint, relaying, write_endpoints
from kit.waiting import eventually
from standardwebhooks import Webhook


@contextmanager
def receiver(place, *command, **environment):
    started = Command(
        place, "env", "WEBHOOK_SECRET=" + SECRET, *environment_of(environment), *command
    )
    try:
        yield started, int(started.wait_for(r"listens on 127\.0\.0\.1:(\d+)")[1])
    finally:
        started.close()


def environment_of(variables):
    return [f"{name}={value}" for name, value in variables.items()]


async def receives_and_refuses(database, place, started, port):
    """The relay's events arrive, and a forged or old one is refused."""
    user_id = await database.user(100)
    file = place / "endpoints.toml"
    write_endpoints(file, endpoint("example", port))
    async with relaying(database, file):
        await eventually(lambda: f".{user_id}.1.entry.purchase" in started.output)
    body = '{"type":"entry.spend","timestamp":"2026-01-01T00:00:00Z","data":{}}'
    other = "whsec_" + "A" * 44
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", trust_env=False) as http:
        for secret, seconds in ((other, 0), (SECRET, 600)):
            sent = datetime.fromtimestamp(datetime.now(UTC).timestamp() - seconds, UTC)
            headers = {
                "webhook-id": "forged",
                "webhook-timestamp": str(int(sent.timestamp())),
                "webhook-signature": Webhook(secret).sign("forged", sent, body),
            }
            refused = await http.post("/", content=body, headers=headers)
            assert refused.status_code == 400
        assert (await http.post("/", content=body)).status_code == 400
    assert "forged" not in started.output


async def test_the_python_receiver_verifies_and_handles_once(database, tmp_path):
    example = ROOT / "docs/examples/webhook_receiver.py"
    command = (sys.executable, str(example), "--listen", "127.0.0.1:0")
    with receiver(tmp_path, *command) as (started, port):
        await receives_and_refuses(database, tmp_path, started, port)
        now = datetime.now(UTC)
        data = '{"user_id":"u","seq":2,"balance_after":7}'
        body = f'{{"type":"entry.spend","timestamp":"2026-01-01T00:00:00Z","data":{data}}}'
        headers = {
            "webhook-id": "5.u.2.entry.spend",
            "webhook-timestamp": str(int(now.timestamp())),
            "webhook-signature": Webhook(SECRET).sign("5.u.2.entry.spend", now, body),
        }
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", trust_env=False) as http:
            for _ in range(2):
                taken = await http.post("/", content=body, headers=headers)
                assert taken.status_code == 204
        await eventually(lambda: "entry.spend 5.u.2.entry.spend, again" in started.lines)
        assert started.lines.count("entry.spend 5.u.2.entry.spend") == 1


@pytest.mark.long
@pytest.mark.timeout(600)
async def test_the_typescript_receiver_verifies_with_the_library_of_its_language(
    database, tmp_path
):
    app = install_web_examples(tmp_path)
    source = "apps/api/src/webhooks.ts"
    run(app, "npx", "tsc", "--noEmit")
    run(
        app,
        "npx",
        "--no-install",
        "esbuild",
        source,
        "--bundle",
        "--platform=node",
        "--format=esm",
        "--outfile=webhooks.mjs",
    )
    with receiver(app, "node", "webhooks.mjs", PORT="0") as (started, port):
        await receives_and_refuses(database, tmp_path, started, port)
