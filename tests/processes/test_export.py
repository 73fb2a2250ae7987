"""`credit-service export`, as an operator runs it: its output, and how it stops and resumes."""

import asyncio
import json
import signal
import subprocess
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from uuid import UUID

import pytest
from kit.command_line import ran
from kit.exports import again, exported, exporting, table
from kit.long_book import write_book
from kit.requests import limits, payment
from kit.waiting import eventually, patience

from credit_service import export_rows

FIRST = datetime(2026, 1, 1, tzinfo=UTC)


async def test_transactions_are_written_with_every_field_in_the_order_of_time(database, client):
    user_id = await database.user()
    bought = await client.purchase_credits(user_id, 100, payment=payment("pi_1"))
    spent = await client.spend_credits(
        user_id, operation="render", reference='job "7", again', metadata={"a": "b"}
    )
    await client.refund_credits(user_id, spent.transaction.id, amount=1)
    held = await client.hold_credits(user_id, amount=7)
    await client.adjust_credits(user_id, -3, reason="=a slip,\u00fc")
    done = await exported(database, "transactions")
    assert done.returncode == 0
    assert done.stderr.startswith("5 transactions, complete until ")
    rows = table(done.stdout)
    assert tuple(rows[0]) == tuple(export_rows.TRANSACTION_COLUMNS)
    assert [row["type"] for row in rows] == ["purchase", "spend", "refund", "hold", "adjustment"]
    first, second, third, fourth, fifth = rows
    assert (first["id"], first["payment_ref"]) == (bought.transaction.id, "pi_1")
    assert (first["payment_amount_minor"], first["payment_currency"]) == ("999", "eur")
    at = bought.transaction.timestamp.ToDatetime(UTC)
    assert datetime.fromisoformat(first["timestamp"]) == at
    assert (second["operation"], second["quantity"], second["unit_cost"]) == ("render", "1", "5")
    assert (second["reference"], second["metadata"]) == ('job "7", again', '{"a":"b"}')
    assert third["related_transaction_id"] == spent.transaction.id
    assert (fourth["hold_id"], fourth["held_change"]) == (held.hold.id, "7")
    assert (fifth["balance_change"], fifth["description"]) == ("-3", "=a slip,\u00fc")
    assert fifth["operation"] == ""

    lines = (await exported(database, "transactions", "--format", "jsonl")).stdout.splitlines()
    objects = [json.loads(line) for line in lines]
    assert [tuple(each) for each in objects] == [tuple(export_rows.TRANSACTION_COLUMNS)] * 5
    assert [each["id"] for each in objects] == [row["id"] for row in rows]
    assert (objects[1]["metadata"], objects[1]["balance_change"]) == ({"a": "b"}, -5)
    assert (objects[0]["operation"], objects[0]["metadata"]) == (None, {})


async def test_accounts_are_written_as_they_are_in_the_order_of_users(database, client):
    users = sorted([await database.user(100), await database.user(50)])
    await client.hold_credits(users[0], amount=30)
    await client.set_account_policy(
        users[0], frozen=True, min_balance=-5, spend_limits=limits(1, 2, 3)
    )
    first, second = table((await exported(database, "accounts")).stdout)
    assert tuple(first) == tuple(export_rows.ACCOUNT_COLUMNS)
    assert [first["user_id"], second["user_id"]] == [str(user_id) for user_id in users]
    figures = ("held", "min_balance", "frozen", "limit_per_minute", "limit_per_day")
    assert [first[name] for name in figures] == ["30", "-5", "true", "1", "3"]
    assert [second[name] for name in figures] == ["0", "0", "false", "", ""]
    credit = await client.get_user_credit(users[0])
    assert int(first["available"]) == credit.available
    changed = credit.last_updated.ToDatetime(UTC)
    assert datetime.fromisoformat(first["last_updated"]) == changed
    assert datetime.fromisoformat(first["as_of"]) >= changed
    since = ("--since", changed.isoformat())
    assert len(table((await exported(database, "accounts", *since)).stdout)) == 1
    until = ("--until", changed.isoformat())
    (row,) = table((await exported(database, "accounts", *until)).stdout)
    assert row["user_id"] == str(users[1])


async def test_an_empty_export_has_its_head(database):
    for what, columns in (
        ("accounts", export_rows.ACCOUNT_COLUMNS),
        ("transactions", export_rows.TRANSACTION_COLUMNS),
    ):
        done = await exported(database, what)
        assert (done.returncode, done.stdout.strip()) == (0, ",".join(columns))
        assert (await exported(database, what, "--format", "jsonl")).stdout == ""


async def test_exports_of_adjacent_times_add_up_to_the_whole(database):
    # Three entries per second of two users, so that pages and intervals end among equal times.
    users = sorted([await write_book(database, 3300, same_time=3) for _ in range(2)])
    whole = table((await exported(database, "transactions", "--until", "2026-02-01")).stdout)
    assert len(whole) == 6600
    expected = sorted(
        (FIRST + timedelta(seconds=(seq - 1) // 3), user_id, seq)
        for user_id in users
        for seq in range(1, 3301)
    )
    places = [
        (datetime.fromisoformat(row["timestamp"]), UUID(row["user_id"]), int(row["seq"]))
        for row in whole
    ]
    assert places == expected
    parts = []
    ends = ["2025-01-01", "2026-01-01T00:00:01", "2026-01-01T01:05:00+01:00", "2026-02-01"]
    ends.insert(2, "2026-01-01T00:04:00.000001Z")
    for since, until in pairwise(ends):
        moments = ("--since", since, "--until", until)
        parts += table((await exported(database, "transactions", *moments)).stdout)
    assert parts == whole


async def test_an_entry_that_is_being_committed_when_the_export_begins_is_in_it(database):
    user_id = await database.user(10)
    writer = await database.connect()
    try:
        await writer.execute("BEGIN")
        await writer.execute("SELECT FROM user_credits FOR NO KEY UPDATE")
        await writer.execute(
            "INSERT INTO credit_transactions (user_id, seq, type, call, amount, balance_change,"
            " held_change, balance_after, held_after, description, timestamp, reference,"
            " idempotency_key, caller) VALUES ($1, 2, 'grant', 'test', 5, 5, 0, 15, 0, 'late',"
            " clock_timestamp(), '', 'late', 'test')",
            user_id,
        )
        with exporting(database, "transactions", stdout=subprocess.PIPE) as child:

            async def waits():
                return await database.fetch(
                    "SELECT FROM pg_stat_activity WHERE datname = current_database()"
                    " AND query LIKE '%FROM pg_locks AS held%' AND pid <> pg_backend_pid()"
                )

            await eventually(waits)
            await writer.execute("COMMIT")
            out, _ = await asyncio.to_thread(child.communicate, timeout=patience(60))
            assert child.returncode == 0
    finally:
        await writer.close()
    assert [row["description"] for row in table(out.decode())] == ["", "late"]


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
async def test_a_stopped_export_resumes_where_it_stopped(database, how):
    await write_book(database, 12_000, same_time=3)
    arguments = ("transactions", "--until", "2026-02-01", "--format", "jsonl")
    whole = (await exported(database, *arguments)).stdout
    with exporting(database, *arguments, stdout=subprocess.PIPE) as child:
        # The pipe is full before the first page is written, so the export waits for its reader.
        begun = await asyncio.to_thread(child.stdout.read, 1)
        child.send_signal(how)
        rest, complaint = await asyncio.to_thread(child.communicate, timeout=patience(60))
    part, complaint = (begun + rest).decode(), complaint.decode()
    assert child.returncode == 130, complaint
    assert part
    assert part.endswith("\n")
    assert whole.startswith(part)
    assert len(part) < len(whole)
    assert complaint.splitlines()[-2].startswith(f"stopped, after {len(part.splitlines())} tran")
    rest = await exported(database, *again(complaint))
    assert (rest.returncode, part + rest.stdout) == (0, whole)


async def test_an_output_that_is_full_ends_with_a_cursor(database):
    await write_book(database, 3000)
    with open("/dev/full", "wb") as full, exporting(database, "accounts", stdout=full) as child:  # noqa: ASYNC230, PTH123
        _, complaint = await asyncio.to_thread(child.communicate, timeout=patience(60))
    assert child.returncode == 1
    assert b"the output cannot be written: No space left on device, after 0 accounts" in complaint
    rest = await exported(database, *again(complaint.decode()))
    assert len(table(rest.stdout)) == 1


async def test_a_file_is_continued_after_the_last_row_before_the_cursor(database, tmp_path):
    await write_book(database, 12_000, same_time=3)
    path = tmp_path / "entries.csv"
    arguments = ("transactions", "--until", "2026-02-01")
    whole = (await exported(database, *arguments)).stdout
    with exporting(database, *arguments, stdout=subprocess.PIPE) as child:
        begun = await asyncio.to_thread(child.stdout.read, 1)
        child.send_signal(signal.SIGINT)
        rest, complaint = await asyncio.to_thread(child.communicate, timeout=patience(60))
    # The file as left by a process that was killed in the middle of the next page.
    part = begun + rest
    path.write_bytes(part + whole.encode()[len(part) :][:5000])
    go_on = (*again(complaint.decode()), "--output", str(path))
    done = await exported(database, *go_on)
    assert (done.returncode, done.stdout) == (0, "")
    assert path.read_bytes().decode() == whole
    path.write_bytes(b"short")
    done = await exported(database, *go_on)
    assert (done.returncode, path.read_bytes()) == (2, b"short")
    assert "is shorter than what the export had written" in done.stderr


async def test_an_impossible_export_is_refused_in_one_line(database, tmp_path):
    there = tmp_path / "there"
    there.write_text("mine")
    for arguments, words in (
        (("accounts", "--output", str(there)), "exists; name another file"),
        (("accounts", "--output", str(tmp_path / "no" / "file")), "cannot be opened"),
        (("accounts", "--since", "yesterday"), "--since: yesterday is not a time"),
        (("accounts", "--until", "2026-13-01"), "--until: 2026-13-01 is not a time"),
        (("accounts", "--resume", "x"), "the cursor is damaged"),
        (("accounts", "--resume", "W10"), "the cursor is damaged"),
    ):
        done = await exported(database, *arguments)
        assert (done.returncode, done.stdout) == (2, ""), arguments
        (line,) = done.stderr.splitlines()
        assert words in line
    assert there.read_text() == "mine"
    done = await asyncio.to_thread(
        ran, "export", "accounts", CREDIT_DATABASE_URL="postgresql://role@/database?host=/nowhere"
    )
    assert done.returncode == 2
    assert "the database cannot be reached" in done.stderr
