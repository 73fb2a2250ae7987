"""The fixtures for every test: a migrated database, a running service, a client of it."""

import credit_service  # noqa: F401  # before gRPC, which reads a variable that this import sets

# isort: split

import asyncio
import contextlib
import gc
import os
import tempfile
from pathlib import Path

import asyncpg
import grpc
import pytest
from hypothesis import HealthCheck, settings
from kit import citus, time_limits
from kit.citus import database_url
from kit.databases import Database, IdleConnections
from kit.extent import FULL, LONG
from kit.failures_at_once import FailuresAtOnce
from kit.fault_proxy import fault_proxy
from kit.leftovers import run_directory
from kit.paths import ROOT
from kit.postgres import postgres
from kit.program_forks import program_forks
from kit.services import running, server_settings
from kit.waiting import measure_pace, patience

from credit_service.database import migrations
from credit_service.database.distribution import ROLE_SETTINGS
from credit_service.database.postgres import ROLE_LIMITS_MS, ROLE_PLANS_KEPT, ROLE_PLANS_OFF
from credit_service.v1 import credit_service_pb2_grpc as pb_grpc

_OWNER_URL = "TEST_CLUSTER_OWNER_URL"
_SERVICE_URL = "TEST_CLUSTER_SERVICE_URL"
_NODES = "TEST_CLUSTER_NODES"  # all nodes of a Citus cluster, or the one ordinary server
_TEMPLATE = "TEST_TEMPLATE_DATABASE"
_ROOM_BYTES = 2 << 30  # the storms write more than the rest
_LIMIT_MAX_SECONDS = 1200  # so that a test that hangs is reported before the whole run is stopped
_SLOWEST_ROOMS = (
    "docs",
    "processes",
    "browser",
    "bridge",
    "client",
    "database",
    "ledger",
    "gateway",
)

_stack = contextlib.ExitStack()

# The time of an example and of its data depends on the machine, and no test is about it.
settings.register_profile("machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("machine")


def pytest_addoption(parser):
    parser.addoption("--long", action="store_true", help="run the storms too")
    parser.addoption("--full", action="store_true", help="run the storms at full length")


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config):
    config.pluginmanager.register(time_limits)
    if config.option.full:
        config.option.long = True
        os.environ[FULL] = "1"
    if config.option.long:
        os.environ[LONG] = "1"  # read when the tests are imported, also in the workers
    if hasattr(config, "workerinput") or config.option.collectonly:
        return
    if config.getoption("numprocesses", None):
        config.pluginmanager.register(FailuresAtOnce(config))
    measure_pace()
    # Read by pytest-timeout, also in the workers.
    os.environ.setdefault("PYTEST_TIMEOUT", f"{_limit(120):.0f}")
    # Makes programs show their output at once, on a machine that does not set this.
    os.environ.pop("PYTHONUNBUFFERED", None)
    # A program that finds no compiled modules takes twice as long to start.
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    # One cluster for all workers, started before any event loop. It need not survive a power loss.
    memory = _memory()
    directory = _stack.enter_context(run_directory(memory or Path(tempfile.gettempdir())))
    directory.chmod(0o1777)  # like /tmp: programs of other accounts make their directories there
    if memory:
        # Other clusters go there too; the files in a test's `tmp_path` are kept for inspection.
        os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", tempfile.gettempdir())
        os.environ["TMPDIR"] = tempfile.tempdir = str(directory)
    _stack.enter_context(program_forks(directory, ROOT, ROOT / "scripts"))
    if citus_url := os.environ.get(citus.URL):
        asyncio.run(_use_citus(citus_url))
        return
    cluster = _stack.enter_context(
        postgres(
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
    os.environ[_OWNER_URL] = os.environ[_NODES] = cluster.owner_url
    os.environ[_SERVICE_URL] = cluster.service_url
    asyncio.run(_make_template(cluster.owner_url))


def _memory():
    """A directory in memory with room for the clusters, or None.

    Making a database means making 300 files. ext4 needs 60 to 200 ms of processor time for that,
    because its search for a free inode passes all those freed in the last minutes, one by one.
    """
    place = Path("/dev/shm")
    if not os.access(place, os.W_OK):
        return None
    state = os.statvfs(place)
    roomy = state.f_bavail * state.f_frsize >= _ROOM_BYTES
    return place if roomy and not state.f_flag & os.ST_NOEXEC else None


def pytest_unconfigure(config):
    _stack.close()


async def _use_citus(url):
    addresses = await citus.nodes(url)
    os.environ[_OWNER_URL] = url
    os.environ[_SERVICE_URL] = database_url(url, "", role="credit_service")
    os.environ[_NODES] = " ".join(addresses)
    # Several runs may share the cluster.
    template = os.environ[_TEMPLATE] = f"migrated_{os.getpid()}"
    _stack.callback(lambda: asyncio.run(citus.drop_template(addresses, template)))
    await citus.make_template(addresses, template)
    await _set_role(url)


async def _make_template(owner_url):
    template = os.environ[_TEMPLATE] = "migrated"
    connection = await asyncpg.connect(owner_url)
    await connection.execute(f"CREATE DATABASE {template}")
    await connection.close()
    await _set_role(owner_url)
    url = database_url(owner_url, template)
    await migrations.migrate(url, "credit_service", lambda _line: None)
    # The first connection writes caches that the next ones read; the copies have them too.
    connection = await asyncpg.connect(url)
    await connection.close()


async def _set_role(url):
    """Gives the service's role its settings, which a copy of a database does not have."""
    settings = {name: f"{limit_ms}ms" for name, limit_ms in ROLE_LIMITS_MS.items()}
    settings |= dict.fromkeys(ROLE_PLANS_OFF, "off")
    settings["plan_cache_mode"] = ROLE_PLANS_KEPT
    if citus.URL in os.environ:
        settings |= ROLE_SETTINGS
    connection = await asyncpg.connect(url)
    for name, value in settings.items():
        await connection.execute(f"ALTER ROLE credit_service SET {name} = '{value}'")
    await connection.close()


def pytest_report_header():
    where = f"of the Citus cluster of {citus.URL}" if citus.URL in os.environ else "of one server"
    return [
        f"deadlines: {patience(1):.1f} times those of an idle fast machine",
        f"databases: {where}",
    ]


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_collection():
    """Keeps Python from searching for garbage among five thousand tests, which all stay."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


def pytest_collection_modifyitems(config, items):
    for item in items:
        if mark := item.get_closest_marker("timeout"):
            item.add_marker(pytest.mark.timeout(_limit(mark.args[0])), append=False)
    if not config.option.long:
        config.hook.pytest_deselected(items=[item for item in items if "long" in item.keywords])
        items[:] = [item for item in items if "long" not in item.keywords]
    storms = {item.path for item in items if "long" in item.keywords}
    items.sort(key=lambda item: (item.path not in storms, _place(item)))


def _limit(seconds):
    return min(patience(seconds), _LIMIT_MAX_SECONDS)


def _place(item):
    """Puts long tests first, so that no worker begins one when the others have nothing left."""
    room = item.path.relative_to(ROOT / "tests").parts[0] if item.path.is_relative_to(ROOT) else ""
    return _SLOWEST_ROOMS.index(room) if room in _SLOWEST_ROOMS else len(_SLOWEST_ROOMS)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item):
    """Leaves a storm's programs out of the coverage, which slows them and shows nothing new."""
    with pytest.MonkeyPatch.context() as patch:
        if "long" in item.keywords:
            patch.delenv("COVERAGE_PROCESS_CONFIG", raising=False)
        return (yield)


@pytest.fixture
def cluster_owner_url():
    return os.environ[_OWNER_URL]


@pytest.fixture(scope="session")
async def cluster_owner():
    """A connection to the cluster as its owner, which makes and drops the databases."""
    connection = await asyncpg.connect(os.environ[_OWNER_URL])
    yield connection
    await connection.close()


@pytest.fixture
async def make_database(cluster_owner):
    """Makes databases, each a copy of the migrated template or, with `empty`, an empty one."""
    async with _databases(cluster_owner) as make:
        yield make


@pytest.fixture(scope="module")
async def make_shared_database(cluster_owner):
    """Makes databases that all tests of a module share."""
    async with _databases(cluster_owner) as make:
        yield make


@contextlib.asynccontextmanager
async def _databases(cluster_owner):
    made = {}
    addresses = os.environ[_NODES].split()

    async def everywhere(statement):
        if len(addresses) == 1:
            await cluster_owner.execute(statement)
        else:
            await citus.on_every_node(addresses, statement)

    async def make(*, empty=False):
        name = f"test_{os.getpid()}_{next(_numbers)}"
        made[name] = IdleConnections()
        template = "template1" if empty else os.environ[_TEMPLATE]
        # Copying the files takes a third of the time of logging every page.
        await everywhere(f"CREATE DATABASE {name} TEMPLATE {template} STRATEGY file_copy")
        return Database(
            name,
            database_url(os.environ[_OWNER_URL], name),
            database_url(os.environ[_SERVICE_URL], name),
            idle=made[name],
        )

    yield make
    for name, idle in made.items():
        await idle.close()
        await everywhere(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")


_numbers = iter(range(10**9))


@pytest.fixture
def database(request):
    """A database for the test alone, or with the mark `shared` for all such tests of the file."""
    return request.getfixturevalue("_shared_database" if _is_shared(request) else "_own_database")


def _is_shared(request):
    mark = request.node.get_closest_marker("shared")
    return mark is not None and mark.args != (False,)


@pytest.fixture
async def _own_database(make_database):
    return await make_database()


@pytest.fixture(scope="module")
async def _shared_database(make_shared_database):
    return await make_shared_database()


@pytest.fixture
async def proxy(database):
    """A connection to the database that a test can break."""
    async with fault_proxy(database.service_url) as running_proxy:
        yield running_proxy


@pytest.fixture
def service(request):
    """A running service on `database`, shared like it."""
    return request.getfixturevalue("_shared_service" if _is_shared(request) else "_own_service")


@pytest.fixture
async def _own_service(database):
    async with running(server_settings(database.service_url)) as running_service:
        yield running_service


@pytest.fixture(scope="module")
async def _shared_service(_shared_database):
    async with running(server_settings(_shared_database.service_url)) as running_service:
        yield running_service


@pytest.fixture
async def stub(service):
    """The generated stub, for requests that the client would not send."""
    async with grpc.aio.insecure_channel(service.target) as channel:
        yield pb_grpc.CreditServiceStub(channel)


@pytest.fixture
async def client(service):
    return await service.client()
