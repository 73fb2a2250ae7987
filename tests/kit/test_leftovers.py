"""A run that is killed leaves neither its directory nor a program."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from kit.leftovers import processes, run_directory
from kit.paths import ROOT
from kit.waiting import too_late


def _wait_until(claim, seconds=60):
    started = time.monotonic()
    while not claim():
        assert not too_late(started, seconds)
        time.sleep(0.1)


@pytest.mark.skipif(not Path("/proc").exists(), reason="only Linux shows who is left")
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_killed_run_leaves_neither_its_directory_nor_a_program(number, tmp_path):
    note = tmp_path / "directory"
    command = [sys.executable, "-m", "pytest", "-q", "-n", "1", "tests/kit/standstill.py"]
    with subprocess.Popen(
        command,
        cwd=ROOT,
        env=os.environ | {"STANDSTILL": str(note)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    ) as run:
        try:
            _wait_until(lambda: (note.exists() and note.read_text()) or run.poll() is not None)
            directory = Path(note.read_text())
            servers = [pid for pid in processes(directory, by_mark=False) if pid != run.pid]
            assert servers
            assert len(processes(directory, by_mark=True)) >= 2  # the worker and the service
            if number is signal.SIGINT:
                os.killpg(run.pid, number)  # as a terminal does
            else:
                run.send_signal(number)
            _wait_until(lambda: run.poll() is not None)
        finally:
            run.kill()
    _wait_until(lambda: not directory.exists())
    assert not processes(directory, by_mark=True)
    assert not processes(directory, by_mark=False)


def test_a_directory_whose_keeper_was_killed_goes_at_the_next_start(tmp_path, monkeypatch):
    monkeypatch.setenv("TEST_RUN_DIRECTORY", "")
    abandoned = tmp_path / "credit-tests-abandoned"
    abandoned.mkdir()
    (abandoned / "keeper.lock").touch()
    with run_directory(tmp_path) as first:
        assert not abandoned.exists()
        with run_directory(tmp_path):
            assert first.exists()
    assert not first.exists()
