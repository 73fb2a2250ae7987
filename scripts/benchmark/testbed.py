"""What all rows run on: the database, the service, the rival and the client processes."""

from __future__ import annotations

import asyncio
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from benchmark import book, children, measuring
from benchmark.clients import Clients
from benchmark.measuring import Load
from benchmark.numbering import SPREAD
from credit_service.database.programs import account, find_programs

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

    from benchmark.children import Server
    from benchmark.measuring import Sample
    from credit_service.database.embedded import Cluster

DATABASE = "credit"


@dataclass(frozen=True, slots=True, kw_only=True)
class Extent:
    """How much is measured.

    Attributes:
        full: the long run.
        turns: how often each load takes its turn.
        seconds: how long a turn is.
        users: how many the spread loads are spread over.
        clients: client processes.
    """

    full: bool
    turns: int
    seconds: float
    users: int
    clients: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Testbed:
    """A running testbed.

    Attributes:
        extent: how much is measured.
        cluster: the embedded PostgreSQL.
        directory: takes logs and scripts.
        programs: where PostgreSQL's programs are.
        service: `credit-service serve`, on the database `credit`.
        rival: the rival server, on the same database.
        clients: the client processes.
        say: is called with lines of progress.
        databases: names of all databases that must add up in the end.
    """

    extent: Extent
    cluster: Cluster
    directory: Path
    programs: Path
    service: Server
    rival: Server
    clients: Clients
    say: Callable[[str], None]
    databases: list[str] = field(default_factory=lambda: [DATABASE])

    def load(
        self,
        server: Server,
        call: str,
        in_flight: int,
        *,
        users: tuple[int, int] | None = None,
        units: int = 1,
        rate: float | None = None,
        connections: int = 1,
        processes: int | None = None,
    ) -> Callable[[float], Sample]:
        """Makes a function that runs a load on a server for a number of seconds.

        Args:
            server: what is called.
            call: a name of `calls.CALLS`.
            in_flight: calls that wait at the same time.
            users: number of the first user and how many; None: the spread ones.
            units: of work in a call.
            rate: calls a second; None: as many as are answered.
            connections: of each client process.
            processes: client processes that share it; None: all.
        """
        first_user, count = users or (SPREAD, self.extent.users)
        made = Load(
            server=server,
            call=call,
            first_user=first_user,
            users=count,
            in_flight=in_flight,
            units=units,
            rate=rate,
            connections=connections,
            processes=processes,
        )
        return lambda seconds: made.run(self.clients, self.cluster.pid, seconds)

    def in_turns(
        self, loads: Mapping[str, Callable[[float], Sample]], part: float = 1.0
    ) -> dict[str, list[Sample]]:
        """Measures loads side by side, each for a part of the seconds of a turn."""
        seconds = self.extent.seconds * part
        return measuring.in_turns(loads, self.extent.turns, seconds, self.say)

    def fill(self, first_user: int, users: int, entries: int = 1, database: str = DATABASE) -> None:
        """Writes users with this number of entries each into a database."""
        self.say(f"writing {users:,} users of {entries:,} entries into {database}")
        url = book.database_url(self.cluster.owner_url, database)
        asyncio.run(book.fill(url, first_user, users, entries))
        asyncio.run(book.settle(url))

    def add_database(self, name: str) -> None:
        """Makes a further migrated database."""
        asyncio.run(book.create_database(self.cluster.owner_url, name))
        asyncio.run(book.migrate(book.database_url(self.cluster.owner_url, name)))
        self.databases.append(name)

    @contextmanager
    def another_service(
        self, name: str, *arguments: str, database_url: str | None = None, **variables: str
    ) -> Iterator[Server]:
        """Runs a further service for the length of the block.

        Args:
            name: of its log.
            arguments: further ones of `serve`.
            database_url: as the service's role; None: that of the database `credit`.
            variables: its settings.
        """
        self.say(f"starting a service: {name}")
        url = database_url or self.cluster.service_url
        log = self.directory / f"{name}.log"
        with children.service(log, url, *arguments, **variables) as service:
            self.say(f"it listens on {service.target}")
            yield service


@contextmanager
def testbed(
    extent: Extent, cluster: Cluster, directory: Path, say: Callable[[str], None]
) -> Iterator[Testbed]:
    """Fills the database and starts everything, for as long as the block lasts."""
    started = time.monotonic()
    asyncio.run(book.migrate(cluster.owner_url))
    asyncio.run(book.fill(cluster.owner_url, SPREAD, extent.users))
    asyncio.run(book.settle(cluster.owner_url))
    say(f"{extent.users:,} users written in {time.monotonic() - started:.1f} s")
    url = cluster.service_url
    with (
        children.service(directory / "service.log", url) as service,
        children.rival(directory / "rival.log", url) as rival,
        Clients(extent.clients) as clients,
    ):
        say(f"the service listens on {service.target}, the rival on {rival.target}")
        yield Testbed(
            extent=extent,
            cluster=cluster,
            directory=directory,
            programs=find_programs(cluster.log.parent, account()).directory,
            service=service,
            rival=rival,
            clients=clients,
            say=say,
        )
