"""Turns a request to the webhook into Stripe's event, or into a refusal.

The order of the checks and the tolerance are those of Stripe's pages "Receive Stripe events in your
webhook endpoint" and "Verify webhook signatures". Only Stripe's SDK says whether a signature holds;
everything that it leaves open is decided here: times to come, which mode a secret belongs to, and
whose account an event is about.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, NoReturn

from stripe import WebhookSignature

from stripe_bridge.model import Nothing

if TYPE_CHECKING:
    from collections.abc import Sequence

TOLERANCE_SECONDS = 300

_THIN = "v2.core.event"
_KINDS_OF_EVENT = {"event", _THIN}
_ID_LENGTH_MAX = 255
_TIMESTAMP_DIGITS_MAX = 12


@dataclass(frozen=True, slots=True)
class Secret:
    """The signing secret of an endpoint.

    Attributes:
        value: `whsec_...`.
        live: whether the endpoint is one of live mode; otherwise its events move no real money.
    """

    value: str = field(repr=False)
    live: bool


@dataclass(frozen=True, slots=True)
class Event:
    """An event that Stripe sent.

    Attributes:
        id: `evt_...`; for logs only, for two events may tell of one change.
        kind: its type as snapshot events name it, such as `invoice.paid`.
        created: when it happened, in seconds since 1970; None: it does not say.
        object_id: of the object it is about; empty where it names none.
        obj: that object as it was then; None: a thin event, the object is to be read.
        nothing: set where it is not for us, whatever stands in the object.
    """

    id: str
    kind: str
    created: float | None
    object_id: str
    obj: dict[str, Any] | None
    nothing: Nothing | None


@dataclass(frozen=True, slots=True)
class Refusal:
    """A request that is no event from Stripe.

    Attributes:
        status: the HTTP status that says so.
        reason: a snake_case word to count.
        alerts: a person must look, because Stripe signed it: the clock of this machine is wrong.
    """

    status: int
    reason: str
    alerts: bool = False


def admit(
    body: bytes,
    signatures: Sequence[str],
    *,
    secrets: Sequence[Secret],
    now: float,
) -> Event | Refusal:
    """Decides about one request; whatever came, it answers and never raises.

    Args:
        body: the exact bytes that came.
        signatures: every `Stripe-Signature` header of the request.
        secrets: those that may have signed it; several while one is being replaced.
        now: seconds since 1970.
    """
    if len(signatures) != 1:
        return Refusal(400, "signature_missing" if not signatures else "signature_repeated")
    secret = _signed_by(body, signatures[0], secrets)
    if secret is None:
        return Refusal(400, "signature")
    # Only now, so that nobody but Stripe can raise the alarm about the clock.
    timestamp = _timestamp(signatures[0])
    if timestamp is None:
        return Refusal(400, "signature")
    if abs(now - timestamp) > TOLERANCE_SECONDS:
        return Refusal(400, "signature_timestamp", alerts=True)
    try:
        event = json.loads(body.decode(), parse_constant=_no_json)
    except (ValueError, RecursionError):
        return Refusal(400, "not_json")
    return _read(event, secret) or Refusal(400, "not_an_event")


def _signed_by(body: bytes, header: str, secrets: Sequence[Secret]) -> Secret | None:
    for secret in secrets:
        try:
            WebhookSignature.verify_header(body, header, secret.value)
        except Exception:  # noqa: S112  # besides its own error it lets UnicodeDecodeError, TypeError and others out
            continue
        return secret
    return None


def _timestamp(header: str) -> int | None:
    """Reads the time that the signature covers; where there are several, none."""
    times = [item[2:] for item in header.split(",") if item.startswith("t=")]
    if len(times) != 1:
        return None
    digits = times[0]
    if not (digits.isascii() and digits.isdecimal() and len(digits) <= _TIMESTAMP_DIGITS_MAX):
        return None
    return int(digits)


def _no_json(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not JSON")


def _read(event: Any, secret: Secret) -> Event | None:
    if not isinstance(event, dict) or _name(event.get("object")) not in _KINDS_OF_EVENT:
        return None
    thin = event["object"] == _THIN
    event_id, kind = _name(event.get("id")), _name(event.get("type"))
    created = _seconds(event.get("created"))
    about = event.get("related_object") if thin else _inner(event.get("data"))
    if not event_id or not kind:
        return None
    # A thin event may be about no object; a snapshot without one is none.
    if not isinstance(about, dict) and not (thin and about is None):
        return None
    return Event(
        id=event_id,
        kind=kind.removeprefix("v1.") if thin else kind,
        created=created,
        object_id=_name(about.get("id")) if about else "",
        obj=None if thin else about,
        nothing=_not_for_us(event, secret),
    )


def _not_for_us(event: dict[str, Any], secret: Secret) -> Nothing | None:
    # A live endpoint of Stripe Connect receives test events too ("Connect webhooks").
    if (event.get("livemode") is True) != secret.live:
        return Nothing("other_mode")
    # The owner of a connected account can write any metadata, and his events are signed by Stripe.
    if event.get("account") is not None or event.get("context") is not None:
        return Nothing("connected_account")
    return None


def _inner(data: Any) -> Any:
    return data.get("object") if isinstance(data, dict) else None


def _name(value: Any) -> str:
    """Takes an id or a type as it stands; what cannot be one becomes empty."""
    usable = isinstance(value, str) and len(value) <= _ID_LENGTH_MAX and value.isprintable()
    return value if usable else ""


def _seconds(created: Any) -> float | None:
    """Reads a time as snapshot events (seconds) or thin events (ISO 8601) write it."""
    if isinstance(created, int) and not isinstance(created, bool):
        return float(created) if 0 <= created < 10**_TIMESTAMP_DIGITS_MAX else None
    if not isinstance(created, str):
        return None
    try:
        time = datetime.fromisoformat(created)
        return (time if time.tzinfo else time.replace(tzinfo=UTC)).timestamp()
    except (ValueError, OverflowError):
        return None
