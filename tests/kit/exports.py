"""`credit-service export` as an operator runs it."""

import asyncio
import csv
import io
import os
import shlex
import subprocess
import sys
from contextlib import contextmanager

from kit.command_line import ran


async def exported(database, *arguments):
    """Runs an export to its end."""
    url = database.service_url
    return await asyncio.to_thread(ran, "export", *arguments, CREDIT_DATABASE_URL=url)


def table(text):
    """The rows of a CSV file."""
    return list(csv.DictReader(io.StringIO(text)))


@contextmanager
def exporting(database, *arguments, **options):
    """Starts an export; the process is killed at the end of the block."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith("CREDIT_")}
    child = subprocess.Popen(
        [sys.executable, "-m", "credit_service", "export", *arguments],
        env={**clean, "CREDIT_DATABASE_URL": database.service_url},
        stderr=subprocess.PIPE,
        bufsize=0,
        **options,
    )
    try:
        yield child
    finally:
        child.kill()
        child.wait()
        child.stderr.close()


def again(complaint):
    """The command that resumes an export, from the last line of standard error."""
    command = shlex.split(complaint.splitlines()[-1])
    assert command[:2] == ["credit-service", "export"]
    return command[2:]
