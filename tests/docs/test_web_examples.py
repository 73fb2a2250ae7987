"""The parts of a web app in docs/examples/web compile strictly against the installed module."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from kit.paths import ROOT
from kit.waiting import patience


@pytest.mark.long
@pytest.mark.timeout(600)
def test_the_react_and_trpc_examples_compile_strictly(tmp_path):
    if shutil.which("npm") is None:
        pytest.skip("npm is not installed")
    app = tmp_path / "web"
    shutil.copytree(ROOT / "docs/examples/web", app)
    gateway = Path(sys.executable).with_name("credit-gateway")
    for command in (
        (gateway, "files", app / "apps/web/src/credits"),
        ("npm", "ci", "--no-audit", "--no-fund", "--ignore-scripts"),
        ("npx", "tsc", "--noEmit"),
    ):
        done = subprocess.run(
            command, cwd=app, capture_output=True, text=True, check=False, timeout=patience(200)
        )
        assert done.returncode == 0, done.stdout + done.stderr
