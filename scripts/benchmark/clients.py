"""The client processes: all get the same plan at the same time and report its outcome."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Self

from benchmark.children import BenchmarkError, environment
from benchmark.plan import Outcome, Plan

if TYPE_CHECKING:
    from types import TracebackType

_STOP_SECONDS = 10.0

# Enough for a client to read its plan. The first plan of a kind warms up and may begin late.
_LEAD_SECONDS = 0.1


class Clients:
    """Client processes that end with the block."""

    def __init__(self, count: int) -> None:
        """Starts them.

        Args:
            count: how many.
        """
        self._processes = [
            subprocess.Popen(
                [sys.executable, "-m", "benchmark.load"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                env=environment(),
                start_new_session=True,
                text=True,
            )
            for _ in range(count)
        ]

    def carry_out(self, plan: Plan, processes: int | None = None) -> list[Outcome]:
        """Shares a plan out over the processes and waits for all of them.

        Args:
            plan: calls in flight and rate are of all processes together; `start_at` is set here.
            processes: how many share it; None: all.

        Raises:
            BenchmarkError: a process ended; its output is above.
        """
        chosen = self._processes[:processes]
        start_at = time.monotonic() + _LEAD_SECONDS
        for number, process in enumerate(chosen):
            share = replace(
                plan,
                in_flight=len(range(number, plan.in_flight, len(chosen))),
                rate=None if plan.rate is None else plan.rate / len(chosen),
                start_at=start_at,
            )
            assert process.stdin is not None  # noqa: S101  # it is a pipe
            try:
                process.stdin.write(json.dumps(asdict(share)) + "\n")
                process.stdin.flush()
            except BrokenPipeError as error:
                raise BenchmarkError("a client process has ended") from error
        return [self._outcome(process) for process in chosen]

    @staticmethod
    def _outcome(process: subprocess.Popen[str]) -> Outcome:
        assert process.stdout is not None  # noqa: S101  # it is a pipe
        line = process.stdout.readline()
        if not line:
            raise BenchmarkError("a client process has ended")
        return Outcome(**json.loads(line))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for process in self._processes:
            if error is not None:
                process.terminate()
            with process:  # closes both ends, which ends it
                assert process.stdin is not None  # noqa: S101  # it is a pipe
                process.stdin.close()
                try:
                    process.wait(_STOP_SECONDS)
                except subprocess.TimeoutExpired:
                    process.kill()
