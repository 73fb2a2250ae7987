"""Rows of deployments: memory of a process, two processes on a port, behind PgBouncer."""

from __future__ import annotations

import os
import shutil
import socket
from contextlib import contextmanager
from typing import TYPE_CHECKING
from urllib.parse import quote

from benchmark import machine, measuring
from benchmark.children import Child
from benchmark.lines import Line, at_most, below, compared
from benchmark.testbed import DATABASE
from credit_service.database.programs import ROOTS_STAND_IN, account

if TYPE_CHECKING:
    from collections.abc import Iterator

    from benchmark.testbed import Testbed

_PROCESSES = 2
# The kernel distributes connections over the processes, so there must be several.
_CONNECTIONS = 8

_MEMORY_MB = 150
_MEMORY_SECONDS = 5.0
_MEMORY_MINUTES_FULL = 10
# The growth that caches and the allocator may cause after the first minute.
_GROWTH = 1.1

_BOUNCER = """\
[databases]
{database} = host={sockets} dbname={database}

[pgbouncer]
listen_addr =
unix_socket_dir = {directory}
listen_port = 6432
auth_type = trust
auth_file = {directory}/users.txt
pool_mode = transaction
default_pool_size = 20
max_client_conn = 200
"""


def memory(testbed: Testbed) -> list[Line]:
    """Measures the memory of a fresh process: idle, under load, after ten minutes of load."""
    row, unit, target = "memory", "MB", below(_MEMORY_MB)
    failed: dict[str, int] = {}
    with testbed.another_service("memory") as service:
        load = testbed.load(service, "spend", 100)
        idle = machine.resident_mb(service.pid)

        def under_load(seconds: float) -> float:
            failed.update(measuring.failures({"memory": [load(seconds)]}))
            return machine.resident_mb(service.pid)

        testbed.say("memory under load")
        loaded = under_load(_MEMORY_SECONDS)
        lines = [
            Line(row=row, measured="memory, idle", value=idle, unit=unit, target=target),
            Line(
                row=row,
                measured=f"memory, after {_MEMORY_SECONDS:.0f} s of load",
                value=loaded,
                unit=unit,
                target=target,
                failed=failed,
            ),
        ]
        if not testbed.extent.full:
            return lines
        minutes = []
        for minute in range(1, _MEMORY_MINUTES_FULL + 1):
            minutes.append(under_load(60.0))
            testbed.say(f"memory after minute {minute}: {minutes[-1]:.0f} MB")
    by_minute = ", ".join(f"{megabytes:.0f}" for megabytes in minutes)
    return [
        *lines,
        Line(
            row=row,
            measured=f"memory, after {_MEMORY_MINUTES_FULL} minutes of load",
            value=minutes[-1],
            unit=unit,
            target=target,
            note=f"by the minute: {by_minute}",
            failed=failed,
        ),
        Line(
            row=row,
            measured=f"memory, after {_MEMORY_MINUTES_FULL} minutes of load",
            against="after one minute",
            value=minutes[-1] / minutes[0],
            target=at_most(_GROWTH),
            failed=failed,
        ),
    ]


def processes(testbed: Testbed) -> list[Line]:
    """Measures two server processes that share a port against one."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    many = testbed.another_service(
        "processes", f"--processes={_PROCESSES}", CREDIT_LISTEN=f"127.0.0.1:{port}"
    )
    with many as shared:
        name, other = f"{_PROCESSES} server processes on one port", "one process"
        loads = {
            name: testbed.load(shared, "spend", 100, connections=_CONNECTIONS),
            other: testbed.load(testbed.service, "spend", 100, connections=_CONNECTIONS),
        }
        samples = testbed.in_turns(loads)
    return [compared("processes", samples, name, other)]


def pooler(testbed: Testbed) -> list[Line]:
    """Measures a service that reaches its database through PgBouncer against one that does not."""
    name, other = "through PgBouncer in transaction mode", "straight to PostgreSQL"
    # Debian keeps pgbouncer outside an ordinary user's PATH.
    path = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
    program = shutil.which("pgbouncer", path=path)
    if program is None:
        return [Line(row="pgbouncer", measured=name, value=None, note="not installed")]
    with (
        _bouncer(testbed, program) as url,
        testbed.another_service("pooled", database_url=url, CREDIT_STATEMENT_CACHE="0") as pooled,
    ):
        loads = {
            name: testbed.load(pooled, "spend", 100),
            other: testbed.load(testbed.service, "spend", 100),
        }
        samples = testbed.in_turns(loads)
    return [compared("pgbouncer", samples, name, other)]


@contextmanager
def _bouncer(testbed: Testbed, program: str) -> Iterator[str]:
    """Runs PgBouncer and yields the URL of the database behind it."""
    directory = testbed.directory / "pgbouncer"
    directory.mkdir()
    settings = directory / "pgbouncer.ini"
    settings.write_text(
        _BOUNCER.format(
            database=DATABASE, sockets=testbed.cluster.socket_directory, directory=directory
        )
    )
    (directory / "users.txt").write_text('"credit_service" ""\n')
    run_as = ["-u", ROOTS_STAND_IN] if account() else []
    if owner := account():
        os.chown(directory, owner["user"], owner["group"])
    log = testbed.directory / "pgbouncer.log"
    with Child("PgBouncer", [program, *run_as, str(settings)], log) as child:
        child.wait_for("process up")
        yield f"postgresql://credit_service@/{DATABASE}?host={quote(str(directory))}&port=6432"
