"""Copies of this checkout, to set up or to install from, and empty virtual environments."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

from kit.paths import ROOT

# Variables of the test run itself: none of them may reach what a test installs.
_OURS = ("CREDIT_", "COV", "PIP_CONSTRAINT", "PYTEST", "PYTHON", "UV_", "VIRTUAL_ENV")


def tracked_files(*patterns: str) -> list[Path]:
    """The files that git tracks or would add, in order: all, or those of these patterns."""
    listing = ("git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", "--")
    listed = subprocess.run(
        (*listing, *patterns), cwd=ROOT, check=True, capture_output=True, text=True
    )
    found = (ROOT / name for name in listed.stdout.split("\0") if name)
    return [path for path in found if path.is_file()]


def copy_checkout(place: Path) -> Path:
    """Makes `place` a checkout in which nothing is set up."""
    for path in tracked_files():
        copy = place / path.relative_to(ROOT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, copy)
    return place


def clean_environment(**additions: str) -> dict[str, str]:
    """This process's environment without the variables that only concern the tests."""
    return {k: v for k, v in os.environ.items() if not k.startswith(_OURS)} | additions


def make_venv(place: Path, *options: str, python: str | Path = sys.executable) -> Path:
    """Makes a virtual environment; returns its Python."""
    subprocess.run([python, "-m", "venv", *options, place], check=True, env=clean_environment())
    return place / "bin" / "python"
