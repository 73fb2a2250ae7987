"""The server of an embedded cluster: it is started, watched, and started again when it dies."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import structlog

from credit_service.database.programs import (
    ENVIRONMENT,
    EmbeddedPostgresError,
    Programs,
    cause,
)

_log = structlog.get_logger()

SOCKET = ".s.PGSQL.5432"

STOP_SECONDS = 60
LEFT_OVER_SECONDS = 5.0

_START_SECONDS = 120.0  # recovery after a power cut replays up to 1 GB of log
_STILL_ATTACHED = "pre-existing shared memory block"
_POLL_SECONDS = 0.02

# Between a death and the next start; doubled until a server has run for the longest of them.
_PAUSE_SECONDS = 0.1
_PAUSE_SECONDS_MAX = 30.0

# How much of the end of its log is read, and how much of that is logged when it dies.
_SAID_BYTES_MAX = 64 * 1024
_LAST_LINES = 5

# PostgreSQL's fast shutdown.
_SIGNAL_AT_OUR_DEATH = signal.SIGINT

# Becomes PostgreSQL in a new process. It is a program of its own, because Python code that runs
# between fork and exec can lock up in a process with threads, and gRPC has some.
_LAUNCHER = """
import ctypes, json, os, sys
order = json.loads(sys.argv[1])
if order["account"]:
    os.setgroups(order["account"]["extra_groups"])
    os.setgid(order["account"]["group"])
    os.setuid(order["account"]["user"])
if sys.platform == "linux":  # after the change of account, which would drop it
    PR_SET_PDEATHSIG = 1
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, order["signal"], 0, 0, 0)
    if os.getppid() != order["parent"]:
        sys.exit(1)
os.execve(order["command"][0], order["command"], order["environment"])
"""


@dataclass(frozen=True, slots=True)
class Announced:
    """What a server says about itself in `postmaster.pid`."""

    pid: int
    sockets: Path | None
    ready: bool


def announced(cluster: Path) -> Announced | None:
    """Returns what the server of a cluster says about itself; None: it says nothing yet."""
    try:
        lines = (cluster / "postmaster.pid").read_text().splitlines()
    except FileNotFoundError:
        return None
    if not lines or not lines[0].strip().isdecimal():
        return None
    lines = [line.strip() for line in lines] + [""] * 8
    return Announced(int(lines[0]), Path(lines[4]) if lines[4] else None, lines[7] == "ready")


def alive(pid: int) -> bool:
    """Returns whether a process exists."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def answers(sockets: Path) -> bool:
    """Returns whether a server takes connections in a socket directory."""
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(str(sockets / SOCKET))
        except OSError:
            return False
    return True


@contextmanager
def kept_running(
    programs: Programs, cluster: Path, log: Path, sockets: Path, settings: Mapping[str, str]
) -> Iterator[int]:
    """Runs a server for as long as the block lasts, and starts another whenever it dies.

    Args:
        programs: of PostgreSQL.
        cluster: its data; complete.
        log: what it writes; the one of an earlier run is kept beside it as `.previous`.
        sockets: where its socket is.
        settings: of the server.

    Yields:
        The process id of the first server, which takes connections.

    Raises:
        EmbeddedPostgresError: the first server did not start; with the cause.
    """
    if log.exists():
        log.replace(log.with_suffix(".log.previous"))
    where = {"listen_addresses": "", "port": "5432", "unix_socket_directories": str(sockets)}
    options = [f"-c{name}={value}" for name, value in (dict(settings) | where).items()]
    server = _Server(programs, cluster, log, options)
    # Linux ends a child when the thread that started it ends, so one thread starts them all.
    keeper = threading.Thread(target=server.keep, name="embedded PostgreSQL", daemon=True)
    keeper.start()
    try:
        yield server.first.result()
    finally:
        server.stop()
        keeper.join()


class _Server:
    """The present server of a cluster, and the next ones."""

    def __init__(self, programs: Programs, cluster: Path, log: Path, options: list[str]) -> None:
        self.first: Future[int] = Future()
        self._programs = programs
        self._cluster = cluster
        self._log = log
        self._options = options
        self._log_begin = 0
        self._process: subprocess.Popen[bytes] | None = None
        # Ensures that no process starts once the stop has begun.
        self._starting = threading.Lock()
        self._stopping = threading.Event()

    def keep(self) -> None:
        """Starts servers, each when the one before has died, until `stop` is called."""
        try:
            self._start_first()
        except BaseException as error:
            self.first.set_exception(error)
            return
        pause = _PAUSE_SECONDS
        while self._process is not None:
            ready_at = time.monotonic()
            self._process.wait()
            if self._stopping.is_set():
                return
            if time.monotonic() - ready_at > _PAUSE_SECONDS_MAX:
                pause = _PAUSE_SECONDS
            self._report_death(self._process.returncode, pause)
            while True:
                if self._stopping.wait(pause):
                    return
                pause = min(pause * 2, _PAUSE_SECONDS_MAX)
                if self._starts_again(pause):
                    break

    def stop(self) -> None:
        """Ends the present server in good order; no other follows."""
        with self._starting:
            self._stopping.set()
            process = self._process
        if process is not None:
            _end(process)

    def _start_first(self) -> None:
        """Starts a server as soon as no other process of a server that was killed is left."""
        deadline = time.monotonic() + LEFT_OVER_SECONDS
        while True:
            try:
                started = self._start()
            except EmbeddedPostgresError as error:
                if _STILL_ATTACHED not in str(error) or time.monotonic() > deadline:
                    raise
            else:
                if started and self._process is not None:
                    self.first.set_result(self._process.pid)
                return
            time.sleep(_POLL_SECONDS)

    def _starts_again(self, pause: float) -> bool:
        """Starts a server; False: it did not start, and the log says why."""
        try:
            if not self._start():
                return False
        except (EmbeddedPostgresError, OSError) as error:
            if not self._stopping.is_set():
                _log.error(
                    "embedded PostgreSQL does not start, trying again",
                    problem=str(error),
                    seconds=pause,
                )
            return False
        _log.warning("embedded PostgreSQL runs again")
        return True

    def _start(self) -> bool:
        """Starts a server and waits until it is ready; False: it is not to run any more.

        Raises:
            EmbeddedPostgresError: it has ended, or is not ready in time and was ended.
        """
        with self._starting:
            if self._stopping.is_set():
                return False
            process = self._process = self._launched()
        deadline = time.monotonic() + _START_SECONDS
        while not self._is_ready(process.pid):
            if process.poll() is not None:
                why = cause("\n".join(self._said()))
                raise EmbeddedPostgresError(
                    f"PostgreSQL did not start: {why} (more in {self._log})"
                )
            if time.monotonic() > deadline:
                _end(process)
                raise EmbeddedPostgresError(
                    f"PostgreSQL was not ready after {_START_SECONDS:.0f} s: read {self._log}, then"
                    " start again; recovery goes on where it stopped."
                )
            time.sleep(_POLL_SECONDS)
        return True

    def _launched(self) -> "subprocess.Popen[bytes]":
        # It may have been removed to make room on the disk.
        self._log.touch(mode=0o600)
        self._log_begin = min(self._log_begin, self._log.stat().st_size)
        # The output of failed starts does not pile up; that of a server that ran is kept.
        os.truncate(self._log, self._log_begin)
        order = {
            "command": [
                str(self._programs.directory / "postgres"),
                *("-D", str(self._cluster)),
                *self._options,
            ],
            "environment": ENVIRONMENT,
            "account": self._programs.account,
            "parent": os.getpid(),
            "signal": _SIGNAL_AT_OUR_DEATH,
        }
        with self._log.open("ab") as output:
            return subprocess.Popen(  # noqa: S603
                [sys.executable, "-I", "-S", "-c", _LAUNCHER, json.dumps(order)],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                cwd="/",
                # Ctrl-C is for the service, which needs the database to drain.
                start_new_session=True,
            )

    def _is_ready(self, pid: int) -> bool:
        # The file may still be that of a server that was killed.
        server = announced(self._cluster)
        return server is not None and server.pid == pid and server.ready

    def _report_death(self, code: int, pause: float) -> None:
        """Logs how a server died: its exit code or signal, and the end of what it wrote."""
        how: dict[str, object] = {"exit": code}
        if code < 0:
            with contextlib.suppress(ValueError):  # a real-time signal has no name
                how = {"signal": signal.Signals(-code).name}
        _log.error(
            "embedded PostgreSQL died, starting it again",
            **how,
            last_lines=self._said()[-_LAST_LINES:],
            log=str(self._log),
            seconds=pause,
        )
        with contextlib.suppress(FileNotFoundError):
            self._log_begin = self._log.stat().st_size

    def _said(self) -> list[str]:
        """The lines that the present server wrote, or the last of many; none if it was removed."""
        try:
            log = self._log.open("rb")
        except FileNotFoundError:
            return []
        with log:
            end = log.seek(0, os.SEEK_END)
            log.seek(max(self._log_begin, end - _SAID_BYTES_MAX))
            return log.read().decode(errors="replace").splitlines()


def _end(process: "subprocess.Popen[bytes]") -> None:
    if process.poll() is None:
        process.send_signal(signal.SIGINT)  # fast shutdown: roll back, checkpoint, end
    try:
        process.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGQUIT)  # at once; the next start recovers
        process.wait()
