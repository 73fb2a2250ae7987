"""Rows of every table of the ledger, written by hand: one of each, and further allowed ones."""

from datetime import UTC, datetime, timedelta
from uuid import UUID

USER, STRANGER = UUID(int=1), UUID(int=2)
# A user with an account and nothing else.
NEIGHBOUR = UUID(int=4)
TIME = datetime(2024, 5, 1, tzinfo=UTC)
# The driver sends these as -infinity and infinity, times that no answer can show.
ENDLESS = (datetime.min, datetime.max)  # noqa: DTZ901

ACCOUNT = {
    "user_id": STRANGER,
    "balance": 0,
    "held": 0,
    "seq": 0,
    "last_updated": TIME,
    "open_holds": 0,
    "frozen": False,
    "spent_this_minute": 0,
    "spent_this_hour": 0,
    "spent_this_day": 0,
    "policy_changes": 0,
    "in_grants": 0,
    "pinned": 0,
    "open_grants": 0,
    "grants_made": 0,
    "top_up_changes": 0,
    "tx": 0,
}
# An account of 10 credits, all of them in a grant.
WITH_GRANTS = ACCOUNT | {
    "balance": 10,
    "in_grants": 10,
    "open_grants": 1,
    "grants_made": 1,
    "next_lapse": TIME,
}
ALLOWANCE = {
    "allowance_amount": 20,
    "allowance_period": "month",
    "allowance_carry_over": 0,
}

PURCHASE = {
    "user_id": USER,
    "seq": 3,
    "type": "purchase",
    "call": "PurchaseCredits",
    "amount": 10,
    "balance_change": 10,
    "held_change": 0,
    "balance_after": 80,
    "held_after": 0,
    "description": "",
    "timestamp": TIME,
    "reference": "",
    "idempotency_key": "third",
    "caller": "test",
    "tx": 0,
}
PAYMENT = {"payment_ref": "pi_1", "payment_amount_minor": 0, "payment_currency": "eur"}
SPEND = PURCHASE | {
    "type": "spend",
    "call": "SpendCredits",
    "balance_change": -10,
    "balance_after": 60,
    "floor": 0,
}
CHARGE = SPEND | {"operation": "render", "quantity": 2, "unit_cost": 5, "price_version": "v1"}
REFUND = PURCHASE | {"type": "refund", "call": "RefundCredits", "related_seq": 2}
GRANT = PURCHASE | {"type": "grant"}
ADJUSTMENT = PURCHASE | {
    "type": "adjustment",
    "call": "AdjustCredits",
    "requested_amount": -10,
    "balance_change": -10,
    "balance_after": 60,
    "description": "a slip",
}
REVERSAL = SPEND | {"type": "reversal", "floor": None}
MAKE_HOLD = PURCHASE | {
    "type": "hold",
    "call": "HoldCredits",
    "balance_change": 0,
    "held_change": 10,
    "balance_after": 70,
    "held_after": 10,
    "floor": 0,
    "hold_seq": 3,
}
CAPTURE = MAKE_HOLD | {
    "type": "capture",
    "call": "CaptureHold",
    "balance_change": -10,
    "held_change": -10,
    "balance_after": 60,
    "held_after": 0,
    "floor": None,
}
RELEASE = CAPTURE | {"type": "release", "balance_change": 0, "balance_after": 70}
EXPIRE = RELEASE | {"type": "expire", "call": "expiry", "idempotency_key": None}
LAPSE = REVERSAL | {"type": "lapse", "call": "expiry", "idempotency_key": None}
ADOPTED = PURCHASE | {
    "call": "adopted",
    "amount": 0,
    "balance_change": 0,
    "balance_after": 70,
    "idempotency_key": None,
}

REFUNDED = {"user_id": USER, "spend_seq": 2, "spent": 30, "refunded": 30}
BOUGHT = {
    "payment_ref": "pi_1",
    "user_id": USER,
    "seq": 1,
    "amount": 100,
    "amount_minor": 0,
    "currency": "eur",
    "purchased_at": TIME,
}

HOLD = {
    "user_id": USER,
    "seq": 3,
    "state": "held",
    "amount": 10,
    "captured": 0,
    "created_at": TIME,
    "expires_at": TIME + timedelta(hours=72),
    "reference": "",
}
CAPTURED = HOLD | {"state": "captured", "captured": 10, "settled_seq": 4, "captured_seq": 4}
REVERSED = {
    "reversal_ref": "re_2",
    "revision": 1,
    "payment_ref": "pi_0",
    "user_id": USER,
    "reversed_minor": 0,
    "counted": 0,
    "paid_minor": 1,
    "currency": "eur",
    "reason": "refund",
    "recorded_at": TIME,
    "caller": "test",
}
KEPT = {"user_id": USER, "key": "kept", "seq": 1, "call": "PurchaseCredits"}
TOP_UP = {
    "user_id": USER,
    "number": 2,
    "pack": "hundred",
    "state": "failed",
    "tries": 1,
    "reason": "declined",
    "link": "",
    "created_at": TIME,
    "changed_at": TIME,
}
# Alerts: an account with enough credits again, and an expiry.
ALERT_STATE = {
    "user_id": USER,
    "level": "low",
    "cools_until": TIME,
    "waiting_tx": 1,
    "waiting_is_policy": False,
    "waiting_number": 2,
    "waiting_time": TIME,
    "waiting_balance": 70,
    "waiting_held": 0,
    "waiting_floor": 0,
}
NOTHING_WAITS = {"user_id": USER, "level": "low", "cools_until": TIME}
EXPIRING = {"user_id": USER, "seq": 1, "expire_time": TIME}
OPEN_TOP_UP = TOP_UP | {"number": 1, "state": "open", "payment_ref": "pi_1"}
BOUGHT_TOP_UP = TOP_UP | {"state": "succeeded", "payment_ref": "pi_2", "seq": 3}
TOP_UP_COUNTS = {"user_id": NEIGHBOUR, "requests": 0, "failures": 0, "charges": 0}
TOP_UP_CHANGE = {
    "user_id": USER,
    "change": 2,
    "kind": "failed",
    "changed_at": TIME,
    "caller": "test",
    **{name: value for name, value in TOP_UP.items() if name not in {"user_id", "changed_at"}},
    "tx": 1,
}
TURNED_ON = {"user_id": USER, "change": 2, "kind": "turned_on", "changed_at": TIME, "caller": "t"}
TURNED_ON |= {"tx": 1}
DATED = {
    "user_id": USER,
    "seq": 2,
    "amount": 10,
    "remaining": 10,
    "pinned": 0,
    "priority": 50,
    "expire_time": TIME,
    "paid": True,
    "revoked": False,
    "open": True,
    "lapsed": 0,
    "counted": 0,
    "reversed": 0,
}
SPENT_GRANT = DATED | {"remaining": 0, "open": False}
GRANT_CHANGE = {
    "user_id": USER,
    "seq": 2,
    "step": 1,
    "grant_seq": 1,
    "remaining_change": -4,
    "pinned_change": 0,
    "remaining_after": 6,
    "pinned_after": 0,
    "expire_after": TIME,
}
PIN = GRANT_CHANGE | {
    "hold_seq": 2,
    "remaining_change": 0,
    "pinned_change": 4,
    "pinned_after": 4,
}
ALLOWED_UNTIL = {"user_id": STRANGER, "until": TIME}
CHANGE = {
    "user_id": USER,
    "change": 2,
    "changed_at": TIME,
    "caller": "test",
    "frozen": True,
    "tx": 0,
}
FEED = {
    "id": 1,
    "feed_id": USER,
    "feed_offset": 0,
    "leap": 1,
    "system_identifier": 1,
    "timeline": 1,
}
ADVANCE = {"number": 2, "tx": 2, "advanced_at": TIME, "reason": "test"}
AUTOMATIC = {"top_up_below": 10, "top_up_pack": "starter", "top_up_per_month": 1}

MOST, TOO_MUCH = 10**12, 10**12 + 1
FULL, OVERFULL = 10**15, 10**15 + 1

ALLOWED = [
    ("user_credits", ACCOUNT),
    ("user_credits", ACCOUNT | {"balance": FULL, "held": 5, "open_holds": 1}),
    ("user_credits", ACCOUNT | {"balance": -FULL}),
    ("credit_transactions", PURCHASE),
    ("credit_transactions", PURCHASE | PAYMENT),
    ("credit_transactions", PURCHASE | {"amount": MOST, "balance_change": MOST}),
    ("credit_transactions", PURCHASE | {"balance_after": -FULL, "idempotency_key": "k" * 128}),
    ("credit_transactions", SPEND),
    ("credit_transactions", SPEND | {"balance_after": -60, "floor": -60}),
    ("credit_transactions", CHARGE),
    ("credit_transactions", REFUND),
    ("credit_transactions", REFUND | {"related_seq": None, "operation": "render"}),
    ("credit_transactions", GRANT),
    ("credit_transactions", ADJUSTMENT | {"floor": 60}),
    ("credit_transactions", ADJUSTMENT | {"balance_after": -50}),
    (
        "credit_transactions",
        ADJUSTMENT | {"requested_amount": 10, "balance_change": 10, "balance_after": 80},
    ),
    ("credit_transactions", REVERSAL | {"balance_after": -50}),
    ("credit_transactions", REVERSAL | {"balance_change": 10}),
    ("credit_transactions", REVERSAL | {"call": "ReversePurchase", "idempotency_key": None}),
    ("credit_transactions", MAKE_HOLD),
    ("credit_transactions", CAPTURE),
    ("credit_transactions", CAPTURE | {"amount": 5, "balance_change": -5}),
    ("credit_transactions", CAPTURE | {"amount": 15, "balance_change": -15, "floor": 60}),
    ("credit_transactions", CAPTURE | {"held_change": 0, "floor": 0}),
    ("credit_transactions", RELEASE),
    ("credit_transactions", EXPIRE),
    ("credit_transactions", ADOPTED),
    ("credit_transactions", ADOPTED | {"type": "spend", "balance_after": -50}),
    ("credit_refunds", REFUNDED),
    ("credit_refunds", REFUNDED | {"refunded": 1}),
    ("credit_purchases", BOUGHT | {"payment_ref": "pi_2", "user_id": STRANGER}),
    ("credit_holds", HOLD),
    ("credit_holds", CAPTURED),
    ("credit_holds", HOLD | {"state": "released", "settled_seq": 4}),
    ("credit_holds", HOLD | {"state": "expired", "settled_seq": 4}),
    ("credit_holds", CAPTURED | {"state": "expired", "captured_seq": 5}),
    ("credit_policy_changes", CHANGE),
    ("credit_feed_advances", ADVANCE),
    ("user_credits", ACCOUNT | AUTOMATIC | {"alert_below": 0}),
    ("credit_reversals", REVERSED),
    ("credit_reversals", REVERSED | {"user_id": STRANGER, "payment_ref": "pi_2", "seq": 9}),
    ("credit_reversals", REVERSED | {"reversal_ref": "re_1", "revision": 2}),
    ("credit_reversals", REVERSED | {"reversed_minor": MOST, "paid_minor": MOST}),
    ("credit_reversals", REVERSED | {"opens_ref": "re_2"}),
    ("credit_kept_keys", KEPT),
    ("credit_kept_keys", KEPT | {"call": "CaptureHold", "key": "k" * 128}),
    ("credit_kept_keys", KEPT | {"call": "ReleaseHold"}),
    ("credit_kept_keys", KEPT | {"call": "RevokeGrant"}),
    ("user_credits", WITH_GRANTS),
    ("user_credits", WITH_GRANTS | {"balance": -5, "held": 10, "open_holds": 1, "pinned": 10}),
    ("user_credits", WITH_GRANTS | {"open_grants": 0, "next_lapse": None}),
    ("user_credits", WITH_GRANTS | {"next_lapse": None}),
    ("user_credits", ACCOUNT | ALLOWANCE | {"allowance_until": TIME}),
    ("user_credits", ACCOUNT | ALLOWANCE | {"allowance_amount": 0}),
    ("credit_transactions", LAPSE),
    ("credit_transactions", LAPSE | {"type": "revocation", "idempotency_key": "revoked"}),
    ("credit_transactions", GRANT | {"call": "allowance", "idempotency_key": None}),
    ("credit_grants", DATED),
    ("credit_grants", DATED | {"pinned": 10, "open": False}),
    ("credit_grants", DATED | {"valid_for_us": 1, "series": "pro", "reversed": 10}),
    ("credit_grants", DATED | {"expire_time": None, "priority": 49}),
    ("credit_grants", SPENT_GRANT | {"lapsed": 5, "counted": 5}),
    ("credit_grant_changes", GRANT_CHANGE),
    ("credit_grant_changes", GRANT_CHANGE | {"expire_after": None, "lapsed_at": TIME}),
    ("credit_grant_changes", PIN),
    ("credit_allowances", ALLOWED_UNTIL),
    ("credit_top_ups", TOP_UP),
    ("credit_top_ups", TOP_UP | {"payment_ref": "p" * 255, "link": "l" * 2048}),
    ("credit_top_ups", TOP_UP | {"state": "not_needed", "tries": 0}),
    ("credit_top_ups", BOUGHT_TOP_UP),
    ("credit_top_up_changes", TOP_UP_CHANGE),
    ("credit_top_up_changes", TURNED_ON),
]

# The rows that the relay keeps.
LEASE = {"id": 1, "fence": 0, "holder": "", "until": TIME}
READER = {
    "reader": "webhook/shop",
    "fence": 1,
    "tx": 1,
    "user_id": USER,
    "kind": 0,
    "number": 1,
    "moved_at": TIME,
}
PARKED = {
    "endpoint": "shop",
    "user_id": USER,
    "tx": 1,
    "kind": 0,
    "number": 1,
    "type": "entry.spend",
    "parked_at": TIME,
    "tries": 1,
    "problem": "answered 500",
}
ALERT = {
    "user_id": USER,
    "alert": 2,
    "tx": 1,
    "type": "balance.low",
    "alerted_at": TIME,
    "data": "{}",
}
