"""The command line in a process of its own."""

import os
import subprocess
import sys

from kit.waiting import patience


def ran(*arguments, **variables):
    """Runs a command with these settings and no others; it may refuse, but never fail."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith("CREDIT_")}
    done = subprocess.run(
        [sys.executable, "-m", "credit_service", *arguments],
        env={**clean, **variables},
        capture_output=True,
        text=True,
        timeout=patience(60),
        check=False,
    )
    assert "Traceback" not in done.stdout + done.stderr
    return done


def start_refused(*arguments, **variables):
    """Starts the service, which must refuse; returns the line that says why."""
    done = ran("serve", *arguments, **{"CREDIT_LISTEN": "127.0.0.1:0", **variables})
    assert done.returncode == 2, done.stderr
    assert done.stdout == ""
    lines = [line for line in done.stderr.splitlines() if line.startswith("credit-service: ")]
    assert lines, done.stderr
    return lines[-1].removeprefix("credit-service: ")
