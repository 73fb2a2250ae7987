"""The types of events, and the patterns by which an endpoint chooses among them."""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING, NamedTuple, get_args

from credit_service.rules.model import EntryType

if TYPE_CHECKING:
    from collections.abc import Iterable

ENTRY_TYPES = tuple(f"entry.{name}" for name in get_args(EntryType))
ALERT_TYPES = ("balance.low", "balance.recovered", "balance.depleted", "credits.expiring")
EVENT_TYPES = (
    *ENTRY_TYPES,
    "policy.changed",
    *ALERT_TYPES,
    "topup.requested",
    "topup.succeeded",
    "topup.failed",
    "feed.advanced",
)

# Made by `credit-service relay test`, for the one endpoint that it names.
TEST_TYPE = "relay.test"

_GROUPS = sorted({name.partition(".")[0] for name in EVENT_TYPES})


class Event(NamedTuple):
    """An event as it is sent.

    Attributes:
        id: the same in every attempt, so that a receiver can recognise repeats.
        type: such as `entry.purchase`.
        body: JSON.
    """

    id: str
    type: str
    body: str


class UnknownTypeError(Exception):
    """No event has such a type; the message lists the types."""


def matching(patterns: Iterable[str]) -> frozenset[str]:
    """Finds the types of events that patterns choose.

    Args:
        patterns: types such as `entry.purchase`, groups such as `entry.*`, or `*` for all.

    Raises:
        UnknownTypeError: a pattern chooses none.
    """
    chosen: set[str] = set()
    for pattern in patterns:
        group = (
            pattern.removesuffix("*") if pattern in {"*", *(f"{g}.*" for g in _GROUPS)} else None
        )
        found = {
            name
            for name in EVENT_TYPES
            if name == pattern or (group is not None and name.startswith(group))
        }
        if not found:
            raise UnknownTypeError(f"{pattern!r} is not a type of event; {_advice(pattern)}")
        chosen |= found
    return frozenset(chosen)


def _advice(pattern: str) -> str:
    near = difflib.get_close_matches(pattern, EVENT_TYPES, n=1)
    if near:
        return f"did you mean {near[0]}?"
    groups = ", ".join(f"{group}.*" for group in _GROUPS)
    return f"use *, {groups}, or one of {', '.join(EVENT_TYPES)}"
