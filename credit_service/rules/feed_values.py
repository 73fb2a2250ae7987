"""A place in the feed, the one order of everything that happened to all users."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from credit_service.rules.model import FIRST_USER

if TYPE_CHECKING:
    from uuid import UUID

# What has a place in the feed, in the order in which those of one user and tx follow each other.
KIND_ENTRY, KIND_POLICY, KIND_TOP_UP, KIND_ALERT = range(4)


class Place(NamedTuple):
    """Right after one item of the feed; places are ordered as their fields are.

    Attributes:
        tx: the number of the transaction that wrote the item.
        user_id: whose item it is.
        kind: what the item is.
        number: the seq of an entry, or the number of the change or alert of this user.
    """

    tx: int
    user_id: UUID = FIRST_USER
    kind: int = KIND_ENTRY
    number: int = 0


# Before all items; entries from before there was a feed have tx 0.
BEGINNING = Place(-1)
