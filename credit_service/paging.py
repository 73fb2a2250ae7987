"""Page tokens: where to go on, bound to the user and the filters they were made for.

A token is no secret and grants nothing; the digest only tells a token that belongs to this very
request from one that was forged, cut or taken from elsewhere (AIP-158).
"""

from __future__ import annotations

import base64
import hashlib
from typing import TYPE_CHECKING

from credit_service.errors import InvalidRequest

if TYPE_CHECKING:
    from credit_service.v1 import credit_service_pb2 as pb

_DIGEST_BYTES = 12
_SEQ_BYTES = 8


def token(request: pb.GetTransactionHistoryRequest, seq: int) -> str:
    """Makes the token that goes on at `seq` with the request's user and filters."""
    place = seq.to_bytes(_SEQ_BYTES)
    return base64.urlsafe_b64encode(place + _digest(request, place)).decode().rstrip("=")


def seq_of(request: pb.GetTransactionHistoryRequest) -> int | None:
    """Reads the request's token; None where it has none.

    Raises:
        InvalidRequest: the token was not made for this user and these filters.
    """
    text = request.page_token
    if not text:
        return None
    try:
        raw = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
    except ValueError:
        raw = b""
    place, digest = raw[:_SEQ_BYTES], raw[_SEQ_BYTES:]
    if len(place) != _SEQ_BYTES or digest != _digest(request, place):
        raise InvalidRequest(
            "page_token", "was not made for this user and these filters; start at the first page."
        )
    return int.from_bytes(place)


def _digest(request: pb.GetTransactionHistoryRequest, place: bytes) -> bytes:
    parts = (
        request.user_id.lower(),
        ",".join(str(value) for value in sorted(set(request.types))),
        f"{request.start_time.seconds}.{request.start_time.nanos}"
        if request.HasField("start_time")
        else "",
        f"{request.end_time.seconds}.{request.end_time.nanos}"
        if request.HasField("end_time")
        else "",
        request.reference,
        request.related_transaction_id,
    )
    digest = hashlib.blake2b(place, digest_size=_DIGEST_BYTES)
    for part in parts:
        digest.update(len(part.encode()).to_bytes(4) + part.encode())
    return digest.digest()
