"""Takes pictures of the demo's page in the states that users see, for people to look at.

It starts what `scripts/demo --web` starts, and Debian's Chromium.
"""

import argparse
import asyncio
import contextlib
import itertools
import re
import shutil
import sys
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from playwright.async_api import Browser, Page, Route, async_playwright, expect

from credit_service.client import CreditClient

_ROOT = Path(__file__).resolve().parent.parent
_SCHEMES: tuple[Literal["light", "dark"], ...] = ("light", "dark")
_WIDE, _NARROW = 1280, 320
_WAIT_MS = 60_000


@dataclass(frozen=True, slots=True)
class Demo:
    """The URL of the demo's page, and a client of its service."""

    url: str
    client: CreditClient


@asynccontextmanager
async def _demo(port: int) -> AsyncIterator[Demo]:
    """Runs `scripts/demo --web` for the length of the block."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, str(_ROOT / "scripts/demo.py"), "--web", "--port", str(port)),
        stdout=asyncio.subprocess.PIPE,
    )
    assert process.stdout is not None  # noqa: S101  # it was asked for
    said = ""
    try:
        while "Ctrl-C" not in said:
            line = (await process.stdout.readline()).decode()
            if not line:
                raise SystemExit(f"the demo did not start:\n{said}")
            said += line
        found = re.search(r"service is on (\S+),.*Open (http://\S+)\?", said, re.DOTALL)
        assert found is not None  # noqa: S101  # it prints both
        async with CreditClient(found[1]) as client:
            yield Demo(found[2], client)
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.terminate()
        await process.wait()


async def _user(demo: Demo, credits_: int = 340) -> uuid.UUID:
    """Makes a user who has bought credits and used some."""
    user_id = uuid.uuid4()
    await demo.client.grant_credits(
        user_id, credits_, reason="a welcome", idempotency_key="grant:welcome:1"
    )
    for at, (operation, quantity) in enumerate(
        [("stem_separation", 2), ("render", 3), ("stem_separation", 1), ("render", 1)]
    ):
        await demo.client.spend_credits(
            user_id,
            operation=operation,
            quantity=quantity,
            description=f"Song {at + 1}.wav",
            idempotency_key=f"spend:{at}:1",
        )
    return user_id


async def _sign_in(page: Page, demo: Demo, user_id: uuid.UUID) -> None:
    await page.goto(f"{demo.url}?user={user_id}")
    await page.get_by_role("button", name="Sign in").click()


async def _settled(page: Page) -> None:
    await expect(page.locator("credits-history [part=row]").first).to_be_visible()
    await expect(page.locator("credits-usage svg")).to_be_visible()
    await expect(page.locator("credits-packs [part=pack]").first).to_be_visible()
    await expect(page.locator("credits-cost [part=verdict]").last).to_be_visible()


async def _usual(page: Page, demo: Demo) -> None:
    user_id = await _user(demo)
    await demo.client.hold_credits(user_id, amount=10, idempotency_key="hold:song:1")
    await _sign_in(page, demo, user_id)
    await _settled(page)


async def _debt(page: Page, demo: Demo) -> None:
    user_id = await _user(demo, 60)
    await demo.client.set_account_policy(user_id, min_balance=-100)
    await demo.client.spend_credits(user_id, amount=30, idempotency_key="spend:more:1")
    await demo.client.set_account_policy(user_id, min_balance=0)
    await _sign_in(page, demo, user_id)
    await _settled(page)


async def _loading(page: Page, demo: Demo) -> None:
    async def silent(_: Route) -> None:
        """Never answers, like a very slow network."""

    await page.route(re.compile("/credits/(account|transactions|usage|packs|quotes)"), silent)
    await _sign_in(page, demo, await _user(demo))
    await expect(page.locator("credits-balance [part=value]")).to_be_visible()


async def _offline(page: Page, demo: Demo) -> None:
    await _usual(page, demo)
    await page.context.set_offline(offline=True)
    await expect(page.locator("credits-balance")).to_contain_text("as of")


async def _refused(page: Page, demo: Demo) -> None:
    await _sign_in(page, demo, await _user(demo, 55))
    await _settled(page)
    await page.get_by_role("button", name="Separate").click()
    await expect(page.locator("credits-shortfall [part=card]")).to_be_visible()


async def _working(page: Page, demo: Demo) -> None:
    await _sign_in(page, demo, await _user(demo))
    await _settled(page)
    await page.get_by_role("button", name="Separate").click()
    await expect(page.locator("#stems audio").first).to_be_visible()


async def _paid(page: Page, demo: Demo) -> None:
    await _sign_in(page, demo, await _user(demo))
    await page.locator("credits-packs").get_by_role("button", name="Buy Album").click()
    await page.get_by_role("button", name="Pay").click()
    await expect(page.locator("credits-return")).to_contain_text("Paid.")
    await _settled(page)


async def _signed_out(page: Page, demo: Demo) -> None:
    await page.goto(f"{demo.url}?user={uuid.uuid4()}")


_State = Callable[[Page, Demo], Awaitable[None]]
_STATES: dict[str, _State] = {
    "usual": _usual,
    "debt": _debt,
    "loading": _loading,
    "offline": _offline,
    "refused": _refused,
    "done": _working,
    "paid": _paid,
    "signed-out": _signed_out,
}


@asynccontextmanager
async def _page(
    browser: Browser, scheme: Literal["light", "dark"], width: int
) -> AsyncIterator[Page]:
    context = await browser.new_context(
        color_scheme=scheme,
        viewport={"width": width, "height": 800},
        # An animation would be caught half way.
        reduced_motion="reduce",
    )
    yield await context.new_page()
    await context.close()


async def _main() -> None:
    parser = argparse.ArgumentParser(prog="scripts/screenshots", description=__doc__)
    parser.add_argument("folder", type=Path, help="where the pictures go; made if it is missing")
    parser.add_argument("--only", choices=_STATES, action="append", help="this state (all)")
    parser.add_argument("--port", type=int, default=8000, help="of the demo's app (%(default)s)")
    arguments = parser.parse_args()
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        parser.error("chromium is not installed")
    arguments.folder.mkdir(parents=True, exist_ok=True)
    expect.set_options(timeout=_WAIT_MS)
    async with _demo(arguments.port) as demo, async_playwright() as playwright:
        browser = await playwright.chromium.launch(
            executable_path=chromium, args=["--no-sandbox", "--disable-gpu"]
        )
        for name, scheme, width in itertools.product(
            arguments.only or _STATES, _SCHEMES, (_WIDE, _NARROW)
        ):
            path = arguments.folder / f"{name}-{scheme}-{width}.png"
            async with _page(browser, scheme, width) as page:
                await _STATES[name](page, demo)
                await page.screenshot(path=path, full_page=True)
            print(path, flush=True)
        await browser.close()


if __name__ == "__main__":
    asyncio.run(_main())
