"""`scripts/demo --stripe`, run as a reader would run it."""

import asyncio
import re
import sys
from uuid import uuid4

from kit.paths import ROOT


async def demo(*arguments):
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        str(ROOT / "scripts" / "demo.py"),
        "--stripe",
        *map(str, arguments),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    said, _ = await process.communicate()
    assert b"Traceback" not in said, said.decode()
    return process.returncode, said.decode()


async def test_the_demo_plays_from_checkout_to_a_top_up(service, database):
    user_id = await database.user()
    code, said = await demo("--target", service.target, "--user", user_id)
    assert code == 0, said
    assert re.findall(r"balance: (-?\d+) credits", said) == [*("300", "200", "0", "200", "340")], (
        said
    )
    entries = await database.fetch(
        "SELECT balance_change FROM credit_transactions WHERE user_id = $1 ORDER BY seq", user_id
    )
    assert [each[0] for each in entries] == [300, -100, -200, 200, -160, 300]


async def test_the_demo_says_what_to_do_when_the_service_does_not_know_the_user(service):
    code, said = await demo("--target", service.target, "--user", uuid4())
    assert (code, "user_not_found" in said, "--user" in said) == (1, True, True), said
