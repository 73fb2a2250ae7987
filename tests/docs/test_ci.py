""".ci/run: the causes that fail it besides a failing test, and its output."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from kit.paths import ROOT

# The programs that .ci/run itself calls, without the tools that tests need.
TOOLS = ["bash", "cat", "dirname", "env", "mkdir", "mktemp", "rm", "sleep", "timeout"]
WANTED = ["grpcurl", "pgbouncer", "curl", "npm", "nginx", "openssl", "chromium-headless-shell"]
OLDEST = "/usr/lib/postgresql/15/bin"


class Clone:
    """A clone in which checks and tests pass at once, on a machine with only some tools."""

    def __init__(self, place: Path) -> None:
        self.place = place
        shutil.copytree(ROOT / ".ci", place / ".ci")
        (place / ".venv/bin").mkdir(parents=True)
        (place / ".venv/bin/python").symlink_to(sys.executable)
        self.programs = place / "programs"
        self.programs.mkdir()
        for tool in TOOLS:
            (self.programs / tool).symlink_to(shutil.which(tool))
        (place / "scripts").mkdir()
        self.script(place / "scripts/check")
        self.skip("this machine has no IPv6")
        # The test must not depend on the tools of this machine.
        run = place / ".ci/run"
        text = run.read_text().replace(OLDEST, str(self.programs))
        run.write_text(text.replace(":/usr/local/sbin:/usr/sbin", ""))
        for tool in [*WANTED, "postgres"]:
            self.script(self.programs / tool)

    def script(self, path: Path, text: str = "") -> None:
        path.write_text(f"#!/usr/bin/env bash\n{text}\n")
        path.chmod(0o755)

    def skip(self, reason: str) -> None:
        """Makes the tests report a skipped test with this reason."""
        report = f'<testsuites><testcase><skipped message="{reason}"/></testcase></testsuites>'
        write = f"case $argument in --junitxml=*) echo '{report}' >${{argument#--junitxml=}};; esac"
        self.script(self.place / "scripts/test", f'for argument in "$@"; do {write}; done')

    def run(self, **environment: str) -> tuple[int, str]:
        done = subprocess.run(
            [self.place / ".ci/run"],
            env={"PATH": str(self.programs), "TMPDIR": os.environ.get("TMPDIR", "/tmp")}
            | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        return done.returncode, done.stdout


@pytest.fixture
def clone(tmp_path):
    return Clone(tmp_path)


def test_a_permitted_skip_is_printed_and_passes(clone):
    code, said = clone.run(CI="true")
    assert "skipped 2 times: this machine has no IPv6" in said
    assert code == 0, said


def test_a_run_that_takes_too_long_is_interrupted_and_can_still_report(clone):
    wait = "trap 'echo the report; exit 2' INT\nwhile :; do sleep 0.1; done"
    clone.script(clone.place / "scripts/test", wait)
    code, said = clone.run(CI_LIMIT_SECONDS="1")
    assert "the report" in said
    assert code == 1


def test_a_test_skipped_for_another_reason_fails_the_run(clone):
    clone.skip("grpcurl is not installed")
    code, said = clone.run(CI="true")
    assert code == 1
    assert "NOT PERMITTED 2 times: grpcurl is not installed" in said
    assert clone.run()[0] == 0


@pytest.mark.parametrize("tool", [*WANTED, "postgres"])
def test_a_tool_that_cannot_be_installed_fails_the_run(clone, tool):
    (clone.programs / tool).unlink()
    code, said = clone.run(CI="true")
    assert code == 1
    assert f"{tool} is not installed, and could not be" in said
    assert clone.run()[0] == 0


def test_tests_without_a_report_fail_the_run(clone):
    clone.script(clone.place / "scripts/test")
    code, said = clone.run(CI="true")
    assert code == 1
    assert "No test wrote a report." in said


@pytest.mark.parametrize("script", ["check", "test"])
def test_a_failure_fails_the_run_anywhere(clone, script):
    clone.script(clone.place / "scripts" / script, "exit 3")
    assert clone.run()[0] == 1


def test_a_run_of_the_tests_names_the_missing_tools_before_it_begins(clone):
    place = clone.place
    text = (ROOT / "scripts/test").read_text().replace(":/usr/local/sbin:/usr/sbin", "")
    clone.script(place / "scripts/test", text)
    clone.script(place / "scripts/setup")
    clone.script(place / ".venv/bin/pytest")
    clone.script(clone.programs / "node")

    def missing():
        done = subprocess.run(
            [place / "scripts/test", "-k", "refund"],
            env={"PATH": str(clone.programs)},
            capture_output=True,
            text=True,
            check=True,
        )
        return [line.split()[0] for line in done.stderr.splitlines()]

    assert missing() == []
    for tool in [*WANTED, "node"]:
        (clone.programs / tool).unlink()
    assert sorted(missing()) == sorted([*WANTED, "node"])
    clone.script(clone.programs / "chromium")
    assert "chromium-headless-shell" not in missing()
