"""The command line: what each command prints, and how it refuses."""

import asyncio
import hashlib
import os
import re

import pytest
from kit.command_line import ran, start_refused
from kit.programs import free_port, process

from credit_service import cli, config
from credit_service.database import migrations
from credit_service.rpc.access import Identities

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
        "CREDIT_LANES=8  (default 1)",
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
def test_help_says_what_a_command_is_for(said, command, words):
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
def test_a_wrong_command_line_is_refused_with_exit_code_2(said, arguments, problem):
    code, out, err = said(*arguments)
    assert code == 2
    assert problem in (out + err).upper() or problem in out + err


@pytest.mark.parametrize("name", ["worker-1", 'a "quoted" \\ name', "x" * 64])
@pytest.mark.parametrize("role", ["worker", "operator"])
def test_a_made_token_is_accepted_by_the_service(said, name, role):
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
def test_no_token_is_made_for_a_name_that_the_service_would_refuse(said, name):
    code, out, err = said("token", name, "worker")
    assert (code, out) == (2, "")
    assert err == "credit-service: a caller's name has 1 to 64 printable ASCII characters\n"


async def test_the_exit_code_of_health_says_whether_the_service_serves(service):
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


def test_migrate_names_the_database_that_it_cannot_reach(said, cluster_owner_url):
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


async def test_migrate_as_a_role_that_may_not_create_tables_is_refused(make_database):
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
