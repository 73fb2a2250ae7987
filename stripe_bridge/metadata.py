"""Our metadata on Stripe's objects: the user, and the number of credits.

The bridge's checkout writes it on a session and its payment intent; other programs may write it
too.
"""

from __future__ import annotations

import re
from datetime import timedelta
from typing import TYPE_CHECKING

from credit_service.fields import uuid_or_none
from stripe_bridge.catalog import CREDITS_MAX, VALID_FOR_MAX
from stripe_bridge.durations import duration_or_none, written
from stripe_bridge.model import FOREVER, Life, Unresolved

if TYPE_CHECKING:
    from uuid import UUID

    from stripe_bridge.fields import Object

USER_KEY = "credit_user_id"
CREDITS_KEY = "credits"
VALID_FOR_KEY = "credits_valid_for"
VERSION_KEY = "credits_v"
VERSION = "1"
# On the payment intent and the Checkout Sessions of a top-up: the id of its request.
TOP_UP_KEY = "credit_top_up"

_CREDITS = re.compile("[1-9][0-9]{0,12}")


def frozen_metadata(
    user_id: UUID, amount: int, valid_for: timedelta | None = None
) -> dict[str, str]:
    """Makes the metadata of a session and its payment intent, which fixes the user and the credits.

    Args:
        user_id: who gets the credits.
        amount: the number of credits.
        valid_for: how long they live after the purchase; None: for ever.
    """
    life = {} if valid_for is None else {VALID_FOR_KEY: written(valid_for)}
    return {USER_KEY: str(user_id), CREDITS_KEY: str(amount), VERSION_KEY: VERSION, **life}


def frozen_credits(metadata: Object, source_id: str) -> int | None:
    """Reads the credits that a checkout fixed.

    A field `credits` alone may belong to another program; with our user or version it is ours.

    Args:
        metadata: of an object.
        source_id: the object's id, for the error's sentence.

    Returns:
        Credits, 1 to 10^12; None: not fixed.

    Raises:
        Unresolved: credits_version, credits_malformed.
    """
    if VERSION_KEY not in metadata and not {USER_KEY, CREDITS_KEY} <= metadata.keys():
        return None
    if metadata.get(VERSION_KEY) != VERSION:
        raise other_version(source_id)
    written = metadata.get(CREDITS_KEY)
    if (
        not isinstance(written, str)
        or not _CREDITS.fullmatch(written)
        or int(written) > CREDITS_MAX
    ):
        raise Unresolved(
            "credits_malformed",
            f"The credits of {source_id} are not a whole number from 1 to 10^12.",
        )
    return int(written)


def frozen_life(metadata: Object, source_id: str) -> Life:
    """Reads how long the credits that a checkout fixed live.

    Raises:
        Unresolved: valid_for_malformed.
    """
    text = metadata.get(VALID_FOR_KEY)
    if text is None:
        return FOREVER
    valid_for = duration_or_none(text)
    if valid_for is None or not timedelta(hours=1) <= valid_for <= VALID_FOR_MAX:
        raise Unresolved(
            "valid_for_malformed",
            f"The {VALID_FOR_KEY} of {source_id} is not a time such as 365d, at most"
            f" {VALID_FOR_MAX.days}d.",
        )
    return Life(valid_for=valid_for)


def other_version(source_id: str) -> Unresolved:
    """Makes the error for metadata of a version that this bridge does not know."""
    return Unresolved(
        "credits_version", f"The metadata of {source_id} does not have version {VERSION}."
    )


def read_user(written: object, source_id: str) -> UUID | None:
    """Reads a user's id.

    Returns:
        The id; None: there is none.

    Raises:
        Unresolved: user_malformed.
    """
    if written is None:
        return None
    user_id = uuid_or_none(written)
    if user_id is None:
        raise Unresolved("user_malformed", f"The user of {source_id} is not a UUID.")
    return user_id


def user_of(metadata: Object, source_id: str) -> UUID | None:
    """Reads the user that an object's metadata names; None: it names none.

    Raises:
        Unresolved: user_malformed.
    """
    return read_user(metadata.get(USER_KEY), source_id)
