"""Items of the feed as events: their types, ids, and bodies in the form of Standard Webhooks.

A body is `{"type", "timestamp", "data"}`. The fields of data are those of the contract's messages,
amounts are numbers, values of an enum are their names in lower case, and unset fields are left out.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, assert_never

import orjson

from credit_service.relay.event_types import TEST_TYPE, Event
from credit_service.rules.feed_values import Advanced, Alert
from credit_service.rules.model import Entry, PolicyChange, transaction_id
from credit_service.rules.top_up_values import TopUpChange

if TYPE_CHECKING:
    from credit_service.ledger.feed import Value
    from credit_service.rules.feed_values import Place
    from credit_service.rules.model import Policy

    Json = dict[str, object]

# Where the text of an adopted entry is cut, as in the answers to calls.
_ADOPTED_TEXT_MAX = 10_000

# Only these changes of top-ups are events.
_TOP_UP_KINDS = ("requested", "succeeded", "failed")


def event_type(item: Value) -> str | None:
    """Names the type of an item's event; None where the item is no event."""
    match item:
        case Entry():
            return f"entry.{item.type}"
        case PolicyChange():
            return "policy.changed"
        case TopUpChange():
            return f"topup.{item.kind}" if item.kind in _TOP_UP_KINDS else None
        case Alert():
            return item.type
        case Advanced():
            return "feed.advanced"
        case _:
            assert_never(item)


def event(place: Place, item: Value) -> Event:
    """Renders an item that is an event.

    Args:
        place: of the item in the feed.
        item: an item that has a type.
    """
    kind = event_type(item)
    assert kind is not None  # noqa: S101  # the caller asked
    match item:
        case Entry():
            sign, data = "", _entry(item)
        case PolicyChange():
            sign, data = "p", _policy_change(item)
        case TopUpChange():
            sign, data = "t", _top_up_change(item)
        case Alert():
            sign, data = "a", {"user_id": str(item.user_id), **item.data}
        case Advanced():
            sign, data = "f", {"reason": item.reason}
        case _:
            assert_never(item)
    name = f"{place.tx}.{place.user_id}.{sign}{place.number}.{kind}"
    return Event(name, kind, _body(kind, event_time(item), data))


def event_time(item: Value) -> datetime:
    """When an item happened."""
    match item:
        case Entry():
            return item.timestamp
        case PolicyChange() | TopUpChange():
            return item.changed_at
        case Alert():
            return item.alerted_at
        case Advanced():
            return item.advanced_at
        case _:
            assert_never(item)


def trial(name: str, now: datetime) -> Event:
    """Makes the event by which an operator tries an endpoint.

    Args:
        name: of the endpoint.
        now: the time, which makes its id unique.
    """
    stamp = now.strftime("%Y%m%dT%H%M%S%f")
    data: Json = {"endpoint": name, "message": "A test by an operator; nothing has happened."}
    return Event(f"test.{stamp}.{name}", TEST_TYPE, _body(TEST_TYPE, now, data))


def _body(kind: str, time: datetime, data: Json) -> str:
    return orjson.dumps({"type": kind, "timestamp": _time(time), "data": data}).decode()


def _time(moment: datetime) -> str:
    return f"{moment.astimezone(UTC).replace(tzinfo=None).isoformat(timespec='microseconds')}Z"


def _entry(entry: Entry) -> Json:
    user_id = str(entry.user_id)
    description, metadata = entry.description, dict(entry.metadata)
    if entry.call == "adopted":
        description = description[:_ADOPTED_TEXT_MAX]
        metadata = {name: text[:_ADOPTED_TEXT_MAX] for name, text in metadata.items()}
    data: Json = {
        "id": transaction_id(user_id, entry.seq),
        "user_id": user_id,
        "seq": entry.seq,
        "type": entry.type,
        "amount": entry.amount,
        "balance_change": entry.balance_change,
        "held_change": entry.held_change,
        "balance_after": entry.balance_after,
        "held_after": entry.held_after,
        "description": description,
        "timestamp": _time(entry.timestamp),
        "reference": entry.reference,
        "metadata": metadata,
        "caller": entry.caller,
    }
    _add(
        data,
        operation=entry.operation,
        quantity=entry.quantity,
        unit_cost=entry.unit_cost,
        price_version=entry.price_version,
        idempotency_key=entry.idempotency_key,
    )
    if entry.related_seq is not None:
        data["related_transaction_id"] = transaction_id(user_id, entry.related_seq)
    if entry.hold_seq is not None:
        data["hold_id"] = transaction_id(user_id, entry.hold_seq)
    if entry.payment is not None:
        data["payment"] = entry.payment._asdict()
    return data


def _policy_change(change: PolicyChange) -> Json:
    return {
        "user_id": str(change.user_id),
        "change": change.change,
        "timestamp": _time(change.changed_at),
        "caller": change.caller,
        "policy": _policy(change.policy),
    }


def _policy(policy: Policy) -> Json:
    limits, allowance, top_up = policy.limits, policy.allowance, policy.top_up
    data: Json = {
        "frozen": policy.frozen,
        "spend_limits": {
            "per_minute": limits.minute or 0,
            "per_hour": limits.hour or 0,
            "per_day": limits.day or 0,
        },
    }
    _add(data, min_balance=policy.min_balance, alert_below=policy.alert_below)
    if allowance is not None:
        data["allowance"] = allowance._asdict()
    if top_up is not None:
        data["top_up"] = {
            "below": top_up.below,
            "pack": top_up.pack,
            "charges_per_month": top_up.per_month,
        }
    return data


def _top_up_change(change: TopUpChange) -> Json:
    data: Json = {
        "user_id": str(change.user_id),
        "change": change.change,
        "kind": change.kind,
        "timestamp": _time(change.changed_at),
        "caller": change.caller,
    }
    _add(data, off=change.off)
    request = change.request
    if request is not None:
        shown: Json = {
            "id": str(request.id),
            "user_id": str(request.user_id),
            "pack": request.pack,
            "state": request.state,
            "tries": request.tries,
            "create_time": _time(request.created_at),
            "update_time": _time(request.changed_at),
        }
        _add(
            shown,
            payment_ref=request.payment_ref,
            reason=request.reason or None,
            link=request.link or None,
        )
        if request.seq is not None:
            shown["transaction_id"] = transaction_id(request.user_id, request.seq)
        data["top_up"] = shown
    return data


def _add(data: Json, **fields: object) -> None:
    data.update((name, value) for name, value in fields.items() if value is not None)
