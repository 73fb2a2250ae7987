"""A file in which a reader of the feed keeps its cursor."""

from __future__ import annotations

import os
from pathlib import Path


class CursorFile:
    """Keeps a cursor in a file: after a crash it has the old cursor or the new one, whole.

    For readers without a database of their own. A reader with a database stores the cursor there,
    in the transaction that stores its results.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        """Names the file; its folder must be there."""
        self._path = Path(path)

    def load(self) -> str:
        """Reads the cursor; empty if none was saved yet.

        Raises:
            OSError: the file cannot be read.
        """
        try:
            return self._path.read_text(encoding="ascii").strip()
        except FileNotFoundError:
            return ""

    def save(self, cursor: str) -> None:
        """Stores the cursor, on the disk when this returns; takes a few milliseconds.

        Raises:
            OSError: it cannot be written; the file is as it was.
        """
        new = self._path.with_name(f"{self._path.name}.new")
        with new.open("w", encoding="ascii") as file:
            file.write(f"{cursor}\n")
            file.flush()
            os.fsync(file.fileno())
        new.replace(self._path)
        folder = os.open(self._path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
