"""How the service starts, by which settings, and with which it refuses to start."""

import contextlib
import os
import re
import shutil
import signal
import socket
import tempfile
from pathlib import Path
from urllib.parse import parse_qs, urlsplit
from uuid import uuid4

import asyncpg
import pytest
import trustme
from kit.command_line import ran, start_refused
from kit.programs import free_port, process

from credit_service.client import CreditClient
from credit_service.database import migrations
from credit_service.errors import InsufficientCredits


@pytest.fixture
def place():
    """An empty directory that root's PostgreSQL can reach; it cannot enter pytest's own."""
    place = Path(tempfile.mkdtemp(prefix="cli-"))
    place.chmod(0o755)
    yield place
    shutil.rmtree(place)


def with_path(url, name):
    return urlsplit(url)._replace(path=f"/{name}").geturl()


@contextlib.contextmanager
def taken_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        yield listener.getsockname()[1]


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
    assert 'database "nowhere" does not exist; correct CREDIT_DATABASE_URL' in line
    stranger = cluster_owner_url.replace("postgres@", "stranger@")
    line = start_refused(CREDIT_DATABASE_URL=stranger)
    assert 'role "stranger" does not exist; correct CREDIT_DATABASE_URL' in line
    line = start_refused("--migrate", CREDIT_DATABASE_URL=stranger)
    assert 'role "stranger" does not exist' in line


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
    assert f'password authentication failed for user "{role}"; correct CREDIT_DATABASE_URL' in line
    assert migrating.returncode == 2
    assert "cannot be reached by CREDIT_DATABASE_URL: InvalidPasswordError" in migrating.stderr
    assert "hunter2" not in line + migrating.stderr


async def test_a_role_without_rights_is_refused_with_the_remedy(database):
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
    assert "correct CREDIT_DATABASE_URL" in start_refused(CREDIT_DATABASE_URL=url)


async def test_users_are_never_added_to_a_table_of_another_owner(make_database):
    database = await make_database(empty=True)
    await database.execute("CREATE SCHEMA auth")
    await database.execute("CREATE TABLE auth.users (id uuid PRIMARY KEY, email text)")
    await migrations.migrate(database.owner_url, "credit_service", lambda _: None)
    theirs = {"CREDIT_DATABASE_URL": database.service_url}
    line = start_refused(**theirs, CREDIT_USERS="managed")
    assert "this auth.users was made by others; set CREDIT_USERS=existing" in line
    with process(**theirs) as running:
        running.wait_until_listening()


async def test_with_one_role_for_all_the_log_names_the_missing_protection(database):
    with process(CREDIT_DATABASE_URL=database.owner_url) as running:
        running.wait_until_listening()
        assert "protection missing: the service's database role may change entries" in (
            running.output
        )
    with process(CREDIT_DATABASE_URL=database.service_url) as running:
        running.wait_until_listening()
        assert "protection missing" not in running.output


async def test_a_port_in_use_is_refused_with_its_setting(database):
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
async def test_other_names_of_loopback_count_as_loopback(host, database):
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


async def test_without_a_database_url_it_starts_a_database_and_keeps_its_data(place):
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
        # Every other command can run beside the service, on the server that the service started.
        for command, said in (
            (("verify",), "1 accounts verified, 0 with faults"),
            (("export", "accounts"), str(user_id)),
            (("feed", "status"), ""),
            (("migrate",), ""),
        ):
            done = ran(*command, **home)
            assert (done.returncode, said in done.stdout) == (0, True), done.stderr
        running.signal(signal.SIGTERM)
        assert running.wait() == 0


async def test_a_data_directory_without_the_migrations_is_refused(place):
    line = start_refused(CREDIT_DATA_DIR=str(place / "data"))
    assert "`credit-service serve --migrate`" in line
