"""The PostgreSQL that tests run against: the embedded one, or another version's programs.

TEST_POSTGRES_BIN names the folder of those programs, such as /usr/lib/postgresql/15/bin. A server
that a test starts by `credit-service serve` without a database stays embedded.
"""

import os
import re
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from pathlib import Path
from urllib.parse import quote

from kit.waiting import patience

from credit_service.database.embedded import Cluster, embedded_postgres
from credit_service.database.programs import (
    ENVIRONMENT,
    EmbeddedPostgresError,
    Programs,
    account,
    dying_with_us,
    find_programs,
)

BIN = "TEST_POSTGRES_BIN"
_START_SECONDS = 120
_POLL_SECONDS = 0.02


def postgres(
    data: Path, settings: Mapping[str, str] | None = None
) -> AbstractContextManager[Cluster]:
    """Runs a server on `data` for the length of the block, as `embedded_postgres` does."""
    directory = os.environ.get(BIN)
    if directory is None:
        return embedded_postgres(data, settings)
    return _other_postgres(_programs(Path(directory)), data, settings or {})


@contextmanager
def standby(data: Path, primary: Path | None) -> Iterator[Cluster]:
    """Runs a server in recovery, which can be read but not written.

    Args:
        data: the data directory of a former primary, or a new one.
        primary: the socket directory of the server that a new one copies and follows.
    """
    directory = os.environ.get(BIN)
    data.mkdir(parents=True, exist_ok=True)
    programs = _programs(Path(directory)) if directory else find_programs(data, account())
    cluster = data / f"postgresql-{programs.major}"
    if primary is None:
        signal_file = cluster / "standby.signal"
        signal_file.touch()
        _give(signal_file, programs)
    else:
        cluster.mkdir(mode=0o700)
        _give(cluster, programs)
        programs.run(
            "pg_basebackup",
            *("--pgdata", cluster, "--host", primary, "--username", "postgres"),
            *("--write-recovery-conf", "--checkpoint=fast", "--no-sync"),
        )
    with _other_postgres(programs, data, {}) as running:
        yield running


def _programs(directory: Path) -> Programs:
    said = subprocess.run(
        [directory / "postgres", "--version"], check=True, capture_output=True, text=True
    )
    version = re.search(r"\d+\.\d+", said.stdout)
    assert version is not None, said.stdout
    return Programs(directory, version[0], account())


@contextmanager
def _other_postgres(
    programs: Programs, data: Path, settings: Mapping[str, str]
) -> Iterator[Cluster]:
    data.mkdir(parents=True, exist_ok=True)
    cluster, log = data / f"postgresql-{programs.major}", data / f"postgresql-{programs.major}.log"
    if not cluster.exists():
        _create(programs, cluster)
    with ExitStack() as stack:
        sockets = Path(
            stack.enter_context(tempfile.TemporaryDirectory(prefix="postgres-", dir="/tmp"))
        )
        _give(sockets, programs)
        pid = stack.enter_context(_running(programs, cluster, log, sockets, settings))
        url = "postgresql://{}@/credit?host=" + quote(str(sockets))
        yield Cluster(url.format("postgres"), url.format("credit_service"), pid, sockets, log)


def _give(path: Path, programs: Programs) -> None:
    if programs.account:
        os.chown(path, programs.account["user"], programs.account["group"])


def _create(programs: Programs, cluster: Path) -> None:
    cluster.mkdir()
    _give(cluster, programs)
    programs.run(
        "initdb",
        *("--pgdata", cluster, "--username", "postgres", "--no-sync"),
        *("--auth-local=trust", "--auth-host=reject"),
        *("--encoding=UTF8", "--locale=C.UTF-8"),
    )
    programs.run(
        "postgres",
        *("--single", "-D", cluster, "-c", "exit_on_error=on", "-c", "fsync=off", "postgres"),
        standard_input="CREATE DATABASE credit\nCREATE ROLE credit_service LOGIN\n",
    )


@contextmanager
def _running(
    programs: Programs, cluster: Path, log: Path, sockets: Path, settings: Mapping[str, str]
) -> Iterator[int]:
    where = {"listen_addresses": "", "port": "5432", "unix_socket_directories": str(sockets)}
    options = [f"-c{name}={value}" for name, value in (dict(settings) | where).items()]
    deadline = time.monotonic() + _START_SECONDS
    while True:
        with log.open("wb") as output:
            server = subprocess.Popen(
                [programs.directory / "postgres", "-D", cluster, *options],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=ENVIRONMENT,
                cwd="/",
                start_new_session=True,
                preexec_fn=dying_with_us(),  # noqa: PLW1509
                **programs.account,
            )
        try:
            if _answers(programs, server, sockets):
                yield server.pid
                return
            # A process of a server that was killed may still be ending.
            assert time.monotonic() < deadline, log.read_text()
        finally:
            with suppress(ProcessLookupError):
                server.send_signal(signal.SIGINT)
            server.wait(patience(60))
        time.sleep(_POLL_SECONDS)


def _answers(programs: Programs, server: "subprocess.Popen[bytes]", sockets: Path) -> bool:
    """Waits until the server takes connections; returns whether it does, or has ended."""
    while server.poll() is None:
        try:
            programs.run("pg_isready", "--quiet", "--host", sockets)
        except EmbeddedPostgresError:
            time.sleep(_POLL_SECONDS)
        else:
            return True
    return False
