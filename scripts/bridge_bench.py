"""Measures how long the bridge takes from a webhook's delivery to the commit of its credits.

It starts a database, the service and the bridge, and needs no Stripe, because a paid session of our
own checkout is settled without a read. Events arrive at a fixed rate, no matter how long the
answers take. An answer comes after the commit, so the commit takes no longer than the answer.
"""

import argparse
import asyncio
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from uuid import uuid4

import httpx
from stripe import WebhookSignature

_SECRET = "whsec_of_the_bench"  # noqa: S105  # it is of use only for the bridge started here
_USERS = [str(uuid4()) for _ in range(200)]
_WARM_SECONDS = 3


@contextmanager
def _running(log: Path, *command: str, **environment: str) -> Iterator[str]:
    """Runs a server for the length of the block; yields its host:port."""
    with log.open("w") as output:
        process = subprocess.Popen(  # noqa: S603  # a module of ours
            [sys.executable, "-m", *command],
            env={**os.environ, **environment},
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    try:
        deadline = time.monotonic() + 60
        while not (found := re.search(r"listens on (\S+:\d+)", log.read_text())):
            if process.poll() is not None or time.monotonic() > deadline:
                raise SystemExit(f"{command} did not start:\n{log.read_text()}")
            time.sleep(0.05)
        yield found.group(1)
    finally:
        process.terminate()
        process.wait()


def _event(number: int) -> bytes:
    mark = uuid4().hex
    metadata = {"credit_user_id": _USERS[number % len(_USERS)], "credits": "100", "credits_v": "1"}
    session = {
        "id": f"cs_test_{mark}", "object": "checkout.session", "mode": "payment",
        "payment_status": "paid", "status": "complete", "payment_intent": f"pi_{mark}",
        "amount_total": 900, "currency": "eur", "metadata": metadata,
    }  # fmt: skip
    event = {
        "id": f"evt_{mark}", "object": "event", "type": "checkout.session.completed",
        "created": int(time.time()), "livemode": False, "data": {"object": session},
    }  # fmt: skip
    return json.dumps(event).encode()


async def _measure(url: str, rate: float, seconds: float) -> list[float]:
    """Returns how long each answer took, in milliseconds, without the warm-up."""
    loop, took = asyncio.get_running_loop(), []
    async with httpx.AsyncClient(timeout=20, limits=httpx.Limits(max_connections=None)) as http:
        began = loop.time()

        async def deliver(number: int) -> None:
            # Counted from the time it was due, so that a late sender does not make the bridge look
            # faster.
            due = began + number / rate
            await asyncio.sleep(due - loop.time())
            body = _event(number)
            signed = WebhookSignature.generate_signature_header(body.decode(), _SECRET)
            answer = await http.post(url, content=body, headers={"Stripe-Signature": signed})
            if answer.json().get("outcome") != "committed":
                raise SystemExit(f"{answer.status_code}: {answer.text}")
            if due - began >= _WARM_SECONDS:
                took.append((loop.time() - due) * 1000)

        count = int(rate * (seconds + _WARM_SECONDS))
        await asyncio.gather(*(deliver(number) for number in range(count)))
    return sorted(took)


def main() -> None:
    """Starts everything, measures, and prints the quantiles."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rate", type=float, default=50, help="events a second (%(default)s)")
    parser.add_argument("--seconds", type=float, default=30, help="how long (%(default)s)")
    arguments = parser.parse_args()
    with ExitStack() as stack:
        place = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bridge-bench-")))
        place.chmod(0o755)  # for root, the database runs as the user `nobody`
        for name in [name for name in os.environ if name.startswith(("CREDIT_", "STRIPE_BRIDGE_"))]:
            del os.environ[name]
        service = {"CREDIT_DATA_DIR": str(place / "data"), "CREDIT_LISTEN": "127.0.0.1:0"}
        serve = ("credit_service", "serve", "--migrate")
        target = stack.enter_context(_running(place / "service.log", *serve, **service))
        settings = {
            "LISTEN": "127.0.0.1:0", "CREDIT_TARGET": target, "STRIPE_KEY": "sk_test_of_the_bench",
            "WEBHOOK_SECRETS": f"test:{_SECRET}", "POLL_SECONDS": "0", "UNREADY_SECONDS": "0",
        }  # fmt: skip
        bridge = {f"STRIPE_BRIDGE_{name}": value for name, value in settings.items()}
        log = place / "bridge.log"
        address = stack.enter_context(_running(log, "stripe_bridge", "serve", **bridge))
        url = f"http://{address}/stripe/webhooks"
        took = asyncio.run(_measure(url, arguments.rate, arguments.seconds))
    p50, p99 = took[len(took) // 2], took[len(took) * 99 // 100]
    print(f"{len(took)} events: p50 {p50:.1f} ms, p99 {p99:.1f} ms, longest {took[-1]:.1f} ms")


if __name__ == "__main__":
    main()
