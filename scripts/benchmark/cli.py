"""The command line: arguments, the programs to start and end, the exit code."""

from __future__ import annotations

import argparse
import asyncio
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from benchmark import book, machine, rows
from benchmark.children import BenchmarkError, environment
from benchmark.report import Report, table
from benchmark.testbed import Extent, testbed
from credit_service.database.embedded import EmbeddedPostgresError, embedded_postgres

if TYPE_CHECKING:
    from benchmark.lines import Line
    from credit_service.database.embedded import Cluster

_USERS = 100_000
_CLIENTS = 2
_TURNS, _TURNS_FULL = 3, 7
_SECONDS, _SECONDS_FULL = 0.7, 5.0
_SECONDS_MAX = 3600.0

# The service, the rival and pgbench at the same time, and a service for each long book.
_DATABASE_CONNECTIONS = 200

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


def main() -> NoReturn:
    """Runs the benchmark and ends the process.

    The exit code is 0 if every figure can be trusted, even if it misses its target; 1 if the book
    does not add up or calls failed; 2 if the benchmark could not run; and 128 plus the signal if it
    was stopped.
    """
    arguments = _parser().parse_args()
    if sys.platform != "linux":
        sys.exit("scripts/bench: it reads /proc, so it runs on Linux only")
    stopped: list[int] = []

    def stop(number: int, _frame: object) -> None:
        # Handled only once, because the started programs must be ended.
        for each in _SIGNALS:
            signal.signal(each, signal.SIG_IGN)
        stopped.append(number)
        raise KeyboardInterrupt

    for number in _SIGNALS:
        signal.signal(number, stop)
    try:
        report = _run(arguments)
    except KeyboardInterrupt:
        print(
            "scripts/bench: stopped; its programs have ended and its files are removed",
            file=sys.stderr,
        )
        sys.exit(128 + (stopped or [signal.SIGINT])[0])
    except (BenchmarkError, EmbeddedPostgresError) as error:
        print(f"scripts/bench: {error}", file=sys.stderr)
        sys.exit(2)
    print(report.text())
    if arguments.json is not None:
        arguments.json.write_text(report.json() + "\n")
    sys.exit(0 if report.good else 1)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="scripts/bench",
        description="Measures the service on a fresh embedded PostgreSQL with durable commits,"
        " beside a bare server and one transaction per call, and prints a table of ratios."
        " About three minutes on 2 cores.",
    )
    parser.add_argument("--full", action="store_true", help="the long run: one to two hours")
    parser.add_argument(
        "--only",
        action="append",
        choices=rows.NAMES,
        metavar="ROW",
        help=f"only this row; may be repeated: {', '.join(rows.NAMES)}",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures to FILE too")
    parser.add_argument(
        "--turns",
        type=_whole,
        metavar="N",
        help=f"how often each load takes its turn ({_TURNS}, with --full {_TURNS_FULL})",
    )
    parser.add_argument(
        "--seconds",
        type=_seconds,
        metavar="S",
        help=f"how long a turn is ({_SECONDS:g}, with --full {_SECONDS_FULL:g})",
    )
    parser.add_argument(
        "--users",
        type=_whole,
        default=_USERS,
        metavar="N",
        help="users to spread over (%(default)s)",
    )
    parser.add_argument(
        "--clients",
        type=_whole,
        default=_CLIENTS,
        metavar="N",
        help="processes that make the load (%(default)s)",
    )
    parser.add_argument(
        "--data",
        type=Path,
        default=Path(tempfile.gettempdir()),
        metavar="DIRECTORY",
        help="where the database keeps its files while it runs, on the disk to be measured"
        " (%(default)s)",
    )
    return parser


def _whole(text: str) -> int:
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError("must be a whole number above 0")
    return int(text)


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds <= _SECONDS_MAX:
        raise argparse.ArgumentTypeError(f"must be above 0 and at most {_SECONDS_MAX:g}")
    return seconds


def _run(arguments: argparse.Namespace) -> Report:
    started = time.monotonic()

    def say(what: str) -> None:
        print(f"{time.monotonic() - started:6.1f} s  {what}", file=sys.stderr, flush=True)

    full = arguments.full
    extent = Extent(
        full=full,
        turns=arguments.turns or (_TURNS_FULL if full else _TURNS),
        seconds=arguments.seconds or (_SECONDS_FULL if full else _SECONDS),
        users=arguments.users,
        clients=arguments.clients,
    )
    with ExitStack() as stack:
        try:
            directory = Path(tempfile.mkdtemp(prefix="credit-bench-", dir=arguments.data))
        except OSError as error:
            raise BenchmarkError(f"{arguments.data} cannot be used: {error}") from error
        stack.callback(shutil.rmtree, directory, ignore_errors=True)
        directory.chmod(0o755)  # for the account that root's PostgreSQL runs as
        say("starting PostgreSQL")
        connections = {"max_connections": str(_DATABASE_CONNECTIONS)}
        cluster = stack.enter_context(embedded_postgres(directory / "data", connections))
        facts = machine.facts(directory)
        others = machine.Others()
        database = asyncio.run(book.settings(cluster.owner_url))
        if off := [name for name in book.DURABILITY if database[name] != "on"]:
            raise BenchmarkError(f"commits are not durable: {', '.join(off)} is off")
        lines: list[Line] = []
        try:
            with testbed(extent, cluster, directory, say) as running:
                for measured in rows.measure(running, arguments.only or rows.NAMES):
                    lines += measured
        except (BenchmarkError, KeyboardInterrupt):
            if lines:
                say("not finished; the rows that were measured:")
                print("\n".join(table(lines)))
            raise
        say("verifying the book")
        verified = {name: _verify(cluster, name) for name in running.databases}
        return Report(
            extent=extent,
            machine=facts,
            database=database,
            lines=lines,
            verified={name: said for name, (said, _) in verified.items()},
            book_adds_up=all(adds_up for _, adds_up in verified.values()),
            others=others.share(),
            seconds=time.monotonic() - started,
        )


def _verify(cluster: Cluster, database: str) -> tuple[str, bool]:
    """Returns what `credit-service verify` says of a database, and whether it found nothing."""
    url = book.database_url(cluster.service_url, database)
    done = subprocess.run(
        [sys.executable, "-m", "credit_service", "verify"],
        env=environment(CREDIT_DATABASE_URL=url),
        capture_output=True,
        text=True,
        check=False,
        start_new_session=True,
    )
    return (done.stdout + done.stderr).strip(), done.returncode == 0
