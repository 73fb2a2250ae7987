"""The command line in separate processes, and ports for programs that need a fixed one."""

import contextlib
import itertools
import os
import random
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from kit.program_forks import Fork, can_fork, run_forked
from kit.waiting import patience, too_late


class Process:
    """`credit-service serve` in a process of its own."""

    def __init__(self, arguments: tuple[str, ...], environment: dict[str, str]) -> None:
        clean = {k: v for k, v in os.environ.items() if not k.startswith("CREDIT_")}
        self._start_module(
            "credit_service", arguments, {**clean, "CREDIT_LISTEN": "127.0.0.1:0", **environment}
        )

    def _start_module(
        self, module: str, arguments: Sequence[str], environment: dict[str, str]
    ) -> None:
        if not can_fork(module, environment):
            self._start([sys.executable, "-m", module, *arguments], environment)
            return
        reading, writing = os.pipe()
        try:
            self.popen = Fork(module, arguments, environment, stdout=writing, stderr=writing)
        finally:
            os.close(writing)
        self._read_output(os.fdopen(reading))

    def _start(
        self, command: Sequence[str], environment: dict[str, str], place: Path | None = None
    ) -> None:
        self.popen: subprocess.Popen[str] | Fork = subprocess.Popen(
            command,
            env=environment,
            cwd=place,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        assert self.popen.stdout is not None
        self._read_output(self.popen.stdout)

    def _read_output(self, output: TextIO) -> None:
        self._output = output
        self.lines: list[str] = []
        self._more = threading.Condition()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        for line in self._output:
            with self._more:
                self.lines.append(line.rstrip("\n"))
                self._more.notify_all()
        with self._more:
            self._more.notify_all()

    @property
    def output(self) -> str:
        return "\n".join(self.lines)

    def wait_for(self, pattern: str, seconds: float = 30) -> re.Match[str]:
        """Waits until a line of the output matches; fails with the output if none does."""
        expression = re.compile(pattern)
        started = time.monotonic()
        with self._more:
            while True:
                for line in self.lines:
                    if match := expression.search(line):
                        return match
                ended = self.popen.poll() is not None and not self._reader.is_alive()
                if ended or too_late(started, seconds):
                    raise AssertionError(f"no line matches {pattern!r} in:\n{self.output}")
                self._more.wait(0.2)

    def wait_until_listening(self) -> int:
        """Waits for the start and returns the port."""
        return int(self.wait_for(r"listens on \S+:(\d+)").group(1))

    def signal(self, number: signal.Signals) -> None:
        self.popen.send_signal(number)

    def wait(self, seconds: float = 30) -> int:
        """Waits for the end and returns the exit code."""
        code = self.popen.wait(patience(seconds))
        self._reader.join(patience(5))
        return code

    def close(self) -> None:
        """Ends it in any state, with everything that it started."""
        if self.popen.poll() is None:
            self.popen.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.popen.wait(patience(15))
        # After the end, a process with that number is another one. The number is not reused while
        # processes of the group are left.
        if self.popen.poll() is None or not Path(f"/proc/{self.popen.pid}").exists():
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.popen.pid, signal.SIGKILL)
        self.popen.wait()
        self._reader.join(patience(5))
        self._output.close()


class Command(Process):
    """Any command as a process of its own, started in a directory."""

    def __init__(self, place: Path, *command: str) -> None:
        self._start(command, dict(os.environ), place)


@contextmanager
def process(*arguments: str, **environment: str) -> Iterator[Process]:
    """Runs the command line, `serve` by default, with these environment variables."""
    started = Process(arguments or ("serve",), environment)
    try:
        yield started
    finally:
        started.close()


def run_module(
    module: str, *arguments: object, environment: Mapping[str, str]
) -> "subprocess.CompletedProcess[str]":
    """Runs `python -m` of a module to its end; returns its exit code and its output."""
    command = [str(each) for each in arguments]
    if can_fork(module, environment):
        return run_forked(module, command, environment, patience(60))
    return subprocess.run(
        [sys.executable, "-m", module, *command],
        env=environment,
        capture_output=True,
        text=True,
        timeout=patience(60),
        check=False,
    )


def _ports() -> Iterator[int]:
    # Below the ports that Linux gives to outgoing connections (ip(7), ip_local_port_range): one of
    # those can be taken while a server is down between two starts, even by a client that looks for
    # the server. Each process that runs tests has a range of its own.
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    first = random.randrange(10_000, 20_000, 100)
    return itertools.cycle(range(first + worker % 100, first + 10_000, 100))


def free_port() -> int:
    """A port that is free at the moment, for a program that needs a fixed one."""
    while True:
        port = next(_PORTS)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


_PORTS = _ports()
