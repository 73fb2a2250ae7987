"""The embedded PostgreSQL after its processes, or their parent, were killed."""

import contextlib
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from kit.embedded_parents import (
    Parent,
    ask,
    refusal,
    running,
    stopped,
    until,
)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_killed_parent_leaves_no_server_and_no_socket_directory(
    data: Path, number: signal.Signals
) -> None:
    parent = Parent(data)
    killed = parent.read()
    parent.end(number)
    until(lambda: stopped(killed))
    with running(data) as cluster:
        assert ask(cluster["owner_url"], "SELECT 1") == "1"
        assert not Path(killed["socket_directory"]).exists()
    assert not Path(cluster["socket_directory"]).exists()


def test_a_start_right_after_a_kill_waits_for_the_old_server_and_keeps_its_commits(
    data: Path,
) -> None:
    parent = Parent(data, {})
    killed = parent.read()
    ask(killed["owner_url"], "CREATE TABLE kept AS SELECT 42 AS answer")
    parent.end(signal.SIGKILL)
    with running(data, {}) as cluster:
        assert ask(cluster["owner_url"], "SELECT answer FROM kept") == "42"


def test_a_server_that_outlived_its_parent_is_stopped_by_the_next_start(data: Path) -> None:
    parent = Parent(data, outlived=True)
    left = parent.read()
    parent.end(signal.SIGKILL)
    ask(left["owner_url"], "CREATE TABLE kept AS SELECT 42 AS answer")
    with running(data) as cluster:
        assert cluster["pid"] != left["pid"]
        assert not Path(left["socket_directory"]).exists()
        assert ask(cluster["owner_url"], "SELECT answer FROM kept") == "42"


def test_a_server_killed_with_its_parent_recovers_what_was_committed(data: Path) -> None:
    parent = Parent(data, {})
    killed = parent.read()
    ask(killed["owner_url"], "CREATE TABLE kept AS SELECT 42 AS answer")
    os.kill(int(killed["pid"]), signal.SIGKILL)
    parent.end(signal.SIGKILL)
    assert not stopped(killed)
    with running(data, {}) as cluster:
        assert ask(cluster["owner_url"], "SELECT answer FROM kept") == "42"


@pytest.fixture
def attached(data: Path) -> Iterator[int]:
    """A process of a killed server that has not ended, and so still has its shared memory."""
    parent = Parent(data, {})
    killed = parent.read()
    left = int(
        ask(
            killed["owner_url"],
            "SELECT pid FROM pg_stat_activity WHERE backend_type = 'checkpointer'",
        )
    )
    process = os.pidfd_open(left)  # stays valid for this process if its number is reused
    os.kill(left, signal.SIGSTOP)
    os.kill(int(killed["pid"]), signal.SIGKILL)
    parent.end(signal.SIGKILL)
    yield left
    with contextlib.suppress(ProcessLookupError):
        signal.pidfd_send_signal(process, signal.SIGKILL)
    os.close(process)


def test_a_start_waits_for_the_last_process_of_a_killed_server(data: Path, attached: int) -> None:
    parent = Parent(data, {})
    log = data / "postgresql-18.log"
    until(lambda: log.exists() and "shared memory block" in log.read_text())
    os.kill(attached, signal.SIGCONT)
    assert ask(parent.read()["owner_url"], "SELECT 1") == "1"
    parent.end()


def test_a_start_beside_a_process_of_a_killed_server_that_stays_is_refused(
    data: Path, attached: int
) -> None:
    assert "shared memory block" in refusal(data, {})


def test_an_initialisation_that_was_killed_is_done_again_from_the_start(data: Path) -> None:
    parent = Parent(data, {})
    until(lambda: any(data.glob("postgresql-18.unfinished-*/base")))
    parent.end(signal.SIGKILL)
    assert not (data / "postgresql-18").exists()
    with running(data, {}) as cluster:
        assert ask(cluster["service_url"], "SELECT 1") == "1"
    assert not list(data.glob("*unfinished*"))
