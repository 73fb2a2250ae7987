"""docs/deploy.md: its commands run as printed, on new clusters."""

import asyncio
import contextlib
import os
import re
import shutil
import ssl
import subprocess
import tempfile
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from urllib.parse import quote

import asyncpg
import grpc
import pytest
from kit.documents import DEPLOY, Shell, snippets
from kit.programs import free_port, process
from kit.waiting import eventually

from credit_service.client import CreditClient
from credit_service.database.embedded import Cluster, embedded_postgres
from credit_service.database.programs import ROOTS_STAND_IN, account, find_programs
from credit_service.errors import AccountFrozen, UserDeleted, UserNotFound
from credit_service.v1 import credit_service_pb2 as pb

USER_ID = "3f2b8c1e-9d4a-4f6b-8a57-0c1d2e3f4a5b"
OWN, RESTORE = "A PostgreSQL of your own", "Backup and restore"
SERVE = re.compile(r"^credit-service serve(.*)\n", re.MULTILINE)
RIGHTS_GIVEN = "credit_service may read and add entries, and change none"
PAYMENT = pb.Payment(ref="pi_1", amount_minor=499, currency="eur")


# The embedded server has these; a database of your own does not.
FORGET = "DROP DATABASE credit;\nDROP ROLE credit_service;\n"


@dataclass
class Site:
    """The place where the service is installed: a cluster, and a shell in an empty directory."""

    cluster: Cluster
    shell: Shell

    async def sql(self, snippet: str, role: str = "postgres", database: str = "postgres"):
        """Runs SQL as printed, one statement at a time; returns the rows of the last one."""
        connection = await asyncpg.connect(self._url(role, database))
        try:
            for statement in filter(str.strip, snippet.split(";\n")):
                rows = await connection.fetch(statement)
            return rows
        finally:
            await connection.close()

    def _url(self, role, database):
        return f"postgresql://{role}@/{database}?host={quote(str(self.cluster.socket_directory))}"

    @contextlib.contextmanager
    def serving(self, snippet: str):
        """Runs a snippet that ends with `credit-service serve`; yields process and port."""
        before, options, _ = SERVE.split(snippet)
        self.shell.run(before)
        settings = self.shell.settings
        settings.setdefault("CREDIT_LISTEN", f"127.0.0.1:{free_port()}")
        with process("serve", *options.split(), **settings) as service:
            yield service, service.wait_until_listening()

    def copy(self, directory: Path) -> "Site":
        """The same site with a separate shell, which starts in the present state of this one."""
        directory.mkdir(exist_ok=True)
        files = shutil.ignore_patterns("data")
        shutil.copytree(self.shell.directory, directory, dirs_exist_ok=True, ignore=files)
        shell = Shell(directory, dict(self.shell.swaps), dict(self.shell.environment))
        return Site(self.cluster, shell)


@contextlib.contextmanager
def reachable_directory():
    """A directory that PostgreSQL's user can enter if root runs this."""
    with tempfile.TemporaryDirectory(prefix="deploy-") as name:
        directory = Path(name)
        directory.chmod(0o755)
        yield directory


@contextlib.contextmanager
def new_site():
    """A new cluster, and a shell in which the printed addresses lead to this cluster."""
    with (
        reachable_directory() as directory,
        embedded_postgres(directory / "data", {"fsync": "off"}) as cluster,
    ):
        host = quote(str(cluster.socket_directory))
        names = ("credit_restored", "credit", "postgres")
        swaps = {f"@db.internal/{name}'": f"@/{name}?host={host}'" for name in names}
        shell = Shell(directory, swaps)
        programs = find_programs(directory / "data", account())
        shell.environment["PATH"] = f"{programs.directory}:{shell.environment['PATH']}"
        yield Site(cluster, shell)


@pytest.fixture(scope="module")
async def installed():
    """A site after the first section, up to its migration."""
    with new_site() as site:
        await site.sql(FORGET)
        roles, limits, *_ = snippets(DEPLOY, OWN, "sql")
        await site.sql(roles)
        await site.sql(limits)
        migrate, _ = snippets(DEPLOY, OWN, "sh")
        assert RIGHTS_GIVEN in site.shell.run(migrate)
        yield site


@pytest.fixture
def site(installed, tmp_path):
    """The installed service, and a directory for this test alone."""
    return installed.copy(tmp_path / "site")


async def test_the_printed_settings_of_the_server_are_taken(site):
    (settings,) = snippets(DEPLOY, "Memory and WAL", "sql")
    try:
        await site.sql(settings)
        refused = await site.sql("SELECT name FROM pg_file_settings WHERE error IS NOT NULL")
        # The only one that waits for a restart; PostgreSQL reports that as an error.
        assert [name for (name,) in refused] in ([], ["shared_buffers"])
    finally:
        await site.sql("ALTER SYSTEM RESET ALL")


async def test_a_database_of_your_own_is_fully_protected_and_knows_the_users_you_add(site):
    _, serve = snippets(DEPLOY, OWN, "sh")
    *_, add_user = snippets(DEPLOY, OWN, "sql")
    with site.serving(serve) as (service, port):
        async with CreditClient(f"127.0.0.1:{port}") as client:
            with pytest.raises(UserNotFound):
                await client.purchase_credits(USER_ID, 100, payment=None)
            await site.sql(add_user, "credit_owner", "credit")
            bought = await client.purchase_credits(USER_ID, 100, payment=PAYMENT)
        assert bought.credit.balance == 100
        assert "protection missing" not in service.output
    assert "CREDIT_MIGRATE_URL" not in site.shell.settings

    # The section on deletion, for this user: the rows deleted, and those that remain.
    (delete,) = snippets(DEPLOY, "Retention and deletion", "sql")
    await site.sql(delete, "credit_owner", "credit")
    count = "SELECT count(*) FROM credit_transactions"
    assert [tuple(row) for row in await site.sql(count, database="credit")] == [(0,)]
    await site.sql(add_user, "credit_owner", "credit")
    with site.serving(serve) as (_, port):
        async with CreditClient(f"127.0.0.1:{port}") as client:
            with pytest.raises(UserDeleted):
                await client.purchase_credits(USER_ID, 100, payment=PAYMENT)


# Roles, owners and rights as Supabase's own migrations make them: postgres is not a superuser and
# cannot pass on its rights in the schema auth, and row-level security hides the users.
AS_SUPABASE_HAS_IT = """
CREATE ROLE supabase_admin SUPERUSER;
CREATE ROLE supabase_auth_admin LOGIN NOINHERIT;
CREATE ROLE project_owner LOGIN CREATEDB CREATEROLE REPLICATION BYPASSRLS;
CREATE ROLE anon;
CREATE ROLE authenticated;
CREATE ROLE service_role BYPASSRLS;
GRANT anon, authenticated, service_role TO project_owner WITH ADMIN OPTION;
ALTER DATABASE postgres OWNER TO project_owner;
ALTER DEFAULT PRIVILEGES FOR ROLE project_owner IN SCHEMA public
    GRANT ALL ON TABLES TO anon, authenticated, service_role;
GRANT USAGE ON SCHEMA public TO anon, authenticated, service_role;
CREATE SCHEMA auth AUTHORIZATION supabase_admin;
CREATE TABLE auth.users (id uuid PRIMARY KEY, email text);
ALTER TABLE auth.users OWNER TO supabase_auth_admin;
SET ROLE supabase_admin;
GRANT ALL ON SCHEMA auth TO supabase_auth_admin;
GRANT USAGE ON SCHEMA auth TO project_owner, anon, authenticated, service_role;
SET ROLE supabase_auth_admin;
GRANT ALL ON auth.users TO project_owner;
GRANT SELECT ON auth.users TO project_owner WITH GRANT OPTION;
ALTER TABLE auth.users ENABLE ROW LEVEL SECURITY;
"""


async def test_supabases_users_are_known_and_its_data_api_has_no_access():
    with new_site() as site:
        await site.sql(FORGET + AS_SUPABASE_HAS_IT)
        site.shell.swaps["//postgres:"] = "//project_owner:"
        (role,) = snippets(DEPLOY, "Supabase", "sql")
        (migrate,) = snippets(DEPLOY, "Supabase", "sh")
        await site.sql(role, "project_owner")
        assert RIGHTS_GIVEN in site.shell.run(migrate)
        await site.sql(f"INSERT INTO auth.users VALUES ('{USER_ID}')", "supabase_auth_admin")
        with site.serving("credit-service serve\n") as (service, port):
            async with CreditClient(f"127.0.0.1:{port}") as client:
                assert (await client.get_user_credit(USER_ID)).balance == 0
                bought = await client.purchase_credits(USER_ID, 100, payment=None)
                assert bought.credit.balance == 100
                with pytest.raises(UserNotFound):
                    await client.get_user_credit(USER_ID.replace("3f", "4f"))
            assert "protection missing" not in service.output
        for outsider in ("anon", "authenticated", "service_role"):
            with pytest.raises(asyncpg.InsufficientPrivilegeError):
                await site.sql(f"SET ROLE {outsider};\nSELECT * FROM user_credits")


async def test_existing_tables_are_adopted_as_described(site):
    await site.sql("CREATE DATABASE credit_given OWNER credit_owner")
    given = f"""
CREATE SCHEMA auth;
CREATE TABLE auth.users (id uuid PRIMARY KEY);
INSERT INTO auth.users VALUES ('{USER_ID}');
CREATE TABLE user_credits (user_id uuid PRIMARY KEY REFERENCES auth.users (id) ON DELETE CASCADE,
    balance integer DEFAULT 0, last_updated timestamp);
CREATE TABLE credit_transactions (id text PRIMARY KEY,
    user_id uuid REFERENCES auth.users (id) ON DELETE CASCADE,
    type text CHECK (type IN ('purchase', 'spend', 'refund')),
    amount integer, description text, timestamp timestamp);
INSERT INTO user_credits VALUES ('{USER_ID}', 75, '2024-01-02');
INSERT INTO credit_transactions VALUES
    ('old-2', '{USER_ID}', 'spend', 10, 'stems', '2024-01-02'),
    ('old-1', '{USER_ID}', 'purchase', 50, 'pack', '2024-01-01');
"""
    await site.sql(given, "credit_owner", "credit_given")
    for name in ("CREDIT_DATABASE_URL", "CREDIT_MIGRATE_URL"):
        url = site.shell.environment[name]
        site.shell.environment[name] = url.replace("/credit?", "/credit_given?")
    site.shell.run("credit-service migrate")
    with site.serving("credit-service serve\n") as (_, port):
        async with CreditClient(f"127.0.0.1:{port}") as client:
            credit = await client.get_user_credit(USER_ID, history_size=10)
            spend = await client.get_transaction(USER_ID, idempotency_key="given:old-2")
    assert credit.balance == 75
    opening, *entries = reversed(credit.transaction_history)
    assert (opening.type, opening.amount) == (pb.TRANSACTION_TYPE_GRANT, 35)
    assert [entry.metadata["given_id"] for entry in entries] == ["old-1", "old-2"]
    assert (spend.amount, spend.description) == (10, "stems")


def require(tool, shell):
    if shutil.which(tool, path=shell.environment["PATH"]) is None:
        pytest.skip(f"{tool} is not installed")


@pytest.fixture
def secured(site):
    """The site with an identity that has a token, a certificate, and its own port."""
    require("openssl", site.shell)
    version = site.shell.run("openssl version")
    if not version.startswith("OpenSSL 3"):
        pytest.skip(f"{version.strip()} does not make certificates in one command; OpenSSL 3 does")
    port = free_port()
    site.shell.swaps |= {
        "0.0.0.0:50051": f"0.0.0.0:{port}",
        "credit.internal:50051": f"localhost:{port}",
    }
    (token,) = snippets(DEPLOY, "Callers and their rights", "sh")
    make, *_ = snippets(DEPLOY, "TLS", "sh")
    site.shell.run(token)
    site.shell.run(make)
    return site


def read(site, name):
    return (site.shell.directory / name).read_bytes()


def offered_certificate(port):
    return ssl.get_server_certificate(("127.0.0.1", port))


async def test_a_token_works_over_tls_and_the_certificate_is_renewed_without_restart(secured):
    _, serve, call, renew = snippets(DEPLOY, "TLS", "sh")
    token = read(secured, "ops.token").decode().strip()
    credentials = grpc.ssl_channel_credentials(read(secured, "ca.crt"))
    with secured.serving(serve) as (service, port):
        target = f"localhost:{port}"
        async with CreditClient(target, token=token, credentials=credentials) as client:
            assert len((await client.list_prices()).prices) == 2
        service.wait_for('"caller":"ops"')
        if shutil.which("grpcurl", path=secured.shell.environment["PATH"]):
            assert "stem_separation" in secured.shell.run(call)
        before = offered_certificate(port)
        secured.shell.run(renew)
        await eventually(lambda: offered_certificate(port) != before)
        service.wait_for("certificate renewed")


async def test_a_client_certificate_identifies_the_caller(secured):
    _, serve, *_ = snippets(DEPLOY, "TLS", "sh")
    secured.shell.run(SERVE.sub("", serve))
    (certificates,) = snippets(DEPLOY, "Client certificates", "sh")
    (caller,) = snippets(DEPLOY, "Client certificates", "python")
    with secured.serving(certificates) as (service, _):
        assert "stem_separation: 10 per separation" in secured.shell.python(caller)
        service.wait_for('"caller":"stem-worker"')


async def test_accounts_are_managed_as_described(site):
    require("grpcurl", site.shell)
    policy, adjust, show, verify, export = snippets(DEPLOY, "Managing accounts", "sh")
    add_user = f"INSERT INTO auth.users VALUES ('{USER_ID}') ON CONFLICT DO NOTHING"
    await site.sql(add_user, "credit_owner", "credit")
    today = datetime.now(UTC).date()
    with site.serving("credit-service serve\n") as (_, port):
        site.shell.swaps |= {
            "127.0.0.1:50051": f"127.0.0.1:{port}",
            "2026-11-01": str(today - timedelta(days=1)),
            "2026-12-01": str(today + timedelta(days=1)),
        }
        async with CreditClient(f"127.0.0.1:{port}") as client:
            await client.grant_credits(USER_ID, 100, reason="goodwill")
            held = await client.hold_credits(USER_ID, operation="render")
            site.shell.run(policy)
            with pytest.raises(AccountFrozen):
                await client.spend_credits(USER_ID, amount=1)
            assert "TRANSACTION_TYPE_ADJUSTMENT" in site.shell.run(adjust)
            shown = site.shell.run(show)
            await client.capture_hold(USER_ID, held.hold.id)
            account = await client.get_user_credit(USER_ID)
    assert (account.frozen, account.min_balance) == (True, -50)
    assert f'"id": "{held.hold.id}"' in shown
    assert '"balance": "-449900"' in shown
    assert '"hold_count": "1"' in shown.replace("holdCount", "hold_count")
    assert " verified, 0 with faults" in site.shell.run(verify)
    site.shell.run(export)
    written = (site.shell.directory / "november.csv").read_text()
    assert f"{USER_ID},3,adjustment,450000,-450000" in written
    accounts = (site.shell.directory / "accounts.jsonl").read_text()
    assert '"balance":-449905' in accounts
    changes = "SELECT caller FROM credit_policy_changes"
    assert [row["caller"] for row in await site.sql(changes, database="credit")] == ["local"]


async def test_several_processes_share_the_port(site):
    (serve,) = snippets(DEPLOY, "Processes and replicas", "sh")
    with site.serving(serve) as (service, port):
        async with CreditClient(f"127.0.0.1:{port}") as client:
            await client.list_prices()
    assert service.popen.returncode == 0, service.output


async def test_health_and_metrics_answer_on_their_own_ports(site):
    require("curl", site.shell)
    site.shell.swaps |= {"50052": str(free_port()), "9464": str(free_port())}
    serve, ask = snippets(DEPLOY, "Health, metrics, logs", "sh")
    with site.serving(serve):
        said = site.shell.run(ask)
    assert "SERVING" in said.splitlines()[0]
    assert "credit_serving 1.0" in said


async def test_of_several_servers_the_one_that_can_be_written_is_found(site):
    serve, advance = snippets(DEPLOY, "Failover", "sh")
    sockets = quote(str(site.cluster.socket_directory))
    site.shell.swaps |= {
        "@db1.internal,db2.internal/credit?": f"@/credit?host=/nowhere,{sockets}&",
        "/etc/credit/pgpass": str(site.shell.directory / "pgpass"),
    }
    with site.serving(serve) as (_, port):
        async with CreditClient(f"127.0.0.1:{port}") as client:
            with pytest.raises(UserNotFound):
                await client.get_user_credit(USER_ID.replace("3f", "4f"))
        said = site.shell.run(advance)
        assert "it goes on" in said
        assert "nothing to do" in said


@contextlib.contextmanager
def pooling(site):
    """Runs PgBouncer with the printed configuration, on a port of its own."""
    require("pgbouncer", site.shell)
    program = shutil.which("pgbouncer", path=site.shell.environment["PATH"])
    port = str(free_port())
    site.shell.swaps["6432"] = port
    (configuration,) = snippets(DEPLOY, "PgBouncer", "ini")
    with reachable_directory() as directory:
        for printed, real in {
            "host=db.internal": f"host={site.cluster.socket_directory}",
            "/etc/pgbouncer/userlist.txt": str(directory / "userlist.txt"),
            "6432": port,
        }.items():
            configuration = configuration.replace(printed, real)
        (directory / "userlist.txt").write_text('"credit_service" "service-password"\n')
        (directory / "pgbouncer.ini").write_text(f"{configuration}unix_socket_dir =\n")
        # It changes its user itself: with user= Popen would fork, which gRPC does not survive.
        run_as = ("-u", ROOTS_STAND_IN) if os.geteuid() == 0 else ()
        arguments = [program, *run_as, "--quiet", directory / "pgbouncer.ini"]
        with subprocess.Popen(arguments, stderr=subprocess.DEVNULL, cwd="/") as pooler:
            try:
                yield
            finally:
                pooler.terminate()


async def test_it_serves_behind_pgbouncer(site):
    users = [f"3f2b8c1e-9d4a-4f6b-8a57-{number:012}" for number in range(100, 120)]
    for user_id in users:
        await site.sql(f"INSERT INTO auth.users VALUES ('{user_id}')", "credit_owner", "credit")
    (serve,) = snippets(DEPLOY, "PgBouncer", "sh")

    async def story(client, user_id):
        await client.purchase_credits(user_id, 100, payment=None)
        for _ in range(5):
            await client.spend_credits(user_id, amount=1)
            credit = await client.get_user_credit(user_id, history_size=100)
        return credit.balance, len(credit.transaction_history)

    with pooling(site), site.serving(serve) as (service, port):
        # Lanes and reads share the pooler's connections, and so each other's statements.
        async with CreditClient(f"127.0.0.1:{port}") as client:
            shown = await asyncio.gather(*(story(client, user_id) for user_id in users))
        assert "protection missing" not in service.output
        assert "batch fault" not in service.output
    assert shown == [(95, 6)] * len(users)


async def test_a_dump_is_restored_with_its_rights_and_adds_up(site):
    user_id = "3f2b8c1e-9d4a-4f6b-8a57-000000000003"
    await site.sql(f"INSERT INTO auth.users VALUES ('{user_id}')", "credit_owner", "credit")
    with site.serving("credit-service serve\n") as (_, port):
        async with CreditClient(f"127.0.0.1:{port}") as client:
            await client.purchase_credits(user_id, 100, payment=None)
            spent = await client.spend_credits(user_id, operation="render")
            await client.refund_credits(user_id, spent.transaction.id, amount=2)
            await client.hold_credits(user_id, amount=7)
    dump, restore, verify, advance = snippets(DEPLOY, RESTORE, "sh")
    (create,) = snippets(DEPLOY, RESTORE, "sql")
    site.shell.run(dump)
    await site.sql(create)
    assert "0 migrations applied" in site.shell.run(restore)
    assert " verified, 0 with faults" in site.shell.run(verify)
    assert "readers go on" in site.shell.run(advance)
    with site.serving("credit-service serve\n") as (service, port):
        async with CreditClient(f"127.0.0.1:{port}") as client:
            credit = await client.get_user_credit(user_id)
            assert (credit.balance, credit.held) == (97, 7)
            await client.refund_credits(user_id, spent.transaction.id)
        assert "protection missing" not in service.output
    break_it = f"UPDATE user_credits SET balance = balance + 1 WHERE user_id = '{user_id}'"
    await site.sql(break_it, "credit_owner", "credit_restored")
    with pytest.raises(AssertionError, match=f"{user_id}: the account says balance 101"):
        site.shell.run(verify)
