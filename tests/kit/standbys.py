"""A primary and its standby, and one address that leads to either."""

import json
import os
import subprocess
import sys
from pathlib import Path

from kit.clusters import lead, through
from kit.databases import Database
from kit.paths import ROOT

# Runs a server until its standard input ends.
_KEEPER = """
import json, sys
from pathlib import Path
from kit.postgres import postgres, standby

kind, data, primary = sys.argv[1:]
server = postgres if kind == "primary" else standby
arguments = (Path(data),) if kind == "primary" else (Path(data), Path(primary) if primary else None)
with server(*arguments) as cluster:
    said = {"sockets": str(cluster.socket_directory), "pid": cluster.pid}
    said["owner_url"] = cluster.owner_url
    print(json.dumps(said), flush=True)
    sys.stdin.read()
"""


class Server:
    """A PostgreSQL in a process of its own, as a primary or as a standby."""

    def __init__(self, data: Path) -> None:
        self._data = data
        self._keeper: subprocess.Popen[bytes] | None = None
        self.sockets = Path()
        self.owner_url = ""
        self.pid = 0

    def start(self) -> None:
        self._start("primary", "")

    def follow(self, primary: "Server") -> None:
        """Starts it as a copy of another that follows it."""
        self._start("standby", str(primary.sockets))

    def demote(self) -> None:
        """Starts it in recovery, as a former primary that does not know its successor."""
        self.stop()
        self._start("standby", "")

    def _start(self, kind: str, primary: str) -> None:
        self._keeper = subprocess.Popen(
            [sys.executable, "-c", _KEEPER, kind, str(self._data), primary],
            env=os.environ | {"PYTHONPATH": str(ROOT / "tests")},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        assert self._keeper.stdout is not None
        line = self._keeper.stdout.readline()
        assert line, f"the {kind} did not start"
        said = json.loads(line)
        self.sockets, self.owner_url = Path(said["sockets"]), said["owner_url"]
        self.pid = said["pid"]

    def stop(self) -> None:
        """Stops the server cleanly; clients are cut off."""
        if self._keeper is not None:
            self._keeper.communicate()
            self._keeper = None

    def ask_for_passwords(self) -> None:
        """Makes it ask the service's role for a password after it reloads its configuration."""
        (rules,) = self._data.glob("postgresql-*/pg_hba.conf")
        rules.write_text(f"local credit credit_service scram-sha-256\n{rules.read_text()}")

    @property
    def database(self) -> Database:
        """This server's database, wherever the address leads."""
        return Database("credit", self.owner_url, _as_service(self.owner_url))


class Pair:
    """Two servers, of which the second follows the first, and an address."""

    def __init__(self, directory: Path) -> None:
        self.first, self.second = Server(directory / "first"), Server(directory / "second")
        self._link = directory / "address"

    def lead_to(self, server: Server) -> None:
        """Lets the address lead to a server; open connections stay where they are."""
        lead(self._link, server.sockets)

    @property
    def service_url(self) -> str:
        return through(_as_service(self.first.owner_url), self._link)

    def stop(self) -> None:
        for server in (self.first, self.second):
            server.stop()


def _as_service(owner_url: str) -> str:
    return owner_url.replace("postgres@", "credit_service@")
