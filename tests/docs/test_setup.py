"""scripts/setup in a fresh checkout: with each installed Python, twice, and two at once."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from kit.checkouts import clean_environment, copy_checkout

PYTHONS = ("3.11", "3.12", "3.13", "3.14")
# The programs that scripts/setup may call; no other Python is beside them.
TOOLS = ["bash", "cat", "dirname", "env", "find", "flock", "grep", "mkdir", "rm"]


def interpreter(version: str) -> Path | None:
    """A Python of this version, from the PATH or among pyenv's."""
    versions = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"), "versions")
    places = [*os.environ["PATH"].split(os.pathsep), *versions.glob(f"{version}.*/bin")]
    for place in places:
        python = Path(place, f"python{version}")
        # pyenv has a shim for every version, but it runs only the chosen ones.
        works = "import ensurepip, sys; print(sys.executable)"
        if python.exists() and "shims" not in python.parts:
            said = subprocess.run([python, "-c", works], capture_output=True, check=False)
            if not said.returncode:
                return python
    return None


def machine(place: Path, python: Path) -> dict[str, str]:
    """The environment of a machine with one Python, an empty home and cold caches."""
    programs = place / "programs"
    programs.mkdir()
    for tool in TOOLS:
        (programs / tool).symlink_to(shutil.which(tool))
    (programs / python.name).symlink_to(python)
    (place / "home").mkdir()
    return clean_environment(PATH=str(programs), HOME=str(place / "home"))


def start(checkout: Path, environment: dict[str, str]) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [checkout / "scripts/setup"],
        cwd="/",
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


@pytest.mark.long
@pytest.mark.timeout(600)
@pytest.mark.parametrize("version", PYTHONS)
def test_a_fresh_checkout_is_set_up_once_by_two_runs_at_once(version, tmp_path):
    python = interpreter(version)
    if python is None:
        pytest.skip(f"Python {version} is not installed")
    checkout = copy_checkout(tmp_path / "checkout")
    environment = machine(tmp_path, python)
    both = [start(checkout, environment) for _ in range(2)]
    said = [process.communicate()[0] for process in both]
    assert [process.returncode for process in both] == [0, 0], "\n".join(said)
    one, other = sorted(said, key=len, reverse=True)
    assert "Set up." in one
    assert "pip tries" not in one
    assert other == "Another scripts/setup is at work here; waiting for it.\n"

    again = start(checkout, environment)
    assert again.communicate()[0] == ""
    said = subprocess.run(
        [checkout / ".venv/bin/python", "-c", "import sys; print(sys.version)"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert said.stdout.startswith(f"{version}.")
    # These need no database; the whole suite runs with the Python that runs this test.
    tested = subprocess.run(
        [checkout / ".venv/bin/pytest", "-q", "-n0", "tests/rules/test_decide.py"],
        cwd=checkout,
        env=environment | {"PATH": os.environ["PATH"]},
        capture_output=True,
        text=True,
        check=False,
    )
    assert tested.returncode == 0, tested.stdout
    assert re.search(r"^\d+ passed", tested.stdout, re.MULTILINE)


def test_without_a_suitable_python_it_says_what_to_install(tmp_path):
    checkout = copy_checkout(tmp_path / "checkout")
    fake = tmp_path / "python3"
    fake.write_text(
        '#!/bin/sh\n[ "$1" = --version ] && echo Python 3.15.0\ncase $2 in *">="*) exit 1;; esac\n'
    )
    fake.chmod(0o755)
    refused = start(checkout, machine(tmp_path, fake))
    said, _ = refused.communicate()
    assert refused.returncode == 1
    assert "only Python 3.15.0" in said
    assert "apt-get install python3 python3-venv" in said
