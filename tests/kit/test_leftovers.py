"""A run that is killed leaves neither its directory nor a program."""

import os
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
from kit.leftovers import MARK, processes, run_directory
from kit.paths import ROOT
from kit.waiting import too_late

# A minimal run: it starts a program in a session of its own, which far outlives the run.
RUN = """
import signal, subprocess, sys
from pathlib import Path
from kit.leftovers import run_directory

with run_directory(Path(sys.argv[1])) as directory:
    subprocess.Popen(["sleep", "600"], start_new_session=True)
    print(directory, flush=True)
    signal.pause()
"""

pytestmark = pytest.mark.skipif(not Path("/proc").exists(), reason="only Linux shows what is left")


def _wait_until(claim, seconds=60):
    started = time.monotonic()
    while not claim():
        assert not too_late(started, seconds)
        time.sleep(0.1)


@contextmanager
def _started(command, **variables):
    with subprocess.Popen(
        [sys.executable, *command],
        cwd=ROOT,
        env=os.environ | variables,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
        text=True,
    ) as run:
        try:
            yield run
        finally:
            run.kill()


def _wait_until_nothing_is_left_of(directory):
    _wait_until(lambda: not directory.exists())
    # The keeper, whose command line names the directory, ends after removing it.
    for by_mark in (True, False):
        _wait_until(lambda by_mark=by_mark: not processes(directory, by_mark=by_mark))


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_a_whole_run_leaves_neither_its_directory_nor_a_program(number, tmp_path):
    with _started(["-c", RUN, tmp_path], PYTHONPATH=str(ROOT / "tests")) as run:
        directory = Path(run.stdout.readline().strip())
        # The kernel shows a program's environment only some time after it has been started.
        _wait_until(lambda: len(processes(directory, by_mark=True)) == 1)
        os.killpg(run.pid, number)  # as a terminal does
        run.wait()
    _wait_until_nothing_is_left_of(directory)


def test_a_killed_pytest_leaves_neither_its_cluster_nor_a_service(tmp_path):
    note = tmp_path / "directory"
    command = ["-m", "pytest", "-q", "-n", "1", "tests/kit/standstill.py"]
    with _started(command, STANDSTILL=str(note)) as run:
        _wait_until(lambda: (note.exists() and note.read_text()) or run.poll() is not None)
        directory = Path(note.read_text())
        assert len(processes(directory, by_mark=True)) >= 2  # the worker and the service
        assert processes(directory, by_mark=False)  # the cluster
        run.kill()
        run.wait()
    _wait_until_nothing_is_left_of(directory)


def test_a_directory_whose_keeper_was_killed_is_removed_at_the_next_start(tmp_path, monkeypatch):
    monkeypatch.setenv(MARK, "")
    abandoned = tmp_path / "credit-tests-abandoned"
    abandoned.mkdir()
    (abandoned / "keeper.lock").touch()
    with run_directory(tmp_path) as first:
        assert not abandoned.exists()
        with run_directory(tmp_path):
            assert first.exists()
    assert not first.exists()
