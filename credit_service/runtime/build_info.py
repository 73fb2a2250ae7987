"""Which version runs: for the command line, the log and the metrics of every program."""

from __future__ import annotations

from importlib.metadata import version

from prometheus_client import Info

VERSION = version("credit-service")

_exposed: set[str] = set()


def expose(name: str) -> None:
    """Adds a metric with the version as its label, once.

    Args:
        name: of the metric; it ends in `_build_info`.
    """
    if name not in _exposed:
        _exposed.add(name)
        what = Info(name.removesuffix("_info"), "The version of this program, as a label.")
        what.info({"version": VERSION})
