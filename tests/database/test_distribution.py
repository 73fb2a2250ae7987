"""`credit-service distribute`: what it refuses anywhere, and what it does on a Citus cluster."""

import os
import signal
from collections import Counter

import pytest
from kit.citus import ROLE, URL, database_url, make_empty, needs_citus, nodes, on_every_node
from kit.command_line import ran, start_refused
from kit.databases import Database
from kit.programs import process
from kit.services import running, server_settings

from credit_service.client import CreditClient
from credit_service.database import distribution, migrations
from credit_service.errors import FeedNotOffered

ordinary = pytest.mark.skipif(URL in os.environ, reason="the databases are those of a cluster")

# What of the book is on the coordinator: keys without the numbers of shards, and rows.
KEYS = """
    SELECT conrelid::regclass::text, conname, pg_get_constraintdef(oid) FROM pg_constraint
    WHERE contype IN ('f', 'p', 'u', 'x', 'c') AND conrelid::regclass::text = ANY($1)
    ORDER BY 1, 2
"""

ENDPOINT = """
[[endpoint]]
name = "billing"
url = "https://billing.example.com/credits"
secrets = [{ file = "secret" }]
types = ["*"]
"""


def urls(database):
    return {"CREDIT_DATABASE_URL": database.service_url, "CREDIT_MIGRATE_URL": database.owner_url}


def distribute(database):
    """Runs the command as the owner."""
    return ran("distribute", **urls(database))


async def placed(database):
    return {row[0] for row in await database.fetch("SELECT table_name::text FROM citus_tables")}


@pytest.fixture
async def unplaced():
    """A migrated database of the cluster in which nothing is distributed yet."""
    addresses = await nodes(os.environ[URL])
    name = f"undistributed_{os.getpid()}"
    await on_every_node(addresses, f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")
    await make_empty(addresses, name)
    url = database_url(addresses[0], name)
    await migrations.migrate(url, ROLE, lambda _line: None)
    yield Database(name, url, database_url(url, name, role=ROLE))
    await on_every_node(addresses, f"DROP DATABASE {name} WITH (FORCE)")


async def test_every_table_of_the_schema_has_one_placement(database):
    rows = await database.fetch(
        "SELECT oid::regclass::text FROM pg_class WHERE relkind IN ('r', 'p')"
        " AND relnamespace IN ('public'::regnamespace, 'auth'::regnamespace)"
    )
    shards = {row[0] for row in rows if row[0].rpartition("_")[2].isdigit()}
    placements = Counter(
        [
            *distribution.BY_USER,
            *distribution.BY_REFERENCE,
            *distribution.EVERYWHERE,
            *distribution.ON_THE_COORDINATOR,
        ]
    )
    assert placements == Counter({row[0] for row in rows} - shards)


@ordinary
async def test_a_database_without_citus_is_refused_with_what_to_do(database):
    done = distribute(database)
    assert done.returncode == 2
    assert "the database has no Citus" in done.stderr
    assert "shared_preload_libraries" in done.stderr


@ordinary
async def test_an_ordinary_book_is_not_distributed_and_has_its_feed(database):
    connection = await database.connect()
    assert not await distribution.is_distributed(connection)
    await connection.close()
    assert ran("feed", "status", **urls(database)).returncode == 0


@needs_citus
async def test_an_existing_book_keeps_every_row_and_key(unplaced):
    users = [await unplaced.user(credits_) for credits_ in (0, 5, 7)]
    tables = [*distribution.BY_USER, *distribution.BY_REFERENCE, *distribution.EVERYWHERE]
    before = await unplaced.fetch(KEYS, tables)
    done = distribute(unplaced)
    assert done.returncode == 0, done.stderr
    assert "credit_transactions: split by user_id" in done.stdout
    assert await placed(unplaced) == set(tables)
    assert len(await unplaced.fetch("SELECT 1 FROM auth.users")) == len(users)
    assert await unplaced.faults() == []
    after = {tuple(row) for row in await unplaced.fetch(KEYS, tables)}
    changed = {row[1] for row in after ^ set(map(tuple, before))}
    assert changed == {"one_payment_per_reversal", "one_top_up_per_payment"}
    # Citus keeps a copy on the coordinator, unseen, until it is asked to remove it.
    assert "removed the unused copy" in done.stdout
    [(left,)] = await unplaced.fetch("SELECT pg_relation_size('credit_transactions')")
    assert left == 0


@needs_citus
async def test_distributing_and_migrating_again_change_nothing(unplaced):
    assert distribute(unplaced).returncode == 0
    done = distribute(unplaced)
    assert done.returncode == 0
    assert "all tables were distributed already" in done.stdout
    done = ran("migrate", **urls(unplaced))
    assert done.returncode == 0, done.stderr
    assert "0 migrations applied" in done.stdout


@needs_citus
async def test_a_run_that_is_killed_has_changed_nothing_and_the_next_one_completes(unplaced):
    await unplaced.user(5)
    with process("distribute", **urls(unplaced)) as run:
        run.wait_for("credit_holds: split by user_id")
        run.signal(signal.SIGKILL)
    done = distribute(unplaced)
    assert done.returncode == 0, done.stderr
    assert "credit_feed: copied to every node" in done.stdout
    assert await unplaced.faults() == []


@needs_citus
@pytest.mark.parametrize(
    ("table", "made"),
    [
        ("credit_odd", "CREATE TABLE credit_odd (id bigint)"),
        ("orders", "CREATE TABLE orders (user_id uuid REFERENCES auth.users (id))"),
    ],
)
async def test_a_table_without_a_placement_is_refused_by_name(unplaced, table, made):
    await unplaced.execute(made)
    done = distribute(unplaced)
    assert done.returncode == 2
    assert f"no placement is known for {table}" in done.stderr
    assert await placed(unplaced) == set()


@needs_citus
async def test_a_worker_and_an_old_database_are_refused(unplaced):
    addresses = await nodes(os.environ[URL])
    worker = database_url(addresses[1], unplaced.name)
    done = ran("distribute", CREDIT_DATABASE_URL=worker)
    assert done.returncode == 2
    assert "connect to the coordinator" in done.stderr
    await unplaced.execute("DELETE FROM credit_migrations WHERE version = 1")
    done = distribute(unplaced)
    assert done.returncode == 2
    assert "run `credit-service migrate`" in done.stderr


@needs_citus
async def test_the_feed_of_a_distributed_book_is_refused_wherever_it_is_asked_for(
    database, tmp_path
):
    async with (
        running(server_settings(database.service_url)) as service,
        CreditClient(service.target) as client,
    ):
        with pytest.raises(FeedNotOffered):
            async for _item in client.stream_transactions():
                pass
    done = ran("feed", "status", **urls(database))
    assert done.returncode == 2
    assert "has no feed" in done.stderr
    endpoints = tmp_path / "endpoints.toml"
    endpoints.write_text(ENDPOINT)
    (tmp_path / "secret").write_text("whsec_" + "c2VjcmV0" * 6)
    line = start_refused(CREDIT_WEBHOOKS=str(endpoints), **urls(database))
    assert "unset CREDIT_WEBHOOKS" in line
