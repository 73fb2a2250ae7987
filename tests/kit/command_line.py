"""The command line in a process of its own."""

import os

from kit.programs import run_module


def ran(*arguments, **variables):
    """Runs a command with these settings and no others; it may refuse, but must not crash."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith("CREDIT_")}
    done = run_module("credit_service", *arguments, environment={**clean, **variables})
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
