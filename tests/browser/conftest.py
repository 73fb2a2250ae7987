"""Debian's Chromium, and the whole demo, for the tests that look at a page as a user does."""

import re
import shutil
import subprocess
import sys

import pytest
from kit.paths import ROOT
from kit.programs import free_port
from kit.waiting import patience
from playwright.async_api import async_playwright, expect

# Without them Chromium looks for its maker's servers at every start.
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
    path = shutil.which("chromium")
    if path is None:
        pytest.skip("chromium is not installed")
    expect.set_options(timeout=patience(15) * 1000)
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=path, args=_ARGUMENTS)
        yield browser
        await browser.close()


@pytest.fixture(scope="module")
def demo(chromium):
    """`scripts/demo --web` as its reader runs it: the address of the page and of the service."""
    command = [sys.executable, ROOT / "scripts/demo.py", "--web", "--port", str(free_port())]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as running:
        said = ""
        for line in running.stdout:
            said += line
            if line.startswith("Ctrl-C"):
                break
        (page,) = re.findall(r"Open (http://\S+)\?", said)
        (service,) = re.findall(r"The service is on (\S+),", said)
        yield page, service
        running.terminate()
        assert running.wait(patience(30)) == 0
