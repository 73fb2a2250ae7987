"""`credit-service distribute`: what it refuses anywhere, and what it does on a Citus cluster."""

import asyncio
import os
import re
import signal
from collections import Counter
from datetime import UTC, datetime, timedelta
from uuid import uuid4

import asyncpg
import pytest
from kit.citus import ROLE, URL, database_url, make_empty, needs_citus, nodes, on_every_node
from kit.command_line import ran, start_refused
from kit.databases import Database
from kit.documents import snippets
from kit.paths import ROOT
from kit.programs import process
from kit.requests import payment
from kit.services import running, server_settings

from credit_service.client import CreditClient
from credit_service.database import distribution, migrations
from credit_service.database.distributed_book import NOT_OFFERED, is_distributed
from credit_service.database.migrations import Migration
from credit_service.errors import FeedNotOffered, PaymentReused

ordinary = pytest.mark.skipif(URL in os.environ, reason="the databases are those of a cluster")

TABLES = [*distribution.BY_USER, *distribution.BY_REFERENCE, *distribution.EVERYWHERE]

EARLY = datetime.now(UTC) - timedelta(days=1)
LATE = datetime.now(UTC) + timedelta(days=300)

# The parts of the book on the coordinator: keys without the numbers of shards, and rows.
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


LATER = Migration(
    9999,
    "9999_later",
    """
CREATE TABLE credit_later (
    user_id uuid NOT NULL,
    seq bigint NOT NULL,
    CONSTRAINT later_is_of_an_entry PRIMARY KEY (user_id, seq)
);

-- distributed: SELECT create_distributed_table(
-- distributed:     'credit_later', 'user_id', colocate_with => 'user_credits'
-- distributed: );

ALTER TABLE credit_later ADD CONSTRAINT later_belongs_to_an_account FOREIGN KEY (user_id)
REFERENCES user_credits (user_id) ON DELETE CASCADE;

ALTER TABLE user_credits ADD COLUMN later bigint NOT NULL DEFAULT 7;

CREATE TRIGGER later_never_changes BEFORE UPDATE OR DELETE ON credit_later
FOR EACH ROW EXECUTE FUNCTION refuse_to_change_the_book();
""",
)


async def rows_of(database, tables):
    """Every row of these tables as a text, table by table."""
    return {
        name: sorted(row[0] for row in await database.fetch(f"SELECT each::text FROM {name} each"))
        for name in tables
    }


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


def test_its_help_says_what_it_does_and_its_embedded_database_is_refused(tmp_path):
    done = ran("distribute", "--help")
    assert done.returncode == 0
    assert "Split the book over the nodes of a Citus cluster" in done.stdout
    assert "--dry-run" in done.stdout
    done = ran("distribute", CREDIT_DATA_DIR=str(tmp_path))
    assert done.returncode == 2
    assert "set CREDIT_DATABASE_URL to the coordinator" in done.stderr
    assert not list(tmp_path.iterdir())


DOCUMENT = ROOT / "docs/scale-out.md"


def test_the_document_says_all_that_a_distributed_book_does_not_offer():
    text = " ".join(DOCUMENT.read_text().split())
    for missing in NOT_OFFERED:
        assert missing in text


@ordinary
async def test_a_later_migration_leaves_out_what_is_for_a_distributed_book(database):
    files = [*migrations.migrations(), LATER]
    await migrations.migrate(database.owner_url, ROLE, lambda _line: None, files)
    assert await database.fetch("SELECT user_id, seq FROM credit_later") == []


@ordinary
async def test_an_ordinary_book_is_not_distributed_and_has_its_feed(database):
    connection = await database.connect()
    assert not await is_distributed(connection)
    await connection.close()
    assert ran("feed", "status", **urls(database)).returncode == 0


async def live(client, user_id):
    """Gives an account some of everything."""
    bought = payment(f"pi_{user_id}")
    await client.purchase_credits(user_id, 100, payment=bought)
    spend = await client.spend_credits(user_id, amount=10)
    await client.refund_credits(user_id, transaction_id=spend.transaction.id, amount=3)
    await client.grant_credits(user_id, 5, reason="a gift", expire_time=LATE)
    held = await client.hold_credits(user_id, amount=20)
    await client.capture_hold(user_id, held.hold.id, amount=15)
    await client.hold_credits(user_id, amount=6, ttl=timedelta(hours=1))
    await client.reverse_purchase(
        bought.ref,
        reversal_ref=f"re_{user_id}",
        revision=1,
        reversed_minor=333,
        paid_minor=999,
        currency="eur",
        reason="the money went back",
    )
    await client.set_account_policy(user_id, min_balance=-5)


async def shown(database, user_ids, then):
    """The book now and at a past time, as a service that is started for it shows them."""
    async with (
        running(server_settings(database.service_url)) as service,
        CreditClient(service.target) as client,
    ):
        return [
            await client.get_usage_report(EARLY, then),
            await client.get_liability_report(then),
            [account async for account in client.list_accounts()],
            *[await client.get_user_credit(user_id) for user_id in user_ids],
            *[await client.get_usage_report(EARLY, then, user_id=user_id) for user_id in user_ids],
            *[
                [entry async for entry in client.get_transaction_history(user_id)]
                for user_id in user_ids
            ],
            *[[grant async for grant in client.list_grants(user_id)] for user_id in user_ids],
        ]


@needs_citus
async def test_an_existing_book_keeps_every_row_and_key(unplaced):
    users = [await unplaced.user() for _ in range(12)]
    async with (
        running(server_settings(unplaced.service_url)) as service,
        CreditClient(service.target) as client,
    ):
        for user_id in users:
            await live(client, user_id)
    now = datetime.now(UTC)
    before = await shown(unplaced, users, now)
    keys = await unplaced.fetch(KEYS, TABLES)
    rows = await rows_of(unplaced, TABLES)
    export = ran("export", "transactions", **urls(unplaced)).stdout
    assert export.count("\n") == len(rows["credit_transactions"]) + 1
    done = ran("distribute", "--dry-run", **urls(unplaced))
    assert done.returncode == 0, done.stderr
    assert "credit_transactions: would be split by user_id" in done.stdout
    assert await placed(unplaced) == set()
    done = distribute(unplaced)
    assert done.returncode == 0, done.stderr
    assert "credit_transactions: split by user_id" in done.stdout
    assert all(missing in done.stdout for missing in NOT_OFFERED)
    assert await placed(unplaced) == set(TABLES)
    assert await rows_of(unplaced, TABLES) == rows
    assert await shown(unplaced, users, now) == before
    assert await unplaced.faults() == []
    assert ran("export", "transactions", **urls(unplaced)).stdout == export
    verified = ran("verify", **urls(unplaced))
    assert verified.stdout == "12 accounts verified, 0 with faults\n", verified.stderr
    after = {tuple(row) for row in await unplaced.fetch(KEYS, TABLES)}
    changed = {row[1] for row in after ^ set(map(tuple, keys))}
    assert changed == {"one_payment_per_reversal", "one_top_up_per_payment"}
    # Citus keeps a copy on the coordinator, unseen, until it is asked to remove it.
    assert "removed the unused copy" in done.stdout
    [(left,)] = await unplaced.fetch("SELECT pg_relation_size('credit_transactions')")
    assert left == 0


@needs_citus
async def test_a_payment_is_credited_to_one_of_many_users_who_claim_it_at_once(database):
    users = [await database.user() for _ in range(12)]
    settings = server_settings(database.service_url)
    async with (
        running(settings) as one,
        running(settings) as two,
        CreditClient(one.target) as first,
        CreditClient(two.target) as second,
    ):
        for ref in ("pi_1", "pi_2", "pi_3"):
            said = await asyncio.gather(
                *(
                    (first, second)[n % 2].purchase_credits(user_id, 5, payment=payment(ref))
                    for n, user_id in enumerate(users)
                ),
                return_exceptions=True,
            )
            credited = [answer for answer in said if not isinstance(answer, Exception)]
            assert len(credited) == 1, said
            assert {type(answer) for answer in said if answer not in credited} == {PaymentReused}
    rows = await database.fetch("SELECT payment_ref FROM credit_transactions")
    assert sorted(row[0] for row in rows) == ["pi_1", "pi_2", "pi_3"]
    assert await database.faults() == []


@needs_citus
async def test_a_later_migration_makes_its_table_on_every_shard_of_a_distributed_book(unplaced):
    user_id = await unplaced.user(5)
    assert distribute(unplaced).returncode == 0
    files = [*migrations.migrations(), LATER]
    await migrations.migrate(unplaced.owner_url, ROLE, lambda _line: None, files)
    assert "credit_later" in await placed(unplaced)
    await unplaced.execute("INSERT INTO credit_later VALUES ($1, 1)", user_id)
    assert await unplaced.fetch("SELECT later FROM user_credits") == [(7,)]
    with pytest.raises(asyncpg.PostgresError, match="later_belongs_to_an_account"):
        await unplaced.execute("INSERT INTO credit_later VALUES ($1, 1)", uuid4())
    with pytest.raises(asyncpg.PostgresError):
        await unplaced.execute("UPDATE credit_later SET seq = 2")


@needs_citus
async def test_a_migration_that_the_cluster_refuses_has_changed_nothing(unplaced):
    assert distribute(unplaced).returncode == 0
    unfit = Migration(9999, "9999_unfit", LATER.sql.replace("-- distributed: ", "--"))
    files = [*migrations.migrations(), unfit]
    with pytest.raises(
        migrations.MigrationError, match="credit_later would refer to distributed tables"
    ):
        await migrations.migrate(unplaced.owner_url, ROLE, lambda _line: None, files)
    assert await unplaced.fetch("SELECT to_regclass('credit_later')") == [(None,)]


@needs_citus
async def test_the_commands_that_the_document_prints_do_what_it_says(unplaced):
    [setting_up] = snippets(DOCUMENT, "Setting it up", "sh")
    said = ""
    for command in re.findall(r"^credit-service (.*)$", setting_up, re.MULTILINE):
        done = ran(*command.split(), **urls(unplaced))
        assert done.returncode == 0, done.stderr
        said += done.stdout
    assert "0 accounts verified, 0 with faults" in said
    [printed] = snippets(DOCUMENT, "Setting it up", "text")
    for line in printed.splitlines():
        # Names, sizes and addresses are those of another cluster.
        step = re.sub(r"^database credit: |, .*$", "", line)
        assert step == "..." or step.removesuffix(" 13.2.2") in said, line
    for section in ("Moving shards", "Backup"):
        [sql] = snippets(DOCUMENT, section, "sql")
        for statement in sql.splitlines():
            if "citus_add_node" not in statement:
                await unplaced.execute(statement)


@needs_citus
async def test_a_book_in_use_and_a_role_that_owns_nothing_are_refused(unplaced):
    connection = await asyncpg.connect(unplaced.service_url)
    done = distribute(unplaced)
    assert done.returncode == 2
    assert f"the database is in use: 1 sessions of {ROLE} are connected" in done.stderr
    await connection.close()
    done = ran("distribute", CREDIT_DATABASE_URL=unplaced.service_url)
    assert done.returncode == 2
    assert "belong to another role" in done.stderr
    assert await placed(unplaced) == set()


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
@pytest.mark.parametrize(
    "step",
    [
        "citus.enable_unsafe_triggers",
        "one_top_up_per_payment becomes",
        "credit_holds: split by user_id",
        "foreign keys restored",
        "removed the unused copy",
    ],
)
async def test_a_run_that_is_killed_at_any_step_is_completed_by_the_next_one(unplaced, step):
    await unplaced.user(5)
    with process("distribute", **urls(unplaced)) as run:
        run.wait_for(step)
        run.signal(signal.SIGKILL)
    done = distribute(unplaced)
    assert done.returncode == 0, done.stderr
    assert len(await placed(unplaced)) == len(TABLES)
    assert await unplaced.faults() == []
    [(left,)] = await unplaced.fetch("SELECT pg_relation_size('credit_transactions')")
    assert left == 0


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
