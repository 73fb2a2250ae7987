"""The lock files pin everything that is installed, regardless of later releases."""

import importlib.metadata
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from install_locked import pip_settings, uv_environment
from kit.checkouts import clean_environment, make_venv, tracked_files
from kit.packages import make_wheel, normal
from kit.paths import ROOT

LOCKS = tracked_files("requirements.lock", "scripts/*.lock")
PIN = re.compile(
    r"^(?P<name>[\w.-]+)(?P<extras>\[.*?\])?==(?P<version>[^\s;]+)(?P<marker>[^\\\n]*)"
)

OLDEST_PIP = "23.0.1"  # Debian 12's
OLDEST_PIP_SHA256 = "236bcb61156d76c4b8a05821b988c7b8c35bf0da28a4b614e8d6ab5212c25c6f"
DEBIANS_PIP = Path(f"/usr/share/python-wheels/pip-{OLDEST_PIP}-py3-none-any.whl")

PYTHONS = ("3.11", "3.12", "3.13", "3.14")
MACHINES = ("x86_64-unknown-linux-gnu", "aarch64-unknown-linux-gnu", "aarch64-apple-darwin")
LATER = "9999.9"


def pins(lock: Path) -> list[re.Match[str]]:
    return [pin for line in lock.read_text().splitlines() if (pin := PIN.match(line))]


@dataclass
class Market:
    """A folder of empty wheels: the pinned versions, and a later version of each.

    Attributes:
        folder: the folder of the wheels.
        hashes: the hashes of the pinned wheels, by name.
    """

    folder: Path
    hashes: dict[str, str]

    def lock(self, lock: Path, *, extras: bool = True) -> str:
        """The text of a lock file with the hashes of the empty wheels."""
        return "\n".join(
            f"{pin['name']}{(extras and pin['extras']) or ''}=={pin['version']}{pin['marker']}"
            f" --hash=sha256:{self.hashes[normal(pin['name'])]}"
            for pin in pins(lock)
        )


@pytest.fixture(scope="module")
def market(tmp_path_factory):
    folder = tmp_path_factory.mktemp("market")
    hashes = {}
    for pin in (pin for lock in LOCKS for pin in pins(lock)):
        name = normal(pin["name"])
        if name in hashes:
            continue
        try:
            package = importlib.metadata.distribution(name)
        except importlib.metadata.PackageNotFoundError:
            requires, extras = [], []  # for another platform or Python
        else:
            assert package.version == pin["version"]
            requires = package.requires or []
            extras = package.metadata.get_all("Provides-Extra") or []
        hashes[name] = make_wheel(folder, name, pin["version"], requires, extras)
        make_wheel(folder, name, LATER, requires, extras)
    return Market(folder, hashes)


@pytest.fixture(scope="module")
def oldest_pip(tmp_path_factory):
    """The oldest supported pip as a wheel, which runs as it is, and a Python to run it."""
    python = shutil.which("python3.11") if sys.version_info >= (3, 12) else sys.executable
    if python is None:
        pytest.skip(f"python3.11 is not installed, and pip {OLDEST_PIP} runs on no newer Python")
    place = tmp_path_factory.mktemp("pip")
    empty = make_venv(place / "venv", "--without-pip", python=python)
    if DEBIANS_PIP.exists():
        return [empty, DEBIANS_PIP / "pip"]
    wanted = place / "pip.lock"
    wanted.write_text(f"pip=={OLDEST_PIP} --hash=sha256:{OLDEST_PIP_SHA256}\n")
    download = ("pip", "download", "--quiet", "--no-deps", "--require-hashes", "-d", place)
    got = subprocess.run(
        [sys.executable, "-m", *download, "-r", wanted],
        env=clean_environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    if got.returncode:
        pytest.skip(f"pip {OLDEST_PIP} cannot be had: {got.stderr.strip().splitlines()[-1]}")
    return [empty, place / DEBIANS_PIP.name / "pip"]


@pytest.fixture(scope="module")
def pip_of_this_python(tmp_path_factory):
    return [make_venv(tmp_path_factory.mktemp("pip") / "venv"), "-m", "pip"]


def resolve(pip, market, text, tmp_path, *options):
    """Asks pip what it would install; returns the names and versions, or its error."""
    lock = tmp_path / "asked.lock"
    lock.write_text(text)
    asked = subprocess.run(
        [
            *(*pip, "--isolated", "--disable-pip-version-check", "install", "--dry-run"),
            *("--ignore-installed", "--no-cache-dir", "--no-index", "--find-links", market.folder),
            *("--require-hashes", "-r", lock, *options),
        ],
        env=clean_environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    if asked.returncode:
        return asked.stderr
    (chosen,) = re.findall(r"^Would install (.*)$", asked.stdout, re.MULTILINE)
    return {
        normal(name): version
        for name, version in (package.rsplit("-", 1) for package in chosen.split())
    }


@pytest.mark.parametrize(
    ("lock", "pip"),
    [
        *(
            pytest.param(lock, "oldest_pip", marks=pytest.mark.long)
            if lock.parent == ROOT
            else (lock, "oldest_pip")
            for lock in LOCKS
        ),
        (ROOT / "scripts/image-requirements.lock", "pip_of_this_python"),
    ],
    ids=lambda value: getattr(value, "name", value),
)
def test_a_lock_resolves_to_its_own_versions_even_if_later_ones_exist(
    request, market, lock, pip, tmp_path
):
    chosen = resolve(request.getfixturevalue(pip), market, market.lock(lock), tmp_path)
    assert isinstance(chosen, dict), chosen
    pinned = {normal(pin["name"]): pin["version"] for pin in pins(lock)}
    assert chosen.items() <= pinned.items()
    assert {normal(pin["name"]) for pin in pins(lock) if not pin["marker"].strip()} <= set(chosen)


def test_without_its_extras_a_lock_is_refused_unless_pip_looks_at_no_dependencies(
    oldest_pip, market, tmp_path
):
    """Shows that the later versions matter, and that the installer's --no-deps is the answer."""
    lock = ROOT / "requirements.lock"
    assert any(pin["extras"] for pin in pins(lock))
    bare = market.lock(lock, extras=False)
    assert "must have their versions pinned" in resolve(oldest_pip, market, bare, tmp_path)
    chosen = resolve(oldest_pip, market, bare, tmp_path, "--no-deps")
    assert chosen["coverage"] == importlib.metadata.version("coverage")
    assert LATER not in chosen.values()


@pytest.mark.long
@pytest.mark.timeout(300)
@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize("python", PYTHONS)
def test_every_supported_python_has_a_wheel_of_every_package(python, machine, tmp_path):
    for lock in LOCKS:
        planned = subprocess.run(
            [
                *(Path(sys.executable).with_name("uv"), "pip", "sync", "--dry-run"),
                *("--no-build", "--require-hashes", "--no-config", "--target", tmp_path / "none"),
                *("--python-version", python, "--python-platform", machine, lock),
            ],
            env=uv_environment(pip_settings(), clean_environment()),
            capture_output=True,
            text=True,
            check=False,
        )
        assert planned.returncode == 0, planned.stderr
