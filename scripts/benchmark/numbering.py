"""The users of the benchmark: numbers, and a UUID of each that lies anywhere in the index."""

from __future__ import annotations

import hashlib
from uuid import UUID

# The same in SQL; {} is the number.
USER_ID_SQL = "md5(({})::text)::uuid"

# Blocks of numbers, so that no two rows of the table share users.
SPREAD = 0
READERS = 10_000_000
LONG = 20_000_000
SHORT = 30_000_000
WATCHED = 40_000_000
EXPIRING = 50_000_000
EXPIRING_TOGETHER = 60_000_000
GRANTED = 70_000_000
LAPSING = 80_000_000


def user_id(number: int) -> str:
    """Returns the id of a user."""
    return str(UUID(hashlib.md5(str(number).encode(), usedforsecurity=False).hexdigest()))
