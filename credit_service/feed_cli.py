"""`credit-service feed`: how far the feed can be read, and going on after a failover or restore."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Annotated

import asyncpg
from cyclopts import App, Parameter

from credit_service import cli_start
from credit_service.cli_start import Refused
from credit_service.database import feed_numbers
from credit_service.database.postgres import Address, absence
from credit_service.errors import FeedNotOffered
from credit_service.ledger.statement_texts import of_distributed_book

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

app = App(name="feed", help="Show the feed of transactions, or let it go on after a failover.")


@app.command
def status() -> None:
    """Print how far the feed can be read, whether it waits for `advance`, and why.

    Exit code 1 if it waits. Connects by CREDIT_DATABASE_URL.
    """

    async def run(connection: asyncpg.Connection) -> int:
        numbers = await feed_numbers.read_numbers(connection)
        print(f"feed {numbers.feed_id}")
        print(f"can be read below {numbers.boundary}, with the offset {numbers.offset}")
        if not numbers.problem:
            print("it goes on")
            return 0
        print(f"it waits: {numbers.problem}")
        print("run `credit-service feed advance`, or `credit-service feed advance --nothing-lost`")
        return 1

    raise SystemExit(_with_connection(run, as_owner=False))


@app.command
def advance(
    *,
    nothing_lost: Annotated[bool, Parameter(negative="")] = False,
    restored: Annotated[bool, Parameter(negative="")] = False,
) -> None:
    """Let readers of the feed go on after a failover or restore of the database.

    Readers get the item `advanced`, which says that transactions they have read may be gone. Their
    cursors stay good. Safe to run twice. Connects by CREDIT_MIGRATE_URL, or, where that is not set,
    by CREDIT_DATABASE_URL.

    Args:
        nothing_lost: No transaction was lost, as in a planned switch to a standby or an upgrade:
            readers go on without the item.
        restored: The files of the database were brought back from a copy, which the server does not
            notice by itself. Run it once, before the service starts.
    """
    if nothing_lost and restored:
        raise Refused("--restored says that transactions are gone, and --nothing-lost that none is")

    async def run(connection: asyncpg.Connection) -> int:
        before = await feed_numbers.advance(
            connection, nothing_lost=nothing_lost, restored=restored
        )
        if before is None:
            print("nothing to do: the server is the one that the feed was last read on")
            print("if its files were brought back from a copy, use --restored")
            return 0
        if before.problem:
            print(before.problem)
        print("readers go on" if nothing_lost else "readers go on, after the item `advanced`")
        return 0

    raise SystemExit(_with_connection(run, as_owner=True))


def _with_connection(
    work: Callable[[asyncpg.Connection], Awaitable[int]], *, as_owner: bool
) -> int:
    settings = cli_start.settings()
    with cli_start.database(settings) as (owner_url, service_url):
        return asyncio.run(_run(work, owner_url if as_owner else service_url))


async def _run(work: Callable[[asyncpg.Connection], Awaitable[int]], url: str) -> int:
    try:
        connection = await Address(url, 0).connect()
        try:
            if of_distributed_book(connection):
                raise Refused(str(FeedNotOffered()))
            return await work(connection)
        finally:
            await connection.close()
    except asyncpg.InsufficientPrivilegeError as error:
        raise Refused(
            f"{error}: set CREDIT_MIGRATE_URL to connect as the owner of the tables"
        ) from error
    except asyncpg.UndefinedTableError as error:
        raise Refused(f"{error}: run `credit-service migrate` first") from error
    except asyncpg.LockNotAvailableError as error:
        raise Refused(
            "a transaction has kept the accounts locked for five seconds; run the command again"
        ) from error
    except Exception as error:
        if absence(error) is not None:
            raise Refused(
                f"the database cannot be reached: {type(error).__name__}: {error}"
            ) from error
        raise
