"""docs/top-ups.md: its examples run as printed and give the printed output."""

import asyncio

from kit.documents import snippets
from kit.paths import ROOT

TOP_UPS = ROOT / "docs" / "top-ups.md"
USER_ID = "3f2b8c1e-9d4a-4f6b-8a57-0c1d2e3f4a5b"


async def test_the_examples_give_the_printed_output(service, database):
    user_id = str(await database.user())
    printed = []
    names = {"print": lambda *values: printed.append(" ".join(map(str, values)) + "\n")}
    for heading in ("Switching it on", "When a charge fails", "What users and operators see"):
        (code,) = snippets(TOP_UPS, heading, "python")
        (said,) = snippets(TOP_UPS, heading, "text")
        code = code.replace("127.0.0.1:50051", service.target).replace(USER_ID, user_id)
        printed.clear()
        await asyncio.to_thread(exec, code, names)
        assert "".join(printed) == said
