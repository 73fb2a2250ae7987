"""docs/grants.md: its examples run as printed and give the printed output."""

import asyncio

import pytest
from kit.documents import snippets
from kit.paths import ROOT

GRANTS = ROOT / "docs" / "grants.md"
USER_ID = "3f2b8c1e-9d4a-4f6b-8a57-0c1d2e3f4a5b"


@pytest.fixture
async def said(service, database):
    """Runs a snippet with the names of those before it and returns its output."""
    user_id = str(await database.user())
    printed = []
    names = {"USER_ID": user_id, "print": lambda text: printed.append(f"{text}\n")}

    async def run(heading):
        (code,) = snippets(GRANTS, heading, "python")
        code = code.replace("127.0.0.1:50051", service.target).replace(USER_ID, user_id)
        printed.clear()
        await asyncio.to_thread(exec, code, names)
        return "".join(printed)

    return run


@pytest.mark.parametrize(
    "headings",
    [
        ("The burn order", "How refunds go back", "Revoking a grant"),
        ("Allowances",),
        ("Plans with rollover",),
    ],
)
async def test_an_example_gives_the_printed_output(headings, said):
    for heading in headings:
        (printed,) = snippets(GRANTS, heading, "text")
        assert await said(heading) == printed


async def test_finance_reads_the_rest_of_an_allowance(said):
    await said("Allowances")
    report = await said("What finance reads")
    assert ": 0 paid, 15 promotional\n" in report
    assert report.endswith("without an expiry: 0\nowed by 0 accounts: 0\n")
