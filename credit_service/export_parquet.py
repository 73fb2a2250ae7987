"""The rows of an export as a Parquet file.

A Parquet file has its index at its end, so an export that stops early cannot be continued. The file
is written under a temporary name, and gets its own when it is complete and on the disk.
"""

from __future__ import annotations

import fcntl
import os
from typing import TYPE_CHECKING

import pyarrow as pa
from pyarrow import parquet

from credit_service.export_files import ExportError
from credit_service.export_rows import Kind

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from credit_service.export_rows import Row

# A row group is written when it has one of these; metadata can make rows large.
_GROUP_ROWS = 50_000
_GROUP_BYTES = 32 * 1024 * 1024

_TYPES = {
    Kind.TEXT: pa.string(),
    Kind.NUMBER: pa.int64(),
    Kind.FLAG: pa.bool_(),
    Kind.TIME: pa.timestamp("us", tz="UTC"),
    Kind.TEXTS: pa.map_(pa.string(), pa.string()),
}


class ParquetFile:
    """A Parquet file, in memory one row group at a time."""

    def __init__(self, path: Path, columns: Mapping[str, Kind]) -> None:
        """Opens it under the name `<path>.part`.

        Args:
            path: the file, which must not exist yet.
            columns: of the rows.

        Raises:
            ExportError: the file exists, another export is writing it, or it cannot be opened.
        """
        self._path, self._part = path, path.with_name(f"{path.name}.part")
        self._refuse_existing()
        self._schema = pa.schema([(name, _TYPES[kind]) for name, kind in columns.items()])
        self._group: list[pa.RecordBatch] = []
        try:
            # The remains of a killed export are overwritten; the lock shows that it is dead.
            self._file = self._part.open("ab")
            try:
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                self._file.close()
                raise ExportError(f"{self._part} is being written by another export") from error
            self._file.truncate(0)
        except OSError as error:
            raise ExportError(f"{self._part} cannot be opened: {error.strerror}") from error
        self._writer: parquet.ParquetWriter | None = None
        self._complete = False

    def begin(self) -> int:
        """Writes the beginning."""
        try:
            self._writer = parquet.ParquetWriter(self._file, self._schema, compression="zstd")
        except OSError as error:
            raise _cannot_write(error) from error
        return 0

    def write(self, rows: Sequence[Row]) -> int:
        """Adds rows to the row group, and writes it when it is full; returns 0."""
        if not rows:
            return 0
        columns = zip(zip(*rows, strict=True), self._schema.types, strict=True)
        self._group.append(
            pa.record_batch([_array(values, type_) for values, type_ in columns], self._schema)
        )
        if (
            sum(batch.num_rows for batch in self._group) >= _GROUP_ROWS
            or sum(batch.nbytes for batch in self._group) >= _GROUP_BYTES
        ):
            self._write_group()
        return 0

    def complete(self) -> None:
        """Writes the last row group and the end, and gives the file its name.

        Raises:
            ExportError: it cannot be written, or a file of this name has appeared meanwhile.
        """
        assert self._writer is not None  # noqa: S101  # `begin` comes first
        self._write_group()
        try:
            self._writer.close()
            self._file.flush()
            os.fsync(self._file.fileno())
            self._refuse_existing()
            self._part.replace(self._path)
            self._complete = True
            folder = os.open(self._path.parent, os.O_RDONLY | os.O_DIRECTORY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)
        except OSError as error:
            raise _cannot_write(error) from error

    def close(self) -> None:
        """Closes the file, and removes it if it is not complete."""
        if self._complete:
            self._file.close()
            return
        if self._writer is not None:
            # Otherwise it writes the end of the file when it is collected.
            self._writer.is_open = False
        self._part.unlink(missing_ok=True)
        self._file.close()

    def _write_group(self) -> None:
        assert self._writer is not None  # noqa: S101  # `begin` comes first
        group, self._group = self._group, []
        if not group:
            return
        table = pa.Table.from_batches(group, self._schema)
        try:
            self._writer.write_table(table, row_group_size=table.num_rows)
        except OSError as error:
            raise _cannot_write(error) from error

    def _refuse_existing(self) -> None:
        if self._path.exists():
            raise ExportError(f"{self._path} exists; name another file")


def _array(values: Sequence[object], type_: pa.DataType) -> pa.Array:
    if pa.types.is_map(type_):
        values = [list(pairs.items()) if isinstance(pairs, dict) else pairs for pairs in values]
    return pa.array(values, type_)


def _cannot_write(error: OSError) -> ExportError:
    return ExportError(f"the output cannot be written: {error.strerror or error}")
