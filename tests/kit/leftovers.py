"""The directory of one run of the tests, removed with the run's programs however the run ends.

A keeper, which is this file run as a program, notices the end of the run, even by SIGKILL, by the
end of a pipe. It kills the programs that still carry the run's mark in their environment, waits for
the PostgreSQL servers, which Linux stops when the program that started them dies, and removes the
directory. If the keeper was killed, the next run removes the directory.
"""

import contextlib
import fcntl
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

MARK = "TEST_RUN_DIRECTORY"
_PREFIX = "credit-tests-"
_LOCK = "keeper.lock"
_SHUTDOWN_SECONDS = 30
_POLL_SECONDS = 0.05


@contextmanager
def run_directory(place: Path) -> Iterator[Path]:
    """Makes a directory for a run in `place`; programs started within the block carry its mark."""
    _remove_abandoned(place)
    directory = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=place))
    keeper = subprocess.Popen(
        [sys.executable, "-I", "-S", __file__, directory],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={name: value for name, value in os.environ.items() if name != MARK},
        start_new_session=True,  # Ctrl-C is for the run
    )
    assert keeper.stdout is not None
    assert keeper.stdout.readline(), "the keeper of the run's directory did not start"
    os.environ[MARK] = str(directory)
    try:
        yield directory
    finally:
        keeper.communicate()


def _remove_abandoned(place: Path) -> None:
    for lock in place.glob(f"{_PREFIX}*/{_LOCK}"):
        with contextlib.suppress(OSError), lock.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(lock.parent, ignore_errors=True)


def processes(directory: Path, *, by_mark: bool) -> list[int]:
    """The processes that carry the mark of the run, or those whose command line names its place."""
    every = (int(process.name) for process in Path("/proc").glob("[0-9]*"))
    return [each for each in every if each != os.getpid() and _is_of(directory, each, by_mark)]


def _is_of(directory: Path, process: int, by_mark: bool) -> bool:
    wanted = os.fsencode(f"{MARK}={directory}" if by_mark else directory)
    try:
        said = Path(f"/proc/{process}/{'environ' if by_mark else 'cmdline'}").read_bytes()
    except OSError:
        return False
    return wanted in said.split(b"\0") if by_mark else wanted in said


def _kill(directory: Path, *, by_mark: bool) -> list[int]:
    """Kills the processes of a run; returns their numbers."""
    found = processes(directory, by_mark=by_mark)
    for process in found:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            # Linux reuses the number of an ended process; the descriptor stays with this process.
            descriptor = os.pidfd_open(process)
            try:
                if _is_of(directory, process, by_mark):
                    signal.pidfd_send_signal(descriptor, signal.SIGKILL)
            finally:
                os.close(descriptor)
    return found


def _keep(directory: Path) -> None:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    with (directory / _LOCK).open("wb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        print("keeping", flush=True)
        sys.stdin.read()
        deadline = time.monotonic() + _SHUTDOWN_SECONDS
        while time.monotonic() < deadline:
            marked = _kill(directory, by_mark=True)
            if not marked and not processes(directory, by_mark=False):
                break
            time.sleep(_POLL_SECONDS)
        _kill(directory, by_mark=False)
        shutil.rmtree(directory, ignore_errors=True)


if __name__ == "__main__":
    _keep(Path(sys.argv[1]))
