"""Page tokens: where to continue, bound to the user and the filters they were made for.

A token is not secret and grants nothing. The digest detects a token that was forged, cut, or made
for another request (AIP-158).
"""

from __future__ import annotations

import base64
import hashlib

from credit_service.errors import InvalidRequest
from credit_service.v1 import credit_service_pb2 as pb

Listing = pb.GetTransactionHistoryRequest | pb.ListHoldsRequest | pb.ListGrantsRequest

_DIGEST_BYTES = 12
_SEQ_BYTES = 8


def token(request: Listing, seq: int) -> str:
    """Makes the token that continues at `seq` with the request's user and filters."""
    place = seq.to_bytes(_SEQ_BYTES)
    return base64.urlsafe_b64encode(place + _digest(request, place)).decode().rstrip("=")


def seq_of(request: Listing) -> int | None:
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


def _digest(request: Listing, place: bytes) -> bytes:
    digest = hashlib.blake2b(place, digest_size=_DIGEST_BYTES)
    for part in _bound(request):
        digest.update(len(part.encode()).to_bytes(4) + part.encode())
    return digest.digest()


def _bound(request: Listing) -> tuple[str, ...]:
    """What a token is bound to: the user and the filters, however they are written."""
    if isinstance(request, pb.ListHoldsRequest):
        return request.user_id.lower(), "holds", str(request.state)
    if isinstance(request, pb.ListGrantsRequest):
        return request.user_id.lower(), "grants", str(request.include_closed)
    start, end = request.start_time, request.end_time
    return (
        request.user_id.lower(),
        ",".join(str(value) for value in sorted(set(request.types))),
        f"{start.seconds}.{start.nanos}" if request.HasField("start_time") else "",
        f"{end.seconds}.{end.nanos}" if request.HasField("end_time") else "",
        request.reference,
        request.related_transaction_id,
        # Absent without a grant, so that tokens of the previous release stay good.
        *((request.grant_id,) if request.grant_id else ()),
    )
