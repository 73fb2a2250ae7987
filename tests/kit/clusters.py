"""PostgreSQL that can be stopped, killed and started again, at an address that stays."""

import json
import os
import signal
import subprocess
import sys
from urllib.parse import quote, urlsplit

from kit.databases import Database
from kit.paths import ROOT

# Runs a cluster with its ordinary, durable settings until its standard input ends.
KEEPER = """
import json, sys
from pathlib import Path
from kit.postgres import postgres

with postgres(Path(sys.argv[1])) as cluster:
    said = {"sockets": str(cluster.socket_directory), "pid": cluster.pid}
    print(json.dumps(said | {"owner_url": cluster.owner_url}), flush=True)
    sys.stdin.read()
"""


def through(url, link):
    """The same database, reached by a link that may lead to another socket directory later."""
    return urlsplit(url)._replace(query=f"host={quote(str(link))}").geturl()


def lead(link, sockets):
    fresh = link.with_name("fresh")
    fresh.symlink_to(sockets)
    fresh.replace(link)


class Cluster:
    """A PostgreSQL of its own that can be stopped, killed and started again."""

    def __init__(self, directory):
        self._data = directory / "data"
        self._link = directory / "sockets"
        self._keeper = None
        self._pid = 0
        self.database = None

    def start(self):
        self._keeper = subprocess.Popen(
            [sys.executable, "-c", KEEPER, str(self._data)],
            env=os.environ | {"PYTHONPATH": str(ROOT / "tests")},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        line = self._keeper.stdout.readline()
        assert line, "the cluster did not start"
        said = json.loads(line)
        self._pid = said["pid"]
        lead(self._link, said["sockets"])
        owner_url = through(said["owner_url"], self._link)
        service_url = owner_url.replace("postgres@", "credit_service@")
        self.database = Database("credit", owner_url, service_url)

    def stop(self):
        """Stops the server cleanly; clients are cut off."""
        if self._keeper is not None:
            self._keeper.communicate()
            self._keeper = None

    def kill(self):
        """Kills the server at once; it loses what it had not written."""
        if self._keeper is not None:
            os.kill(self._pid, signal.SIGKILL)
            self.stop()
