"""Credits in a browser: a service, the bridge, a fake Stripe and an app with the gateway.

Everything runs on this machine and is gone when it ends; no account at Stripe is needed.
"""

import array
import asyncio
import contextlib
import math
import secrets
import signal
import sys
import tempfile
import uuid
import wave
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import httpx
from demo_programs import Service, bridge, fake_stripe, running

from credit_service.client import CreditClient

_ROOT = Path(__file__).resolve().parent.parent
_APP = _ROOT / "docs/examples/web"

# Two separations and a half, so that the third is refused and a pack is worth buying.
_FIRST_CREDITS = 25
# After the second separation the page says that credits are low.
_ALERT_BELOW = 15
_SONG_SECONDS = 90
_RATE = 44_100
_PACKS = """
[[pack]]
id = "single"
name = "Single"
credits = 50
lookup_key = "credits_50"
amount_minor = 500
currency = "eur"

[[pack]]
id = "album"
name = "Album"
credits = 300
lookup_key = "credits_300"
amount_minor = 2400
currency = "eur"

[[pack]]
id = "label"
name = "Label"
credits = 2000
lookup_key = "credits_2000"
amount_minor = 12900
currency = "eur"
valid_for = "365d"
"""
_PRICES = (("credits_50", 500), ("credits_300", 2400), ("credits_2000", 12_900))


async def run(user_id: uuid.UUID, port: int) -> None:
    """Starts everything, prints the address of the page, and waits for Ctrl-C.

    Args:
        user_id: the development user that the page offers.
        port: of the app.

    Raises:
        StoryFailed: a program does not start, or the port is taken.
    """
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    async with contextlib.AsyncExitStack() as stack:
        directory = stack.enter_context(_directory())
        song = directory / "song.wav"
        print("Starting the credit service, with a PostgreSQL of its own ...", flush=True)
        serving = running(
            "credit_service",
            "serve",
            "--migrate",
            ready=r"listens on \S+?:(\d+)",
            CREDIT_LISTEN="127.0.0.1:0",
            CREDIT_DATA_DIR=str(directory / "data"),
            CREDIT_USERS="managed",
            CREDIT_ALERT_BELOW=str(_ALERT_BELOW),
        )
        target = f"127.0.0.1:{await stack.enter_async_context(serving)}"
        client = await stack.enter_async_context(CreditClient(target))
        await client.grant_credits(
            user_id,
            _FIRST_CREDITS,
            reason="a welcome",
            idempotency_key="grant:welcome:1",
        )
        print("Starting a fake Stripe, the bridge and the app ...", flush=True)
        stripe_url = await stack.enter_async_context(fake_stripe())
        token = secrets.token_urlsafe(24)
        service = Service(target, None, None)
        bridge_url = await _selling(stack, service, stripe_url, token, directory)
        app = running(
            "uvicorn",
            *("--app-dir", str(_APP), "--port", str(port), "--no-access-log"),
            *("--timeout-keep-alive", "75"),  # longer than a page leaves a connection idle
            "fastapi_app:app",
            ready=r"running on http://\S+?:(\d+)",
            hidden="INFO",
            CREDIT_GATEWAY_DEVELOPMENT="true",
            CREDIT_TARGET=target,
            BRIDGE_URL=bridge_url,
            CHECKOUT_TOKEN=token,
            CHECKOUT_HOSTS=urlsplit(stripe_url).netloc,
            APP_URL=f"http://127.0.0.1:{port}",
            SONG=str(song),
            STEMS=str(directory / "stems"),
        )
        await stack.enter_async_context(app)
        print(f"\nThe service is on {target}, for grpcurl.", flush=True)
        print(f"\nOpen http://127.0.0.1:{port}/?user={user_id}\nCtrl-C ends it.", flush=True)
        await stop.wait()
        print("\nStopping ...", flush=True)


async def _selling(
    stack: contextlib.AsyncExitStack,
    service: Service,
    stripe_url: str,
    token: str,
    directory: Path,
) -> str:
    """Runs the bridge with packs on sale at the fake Stripe; gives its address."""
    secret = f"whsec_{secrets.token_hex(16)}"
    packs = directory / "packs.toml"
    packs.write_text(_PACKS)
    async with httpx.AsyncClient(base_url=stripe_url, timeout=30) as stripe:
        for lookup_key, amount in _PRICES:
            price = {"unit_amount": amount, "currency": "eur", "lookup_key": lookup_key}
            (await stripe.post("/_fake/price", json=price)).raise_for_status()
        selling = bridge(service, stripe=stripe_url, secret=secret, token=token, packs=packs)
        url = f"http://127.0.0.1:{await stack.enter_async_context(selling)}"
        endpoint = {"url": f"{url}/stripe/webhooks", "secret": secret}
        (await stripe.post("/_fake/endpoint", json=endpoint)).raise_for_status()
    return url


@contextlib.contextmanager
def _directory() -> Iterator[Path]:
    """Makes a folder for the length of the block, with a song in it."""
    with tempfile.TemporaryDirectory(prefix="credit-demo-") as name:
        directory = Path(name)
        # If root runs the demo, PostgreSQL runs as `nobody` and must have access.
        directory.chmod(0o711)
        _write_song(directory / "song.wav")
        yield directory


def _write_song(path: Path) -> None:
    """Writes a stereo chord: something to separate."""
    second = array.array("h")
    for at in range(_RATE):
        left = sum(math.sin(2 * math.pi * tone * at / _RATE) for tone in (220, 277, 330))
        right = sum(math.sin(2 * math.pi * tone * at / _RATE) for tone in (220, 330, 440))
        second.extend((int(left * 7000), int(right * 7000)))
    if sys.byteorder == "big":
        second.byteswap()
    with wave.open(str(path), "wb") as writer:
        writer.setnchannels(2)
        writer.setsampwidth(2)
        writer.setframerate(_RATE)
        for _ in range(_SONG_SECONDS):
            writer.writeframes(second.tobytes())
