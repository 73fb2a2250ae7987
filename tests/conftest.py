"""Three things every test may ask for: a migrated database, a running service, a client of it."""

import asyncio
import contextlib
import os
import shutil
import tempfile
from pathlib import Path
from urllib.parse import urlsplit

import asyncpg
import pytest
import uvloop
from fault_proxy import fault_proxy
from harness import Database, running, server_settings

from credit_service import migrations
from credit_service.embedded import embedded_postgres
from credit_service.postgres import ROLE_LIMITS_MS, ROLE_PLANS_OFF

_OWNER_URL = "TEST_CLUSTER_OWNER_URL"
_SERVICE_URL = "TEST_CLUSTER_SERVICE_URL"
_TEMPLATE = "migrated"

_stack = contextlib.ExitStack()


def pytest_addoption(parser):
    parser.addoption("--long", action="store_true", help="run the storms too")


def pytest_configure(config):
    if hasattr(config, "workerinput") or config.option.collectonly:
        return
    # One cluster for all workers, started before any event loop. It need not survive a power cut.
    directory = Path(tempfile.mkdtemp(prefix="credit-tests-"))
    directory.chmod(0o755)
    _stack.callback(shutil.rmtree, directory, ignore_errors=True)
    cluster = _stack.enter_context(
        embedded_postgres(
            directory / "data",
            {
                "fsync": "off",
                "full_page_writes": "off",
                "synchronous_commit": "off",
                "max_connections": "300",
                "deadlock_timeout": "200ms",
            },
        )
    )
    os.environ[_OWNER_URL] = cluster.owner_url
    os.environ[_SERVICE_URL] = cluster.service_url
    asyncio.run(_make_template(cluster.owner_url))


def pytest_unconfigure(config):
    _stack.close()


async def _make_template(owner_url):
    connection = await asyncpg.connect(owner_url)
    await connection.execute(f"CREATE DATABASE {_TEMPLATE}")
    # A setting of a role in one database is not copied with the database.
    for name, limit_ms in ROLE_LIMITS_MS.items():
        await connection.execute(f"ALTER ROLE credit_service SET {name} = '{limit_ms}ms'")
    for name in ROLE_PLANS_OFF:
        await connection.execute(f"ALTER ROLE credit_service SET {name} = off")
    await connection.close()
    url = database_url(owner_url, _TEMPLATE)
    await migrations.migrate(url, "credit_service", lambda _line: None)


def database_url(url, name):
    parts = urlsplit(url)
    return parts._replace(path=f"/{name}").geturl()


def pytest_collection_modifyitems(config, items):
    if config.option.long:
        return
    kept = [item for item in items if "long" not in item.keywords]
    config.hook.pytest_deselected(items=[item for item in items if "long" in item.keywords])
    items[:] = kept


def pytest_asyncio_loop_factories(config, item):
    return {"uvloop": uvloop.new_event_loop}


@pytest.fixture
def cluster_owner_url():
    return os.environ[_OWNER_URL]


@pytest.fixture
def make_database():
    """Makes databases, each a copy of the migrated template or, so asked, empty."""
    yield from _databases()


@pytest.fixture(scope="module")
def make_shared_database():
    """Makes databases that all tests of a module share."""
    yield from _databases()


def _databases():
    made = []

    async def make(*, empty=False):
        owner_url = os.environ[_OWNER_URL]
        name = f"test_{os.getpid()}_{next(_numbers)}"
        connection = await asyncpg.connect(owner_url)
        template = "template1" if empty else _TEMPLATE
        # Copying the files takes a third of the time that logging every page takes.
        await connection.execute(f"CREATE DATABASE {name} TEMPLATE {template} STRATEGY file_copy")
        await connection.close()
        made.append(name)
        return Database(
            name,
            database_url(owner_url, name),
            database_url(os.environ[_SERVICE_URL], name),
        )

    yield make
    asyncio.run(_drop(made))


async def _drop(names):
    connection = await asyncpg.connect(os.environ[_OWNER_URL])
    for name in names:
        await connection.execute(f"DROP DATABASE {name} WITH (FORCE)")
    await connection.close()


_numbers = iter(range(10**9))


@pytest.fixture
async def database(make_database):
    return await make_database()


@pytest.fixture
async def proxy(database):
    """A way to the database that can be broken."""
    async with fault_proxy(database.service_url) as running_proxy:
        yield running_proxy


@pytest.fixture
async def service(database):
    async with running(server_settings(database.service_url)) as running_service:
        yield running_service


@pytest.fixture
async def client(service):
    return await service.client()
