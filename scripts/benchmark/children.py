"""The processes that are measured, each in a session of its own, with its output in a file."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Self

from credit_service.database.programs import dying_with_us

if TYPE_CHECKING:
    from types import TracebackType

_START_SECONDS = 60.0
_STOP_SECONDS = 30.0
_POLL_SECONDS = 0.02

_SCRIPTS = Path(__file__).resolve().parent.parent


class BenchmarkError(Exception):
    """The benchmark cannot go on; the text says why."""


def environment(**variables: str) -> dict[str, str]:
    """Returns our environment without settings of the service, and with these variables."""
    inherited = {name: value for name, value in os.environ.items() if name[:7] != "CREDIT_"}
    return {**inherited, "PYTHONPATH": str(_SCRIPTS), **variables}


class Child:
    """A process that ends with the block."""

    def __init__(self, name: str, command: list[str], log: Path, **variables: str) -> None:
        """Starts it.

        Args:
            name: its name in messages.
            command: the program and its arguments.
            log: takes its output.
            variables: of its environment, besides the inherited ones.
        """
        self._name, self._log = name, log
        with log.open("wb") as output:
            self._process = subprocess.Popen(  # noqa: S603
                command,
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=environment(**variables),
                start_new_session=True,  # Ctrl-C must reach only the benchmark, which ends them
                preexec_fn=dying_with_us(),  # noqa: PLW1509
            )

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    def wait_for(self, pattern: str) -> re.Match[str]:
        """Waits until its output matches.

        Raises:
            BenchmarkError: it ended, or wrote no such line in time.
        """
        deadline = time.monotonic() + _START_SECONDS
        while True:
            ended = self._process.poll() is not None
            written = self._log.read_text(errors="replace")
            if found := re.search(pattern, written):
                return found
            if ended or time.monotonic() > deadline:
                raise BenchmarkError(f"{self._name} did not start:\n{written[-2000:]}")
            time.sleep(_POLL_SECONDS)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._process.terminate()
        try:
            self._process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
        if self._process.stdin is not None:
            self._process.stdin.close()


class Server(Child):
    """A process that serves gRPC."""

    @cached_property
    def target(self) -> str:
        """Its host:port, once it serves.

        Raises:
            BenchmarkError: it did not start.
        """
        return self.wait_for(r"listens on (\S+:\d+)")[1]


def service(log: Path, database_url: str, *arguments: str, **variables: str) -> Server:
    """Starts `credit-service serve` on any free port.

    Args:
        log: takes its output, with a line per call.
        database_url: as the service's role.
        arguments: further ones of `serve`.
        variables: settings of the service.
    """
    settings = {"CREDIT_LISTEN": "127.0.0.1:0", "CREDIT_DATABASE_URL": database_url, **variables}
    command = [sys.executable, "-m", "credit_service", "serve", *arguments]
    return Server("the service", command, log, **settings)


def rival(log: Path, database_url: str) -> Server:
    """Starts the rival server."""
    return Server("the rival", [sys.executable, "-m", "benchmark.rival", database_url], log)
