"""Page tokens: where to continue, bound to the user and the filters they were made for.

A token is not secret and grants nothing. The digest detects a token that was forged, cut, or made
for another request (AIP-158).
"""

from __future__ import annotations

import base64
import hashlib
from uuid import UUID

from credit_service.errors import InvalidRequest
from credit_service.v1 import credit_service_pb2 as pb

OfUser = (
    pb.GetTransactionHistoryRequest
    | pb.ListHoldsRequest
    | pb.ListGrantsRequest
    | pb.ListTopUpsRequest
)
OfAll = pb.ListAccountsRequest | pb.ListTopUpsRequest
Listing = OfUser | OfAll

_DIGEST_BYTES = 12
_SEQ_BYTES = 8
_USER_BYTES = 16


def token(request: OfUser, seq: int) -> str:
    """Makes the token that continues at `seq` with the request's user and filters."""
    return _token(request, seq.to_bytes(_SEQ_BYTES))


def user_token(request: OfAll, user_id: UUID) -> str:
    """Makes the token that continues at a user with the request's filters."""
    return _token(request, user_id.bytes)


def seq_of(request: OfUser) -> int | None:
    """Reads the request's token; None if it has none.

    Raises:
        InvalidRequest: the token was not made for this user and these filters.
    """
    place = _place(request, _SEQ_BYTES, "this user and these filters")
    return None if place is None else int.from_bytes(place)


def user_of(request: OfAll) -> UUID | None:
    """Reads the request's token; None if it has none.

    Raises:
        InvalidRequest: the token was not made for these filters.
    """
    place = _place(request, _USER_BYTES, "these filters")
    return None if place is None else UUID(bytes=place)


def _token(request: Listing, place: bytes) -> str:
    return base64.urlsafe_b64encode(place + _digest(request, place)).decode().rstrip("=")


def _place(request: Listing, size: int, made_for: str) -> bytes | None:
    text = request.page_token
    if not text:
        return None
    try:
        raw = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
    except ValueError:
        raw = b""
    place, digest = raw[:size], raw[size:]
    if len(place) != size or digest != _digest(request, place):
        raise InvalidRequest("page_token", f"was not made for {made_for}; start at the first page.")
    return place


def _digest(request: Listing, place: bytes) -> bytes:
    digest = hashlib.blake2b(place, digest_size=_DIGEST_BYTES)
    for part in _bound(request):
        digest.update(len(part.encode()).to_bytes(4) + part.encode())
    return digest.digest()


def _bound(request: Listing) -> tuple[str, ...]:
    """The user and the filters that a token is bound to, however they are written."""
    if isinstance(request, pb.ListHoldsRequest):
        return request.user_id.lower(), "holds", str(request.state)
    if isinstance(request, pb.ListGrantsRequest):
        return request.user_id.lower(), "grants", str(request.include_closed)
    if isinstance(request, pb.ListTopUpsRequest):
        return request.user_id.lower(), "top-ups", str(request.open_only)
    if isinstance(request, pb.ListAccountsRequest):
        since = request.changed_since
        return (
            "accounts",
            str(request.in_debt),
            str(request.frozen) if request.HasField("frozen") else "",
            str(request.available_below) if request.HasField("available_below") else "",
            f"{since.seconds}.{since.nanos}" if request.HasField("changed_since") else "",
        )
    start, end = request.start_time, request.end_time
    return (
        request.user_id.lower(),
        ",".join(str(value) for value in sorted(set(request.types))),
        f"{start.seconds}.{start.nanos}" if request.HasField("start_time") else "",
        f"{end.seconds}.{end.nanos}" if request.HasField("end_time") else "",
        request.reference,
        request.related_transaction_id,
        # Absent without a grant, so that tokens of the previous release stay valid.
        *((request.grant_id,) if request.grant_id else ()),
    )
