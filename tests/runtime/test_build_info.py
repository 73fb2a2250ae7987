"""The version: one source for command lines, start lines and metrics of every program."""

import subprocess
import sys
import tomllib
from pathlib import Path

import httpx
import pytest
from kit.paths import ROOT
from kit.programs import free_port, process

from credit_service.runtime.build_info import VERSION

PROGRAMS = ("credit-service", "stripe-bridge", "credit-gateway")


def test_the_version_is_the_one_of_the_package():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["version"] == VERSION


@pytest.mark.parametrize("program", PROGRAMS)
def test_every_program_says_its_version(program):
    path = Path(sys.executable).with_name(program)
    run = subprocess.run([path, "--version"], capture_output=True, text=True, check=True)
    assert run.stdout == f"{program} {VERSION}\n"


async def test_a_running_service_says_its_version_in_the_start_line_and_as_a_metric(database):
    port = free_port()
    settings = {"CREDIT_DATABASE_URL": database.service_url, "CREDIT_METRICS_PORT": str(port)}
    with process(**settings) as running:
        running.wait_for(f"^credit-service {VERSION} listens on ")
        async with httpx.AsyncClient() as client:
            metrics = (await client.get(f"http://127.0.0.1:{port}/metrics")).text
    assert f'credit_build_info{{version="{VERSION}"}} 1.0' in metrics
