"""The file or standard output that an export is written to as CSV or JSON lines."""

from __future__ import annotations

import io
import os
import sys
from typing import TYPE_CHECKING, Protocol

from credit_service import export_rows

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from credit_service.export_rows import Format, Kind, Row


class ExportError(Exception):
    """An export cannot begin or go on; the message says why."""


class ExportFile(Protocol):
    """What rows are written to."""

    def begin(self) -> int:
        """Writes what comes before the first row; returns the number of bytes.

        Raises:
            ExportError: it cannot be written.
        """

    def write(self, rows: Sequence[Row]) -> int:
        """Writes rows; returns how many of their bytes a continued export keeps.

        Raises:
            ExportError: they cannot be written; a part of them may be.
        """

    def complete(self) -> None:
        """Writes what comes after the last row.

        Raises:
            ExportError: it cannot be written.
        """

    def close(self) -> None:
        """Closes it, complete or not."""


class TextFile:
    """A file or standard output; rows that `write` took are with the operating system."""

    def __init__(
        self,
        path: Path | None,
        format_: Format,
        columns: Mapping[str, Kind],
        *,
        keep: int | None,
    ) -> None:
        """Opens it.

        Args:
            path: the file; None: standard output.
            format_: CSV or JSON lines.
            columns: of the rows.
            keep: go on after this many bytes of the file, which has at least that many; None: the
                file must not exist yet.

        Raises:
            ExportError: the file exists, is shorter, or cannot be opened.
        """
        self._format, self._columns = format_, columns
        self._file: io.FileIO | None = None
        if path is None:
            self._descriptor = sys.stdout.fileno()
            return
        try:
            self._file = path.open("xb" if keep is None else "r+b", buffering=0)
            if keep is not None:
                if self._file.seek(0, io.SEEK_END) < keep:
                    raise ExportError(f"{path} is shorter than what the export had written")
                # Rows after the cursor are written again.
                self._file.seek(keep)
                self._file.truncate()
        except FileExistsError as error:
            raise ExportError(
                f"{path} exists; name another file, or go on with --resume"
            ) from error
        except OSError as error:
            raise ExportError(f"{path} cannot be opened: {error.strerror}") from error
        self._descriptor = self._file.fileno()

    def begin(self) -> int:
        """Writes the names of the columns, if the format has them."""
        return self._write(export_rows.head(self._format, self._columns))

    def write(self, rows: Sequence[Row]) -> int:
        """Writes rows, all of them or as far as the output takes them."""
        return self._write(export_rows.text(self._format, self._columns, rows))

    def complete(self) -> None:
        """Does nothing, because nothing follows the last row."""

    def close(self) -> None:
        """Closes the file; the rows in it stay, and `--resume` goes on after them."""
        if self._file is not None:
            self._file.close()

    def _write(self, data: bytes) -> int:
        rest = memoryview(data)
        try:
            while rest:
                rest = rest[os.write(self._descriptor, rest) :]
        except OSError as error:
            raise ExportError(f"the output cannot be written: {error.strerror}") from error
        return len(data)
