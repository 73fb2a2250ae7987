"""The rival's transaction straight on the database, by pgbench out of PostgreSQL's own wheel.

pgbench is written in C and needs neither gRPC nor Python, so this is the maximum that one
transaction per spend can reach here.
"""

from __future__ import annotations

import re
import resource
import subprocess
import time
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from benchmark import machine
from benchmark.children import BenchmarkError
from benchmark.measuring import Sample
from benchmark.numbering import USER_ID_SQL
from credit_service.database.programs import ENVIRONMENT

if TYPE_CHECKING:
    from collections.abc import Callable

    from benchmark.testbed import Testbed

CLIENTS = 64
_THREADS = 2

_USER = USER_ID_SQL.format(":n")
_SCRIPT = f"""\
\\set n random(0, :users - 1)
BEGIN;
SELECT balance, seq FROM user_credits WHERE user_id = {_USER} FOR UPDATE \\gset
UPDATE user_credits SET balance = balance - 1, seq = seq + 1, tx = tx + 1,
    last_updated = greatest(clock_timestamp(), last_updated)
    WHERE user_id = {_USER} RETURNING last_updated, tx \\gset
INSERT INTO credit_transactions (user_id, seq, type, call, amount, requested_amount,
    balance_change, held_change, balance_after, held_after, floor, description, timestamp,
    reference, idempotency_key, caller, tx)
    VALUES ({_USER}, :seq::bigint + 1, 'spend', 'pgbench', 1, 1, -1, 0, :balance::bigint - 1, 0, 0,
        '', :last_updated::timestamptz, '', gen_random_uuid()::text, 'pgbench', :tx::bigint);
COMMIT;
"""

# 64 clients that queue for one row wait longer than the service's role may.
_PATIENCE = "-c lock_timeout=0 -c statement_timeout=0"


def load(testbed: Testbed, users: int) -> Callable[[float], Sample]:
    """Returns a function that runs pgbench for at least a second, over the first `users` users."""
    program, script = testbed.programs / "pgbench", testbed.directory / "pgbench.sql"
    script.write_text(_SCRIPT)
    role = urlsplit(testbed.cluster.service_url).username or ""

    def run(seconds: float) -> Sample:
        command: list[str] = [
            *(str(program), "--no-vacuum", "--protocol=prepared", f"--file={script}"),
            *(f"--client={CLIENTS}", f"--jobs={_THREADS}", f"--time={max(1, round(seconds))}"),
            *(f"--define=users={users}", f"--host={testbed.cluster.socket_directory}"),
            *(f"--username={role}", "credit"),
        ]
        before, own = machine.cpu_seconds(testbed.cluster.pid), _children_seconds()
        started = time.monotonic()
        done = subprocess.run(  # noqa: S603
            command,
            capture_output=True,
            text=True,
            check=False,
            env={**ENVIRONMENT, "PGOPTIONS": _PATIENCE},
            start_new_session=True,
        )
        took = time.monotonic() - started
        found = re.search(r"^tps = ([\d.]+)", done.stdout, re.MULTILINE)
        made = re.search(r"actually processed: (\d+)", done.stdout)
        if done.returncode or found is None or made is None:
            raise BenchmarkError(f"pgbench failed:\n{done.stderr[-2000:]}")
        database = machine.cpu_seconds(testbed.cluster.pid) - before
        return Sample(
            rate=float(found[1]),
            offered=float(found[1]),
            server_us=0,
            database_us=database * 1e6 / max(1, int(made[1])),
            server=0,
            database=database / took,
            generator=(_children_seconds() - own) / _THREADS / took,
        )

    return run


def _children_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime
