"""A test that hangs fails, wherever it hangs, and the tests after it still run."""

import subprocess
import sys

import pytest
from kit.paths import ROOT
from kit.waiting import patience

_CONFTEST = """
from kit import time_limits

def pytest_configure(config):
    config.pluginmanager.register(time_limits)
"""

_TESTS = """
import asyncio
import time

import pytest

@pytest.fixture
async def never_torn_down():
    yield
    await asyncio.sleep(3600)

async def test_waits():
    await asyncio.sleep(3600)

async def test_blocks_the_loop():
    time.sleep(3600)

def test_blocks():
    time.sleep(3600)

async def test_teardown(never_torn_down):
    pass

async def test_fine():
    await asyncio.sleep(0)

async def test_goes_on():
    while True:
        try:
            await asyncio.sleep(3600)
        except BaseException:
            pass
"""


_SETTINGS = (
    "--timeout=1",
    "--override-ini=asyncio_mode=auto",
    "--override-ini=asyncio_default_fixture_loop_scope=session",
)


def run(directory, *options):
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-v", *_SETTINGS, *options, "."],
        cwd=directory,
        env={"PYTHONPATH": str(ROOT / "tests"), "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        timeout=patience(120),
        check=False,
    )


@pytest.fixture
def hanging_tests(tmp_path):
    (tmp_path / "conftest.py").write_text(_CONFTEST)
    (tmp_path / "test_hangs.py").write_text(_TESTS)
    return tmp_path


def test_each_hanging_test_fails_by_itself(hanging_tests):
    result = run(hanging_tests, "-k", "not goes_on")
    assert "3 failed, 2 passed, 1 deselected, 1 error" in result.stdout, result.stdout
    assert "test_hangs.py::test_waits took longer than 1 s" in result.stdout
    assert "await asyncio.sleep(3600)" in result.stdout  # where it hung


def test_a_test_that_ignores_its_cancellation_ends_the_process(hanging_tests):
    (hanging_tests / "conftest.py").write_text(f"{_CONFTEST}\ntime_limits._GRACE_SECONDS = 1\n")
    result = run(hanging_tests, "-k", "goes_on")
    assert result.returncode == 1
    assert "test_goes_on" in result.stderr
    assert "failed" not in result.stdout
