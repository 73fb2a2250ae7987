"""docs/events.md: its examples run as printed and print what the page says."""

import asyncio

from kit.documents import snippets
from kit.paths import ROOT
from kit.requests import payment

EVENTS = ROOT / "docs" / "events.md"


async def test_the_example_of_a_reader_prints_what_the_page_says(
    database, service, client, tmp_path, monkeypatch
):
    user_id = await database.user()
    await client.purchase_credits(user_id, 100, payment=payment("pi_1"))
    await client.spend_credits(user_id, amount=30)
    (code,) = snippets(EVENTS, "The stream", "python")
    (expected,) = snippets(EVENTS, "The stream", "text")
    printed = []
    names = {"print": lambda text: printed.append(f"{text}\n")}
    monkeypatch.chdir(tmp_path)
    code = code.replace("127.0.0.1:50051", service.target)
    await asyncio.to_thread(exec, code, names)
    assert "".join(printed) == expected
    assert (tmp_path / "credits.cursor").exists()


async def test_the_statement_that_finds_what_holds_the_feed_up_finds_it(database):
    (statement,) = snippets(EVENTS, "When the feed waits", "sql")
    holder = await database.connect()
    try:
        await holder.execute("BEGIN")
        await holder.fetchval("SELECT pg_current_xact_id()")
        # Other tests write on the same server.
        found = {row["pid"] for row in await database.fetch(statement)}
        assert holder.get_server_pid() in found
    finally:
        await holder.close()
