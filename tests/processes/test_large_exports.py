"""Exports of many entries need the memory of one page or one row group."""

import asyncio
import os

import pytest
from kit.exports import exporting
from kit.extent import extent
from kit.long_book import write_book
from pyarrow import parquet

MEGABYTE = 1024 * 1024
ENTRIES = extent(200_000, 1_000_000)


@pytest.mark.timeout(extent(120, 600))
async def test_memory_does_not_grow_with_the_number_of_entries(database, tmp_path):
    await write_book(database, ENTRIES, same_time=50)

    async def exports(format_, until):
        """Exports the entries before a time; returns the file and the peak of memory in bytes."""
        path = tmp_path / f"{until}.{format_}"
        arguments = ("transactions", "--until", until, "--format", format_, "--output", str(path))
        with exporting(database, *arguments) as child:
            _, status, usage = await asyncio.to_thread(os.wait4, child.pid, 0)
            child.returncode = os.waitstatus_to_exitcode(status)
        assert child.returncode == 0
        return path, usage.ru_maxrss * 1024

    few, small = await exports("csv", "2026-01-01T00:01:40")
    many, large = await exports("csv", "2026-02-01")
    assert few.read_bytes().count(b"\n") == 5001
    assert many.read_bytes().count(b"\n") == ENTRIES + 1
    assert many.stat().st_size > ENTRIES * 150
    assert large - small < 8 * MEGABYTE, (small, large)

    few, small = await exports("parquet", "2026-01-01T00:33:20")
    many, large = await exports("parquet", "2026-02-01")
    groups = [parquet.ParquetFile(path).metadata for path in (few, many)]
    assert [group.num_rows for group in groups] == [100_000, ENTRIES]
    assert [group.num_row_groups for group in groups] == [2, ENTRIES // 50_000]
    assert large - small < 16 * MEGABYTE, (small, large)
