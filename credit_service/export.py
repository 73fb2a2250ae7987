"""`credit-service export`: accounts or entries as a file, a page at a time.

Only one page is in memory. After each page there is a cursor from which the export can go on.
"""

from __future__ import annotations

import asyncio
import base64
import shlex
import signal
import sys
import time
from dataclasses import dataclass, replace
from datetime import datetime
from typing import TYPE_CHECKING, NamedTuple
from uuid import UUID

import asyncpg
import orjson

from credit_service import export_rows
from credit_service.database.postgres import absence
from credit_service.export_files import ExportError, ExportFile, TextFile
from credit_service.export_rows import Format, What
from credit_service.ledger import export as book
from credit_service.ledger.export import EntryPlace
from credit_service.rules.model import FIRST_USER

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator
    from pathlib import Path

    from credit_service.database.postgres import Address
    from credit_service.export_rows import Row
    from credit_service.rules.terms import Terms

_PROGRESS_SECONDS = 0.5
# A log has no use for more lines than this.
_PROGRESS_SECONDS_IN_A_LOG = 10.0


@dataclass(frozen=True, slots=True)
class Cursor:
    """An export and how far it has got.

    Attributes:
        since: the export begins at this time.
        until: the export ends before this time.
        place: the time, user and seq of the last entry; or the user of the next account, or None
            after the last one.
        rows: how many rows were written.
        size: how many bytes were written.
    """

    what: What
    format: Format
    since: datetime
    until: datetime
    place: EntryPlace | UUID | None
    rows: int = 0
    size: int = 0

    @classmethod
    def first(cls, what: What, format_: Format, since: datetime, until: datetime) -> Cursor:
        """The beginning of an export."""
        place = FIRST_USER if what is What.ACCOUNTS else EntryPlace(since)
        return cls(what, format_, since, until, place)

    @property
    def can_go_on(self) -> bool:
        """Whether a file that ends here can be continued."""
        return self.format is not Format.PARQUET

    def __str__(self) -> str:
        """The cursor as text, which `parse` reads."""
        parts = (self.what, self.format, self.since, self.until, self.place, self.rows, self.size)
        return base64.urlsafe_b64encode(orjson.dumps(parts, default=_plain)).decode().rstrip("=")

    @classmethod
    def parse(cls, text: str) -> Cursor:
        """Reads a cursor.

        Raises:
            ExportError: it is damaged.
        """
        try:
            parts = orjson.loads(base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)))
            what, format_, since, until, place, rows, size = parts
            if isinstance(place, list):
                at, user_id, seq = place
                place = EntryPlace(datetime.fromisoformat(at), UUID(user_id), int(seq))
            elif place is not None:
                place = UUID(place)
            return cls(
                What(what),
                Format(format_),
                datetime.fromisoformat(since),
                datetime.fromisoformat(until),
                place,
                int(rows),
                int(size),
            )
        except (ValueError, TypeError, AttributeError) as error:
            raise ExportError("the cursor is damaged; copy all of it") from error


def _plain(value: object) -> object:
    """Turns types unknown to orjson into known ones: a place, or the driver's UUID."""
    return tuple(value) if isinstance(value, tuple) else str(value)


class Reached(NamedTuple):
    """How an export ended.

    Attributes:
        cursor: how far it got.
        complete: whether it reached the end.
        problem: the fault that ended it; empty if it was stopped.
    """

    cursor: Cursor
    complete: bool
    problem: str

    def summary(self, output: Path | None) -> str:
        """Describes the end, with the command that goes on if there is one.

        Args:
            output: the file that was written; None: standard output.
        """
        what, rows = self.cursor.what, self.cursor.rows
        if self.complete:
            return f"{rows} {what}, complete until {self.cursor.until.isoformat()}"
        ended = f"{self.problem or 'stopped'}, after {rows} {what}"
        if not self.cursor.can_go_on:
            return f"{ended}; a Parquet file cannot be continued and was removed"
        again = ["credit-service", "export", what, "--resume", str(self.cursor)]
        again += [] if output is None else ["--output", str(output)]
        return f"{ended}; to go on:\n  {shlex.join(again)}"


def open_file(cursor: Cursor, path: Path | None, *, resumed: bool) -> ExportFile:
    """Opens what an export is written to.

    Args:
        cursor: the export, and how far it has got.
        path: the file; None: standard output.
        resumed: whether to go on with the file.

    Raises:
        ExportError: it cannot be opened, or cannot be written in this format.
    """
    columns = export_rows.COLUMNS[cursor.what]
    if cursor.format is not Format.PARQUET:
        return TextFile(path, cursor.format, columns, keep=cursor.size if resumed else None)
    if path is None:
        raise ExportError("Parquet is written to a file: name it by --output")
    if resumed:
        raise ExportError("a Parquet file cannot be continued")
    try:
        from credit_service.export_parquet import ParquetFile  # noqa: PLC0415  # of an extra
    except ModuleNotFoundError as error:
        raise ExportError(
            f"Parquet needs the package {error.name}: pip install 'credit-service[parquet]'"
        ) from error
    return ParquetFile(path, columns)


async def run(address: Address, cursor: Cursor, terms: Terms, file: ExportFile) -> Reached:
    """Writes an export from its cursor on, until its end, Ctrl-C or SIGTERM.

    Raises:
        ExportError: the database cannot be reached, or its tables are not those of this version.
    """
    this_task = asyncio.current_task()
    assert this_task is not None  # noqa: S101  # a coroutine runs in a task
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, this_task.cancel)
    try:
        connection = await address.connect(command_seconds=None)
    except Exception as error:
        if absence(error) is None:
            raise
        raise ExportError(
            f"the database cannot be reached: {type(error).__name__}: {error}"
        ) from error
    progress = _Progress(cursor.rows)
    try:
        present = await book.present(connection, progress.wait)
        cursor = replace(cursor, until=min(cursor.until, present))
        if cursor.size == 0:
            cursor = replace(cursor, size=file.begin())
        async for rows, place in _pages(connection, cursor, terms):
            size = cursor.size + file.write(rows)
            cursor = replace(cursor, place=place, rows=cursor.rows + len(rows), size=size)
            progress.show(cursor)
        file.complete()
    except asyncio.CancelledError:
        return Reached(cursor, complete=False, problem="")
    except ExportError as error:
        return Reached(cursor, complete=False, problem=str(error))
    except Exception as error:
        if absence(error) is not None:
            problem = f"the database is away: {type(error).__name__}: {error}"
            return Reached(cursor, complete=False, problem=problem)
        if isinstance(error, asyncpg.PostgresError):
            raise ExportError(
                f"the database cannot be exported: {error}; run `credit-service migrate` first"
            ) from error
        raise
    finally:
        progress.end()
        connection.terminate()
    return Reached(cursor, complete=True, problem="")


async def _pages(
    connection: asyncpg.Connection, cursor: Cursor, terms: Terms
) -> AsyncGenerator[tuple[list[Row], EntryPlace | UUID | None]]:
    """Yields pages of rows, each with the place to go on from."""
    place, until = cursor.place, cursor.until
    if isinstance(place, EntryPlace):
        async for entries, onward in book.entries(connection, place, until):
            yield [export_rows.transaction_row(entry) for entry in entries], onward
        return
    async for now, accounts, first in book.accounts(connection, place, cursor.since):
        rows = [
            export_rows.account_row(account, now, terms)
            for account in accounts
            if account.last_updated is not None and account.last_updated < until
        ]
        yield rows, first


class _Progress:
    """The progress of an export, on standard error: in place in a terminal, else as lines."""

    def __init__(self, rows: int) -> None:
        self._terminal = sys.stderr.isatty()
        self._pause = _PROGRESS_SECONDS if self._terminal else _PROGRESS_SECONDS_IN_A_LOG
        self._shown_at = time.monotonic()
        self._began_at, self._began_with = self._shown_at, rows
        self._width = 0

    def wait(self, writers: int) -> None:
        """Shows how many transactions the export waits for."""
        if self._is_time():
            self._show(f"waiting for {writers} transactions that are writing")

    def show(self, cursor: Cursor) -> None:
        """Shows the progress; in a log with the cursor, because the process may be killed."""
        if not self._is_time():
            return
        seconds = time.monotonic() - self._began_at
        rate = round((cursor.rows - self._began_with) / seconds) if seconds else 0
        text = f"{cursor.rows} {cursor.what}, {rate} per second"
        if isinstance(cursor.place, EntryPlace):
            text += f", at {export_rows.shown_time(cursor.place.time)}"
        if not self._terminal and cursor.can_go_on:
            text += f"; --resume {cursor}"
        self._show(text)

    def end(self) -> None:
        """Leaves the line that was written in place."""
        if self._width:
            print(file=sys.stderr)

    def _is_time(self) -> bool:
        return time.monotonic() - self._shown_at >= self._pause

    def _show(self, text: str) -> None:
        self._shown_at = time.monotonic()
        if not self._terminal:
            print(text, file=sys.stderr, flush=True)
            return
        print(f"\r{text:<{self._width}}", end="", file=sys.stderr, flush=True)
        self._width = len(text)
