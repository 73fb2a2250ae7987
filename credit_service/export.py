"""`credit-service export`: accounts or entries as a file, a page at a time.

What is in memory is one page. After each page there is a cursor with which the export can go on.
"""

from __future__ import annotations

import asyncio
import base64
import io
import os
import signal
import sys
import time
from dataclasses import dataclass, replace
from datetime import datetime
from enum import StrEnum
from typing import TYPE_CHECKING, NamedTuple
from uuid import UUID

import asyncpg
import orjson

from credit_service import export_rows
from credit_service.database.postgres import absence
from credit_service.export_rows import Format
from credit_service.ledger import export as book
from credit_service.ledger.export import Place
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


class What(StrEnum):
    """What is exported."""

    ACCOUNTS = "accounts"
    TRANSACTIONS = "transactions"


class ExportError(Exception):
    """An export cannot begin or go on; the message says why."""


@dataclass(frozen=True, slots=True)
class Cursor:
    """An export and how far it has come.

    Attributes:
        since: what is exported is from this time on.
        until: and from before this time.
        place: the time, user and seq of the last entry; or the user of the next account, or None
            after the last one.
        rows: how many rows were written.
        size: how many bytes were written.
    """

    what: What
    format: Format
    since: datetime
    until: datetime
    place: Place | UUID | None
    rows: int = 0
    size: int = 0

    @classmethod
    def first(cls, what: What, format_: Format, since: datetime, until: datetime) -> Cursor:
        """The beginning of an export."""
        place = FIRST_USER if what is What.ACCOUNTS else Place(since)
        return cls(what, format_, since, until, place)

    def __str__(self) -> str:
        """The cursor as a text, which `parse` reads."""
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
                place = Place(datetime.fromisoformat(at), UUID(user_id), int(seq))
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
    """Turns what orjson does not know into what it knows: a place, or a UUID of the driver."""
    return tuple(value) if isinstance(value, tuple) else str(value)


class Reached(NamedTuple):
    """How an export ended.

    Attributes:
        cursor: how far it came.
        complete: whether that is the end.
        problem: what broke it off; empty if it was stopped.
    """

    cursor: Cursor
    complete: bool
    problem: str


async def run(address: Address, cursor: Cursor, terms: Terms, output: Output) -> Reached:
    """Writes an export from its cursor on, until its end, Ctrl-C or SIGTERM.

    Raises:
        ExportError: the database cannot be reached, or is not as this version knows it.
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
        columns = _columns(cursor.what)
        if cursor.size == 0:
            cursor = replace(cursor, size=output.write(export_rows.head(cursor.format, columns)))
        async for rows, place in _pages(connection, cursor, terms):
            size = cursor.size + output.write(export_rows.text(cursor.format, columns, rows))
            cursor = replace(cursor, place=place, rows=cursor.rows + len(rows), size=size)
            progress.show(cursor)
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


def _columns(what: What) -> tuple[str, ...]:
    if what is What.ACCOUNTS:
        return export_rows.ACCOUNT_COLUMNS
    return export_rows.TRANSACTION_COLUMNS


async def _pages(
    connection: asyncpg.Connection, cursor: Cursor, terms: Terms
) -> AsyncGenerator[tuple[list[Row], Place | UUID | None]]:
    """Yields pages of rows, each with the place to go on from."""
    place, until = cursor.place, cursor.until
    if isinstance(place, Place):
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


class Output:
    """A file or standard output, as bytes; what `write` took is with the system."""

    def __init__(self, path: Path | None, *, keep: int | None) -> None:
        """Opens it.

        Args:
            path: the file; None: standard output.
            keep: go on after so many bytes of the file, which has that many or more; None: the
                file must not be there yet.

        Raises:
            ExportError: the file is there, is shorter, or cannot be opened.
        """
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

    def write(self, data: bytes) -> int:
        """Writes all of it.

        Raises:
            ExportError: it cannot be written; a part of it may be.
        """
        rest = memoryview(data)
        try:
            while rest:
                rest = rest[os.write(self._descriptor, rest) :]
        except OSError as error:
            raise ExportError(f"the output cannot be written: {error.strerror}") from error
        return len(data)


class _Progress:
    """How far an export has come, on standard error: in place in a terminal, else as lines."""

    def __init__(self, rows: int) -> None:
        self._terminal = sys.stderr.isatty()
        self._pause = _PROGRESS_SECONDS if self._terminal else _PROGRESS_SECONDS_IN_A_LOG
        self._shown_at = time.monotonic()
        self._began_at, self._began_with = self._shown_at, rows
        self._width = 0

    def wait(self, writers: int) -> None:
        """Shows how many transactions are awaited."""
        if self._is_time():
            self._show(f"waiting for {writers} transactions that are writing")

    def show(self, cursor: Cursor) -> None:
        """Shows how far it is; in a log with the cursor, because the process may be killed."""
        if not self._is_time():
            return
        seconds = time.monotonic() - self._began_at
        rate = round((cursor.rows - self._began_with) / seconds) if seconds else 0
        text = f"{cursor.rows} {cursor.what}, {rate} per second"
        if isinstance(cursor.place, Place):
            text += f", at {export_rows.shown_time(cursor.place.time)}"
        self._show(text if self._terminal else f"{text}; --resume {cursor}")

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
