"""Which version runs: for the command line, the log and the metrics of every program."""

from __future__ import annotations

from importlib.metadata import version

from prometheus_client import Info

VERSION = version("credit-service")

_exposed: set[str] = set()


def expose(prefix: str) -> None:
    """Adds the metric `<prefix>_build_info` with the version as its label, once.

    Args:
        prefix: of the program's metrics, such as `credit`.
    """
    if prefix in _exposed:
        return
    _exposed.add(prefix)
    Info(f"{prefix}_build", "The version of this program.").info({"version": VERSION})
