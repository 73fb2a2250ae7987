"""Cursors of the feed: a place in it, bound to the database.

A cursor is not secret and grants nothing. The digest detects a forged or truncated cursor, and the
id of the feed detects a cursor of another database.
"""

from __future__ import annotations

import base64
import hashlib
import struct
from typing import NamedTuple
from uuid import UUID

from credit_service.errors import InvalidRequest
from credit_service.rules.feed_values import Place

_DIGEST_BYTES = 8
# The id of the feed; then tx, user, kind and number of the place.
_FIELDS = struct.Struct(">16sq16sBq")


class Cursor(NamedTuple):
    """A place in the feed of a database."""

    feed_id: UUID
    place: Place

    def __str__(self) -> str:
        """The cursor as a text, which `parse` reads."""
        tx, user_id, kind, number = self.place
        packed = _FIELDS.pack(self.feed_id.bytes, tx, user_id.bytes, kind, number)
        return base64.urlsafe_b64encode(packed + _digest(packed)).decode().rstrip("=")

    @classmethod
    def parse(cls, text: str) -> Cursor:
        """Reads a cursor.

        Raises:
            InvalidRequest: it is damaged.
        """
        try:
            raw = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
        except ValueError:
            raw = b""
        packed, digest = raw[: _FIELDS.size], raw[_FIELDS.size :]
        if len(packed) != _FIELDS.size or digest != _digest(packed):
            raise InvalidRequest("cursor", "is damaged; use all of it, as it was received.")
        feed_id, tx, user_id, kind, number = _FIELDS.unpack(packed)
        return cls(UUID(bytes=feed_id), Place(tx, UUID(bytes=user_id), kind, number))


def _digest(packed: bytes) -> bytes:
    return hashlib.blake2b(packed, digest_size=_DIGEST_BYTES).digest()
