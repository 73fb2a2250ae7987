"""The nodes of a Citus cluster on this machine, which a test may kill and start again.

TEST_CITUS_KILLS=true permits it. Each kill also cuts off other users of the cluster.
"""

import os
import signal
import subprocess
from dataclasses import dataclass
from pathlib import Path

import asyncpg
import pytest
from kit.citus import database_url, nodes
from kit.waiting import eventually

from credit_service.database.shard_map import Shards

KILLS = "TEST_CITUS_KILLS"

needs_killable_citus = pytest.mark.skipif(
    os.environ.get(KILLS) != "true", reason=f"no Citus cluster to kill: {KILLS} is not set"
)


@dataclass
class Node:
    """A server of the cluster, found by its own information.

    Attributes:
        url: its address, as a superuser.
        pid: its first process.
        command: the command line that started it.
        environment: its environment.
        owner: the account that it runs under.
        directory: its data directory.
    """

    url: str
    pid: int
    command: list[bytes]
    environment: dict[bytes, bytes]
    owner: int
    directory: Path

    @classmethod
    async def at(cls, url: str) -> "Node":
        connection = await asyncpg.connect(url)
        try:
            said = await connection.fetchval("SELECT pg_read_file('postmaster.pid')")
        finally:
            await connection.close()
        pid, directory = said.splitlines()[:2]
        process = Path("/proc") / pid
        variables = (process / "environ").read_bytes().rstrip(b"\0").split(b"\0")
        return cls(
            url,
            int(pid),
            (process / "cmdline").read_bytes().rstrip(b"\0").split(b"\0"),
            dict(each.split(b"=", 1) for each in variables),
            process.stat().st_uid,
            Path(directory),
        )

    async def kill(self) -> None:
        """Kills the server at once; it loses what it had not written."""
        os.kill(self.pid, signal.SIGKILL)
        await eventually(lambda: not Path(f"/proc/{self.pid}").exists())

    async def start(self) -> None:
        """Starts it as it was started before, and waits until it answers."""
        await eventually(self._started, 60, every=0.5)
        self.pid = (await Node.at(self.url)).pid

    async def _started(self) -> bool:
        if not await self._answers():
            # It ends at once where processes of the killed one are left, or where one is starting.
            self._launch()
        return await self._answers()

    def _launch(self) -> None:
        with (self.directory.parent / f"{self.directory.name}.log").open("ab") as log:
            subprocess.run(
                ["sh", "-c", 'setsid "$@" &', "sh", *self.command],
                check=True,
                env=self.environment,
                user=self.owner,
                group=self.owner,
                extra_groups=[],
                cwd="/",
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    async def _answers(self) -> bool:
        try:
            await (await asyncpg.connect(self.url)).close()
        except (OSError, asyncpg.PostgresError):
            return False
        return True


async def coordinator_and_workers(url: str) -> list[Node]:
    return [await Node.at(address) for address in await nodes(url)]


async def shards_of(database) -> Shards:
    """Where the users of this database are."""
    shards = Shards()
    connection = await database.connect()
    try:
        await shards.read(connection)
    finally:
        await connection.close()
    return shards


async def prepared_transactions(database, addresses) -> list[str]:
    """The transactions that the first of two phases has left on the nodes."""
    found = []
    for address in addresses:
        connection = await asyncpg.connect(database_url(address, database.name))
        try:
            found += [
                row[0]
                for row in await connection.fetch(
                    "SELECT gid FROM pg_prepared_xacts WHERE database = current_database()"
                )
            ]
        finally:
            await connection.close()
    return found
