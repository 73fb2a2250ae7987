"""Lengths of time as people write them, such as 365d."""

from __future__ import annotations

import re
from datetime import timedelta

_UNITS = {"m": "minutes", "h": "hours", "d": "days", "w": "weeks"}
_WRITTEN = re.compile("([0-9]{1,5})([mhdw])")


def duration_or_none(text: object) -> timedelta | None:
    """Reads a length of time such as 365d, 12w, 48h or 90m; None: it is malformed."""
    match = _WRITTEN.fullmatch(text) if isinstance(text, str) else None
    return None if match is None else timedelta(**{_UNITS[match[2]]: int(match[1])})


def written(duration: timedelta) -> str:
    """Writes a length of time so that `duration_or_none` reads the same one."""
    minutes = duration // timedelta(minutes=1)
    for unit, length in (("d", 24 * 60), ("h", 60)):
        if minutes % length == 0:
            return f"{minutes // length}{unit}"
    return f"{minutes}m"
