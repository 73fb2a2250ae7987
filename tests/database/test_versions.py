"""The tests run against the requested version of PostgreSQL."""

import asyncio
import os
import re
import subprocess
from pathlib import Path

from kit.postgres import BIN

EMBEDDED_MAJOR = "18"


async def test_the_server_has_the_version_of_the_programs_that_were_named(cluster_owner):
    served = await cluster_owner.fetchval("SHOW server_version")
    if BIN not in os.environ:
        assert served.partition(".")[0] == EMBEDDED_MAJOR
        return
    said = await asyncio.to_thread(
        subprocess.check_output, [Path(os.environ[BIN], "postgres"), "--version"], text=True
    )
    assert re.search(rf"\b{re.escape(served.split()[0])}\b", said)
