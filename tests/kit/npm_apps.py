"""The React and tRPC examples as a separate app, with the packages of their lock file."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from kit.paths import ROOT
from kit.waiting import patience


def install_web_examples(place: Path, *further: Path) -> Path:
    """Copies docs/examples/web, with further files beside it, and installs its packages.

    Returns:
        The app's directory; the gateway's module is where its hook imports it from.
    """
    if shutil.which("npm") is None:
        pytest.skip("npm is not installed")
    app = place / "web"
    shutil.copytree(ROOT / "docs/examples/web", app)
    for path in further:
        shutil.copy(path, app)
    run(app, Path(sys.executable).with_name("credit-gateway"), "files", "apps/web/src/credits")
    run(app, "npm", "ci", "--no-audit", "--no-fund", "--ignore-scripts")
    return app


def run(app: Path, *command: str | Path) -> str:
    """Runs a command in the app's directory; returns its output."""
    done = subprocess.run(
        command, cwd=app, capture_output=True, text=True, check=False, timeout=patience(200)
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout
