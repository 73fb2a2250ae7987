"""Closing a program ends what it started, and nothing else."""

import signal
import sys
from pathlib import Path

import pytest
from kit.paths import ROOT
from kit.programs import Command

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="processes are found in /proc")


def test_a_process_that_outlives_its_program_is_killed():
    program = Command(ROOT, "sh", "-c", "sleep 600 & echo process $!")
    left = program.wait_for(r"process (\d+)").group(1)
    program.popen.wait()
    assert Path(f"/proc/{left}").exists()
    program.close()  # which waits until nothing has its output open
    assert not program._reader.is_alive()


def test_a_process_that_was_given_the_number_of_an_ended_program_is_spared():
    ended, other = Command(ROOT, "true"), Command(ROOT, "sleep", "600")
    try:
        ended.wait()
        ended.popen.pid = other.popen.pid
        ended.close()
        other.signal(signal.SIGTERM)
        assert other.wait() == -signal.SIGTERM
    finally:
        other.close()
