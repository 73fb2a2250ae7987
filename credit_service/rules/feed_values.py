"""Places in the feed, the one order of all users' changes, and the items that only the feed has."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from credit_service.rules.model import FIRST_USER

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime
    from uuid import UUID

# The kinds of items in the feed, in the order in which those of one user and tx follow each other.
KIND_ENTRY, KIND_POLICY, KIND_TOP_UP, KIND_ALERT, KIND_ADVANCED = range(5)


class Place(NamedTuple):
    """Right after one item of the feed; places are ordered as their fields are.

    Attributes:
        tx: the number of the transaction that wrote the item.
        user_id: whose item it is.
        kind: the kind of the item.
        number: the seq of an entry, or the number of the change or alert of this user.
    """

    tx: int
    user_id: UUID = FIRST_USER
    kind: int = KIND_ENTRY
    number: int = 0


# Before all items; entries from before there was a feed have tx 0.
BEGINNING = Place(-1)


class Alert(NamedTuple):
    """An alert about an account.

    Attributes:
        alert: counts the alerts of the user, from one.
        type: of the event, such as balance.low.
        data: the facts that receivers get.
    """

    user_id: UUID
    alert: int
    type: str
    alerted_at: datetime
    data: Mapping[str, object]


class Advanced(NamedTuple):
    """The owner's notice after a failover or restore: items read before may be gone."""

    number: int
    advanced_at: datetime
    reason: str
