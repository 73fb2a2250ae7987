"""Turns a request to the webhook into Stripe's event, or into a refusal.

The order of the checks and the tolerance are those of Stripe's pages "Receive Stripe events in your
webhook endpoint" and "Verify webhook signatures". Stripe's SDK verifies the signature; this module
checks what the SDK does not: times in the future, the mode of a secret, and the account that an
event is about.
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
        live: whether the endpoint is of live mode; otherwise its events move no real money.
    """

    value: str = field(repr=False)
    live: bool


@dataclass(frozen=True, slots=True)
class Event:
    """An event that Stripe sent.

    Attributes:
        id: `evt_...`; only for logs, because two events may report one change.
        kind: its type as snapshot events name it, such as `invoice.paid`.
        created: when it happened, in seconds since 1970; None: unknown.
        object_id: of the object it is about; empty: it names none.
        obj: that object as it was then; None: a thin event, so the object must be read.
        nothing: set if the event is not for us, regardless of its object.
    """

    id: str
    kind: str
    created: float | None
    object_id: str
    obj: dict[str, Any] | None
    nothing: Nothing | None


@dataclass(frozen=True, slots=True)
class Refusal:
    """A request that is not an event from Stripe.

    Attributes:
        status: of the HTTP answer.
        reason: a snake_case word that is counted and logged.
        alerts: a person must look: Stripe signed the request, so this machine's clock is wrong.
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
    """Reads one request; returns an event or a refusal, and never raises.

    Args:
        body: the exact bytes of the request.
        signatures: every `Stripe-Signature` header of the request.
        secrets: the valid ones; several while one is being replaced.
        now: seconds since 1970.
    """
    if len(signatures) != 1:
        return Refusal(400, "signature_missing" if not signatures else "signature_repeated")
    secret = _signed_by(body, signatures[0], secrets)
    if secret is None:
        return Refusal(400, "signature")
    # Checked only now, so that only Stripe can raise the alert about the clock.
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
    """Reads the time that the signature covers; None if there are several."""
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
    # A thin event may have no object, but a snapshot event must have one.
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
    # The owner of a connected account can write any metadata, and Stripe signs those events too.
    if event.get("account") is not None or event.get("context") is not None:
        return Nothing("connected_account")
    return None


def _inner(data: Any) -> Any:
    return data.get("object") if isinstance(data, dict) else None


def _name(value: Any) -> str:
    """Returns an id or a type unchanged; anything that cannot be one becomes empty."""
    usable = isinstance(value, str) and len(value) <= _ID_LENGTH_MAX and value.isprintable()
    return value if usable else ""


def _seconds(created: Any) -> float | None:
    """Reads a time in the form of snapshot events (seconds) or thin events (ISO 8601)."""
    if isinstance(created, int) and not isinstance(created, bool):
        return float(created) if 0 <= created < 10**_TIMESTAMP_DIGITS_MAX else None
    if not isinstance(created, str):
        return None
    try:
        time = datetime.fromisoformat(created)
        return (time if time.tzinfo else time.replace(tzinfo=UTC)).timestamp()
    except (ValueError, OverflowError):
        return None
