"""`credit-service distribute`: splits the book over the nodes of a Citus cluster."""

from __future__ import annotations

import asyncio
from typing import Annotated

import asyncpg
from cyclopts import App, Parameter

from credit_service import cli_start
from credit_service.cli_start import Refused
from credit_service.database import distribution
from credit_service.database.postgres import Address, absence

app = App(name="distribute")


@app.default
def distribute(*, dry_run: Annotated[bool, Parameter(negative="")] = False) -> None:
    """Split the book over the nodes of a Citus cluster, a new book or an existing one.

    Connects to the coordinator as the owner of the tables by CREDIT_MIGRATE_URL, or, where that is
    not set, by CREDIT_DATABASE_URL. Refuses while the service is connected. Safe to run twice. A
    run that is killed before its end has changed nothing. A distributed book offers neither the
    feed nor webhooks. docs/scale-out.md says when this is worth it, and what it costs.

    Args:
        dry_run: Only check that it can be done, and print what would be done.
    """
    settings = cli_start.settings()
    if settings.database_url is None:
        raise Refused(
            "the embedded PostgreSQL cannot be distributed: set CREDIT_DATABASE_URL to the"
            " coordinator of a Citus cluster"
        )
    with cli_start.database(settings) as (owner_url, service_url):
        asyncio.run(_distribute(owner_url, service_url, dry_run=dry_run))


async def _distribute(owner_url: str, service_url: str, *, dry_run: bool) -> None:
    try:
        service_role = await Address(service_url, 0).role()
        await distribution.distribute(owner_url, service_role, print, dry_run=dry_run)
    except asyncpg.InsufficientPrivilegeError as error:
        raise Refused(
            f"{error}: set CREDIT_MIGRATE_URL to connect as the owner of the tables"
        ) from error
    except Exception as error:
        if absence(error) is not None:
            raise Refused(
                f"the database cannot be reached: {type(error).__name__}: {error}"
            ) from error
        raise
