"""The command line: what each command prints, and how the service starts, refuses and ends."""

import asyncio
import contextlib
import hashlib
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from urllib.parse import parse_qs, urlsplit
from uuid import uuid4

import asyncpg
import pytest
import trustme
from harness import free_port, process

from credit_service import cli, config, migrations
from credit_service.access import Identities
from credit_service.client import CreditClient
from credit_service.errors import InsufficientCredits

AWAY = "postgresql://role@/database?host=/nowhere"


@pytest.fixture(autouse=True)
def _no_settings_of_ours(monkeypatch):
    for name in os.environ:
        if name.startswith("CREDIT_"):
            monkeypatch.delenv(name)


@pytest.fixture
def said(monkeypatch, capsys):
    """Runs a command in this process; returns its exit code, output and errors."""

    def said(*arguments, **variables):
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        try:
            code = cli.main(list(arguments))
        except SystemExit as end:
            code = end.code
        printed = capsys.readouterr()
        assert "Traceback" not in printed.out + printed.err
        return code or 0, printed.out, printed.err

    return said


@pytest.fixture
def place():
    """An empty directory that root's PostgreSQL can reach; pytest's own are closed."""
    place = Path(tempfile.mkdtemp(prefix="cli-"))
    place.chmod(0o755)
    yield place
    shutil.rmtree(place)


def ran(*arguments, **variables):
    """Runs a command in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-m", "credit_service", *arguments],
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert "Traceback" not in done.stdout + done.stderr
    return done


def start_refused(*arguments, **variables):
    """Starts the service, which must refuse; returns the line that says why."""
    done = ran("serve", *arguments, **{"CREDIT_LISTEN": "127.0.0.1:0", **variables})
    assert done.returncode == 2, done.stderr
    assert done.stdout == ""
    lines = [line for line in done.stderr.splitlines() if line.startswith("credit-service: ")]
    assert lines, done.stderr
    return lines[-1].removeprefix("credit-service: ")


def with_path(url, name):
    return urlsplit(url)._replace(path=f"/{name}").geturl()


@contextlib.contextmanager
def taken_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        yield listener.getsockname()[1]


def test_settings_lists_each_with_value_default_and_meaning(said):
    code, out, _ = said(
        "settings",
        CREDIT_LANES="8",
        CREDIT_ALLOW_PLAINTEXT="true",
        CREDIT_OTHER_PRICES='{"mix": {"cost": 3, "unit": "song"}}',
        CREDIT_DRAIN_SECONDS="2.5",
        CREDIT_IDENTITIES="/callers.toml",
    )
    assert code == 0
    lines = out.splitlines()
    for name, field in config.Settings.model_fields.items():
        (place,) = (
            number
            for number, line in enumerate(lines)
            if re.match(config.variable(name) + "[= ]", line)
        )
        assert lines[place + 1] == f"    {field.description}"
    assert {
        "CREDIT_LANES=8  (default 4)",
        "CREDIT_ALLOW_PLAINTEXT=true  (default false)",
        'CREDIT_OTHER_PRICES={"mix": {"cost": 3, "unit": "song"}}  (default {})',
        "CREDIT_DRAIN_SECONDS=2.5  (default 20)",
        "CREDIT_IDENTITIES=/callers.toml  (unset)",
        "CREDIT_COST_PER_RENDER  (default 5)",
        "CREDIT_DATABASE_URL  (unset)",
    } <= set(lines)


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("postgresql://role:hunter2@host/db", "postgresql://role:***@host/db"),
        ("postgresql://:hunter2@host/db", "postgresql://:***@host/db"),
        ("postgresql://role:hun:ter2@host/db", "postgresql://role:***@host/db"),
        ("postgresql://role:hun@ter2@host:1/db", "postgresql://role:***@host:1/db"),
        ("postgresql://role:hunter2%2F%40@host/db", "postgresql://role:***@host/db"),
        ("postgresql://role:1?hunter2@host/db", "postgresql://role:***@host/db"),
        ("postgresql://role:1#hunter2@host/db", "postgresql://role:***@host/db"),
        (
            "postgresql://host/db?user=a&password=hunter2",
            "postgresql://host/db?user=a&password=***",
        ),
        (
            "postgresql://host/db?password=hun@ter2&user=a",
            "postgresql://host/db?password=***&user=a",
        ),
        ("postgresql://role:hunter2@[::1]:5/db", "postgresql://role:***@[::1]:5/db"),
        ("postgresql://role@host:5432/db", "postgresql://role@host:5432/db"),
        ("postgresql://role@/db?host=/run", "postgresql://role@/db?host=/run"),
    ],
)
def test_settings_masks_the_passwords_of_urls(said, url, shown):
    _, out, err = said("settings", CREDIT_DATABASE_URL=url, CREDIT_MIGRATE_URL=url)
    assert f"CREDIT_DATABASE_URL={shown}  (unset)" in out.splitlines()
    assert f"CREDIT_MIGRATE_URL={shown}  (unset)" in out.splitlines()
    assert "hun" not in out + err
    assert "ter2" not in out + err


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ((), ("serve", "migrate", "settings", "verify", "health", "token")),
        (("serve",), ("--migrate", "--processes", "SIGTERM")),
        (("migrate",), ("CREDIT_MIGRATE_URL", "Safe to run twice")),
        (("settings",), ("masked",)),
        (("health",), ("host:port", "exit code 0")),
        (("verify",), ("exit code 1", "Changes nothing")),
        (("token",), ("NAME", "ROLE", "worker", "standard error")),
    ],
)
def test_help_tells_what_a_command_is_for(said, command, words):
    code, out, _ = said(*command, "--help")
    assert code == 0
    assert all(word in out for word in words)


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (("sell",), "sell"),
        (("serve", "--processes", "0"), "--processes"),
        (("serve", "--processes", "many"), "--processes"),
        (("serve", "--fast"), "--fast"),
        (("token", "a"), "ROLE"),
        (("token", "a", "king"), "king"),
    ],
)
def test_a_wrong_command_line_is_told_with_exit_code_2(said, arguments, problem):
    code, out, err = said(*arguments)
    assert code == 2
    assert problem in (out + err).upper() or problem in out + err


@pytest.mark.parametrize("name", ["worker-1", 'a "quoted" \\ name', "x" * 64])
@pytest.mark.parametrize("role", ["worker", "operator"])
def test_a_made_token_is_one_that_the_service_takes(said, name, role):
    code, out, err = said("token", name, role)
    assert code == 0
    (token,) = re.findall(r"\A([\w-]{40,})\n\Z", err)
    (caller,) = Identities.parse(out).by_token.items()
    assert caller[0] == hashlib.sha256(token.encode()).hexdigest()
    assert (caller[1].name, caller[1].role) == (name, role)
    assert token not in out


def test_the_lines_of_several_callers_make_one_file(said):
    lines = [said("token", name, "worker")[1] for name in ("a", "b")]
    assert {caller.name for caller in Identities.parse("".join(lines)).by_token.values()} == {
        "a",
        "b",
    }


def test_no_token_is_made_twice(said):
    assert said("token", "a", "worker")[2] != said("token", "a", "worker")[2]


@pytest.mark.parametrize("name", ["", "x" * 65, "line\nbreak", "ä"])
def test_no_token_is_made_for_a_name_that_the_service_would_not_take(said, name):
    code, out, err = said("token", name, "worker")
    assert (code, out) == (2, "")
    assert err == "credit-service: a caller's name has 1 to 64 printable ASCII characters\n"


async def test_health_tells_by_its_exit_code(service):
    for arguments, variables, code, printed in (
        ((service.target,), {}, 0, f"{service.target}: SERVING"),
        ((), {"CREDIT_LISTEN": f"0.0.0.0:{service.port}"}, 0, "localhost:"),
        ((), {"CREDIT_HEALTH_LISTEN": service.target}, 0, f"{service.target}: SERVING"),
        ((f"127.0.0.1:{free_port()}",), {}, 1, ": UNAVAILABLE"),
    ):
        if code == 0 and "CREDIT_LISTEN" in variables:
            variables |= {"CREDIT_ALLOW_PLAINTEXT": "1", "CREDIT_IDENTITIES": "/none"}
        done = await asyncio.to_thread(ran, "health", *arguments, **variables)
        assert (done.returncode, done.stderr) == (code, "")
        assert printed in done.stdout


def test_health_asks_for_a_listener_without_tls(said):
    code, _, err = said("health", CREDIT_TLS_CERTIFICATE="/c", CREDIT_TLS_KEY="/k")
    assert code == 2
    assert "set CREDIT_HEALTH_LISTEN" in err


async def test_a_database_without_the_migrations_is_refused_with_their_names(make_database):
    database = await make_database(empty=True)
    line = start_refused(CREDIT_DATABASE_URL=database.owner_url)
    assert ", ".join(file.name for file in migrations.migrations()) in line
    assert "run `credit-service migrate`" in line
    assert "`credit-service serve --migrate`" in line
    await migrations.migrate(database.owner_url, "postgres", lambda _: None)
    newest = migrations.migrations()[-1]
    await database.execute("DELETE FROM credit_migrations WHERE version = $1", newest.version)
    line = start_refused(CREDIT_DATABASE_URL=database.owner_url)
    assert f"lacks the migrations {newest.name};" in line


async def test_a_database_newer_than_the_code_is_served(database):
    await database.execute("INSERT INTO credit_migrations VALUES (9999, '9999_later', 'x')")
    with process(CREDIT_DATABASE_URL=database.service_url) as running:
        running.wait_until_listening()


async def test_an_edited_migration_is_refused(database):
    await database.execute("UPDATE credit_migrations SET checksum = 'x' WHERE version = 2")
    line = start_refused(CREDIT_DATABASE_URL=database.service_url)
    assert "0002_book was edited after it was applied" in line


def test_a_role_or_database_that_does_not_exist_is_refused(cluster_owner_url):
    line = start_refused(CREDIT_DATABASE_URL=with_path(cluster_owner_url, "nowhere"))
    assert 'database "nowhere" does not exist; mend CREDIT_DATABASE_URL' in line
    stranger = cluster_owner_url.replace("postgres@", "stranger@")
    line = start_refused(CREDIT_DATABASE_URL=stranger)
    assert 'role "stranger" does not exist; mend CREDIT_DATABASE_URL' in line


async def _access_rules(database):
    ((file,),) = await database.fetch("SHOW hba_file")
    return Path(file)


async def test_a_wrong_password_is_refused_and_not_shown(database):
    role = f"locked_{database.name}"
    await database.execute(f"CREATE ROLE {role} LOGIN PASSWORD 'the right one'")
    rules = await _access_rules(database)
    kept = rules.read_text()
    url = database.service_url.replace("credit_service@", f"{role}:hunter2@")
    try:
        rules.write_text(f"local all {role} scram-sha-256\n{kept}")
        await database.execute("SELECT pg_reload_conf()")
        with pytest.raises(asyncpg.InvalidPasswordError):
            await asyncpg.connect(url)
        line = start_refused(CREDIT_DATABASE_URL=url)
        migrating = ran("migrate", CREDIT_DATABASE_URL=url)
    finally:
        rules.write_text(kept)
        await database.execute("SELECT pg_reload_conf()")
        await database.execute(f"DROP ROLE {role}")
    assert f'password authentication failed for user "{role}"; mend CREDIT_DATABASE_URL' in line
    assert migrating.returncode == 2
    assert "cannot be reached by CREDIT_DATABASE_URL: InvalidPasswordError" in migrating.stderr
    assert "hunter2" not in line + migrating.stderr


async def test_a_role_without_rights_is_told_to_migrate(database):
    role = f"outsider_{database.name}"
    await database.execute(f"CREATE ROLE {role} LOGIN")
    try:
        url = database.service_url.replace("credit_service@", f"{role}@")
        line = start_refused(CREDIT_DATABASE_URL=url)
    finally:
        await database.execute(f"DROP ROLE {role}")
    assert "the service's database role lacks rights: permission denied" in line
    assert "run `credit-service migrate`, with CREDIT_MIGRATE_URL" in line


def test_an_address_that_cannot_be_read_is_refused():
    url = "postgresql://role@host/db?sslmode=perhaps"
    assert "sslmode" in start_refused(CREDIT_DATABASE_URL=url)
    url = "postgresql:///db?port=hunter2"
    assert "mend CREDIT_DATABASE_URL" in start_refused(CREDIT_DATABASE_URL=url)


async def test_users_of_somebody_else_are_never_added_to(make_database):
    database = await make_database(empty=True)
    await database.execute("CREATE SCHEMA auth")
    await database.execute("CREATE TABLE auth.users (id uuid PRIMARY KEY, email text)")
    await migrations.migrate(database.owner_url, "credit_service", lambda _: None)
    theirs = {"CREDIT_DATABASE_URL": database.service_url}
    line = start_refused(**theirs, CREDIT_USERS="managed")
    assert "this auth.users belongs to somebody else; set CREDIT_USERS=existing" in line
    with process(**theirs) as running:
        running.wait_until_listening()


async def test_one_role_for_all_is_told_what_protection_is_missing(database):
    with process(CREDIT_DATABASE_URL=database.owner_url) as running:
        running.wait_until_listening()
        assert "protection missing: the service's database role may change entries" in (
            running.output
        )
    with process(CREDIT_DATABASE_URL=database.service_url) as running:
        running.wait_until_listening()
        assert "protection missing" not in running.output


async def test_a_port_that_somebody_has_is_refused_with_its_setting(database):
    url = {"CREDIT_DATABASE_URL": database.service_url}
    with taken_port() as port:
        taken = f"127.0.0.1:{port}"
        line = start_refused(**url, CREDIT_LISTEN=taken)
        assert f"cannot listen on {taken}" in line
        assert "choose another with CREDIT_LISTEN or end the program that has it" in line
        line = start_refused(**url, CREDIT_HEALTH_LISTEN=taken)
        assert f"cannot listen on {taken}" in line
        assert "choose another with CREDIT_HEALTH_LISTEN" in line
        line = start_refused(**url, CREDIT_METRICS_PORT=str(port))
        assert f"cannot serve metrics on {taken}: Address already in use" in line
        assert "choose another with CREDIT_METRICS_PORT" in line


async def test_two_services_never_share_a_port_by_mistake(database):
    url = {"CREDIT_DATABASE_URL": database.service_url}
    with process(**url) as running:
        listen = f"127.0.0.1:{running.wait_until_listening()}"
        assert f"cannot listen on {listen}" in start_refused(**url, CREDIT_LISTEN=listen)


async def test_files_that_cannot_be_used_are_refused_by_name(database, tmp_path):
    url = {"CREDIT_DATABASE_URL": database.service_url}
    callers = tmp_path / "callers.toml"
    callers.write_text('[[identity]]\nname = "a"\nrole = "king"\n')
    line = start_refused(**url, CREDIT_IDENTITIES=str(callers))
    assert f"{callers} identity 1 (a) needs a role" in line
    one, other = (trustme.CA().issue_cert("localhost") for _ in range(2))
    one.cert_chain_pems[0].write_to_path(str(tmp_path / "cert.pem"))
    other.private_key_pem.write_to_path(str(tmp_path / "key.pem"))
    files = {
        "CREDIT_TLS_CERTIFICATE": str(tmp_path / "cert.pem"),
        "CREDIT_TLS_KEY": str(tmp_path / "key.pem"),
    }
    line = start_refused(**url, **files)
    assert "cert.pem and" in line
    assert "key.pem must be a certificate in PEM form and its private key" in line


@pytest.mark.parametrize("host", ["localhost", "[::1]"])
async def test_loopback_has_other_names(host, database):
    if host == "[::1]":
        try:
            with socket.socket(socket.AF_INET6) as probe:
                probe.bind(("::1", 0))
        except OSError:
            pytest.skip("this machine has no IPv6")
    listen = f"{host}:{free_port()}"
    url = {"CREDIT_DATABASE_URL": database.service_url}
    with process(**url, CREDIT_LISTEN=listen) as running:
        running.wait_for(re.escape(f"listens on {listen} (plaintext)"))
        async with CreditClient(listen) as client:
            assert (await client.list_prices()).prices


async def test_prices_and_floor_are_those_of_the_settings(database):
    user_id = await database.user()
    with process(
        CREDIT_DATABASE_URL=database.service_url,
        CREDIT_COST_PER_RENDER="7",
        CREDIT_OTHER_PRICES='{"mastering": {"cost": 20, "unit": "track"}}',
        CREDIT_MIN_BALANCE="-50",
    ) as running:
        async with CreditClient(f"127.0.0.1:{running.wait_until_listening()}") as client:
            prices = (await client.list_prices()).prices
            assert [(price.operation, price.unit_cost, price.unit) for price in prices] == [
                ("mastering", 20, "track"),
                ("render", 7, "render"),
                ("stem_separation", 10, "separation"),
            ]
            spent = await client.spend_credits(user_id, operation="mastering", quantity=2)
            assert (spent.credit.balance, spent.credit.min_balance) == (-40, -50)
            await client.spend_credits(user_id, amount=10)
            with pytest.raises(InsufficientCredits) as refusal:
                await client.spend_credits(user_id, amount=1)
            assert refusal.value.shortfall == 1
    assert "prices in credits: stem_separation 10 per separation, render 7 per render" in (
        running.output
    )
    url = {"CREDIT_DATABASE_URL": database.service_url}
    rich = await database.user(100)
    with process(**url, CREDIT_MIN_BALANCE="30") as running:
        async with CreditClient(f"127.0.0.1:{running.wait_until_listening()}") as client:
            with pytest.raises(InsufficientCredits):
                await client.spend_credits(rich, amount=71)
            assert (await client.spend_credits(rich, amount=70)).credit.balance == 30
    assert not await database.faults()


async def test_a_start_that_migrates_waits_for_its_database(make_database, place):
    database = await make_database(empty=True)
    (sockets,) = parse_qs(urlsplit(database.owner_url).query)["host"]
    with process(
        *("serve", "--migrate"),
        CREDIT_DATABASE_URL=database.service_url.replace(sockets, str(place / "later")),
        CREDIT_MIGRATE_URL=database.owner_url.replace(sockets, str(place / "later")),
    ) as running:
        running.wait_for("not migrated yet, trying again")
        (place / "later").symlink_to(sockets)
        running.wait_until_listening()


def test_migrate_without_a_database_tells_which_one(said, cluster_owner_url):
    code, _, err = said("migrate", CREDIT_DATABASE_URL=AWAY)
    assert code == 2
    assert err.startswith("credit-service: the database cannot be reached by CREDIT_DATABASE_URL: ")
    code, _, err = said("migrate", CREDIT_DATABASE_URL=cluster_owner_url, CREDIT_MIGRATE_URL=AWAY)
    assert code == 2
    assert err.startswith("credit-service: the database cannot be reached by CREDIT_MIGRATE_URL: ")


async def test_migrate_names_a_role_that_is_missing(database):
    url = database.service_url.replace("credit_service@", "stranger@")
    done = ran("migrate", CREDIT_DATABASE_URL=url, CREDIT_MIGRATE_URL=database.owner_url)
    assert done.returncode == 2
    assert 'CREDIT_DATABASE_URL: InvalidAuthorizationSpecificationError: role "stranger"' in (
        done.stderr
    )


async def test_migrate_as_a_role_that_may_not_is_refused(make_database):
    database = await make_database(empty=True)
    done = ran("migrate", CREDIT_DATABASE_URL=database.service_url)
    assert done.returncode == 2
    assert done.stderr.startswith("credit-service: 0001_given_schema cannot be applied")
    assert "permission denied for schema public" in done.stderr
    assert "as a role that may create and own the tables, by CREDIT_MIGRATE_URL" in done.stderr


async def test_migrate_by_a_role_that_may_not_connect_is_refused(database):
    role = f"shut_out_{database.name}"
    await database.execute(f"CREATE ROLE {role} LOGIN")
    await database.execute(f"REVOKE CONNECT ON DATABASE {database.name} FROM PUBLIC")
    url = database.service_url.replace("credit_service@", f"{role}@")
    try:
        done = ran("migrate", CREDIT_DATABASE_URL=url)
        line = start_refused(CREDIT_DATABASE_URL=url)
    finally:
        await database.execute(f"DROP ROLE {role}")
    assert done.returncode == 2
    assert "refuses the role of CREDIT_DATABASE_URL: permission denied for database" in done.stderr
    assert "lacks rights: permission denied for database" in line


async def test_migrate_then_serve_with_two_roles(make_database):
    database = await make_database(empty=True)
    roles = {
        "CREDIT_DATABASE_URL": database.service_url,
        "CREDIT_MIGRATE_URL": database.owner_url,
    }
    first = ran("migrate", **roles)
    assert (first.returncode, first.stderr) == (0, "")
    newest = migrations.migrations()[-1].name
    assert f"{len(migrations.migrations())} migrations applied, the database is at {newest}" in (
        first.stdout
    )
    again = ran("migrate", **roles)
    assert (again.returncode, again.stderr) == (0, "")
    assert f"0 migrations applied, the database is at {newest}" in again.stdout
    with process(**roles) as running:
        running.wait_until_listening()
        assert "protection missing" not in running.output


async def test_without_a_database_url_it_brings_one_and_keeps_what_was_written(place):
    home = {"CREDIT_DATA_DIR": str(place / "data")}
    user_id = uuid4()
    with process("serve", "--migrate", **home) as running:
        port = running.wait_until_listening()
        running.wait_for(f"grpcurl -plaintext 127.0.0.1:{port} credit_service.v1.CreditService/")
        running.wait_for(f"scripts/demo --target 127.0.0.1:{port}")
        assert "no identities are set" in running.output
        async with CreditClient(f"127.0.0.1:{port}") as client:
            bought = await client.purchase_credits(user_id, 10, payment=None)
        os.killpg(running.popen.pid, signal.SIGINT)
        assert running.wait() == 0, running.output
        assert any((place / "data").glob("postgresql-*/base"))
        assert "Traceback" not in running.output
    with process(**home) as running:
        async with CreditClient(f"127.0.0.1:{running.wait_until_listening()}") as client:
            assert (await client.get_user_credit(user_id)).balance == 10
            kept = await client.get_transaction(user_id, transaction_id=bought.transaction.id)
            assert kept == bought.transaction
        line = start_refused(**home)
        assert f"in use by process {running.popen.pid}" in line
        running.signal(signal.SIGTERM)
        assert running.wait() == 0


async def test_a_data_directory_without_the_migrations_is_refused(place):
    line = start_refused(CREDIT_DATA_DIR=str(place / "data"))
    assert "`credit-service serve --migrate`" in line
