"""A forked program is a process like the one that `python -m` starts."""

import asyncio
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from kit.leftovers import MARK
from kit.paths import ROOT
from kit.program_forks import can_fork, program_forks, run_forked
from kit.programs import Process, process, run_module
from kit.waiting import patience

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="programs are forked on Linux only")


def plain_environment(**variables):
    return {k: v for k, v in os.environ.items() if not k.startswith("CREDIT_")} | variables


@pytest.mark.parametrize(
    "arguments", [("settings",), ("--version",), ("--help",), ("verify", "--nonsense")]
)
def test_it_prints_and_ends_as_python_m_does(arguments):
    environment = plain_environment(CREDIT_LANES="7", CREDIT_DATABASE_URL="postgresql:///none")
    assert can_fork("credit_service", environment)
    forked = run_forked("credit_service", arguments, environment, patience(60))
    started = run_module("credit_service", *arguments, environment=environment | {"PYTHONX": "1"})
    assert (forked.returncode, forked.stdout, forked.stderr) == (
        started.returncode,
        started.stdout,
        started.stderr,
    )


@pytest.mark.parametrize("variable", ["PYTHONUNBUFFERED", "GRPC_VERBOSITY", "LC_ALL", "TZ"])
def test_a_setting_that_is_read_at_the_start_prevents_a_fork(variable):
    changed = "UTC" if os.environ.get(variable) is None else None
    environment = {k: v for k, v in os.environ.items() if k != variable}
    environment |= {} if changed is None else {variable: changed}
    assert not can_fork("credit_service", environment)
    assert not can_fork("a module that is not prepared", dict(os.environ))


async def test_it_leads_a_session_and_its_end_is_known(database):
    with process(CREDIT_DATABASE_URL=database.service_url) as service:
        await asyncio.to_thread(service.wait_until_listening)
        pid = service.popen.pid
        assert not isinstance(service.popen, subprocess.Popen)
        assert os.getsid(pid) == os.getpgid(pid) == pid != os.getsid(0)
        assert service.popen.poll() is None
        with pytest.raises(subprocess.TimeoutExpired):
            service.popen.wait(0)
        service.signal(signal.SIGKILL)
        assert await asyncio.to_thread(service.wait) == -signal.SIGKILL
        assert service.popen.poll() == -signal.SIGKILL


def test_a_fork_that_hangs_is_killed_after_its_time():
    environment = plain_environment(
        CREDIT_LISTEN="127.0.0.1:0", CREDIT_DATABASE_URL="postgresql:///none?host=/nowhere"
    )
    with pytest.raises(subprocess.TimeoutExpired):
        run_forked("credit_service", ["serve"], environment, 0.5)


def test_a_fork_has_only_the_variables_that_it_is_given(monkeypatch):
    given = plain_environment()
    monkeypatch.setenv("CREDIT_LANES", "7")  # of the process that forks, too
    monkeypatch.setenv("TEST_PROGRAM_FORKS", "")
    monkeypatch.setenv("TEST_PROGRAM_FORKS_PATH", "")
    with (
        tempfile.TemporaryDirectory(dir=os.environ[MARK]) as place,
        program_forks(Path(place), ROOT / "tests"),
    ):
        assert can_fork("credit_service", given)
        forked = run_forked("credit_service", ["settings"], given, patience(60))
    assert "CREDIT_LANES=7" not in forked.stdout.replace(" ", "")


def test_two_forks_have_separate_environments_and_files():
    one = Process(("settings",), {"CREDIT_LANES": "3"})
    other = Process(("settings",), {"CREDIT_LANES": "5"})
    try:
        assert (one.wait(), other.wait()) == (0, 0)
        assert "CREDIT_LANES=3" in one.output.replace(" ", "")
        assert "CREDIT_LANES=5" in other.output.replace(" ", "")
    finally:
        one.close()
        other.close()
