"""How every command begins: settings, logs, the database, and errors that end it with one line."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

from credit_service import config
from credit_service.database.embedded import (
    default_data_directory,
    embedded_postgres,
    running_postgres,
)
from credit_service.rpc.call_log import without_values
from credit_service.runtime import logs

if TYPE_CHECKING:
    from collections.abc import Iterator

    from credit_service.config import Settings


class Refused(Exception):
    """Ends the command with one line and exit code 2."""


class DatabaseAway(Refused):
    """The database may be reachable a little later."""


def settings() -> Settings:
    """Reads the settings from the environment.

    Raises:
        ConfigurationError: they cannot be used.
    """
    return config.read()


def configure_logs(settings: Settings, **everywhere: object) -> None:
    """Sets up logs as the settings say, with further facts in every line."""
    logs.configure(
        level=settings.log_level,
        as_json=settings.logs_json,
        cleaning=[without_values],
        everywhere=everywhere,
    )


@contextmanager
def database(settings: Settings, *, owned: bool = False) -> Iterator[tuple[str, str]]:
    """Yields the owner's and the service's URL, of the embedded server where none is set.

    Args:
        settings: of the command.
        owned: whether the embedded server must be this process's own. Otherwise a command runs
            beside a service, on the server that the service has started.
    """
    if settings.database_url is None:
        data = settings.data_dir or default_data_directory()
        running = None if owned else running_postgres(data)
        if running is not None:
            yield running
            return
        with embedded_postgres(data) as cluster:
            yield cluster.owner_url, cluster.service_url
        return
    service_url = settings.database_url.get_secret_value()
    migrate_url = settings.migrate_url
    yield (service_url if migrate_url is None else migrate_url.get_secret_value()), service_url
