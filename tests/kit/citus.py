"""The Citus cluster that tests run against if one is named.

TEST_CITUS_URL is the address of a database on the coordinator, as a superuser; there the
coordinator knows its workers. Every node must let that superuser and credit_service in; the tests
make the role credit_service where it is missing. The content of the database stays as it is: the
tests make databases of their own on all nodes, and drop them.

Citus has no package to install, so continuous integration has none. `tests/citus-suites`
names the tests that are meant for a cluster.
"""

import os
import re
import time
from collections.abc import Iterable
from urllib.parse import urlsplit

import asyncpg
import pytest
from kit.waiting import too_late

from credit_service.database import distribution, migrations

URL = "TEST_CITUS_URL"
ROLE = "credit_service"

# Done on every node: nothing may be connected to a database while it is copied, and Citus is.
_CLOSE = """
    UPDATE pg_database SET datallowconn = false WHERE datname = '{0}';
    SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE datname = '{0}'
"""

_QUIET = "SET client_min_messages = warning"

# Not spread by the coordinator, because a node that was added later would lack it.
_MAKE_ROLE = f"""
    SET citus.enable_create_role_propagation = off;
    DO $$
    BEGIN
        CREATE ROLE {ROLE} LOGIN;
    EXCEPTION WHEN duplicate_object OR unique_violation THEN
        NULL;
    END
    $$
"""

needs_citus = pytest.mark.skipif(
    URL not in os.environ, reason=f"no Citus cluster: {URL} is not set"
)

needs_socket = pytest.mark.skipif(
    URL in os.environ, reason="a Citus cluster is not reached by a socket in a directory"
)


def database_url(url: str, name: str, *, role: str | None = None) -> str:
    parts = urlsplit(url)
    place = parts.netloc
    if role is not None:
        place = re.sub(r"^[^@]*@|^", f"{role}@", place, count=1)
    return parts._replace(netloc=place, path=f"/{name}").geturl()


async def nodes(url: str) -> list[str]:
    """The addresses of the coordinator, which comes first, and of its workers."""
    connection = await asyncpg.connect(url)
    try:
        workers = await connection.fetch(
            "SELECT nodename, nodeport FROM pg_dist_node WHERE groupid > 0 ORDER BY nodeid"
        )
    finally:
        await connection.close()
    parts = urlsplit(url)
    login = parts.netloc.rpartition("@")[0]
    return [
        url,
        *(parts._replace(netloc=f"{login}@{name}:{port}").geturl() for name, port in workers),
    ]


async def on_every_node(addresses: Iterable[str], *statements: str) -> None:
    for address in addresses:
        connection = await asyncpg.connect(address)
        try:
            await connection.execute(_QUIET)
            for statement in statements:
                await _execute(connection, statement)
        finally:
            await connection.close()


async def _execute(connection: asyncpg.Connection, statement: str) -> None:
    started = time.monotonic()
    while True:
        try:
            await connection.execute(statement)
        except asyncpg.ObjectInUseError:
            # A background process of Citus comes back to each database until it is dropped.
            if too_late(started, 30):
                raise
        else:
            return


async def make_empty(addresses: list[str], name: str) -> None:
    """Makes a database that the cluster knows on all its nodes, without a table."""
    await on_every_node(addresses, _MAKE_ROLE, f"CREATE DATABASE {name}")
    places = [database_url(address, name) for address in addresses]
    await on_every_node(places, "CREATE EXTENSION citus")
    coordinator, *workers = (urlsplit(place) for place in places)
    connection = await asyncpg.connect(places[0])
    try:
        await connection.execute(
            f"SELECT citus_set_coordinator_host('{coordinator.hostname}', {coordinator.port})"
        )
        for worker in workers:
            await connection.execute(f"SELECT citus_add_node('{worker.hostname}', {worker.port})")
    finally:
        await connection.close()


async def make_template(addresses: list[str], name: str) -> None:
    """Makes a migrated and distributed database that can be copied on every node."""
    await drop_template(addresses, name)
    await make_empty(addresses, name)
    url = database_url(addresses[0], name)
    await migrations.migrate(url, ROLE, lambda _line: None)
    await distribution.distribute(url, ROLE, lambda _line: None)
    await on_every_node(addresses, _CLOSE.format(name))


async def drop_template(addresses: list[str], name: str) -> None:
    await on_every_node(addresses, f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")
