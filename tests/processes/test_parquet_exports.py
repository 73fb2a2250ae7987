"""`credit-service export --format parquet`: exact types, and a complete file or none."""

import asyncio
import resource
import signal
from datetime import UTC

import pyarrow as pa
import pytest
from kit.exports import exported, exporting
from kit.long_book import write_book
from kit.requests import limits, payment
from kit.waiting import eventually, patience
from pyarrow import parquet

from credit_service import export_rows

LARGEST = 10**12


async def test_the_file_reads_back_as_the_entries_of_the_ledger(database, client, tmp_path):
    user_id = await database.user()
    await client.purchase_credits(user_id, LARGEST, payment=payment("pi_1"))
    spent = await client.spend_credits(user_id, operation="render", metadata={"a": "ü", "b": ""})
    await client.hold_credits(user_id, amount=7)
    path = tmp_path / "entries.parquet"
    done = await exported(database, "transactions", "--format", "parquet", "--output", str(path))
    assert (done.returncode, done.stdout) == (0, "")
    assert done.stderr.startswith("3 transactions, complete until ")
    assert [each.name for each in tmp_path.iterdir()] == [path.name]

    read = parquet.read_table(path)
    assert read.column_names == list(export_rows.TRANSACTION_COLUMNS)
    types = {name: read.schema.field(name).type for name in read.column_names}
    assert types["amount"] == types["payment_amount_minor"] == types["seq"] == pa.int64()
    assert types["timestamp"] == pa.timestamp("us", tz="UTC")
    assert types["metadata"] == pa.map_(pa.string(), pa.string())
    first, second, third = read.to_pylist()
    assert (first["type"], first["amount"], first["payment_ref"]) == ("purchase", LARGEST, "pi_1")
    assert (first["operation"], first["metadata"]) == (None, [])
    assert second["id"] == spent.transaction.id
    assert second["metadata"] == [("a", "ü"), ("b", "")]
    at = spent.transaction.timestamp.ToDatetime(UTC)
    assert second["timestamp"] == at
    assert (third["held_change"], third["balance_change"]) == (7, 0)


async def test_accounts_read_back_with_numbers_flags_and_times(database, client, tmp_path):
    users = sorted([await database.user(), await database.user()])
    await client.purchase_credits(users[0], 100, payment=payment("pi_1"))
    await client.purchase_credits(users[1], 50, payment=payment("pi_2"))
    await client.set_account_policy(users[0], frozen=True, spend_limits=limits(1, 2, 3))
    path = tmp_path / "accounts.parquet"
    await exported(database, "accounts", "--format", "parquet", "--output", str(path))
    read = parquet.read_table(path)
    assert read.column_names == list(export_rows.ACCOUNT_COLUMNS)
    first, second = read.to_pylist()
    assert [first["user_id"], second["user_id"]] == [str(user_id) for user_id in users]
    assert (first["balance"], first["frozen"], first["limit_per_day"]) == (100, True, 3)
    assert (second["frozen"], second["limit_per_day"]) == (False, None)
    credit = await client.get_user_credit(users[0])
    assert first["last_updated"] == credit.last_updated.ToDatetime(UTC)
    assert first["as_of"] >= first["last_updated"]


async def test_an_empty_export_has_its_columns(database, tmp_path):
    path = tmp_path / "none.parquet"
    done = await exported(database, "accounts", "--format", "parquet", "--output", str(path))
    assert done.returncode == 0
    read = parquet.read_table(path)
    assert (read.num_rows, read.column_names) == (0, list(export_rows.ACCOUNT_COLUMNS))


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
async def test_a_stopped_export_leaves_no_file_and_begins_again(database, tmp_path, how):
    await write_book(database, 30_000)
    writer = await database.connect()
    path = tmp_path / "entries.parquet"
    part = path.with_name("entries.parquet.part")
    arguments = ("transactions", "--format", "parquet", "--output", str(path))
    # The export waits for this transaction, so it is stopped in the middle.
    await writer.execute("BEGIN")
    await writer.execute("SELECT FROM user_credits FOR NO KEY UPDATE")
    try:
        with exporting(database, *arguments) as child:
            await eventually(part.exists)
            other = await exported(database, *arguments)
            assert other.returncode == 2
            assert "is being written by another export" in other.stderr
            child.send_signal(how)
            _, complaint = await asyncio.to_thread(child.communicate, timeout=patience(60))
    finally:
        await writer.close()
    assert not path.exists()
    if how is not signal.SIGKILL:
        assert child.returncode == 130, complaint
        assert b"a Parquet file cannot be continued and was removed" in complaint
        assert not part.exists()
    done = await exported(database, *arguments)
    assert done.returncode == 0, done.stderr
    assert parquet.read_metadata(path).num_rows == 30_000
    assert not part.exists()


async def test_a_full_disk_leaves_no_file(database, tmp_path):
    await write_book(database, 60_000)
    path = tmp_path / "entries.parquet"
    with exporting(
        database,
        *("transactions", "--format", "parquet", "--output", str(path)),
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000)),
    ) as child:
        _, complaint = await asyncio.to_thread(child.communicate, timeout=patience(60))
    assert child.returncode == 1, complaint
    assert b"the output cannot be written: File too large, after " in complaint
    assert list(tmp_path.iterdir()) == []


async def test_an_impossible_parquet_export_is_refused_in_one_line(database, tmp_path, monkeypatch):
    there = tmp_path / "there"
    there.write_text("mine")
    for arguments, words in (
        ((), "Parquet is written to a file: name it by --output"),
        (("--output", str(there)), "exists; name another file"),
        (("--output", str(tmp_path / "no" / "file")), "cannot be opened"),
    ):
        done = await exported(database, "accounts", "--format", "parquet", *arguments)
        assert (done.returncode, done.stdout) == (2, ""), arguments
        (line,) = done.stderr.splitlines()
        assert words in line
    assert there.read_text() == "mine"
    # A folder that hides the package, as if it were not installed.
    (tmp_path / "hides" / "pyarrow").mkdir(parents=True)
    hidden = tmp_path / "hides" / "pyarrow" / "__init__.py"
    hidden.write_text("raise ModuleNotFoundError('No module', name='pyarrow')\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "hides"))
    new = ("--output", str(tmp_path / "new"))
    done = await exported(database, "accounts", "--format", "parquet", *new)
    assert done.returncode == 2
    assert "needs the package pyarrow: pip install 'credit-service[parquet]'" in done.stderr
    assert sorted(each.name for each in tmp_path.iterdir()) == ["hides", "there"]
