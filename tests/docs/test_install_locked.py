"""scripts/install_locked.py: the packages it installs, their sources, and its way without uv."""

import json
import os
import re
import ssl
import subprocess
import sys
from pathlib import Path

import pytest
import trustme
from install_locked import uv_environment
from kit.checkouts import clean_environment, make_venv
from kit.packages import make_wheel, package_index
from kit.paths import ROOT

UV = Path(sys.executable).with_name("uv")
# A machine without settings of pip or TLS; each test adds its own.
BARE = {k: v for k, v in clean_environment().items() if not re.match(r"PIP_|SSL_|.*_BUNDLE$", k)}


class Place:
    """A folder of wheels, a lock file that names some of them, and somewhere to install them."""

    def __init__(self, directory, installer):
        self.wheels = directory / "wheels"
        self.wheels.mkdir()
        self.lock = directory / "some.lock"
        self.lock.touch()
        self.home = directory / "home"
        self.home.mkdir()
        self.installer = installer
        self.target = make_venv(directory / "target", "--without-pip")

    def pin(self, name, version="1.0", requires=(), digest=None):
        """Makes the wheel and names it in the lock."""
        made = make_wheel(self.wheels, name, version, requires)
        with self.lock.open("a") as lock:
            lock.write(f"{name}=={version} --hash=sha256:{digest or made}\n")

    def install(self, *options, **environment):
        """Returns the installer's output, and whether it succeeded."""
        done = subprocess.run(
            [
                *(self.installer, "-I", ROOT / "scripts/install_locked.py", self.lock),
                *("--python", self.target, *options),
            ],
            env=BARE | {"HOME": str(self.home)} | environment,
            cwd=self.home,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        return done.stdout, done.returncode == 0

    @property
    def installed(self):
        program = (
            "import importlib.metadata as m, json\n"
            "print(json.dumps({d.name: d.version for d in m.distributions()}))"
        )
        said = subprocess.run(
            [self.target, "-I", "-c", program], capture_output=True, text=True, check=True
        )
        return json.loads(said.stdout)


@pytest.fixture(scope="module")
def installer(tmp_path_factory):
    """A Python with pip, and no uv beside it."""
    return make_venv(tmp_path_factory.mktemp("installer") / "venv")


@pytest.fixture
def place(installer, tmp_path):
    return Place(tmp_path, installer)


@pytest.fixture
def uv(installer):
    beside = installer.with_name("uv")
    beside.symlink_to(UV)
    yield
    beside.unlink()


@pytest.fixture
def authority(tmp_path):
    authority = trustme.CA()
    authority.cert_pem.write_to_path(tmp_path / "authority.pem")
    return authority


@pytest.fixture
def index(place):
    with package_index(place.wheels) as index:
        yield index


@pytest.fixture
def secure_index(place, authority):
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(tls)
    with package_index(place.wheels, tls) as index:
        yield index


def assert_uv_installed(place, said, succeeded):
    assert succeeded, said
    assert "with uv" in said
    assert "pip tries" not in said
    assert place.installed == {"pinned": "1.0"}


def test_uv_takes_pips_index_and_certificates_from_its_files(place, uv, secure_index, tmp_path):
    place.pin("pinned")
    settings = tmp_path / "pip.conf"
    settings.write_text(
        f"[global]\ncert = {tmp_path / 'authority.pem'}\nindex-url = http://127.0.0.1:1/simple\n"
        f"[install]\nindex-url = {secure_index.url}\n"
    )
    assert_uv_installed(place, *place.install(PIP_CONFIG_FILE=str(settings)))
    assert secure_index.asked


def test_uv_takes_pips_trusted_host_from_the_environment(place, uv, secure_index):
    place.pin("pinned")
    environment = {"PIP_INDEX_URL": secure_index.url, "PIP_TRUSTED_HOST": "127.0.0.1"}
    assert_uv_installed(place, *place.install(**environment))


def test_uv_looks_in_every_index_for_the_pinned_version(place, uv, index, tmp_path):
    place.pin("pinned")
    (tmp_path / "others").mkdir()
    make_wheel(tmp_path / "others", "pinned", "2.0")
    with package_index(tmp_path / "others") as other:
        said = place.install(PIP_INDEX_URL=index.url, PIP_EXTRA_INDEX_URL=other.url)
        assert_uv_installed(place, *said)
        assert other.asked


def test_uv_goes_through_pips_proxy(place, uv, index):
    place.pin("pinned")
    said = place.install(
        PIP_INDEX_URL="http://packages.invalid/simple", PIP_PROXY=f"http://{index.address}"
    )
    assert_uv_installed(place, *said)
    assert all(target.startswith("http://packages.invalid/") for target in index.asked)


def test_uv_takes_wheels_from_pips_folders_and_asks_no_index(place, uv, tmp_path):
    place.pin("pinned")
    folders = f"{tmp_path / 'gone'} {place.wheels}"
    assert_uv_installed(place, *place.install(PIP_NO_INDEX="1", PIP_FIND_LINKS=folders))


def test_uvs_own_settings_override_pips():
    settings = {"index-url": "https://pip", "timeout": "7"}
    environment = uv_environment(settings, {"UV_DEFAULT_INDEX": "https://uv"})
    assert environment["UV_DEFAULT_INDEX"] == "https://uv"
    assert environment["UV_HTTP_TIMEOUT"] == "7"


@pytest.mark.parametrize("tool", ["uv", "pip"])
def test_only_the_lock_decides_which_packages_are_installed_and_where(
    request, place, tool, tmp_path
):
    """Neither a package's dependencies nor versions and places that are set elsewhere count."""
    if tool == "uv":
        request.getfixturevalue("uv")
    place.pin("pinned", requires=["extra[more]>=1"])
    make_wheel(place.wheels, "pinned", "2.0")
    make_wheel(place.wheels, "extra", "1.0", extras=["more"])
    other = tmp_path / "constraints"
    other.write_text("pinned==2.0\n")
    said, succeeded = place.install(
        PIP_NO_INDEX="1",
        PIP_FIND_LINKS=str(place.wheels),
        PIP_CONSTRAINT=str(other),
        PIP_TARGET=str(tmp_path / "elsewhere"),
        PIP_USER="1",
        UV_CONSTRAINT=str(other),
        UV_EXCLUDE_NEWER="2001-01-01",
        UV_OVERRIDE=str(other),
    )
    assert succeeded, said
    assert f"with {tool}" in said
    assert "pip tries" not in said
    assert place.installed == {"pinned": "1.0"}


def test_a_file_with_another_hash_is_not_installed_by_either(place, uv):
    place.pin("pinned", digest="0" * 64)
    said, succeeded = place.install(PIP_NO_INDEX="1", PIP_FIND_LINKS=str(place.wheels))
    assert not succeeded
    assert "uv failed; pip tries the same." in said
    assert place.installed == {}


def test_without_uv_pip_installs_the_rest_of_the_lock(place):
    place.pin("pinned")
    place.pin("uv")
    next(place.wheels.glob("uv-*")).unlink()
    said, succeeded = place.install(PIP_NO_INDEX="1", PIP_FIND_LINKS=str(place.wheels))
    assert succeeded, said
    assert "uv cannot be installed here; pip does its work." in said
    assert place.installed == {"pinned": "1.0"}


def test_if_uv_cannot_run_pip_installs(place, installer):
    uv = installer.with_name("uv")
    uv.write_text("#!/bin/sh\necho wrong processor >&2\nexit 126\n")
    uv.chmod(0o755)
    try:
        place.pin("pinned")
        said, succeeded = place.install(PIP_NO_INDEX="1", PIP_FIND_LINKS=str(place.wheels))
    finally:
        uv.unlink()
    assert succeeded, said
    assert "wrong processor" in said
    assert place.installed == {"pinned": "1.0"}


def test_uv_installs_without_a_cache_if_it_may_not_write_one(place, uv):
    place.pin("pinned")
    environment = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(place.wheels)}
    assert_uv_installed(place, *place.install(UV_CACHE_DIR="/proc/none", **environment))


@pytest.mark.parametrize("tool", ["uv", "pip"])
def test_a_project_is_installed_without_asking_any_index(request, place, tool, tmp_path):
    if tool == "uv":
        request.getfixturevalue("uv")
    make_wheel(tmp_path, "ours", "3.0", requires=["pinned"])
    place.pin("pinned")
    with package_index(place.wheels) as index:
        wheel = tmp_path / "ours-3.0-py3-none-any.whl"
        said, succeeded = place.install("--project", str(wheel), PIP_INDEX_URL=index.url)
    assert succeeded, said
    assert not [asked for asked in index.asked if "ours" in asked]
    assert place.installed == {"pinned": "1.0", "ours": "3.0"}


def test_a_failure_says_what_to_set(place):
    place.pin("pinned")
    said, succeeded = place.install(PIP_NO_INDEX="1", PIP_FIND_LINKS=os.devnull)
    assert not succeeded
    for setting in ("PIP_INDEX_URL", "PIP_PROXY", "PIP_CERT", "PIP_FIND_LINKS"):
        assert setting in said
    assert "this is Python 3." in said
