"""Chromium and the whole demo, for the tests that look at a page like a user."""

import shutil
import signal
import sys
from typing import NamedTuple

import pytest
from kit.paths import ROOT
from kit.programs import Command, free_port
from kit.waiting import patience
from playwright.async_api import async_playwright, expect

# Without them Chromium contacts its maker's servers at every start.
_ARGUMENTS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


@pytest.fixture(scope="session")
async def chromium():
    # The headless build needs a third of the other's processor time for a page.
    path = shutil.which("chromium-headless-shell") or shutil.which("chromium")
    if path is None:
        pytest.skip("neither chromium-headless-shell nor chromium is installed")
    expect.set_options(timeout=patience(15) * 1000)
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=path, args=_ARGUMENTS)
        yield browser
        await browser.close()


class Demo(NamedTuple):
    """A running `scripts/demo --web`: the addresses of its page and of its service."""

    page: str
    service: str
    program: Command


@pytest.fixture(scope="module")
def demo(chromium):
    """`scripts/demo --web` as its reader runs it."""
    script = str(ROOT / "scripts/demo.py")
    program = Command(ROOT, sys.executable, script, "--web", "--port", str(free_port()))
    try:
        program.wait_for("Ctrl-C ends it", 60)
        page = program.wait_for(r"Open (http://\S+)\?").group(1)
        service = program.wait_for(r"The service is on (\S+),").group(1)
        yield Demo(page, service, program)
        program.signal(signal.SIGTERM)
        assert program.wait() == 0
    finally:
        program.close()
