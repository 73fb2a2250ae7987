"""The rules a second time: rows written by hand as the owner, each against one constraint."""

from contextlib import asynccontextmanager
from datetime import timedelta
from uuid import UUID

import asyncpg
import pytest
from kit.ledger_rows import (
    ACCOUNT,
    ADJUSTMENT,
    ADOPTED,
    ADVANCE,
    ALERT,
    ALERT_STATE,
    ALLOWANCE,
    ALLOWED,
    ALLOWED_UNTIL,
    AUTOMATIC,
    BOUGHT,
    BOUGHT_TOP_UP,
    CAPTURE,
    CAPTURED,
    CHANGE,
    CHARGE,
    DATED,
    ENDLESS,
    EXPIRE,
    EXPIRING,
    FEED,
    GRANT,
    GRANT_CHANGE,
    HOLD,
    KEPT,
    LAPSE,
    LEASE,
    MAKE_HOLD,
    NEIGHBOUR,
    NOTHING_WAITS,
    OPEN_TOP_UP,
    OVERFULL,
    PARKED,
    PAYMENT,
    PIN,
    PURCHASE,
    READER,
    REFUND,
    REFUNDED,
    RELEASE,
    REVERSAL,
    REVERSED,
    SPEND,
    SPENT_GRANT,
    STRANGER,
    TIME,
    TOO_MUCH,
    TOP_UP,
    TOP_UP_CHANGE,
    TOP_UP_COUNTS,
    TURNED_ON,
    USER,
    WITH_GRANTS,
)

REFUSED = [
    ("user_credits", "one_account_per_user", ACCOUNT | {"user_id": USER}),
    ("user_credits", "account_belongs_to_a_user", ACCOUNT | {"user_id": UUID(int=3)}),
    ("user_credits", "balance_in_range", ACCOUNT | {"balance": OVERFULL}),
    ("user_credits", "balance_in_range", ACCOUNT | {"balance": -OVERFULL}),
    ("user_credits", "held_not_negative", ACCOUNT | {"held": -1, "open_holds": 1}),
    ("user_credits", "open_holds_not_negative", ACCOUNT | {"held": 5, "open_holds": -1}),
    ("user_credits", "held_only_with_open_holds", ACCOUNT | {"held": 5}),
    ("user_credits", "held_only_with_open_holds", ACCOUNT | {"open_holds": 1}),
    ("user_credits", "floor_in_range", ACCOUNT | {"min_balance": TOO_MUCH}),
    ("user_credits", "floor_in_range", ACCOUNT | {"min_balance": -TOO_MUCH}),
    ("user_credits", "limits_are_positive", ACCOUNT | {"limit_per_minute": 0}),
    ("user_credits", "limits_are_positive", ACCOUNT | {"limit_per_hour": -1}),
    ("user_credits", "limits_are_positive", ACCOUNT | {"limit_per_day": 0}),
    ("user_credits", "seq_not_negative", ACCOUNT | {"seq": -1}),
    ("user_credits", "alert_in_range", ACCOUNT | {"alert_below": TOO_MUCH}),
    ("user_credits", "top_up_changes_count_up", ACCOUNT | {"top_up_changes": -1}),
    *(
        ("user_credits", "top_up_is_complete", ACCOUNT | AUTOMATIC | change)
        for change in (
            {"top_up_below": None},
            {"top_up_pack": None},
            {"top_up_per_month": None},
            {"top_up_below": -TOO_MUCH},
            {"top_up_pack": ""},
            {"top_up_pack": "p" * 65},
            {"top_up_per_month": 0},
        )
    ),
    ("credit_feed", "one_feed", FEED),
    ("credit_feed", "no_other_feed", FEED | {"id": 2}),
    ("credit_feed_advances", "one_advance_per_number", ADVANCE | {"number": 1}),
    ("credit_feed_advances", "advances_in_order", ADVANCE | {"tx": 1}),
    ("credit_feed_advances", "number_counts_from_one", ADVANCE | {"number": 0}),
    ("credit_transactions", "one_entry_per_place", PURCHASE | {"seq": 2}),
    ("credit_transactions", "one_entry_per_key", PURCHASE | {"idempotency_key": "second"}),
    ("credit_transactions", "entry_belongs_to_an_account", PURCHASE | {"user_id": STRANGER}),
    ("credit_transactions", "entry_settles_an_entry", REFUND | {"related_seq": 4}),
    ("credit_transactions", "seq_counts_from_one", PURCHASE | {"seq": 0}),
    ("credit_transactions", "type_is_known", RELEASE | {"type": "bonus", "hold_seq": None}),
    ("credit_transactions", "amount_in_range", PURCHASE | {"amount": 0, "balance_change": 0}),
    ("credit_transactions", "amount_in_range", PURCHASE | {"amount": -1, "balance_change": -1}),
    (
        "credit_transactions",
        "amount_in_range",
        PURCHASE | {"amount": TOO_MUCH, "balance_change": TOO_MUCH},
    ),
    ("credit_transactions", "amount_in_range", ADOPTED | {"amount": -1, "balance_change": -1}),
    ("credit_transactions", "changes_follow_type", PURCHASE | {"balance_change": -10}),
    ("credit_transactions", "changes_follow_type", PURCHASE | {"balance_change": 11}),
    ("credit_transactions", "changes_follow_type", PURCHASE | {"held_change": 1}),
    ("credit_transactions", "changes_follow_type", SPEND | {"balance_change": 10}),
    ("credit_transactions", "changes_follow_type", REFUND | {"balance_change": -10}),
    ("credit_transactions", "changes_follow_type", GRANT | {"balance_change": -10}),
    (
        "credit_transactions",
        "changes_follow_type",
        ADJUSTMENT | {"balance_change": -9, "requested_amount": -9},
    ),
    ("credit_transactions", "changes_follow_type", ADJUSTMENT | {"held_change": -10}),
    ("credit_transactions", "adjustment_is_as_asked", ADJUSTMENT | {"requested_amount": 10}),
    ("credit_transactions", "adjustment_is_as_asked", ADJUSTMENT | {"requested_amount": None}),
    ("credit_transactions", "adjustment_is_as_asked", ADJUSTMENT | {"description": ""}),
    ("credit_transactions", "adjustment_is_as_asked", ADJUSTMENT | {"floor": 61}),
    (
        "credit_transactions",
        "adjustment_is_as_asked",
        ADJUSTMENT | {"requested_amount": 10, "balance_change": 10, "floor": 0},
    ),
    ("credit_transactions", "adjustments_have_their_call", ADJUSTMENT | {"call": "SpendCredits"}),
    ("credit_transactions", "adjustments_have_their_call", SPEND | {"call": "AdjustCredits"}),
    ("credit_transactions", "changes_follow_type", REVERSAL | {"balance_change": 9}),
    ("credit_transactions", "changes_follow_type", REVERSAL | {"held_change": -10}),
    ("credit_transactions", "changes_follow_type", MAKE_HOLD | {"held_change": -10}),
    ("credit_transactions", "changes_follow_type", MAKE_HOLD | {"balance_change": -10}),
    ("credit_transactions", "changes_follow_type", CAPTURE | {"balance_change": 10}),
    ("credit_transactions", "changes_follow_type", CAPTURE | {"held_change": 10, "floor": 0}),
    ("credit_transactions", "changes_follow_type", RELEASE | {"held_change": 10}),
    ("credit_transactions", "changes_follow_type", RELEASE | {"balance_change": -10}),
    ("credit_transactions", "changes_follow_type", EXPIRE | {"held_change": -9}),
    ("credit_transactions", "balance_in_range", PURCHASE | {"balance_after": OVERFULL}),
    ("credit_transactions", "balance_in_range", PURCHASE | {"balance_after": -OVERFULL}),
    ("credit_transactions", "held_not_negative", PURCHASE | {"held_after": -1}),
    ("credit_transactions", "spend_keeps_the_floor", SPEND | {"floor": 61}),
    ("credit_transactions", "spend_keeps_the_floor", SPEND | {"held_after": 61}),
    ("credit_transactions", "spend_keeps_the_floor", SPEND | {"floor": None}),
    ("credit_transactions", "spend_keeps_the_floor", MAKE_HOLD | {"floor": 61}),
    ("credit_transactions", "spend_keeps_the_floor", MAKE_HOLD | {"floor": None}),
    ("credit_transactions", "capture_keeps_the_floor", CAPTURE | {"held_change": 0}),
    ("credit_transactions", "capture_keeps_the_floor", CAPTURE | {"held_change": 0, "floor": 61}),
    ("credit_transactions", "capture_keeps_the_floor", CAPTURE | {"held_change": -9}),
    ("credit_transactions", "hold_is_named", CAPTURE | {"hold_seq": None}),
    ("credit_transactions", "hold_is_named", PURCHASE | {"hold_seq": 1}),
    ("credit_transactions", "cost_is_quantity_times_unit_cost", CHARGE | {"quantity": 3}),
    ("credit_transactions", "cost_is_quantity_times_unit_cost", CHARGE | {"operation": None}),
    ("credit_transactions", "cost_is_quantity_times_unit_cost", CHARGE | {"unit_cost": None}),
    ("credit_transactions", "cost_is_quantity_times_unit_cost", CHARGE | {"price_version": None}),
    (
        "credit_transactions",
        "cost_is_quantity_times_unit_cost",
        CHARGE | {"quantity": -2, "unit_cost": -5},
    ),
    ("credit_transactions", "key_is_present", PURCHASE | {"idempotency_key": None}),
    ("credit_transactions", "key_is_present", PURCHASE | {"idempotency_key": ""}),
    ("credit_transactions", "key_is_present", PURCHASE | {"idempotency_key": "k" * 129}),
    (
        "credit_transactions",
        "payment_is_complete",
        PURCHASE | PAYMENT | {"payment_amount_minor": None},
    ),
    ("credit_transactions", "payment_is_complete", PURCHASE | PAYMENT | {"payment_currency": None}),
    ("credit_transactions", "payment_is_complete", PURCHASE | PAYMENT | {"payment_ref": None}),
    (
        "credit_transactions",
        "payment_is_complete",
        PURCHASE | PAYMENT | {"payment_amount_minor": -1},
    ),
    ("credit_refunds", "one_sum_per_spend", REFUNDED | {"spend_seq": 1}),
    ("credit_refunds", "refund_gives_back_an_entry", REFUNDED | {"spend_seq": 4}),
    ("credit_refunds", "refund_gives_back_an_entry", REFUNDED | {"user_id": STRANGER}),
    ("credit_refunds", "refunds_within_spend", REFUNDED | {"refunded": 31}),
    ("credit_refunds", "refunds_within_spend", REFUNDED | {"refunded": 0}),
    ("credit_purchases", "one_purchase_per_payment", BOUGHT | {"payment_ref": "pi_0", "seq": 3}),
    ("credit_purchases", "amount_in_range", BOUGHT | {"amount": 0}),
    ("credit_purchases", "amount_in_range", BOUGHT | {"amount": TOO_MUCH}),
    ("credit_holds", "one_hold_per_entry", HOLD | {"seq": 1}),
    ("credit_holds", "hold_belongs_to_an_account", HOLD | {"user_id": STRANGER}),
    ("credit_holds", "state_is_known", HOLD | {"state": "lost", "settled_seq": 4}),
    ("credit_holds", "amount_in_range", HOLD | {"amount": 0}),
    ("credit_holds", "amount_in_range", HOLD | {"amount": TOO_MUCH}),
    ("credit_holds", "settled_once", HOLD | {"settled_seq": 4}),
    ("credit_holds", "settled_once", HOLD | {"state": "released"}),
    ("credit_holds", "captured_when_said", CAPTURED | {"captured": 0}),
    ("credit_holds", "captured_when_said", CAPTURED | {"captured_seq": None}),
    ("credit_holds", "captured_when_said", CAPTURED | {"captured_seq": 5}),
    ("credit_holds", "captured_when_said", CAPTURED | {"state": "released"}),
    ("credit_holds", "captured_when_said", HOLD | {"captured": 1}),
    ("credit_holds", "captured_when_said", CAPTURED | {"state": "expired", "captured": 0}),
    ("credit_holds", "life_is_limited", HOLD | {"expires_at": TIME + timedelta(hours=73)}),
    *(
        (table, constraint, row | dict.fromkeys(names, time))
        for table, constraint, row, names in (
            ("user_credits", "times_can_be_shown", ACCOUNT, ["last_updated"]),
            ("user_credits", "times_can_be_shown", ACCOUNT, ["next_hold_expiry"]),
            ("user_credits", "times_can_be_shown", ACCOUNT, ["counted_at"]),
            ("credit_transactions", "time_can_be_shown", ADOPTED, ["timestamp"]),
            ("credit_holds", "times_can_be_shown", HOLD, ["created_at", "expires_at"]),
            ("credit_reversals", "time_can_be_shown", REVERSED, ["recorded_at"]),
            ("user_credits", "grant_times_can_be_shown", WITH_GRANTS, ["next_lapse"]),
            ("user_credits", "grant_times_can_be_shown", ACCOUNT, ["allowance_until"]),
            ("credit_grants", "times_can_be_shown", DATED, ["expire_time"]),
            ("credit_grants", "times_can_be_shown", DATED, ["asked_time"]),
            ("credit_grant_changes", "time_can_be_shown", GRANT_CHANGE, ["expire_after"]),
            ("credit_grant_changes", "time_can_be_shown", GRANT_CHANGE, ["lapsed_at"]),
            ("credit_allowances", "time_can_be_shown", ALLOWED_UNTIL, ["until"]),
        )
        for time in ENDLESS
    ),
    ("credit_policy_changes", "one_change_per_place", CHANGE | {"change": 1}),
    ("credit_policy_changes", "change_belongs_to_an_account", CHANGE | {"user_id": STRANGER}),
    ("credit_reversals", "one_record_per_revision", REVERSED | {"reversal_ref": "re_1"}),
    ("credit_reversals", "revision_counts_from_one", REVERSED | {"revision": 0}),
    *(
        ("credit_reversals", "money_in_range", REVERSED | {name: value})
        for name, value in (
            ("paid_minor", 0),
            ("paid_minor", TOO_MUCH),
            ("reversed_minor", -1),
            ("reversed_minor", TOO_MUCH),
        )
    ),
    ("credit_reversals", "opens_its_own_ref", REVERSED | {"opens_ref": "re_3"}),
    (
        "credit_reversals",
        "one_payment_per_reversal",
        REVERSED | {"reversal_ref": "re_1", "revision": 2, "opens_ref": "re_1"},
    ),
    ("credit_kept_keys", "one_answer_per_key", KEPT | {"key": "first", "seq": 2}),
    ("credit_kept_keys", "key_belongs_to_an_account", KEPT | {"user_id": STRANGER}),
    ("credit_kept_keys", "seq_counts_from_one", KEPT | {"seq": 0}),
    ("credit_kept_keys", "key_has_a_length", KEPT | {"key": ""}),
    ("credit_kept_keys", "key_has_a_length", KEPT | {"key": "k" * 129}),
    ("credit_kept_keys", "call_makes_no_entry", KEPT | {"call": "SpendCredits"}),
    ("user_credits", "pinned_within_held", WITH_GRANTS | {"pinned": 10}),
    ("user_credits", "pinned_within_held", WITH_GRANTS | {"pinned": -1}),
    (
        "user_credits",
        "pinned_within_grants",
        WITH_GRANTS | {"held": 11, "open_holds": 1, "pinned": 11},
    ),
    ("user_credits", "debt_only_with_grants_all_pinned", WITH_GRANTS | {"balance": 9}),
    (
        "user_credits",
        "debt_only_with_grants_all_pinned",
        WITH_GRANTS | {"balance": 9, "held": 9, "open_holds": 1, "pinned": 9},
    ),
    ("user_credits", "open_grants_have_credits", WITH_GRANTS | {"in_grants": 0}),
    ("user_credits", "open_grants_have_credits", ACCOUNT | {"open_grants": -1}),
    ("user_credits", "grants_were_made", WITH_GRANTS | {"open_grants": 2}),
    (
        "user_credits",
        "grants_were_made",
        WITH_GRANTS | {"open_grants": 0, "next_lapse": None, "grants_made": 0},
    ),
    ("user_credits", "lapse_expected_with_open_grants", WITH_GRANTS | {"open_grants": 0}),
    *(
        ("user_credits", "allowance_is_complete", ACCOUNT | ALLOWANCE | change)
        for change in (
            {"allowance_amount": None},
            {"allowance_period": None},
            {"allowance_carry_over": None},
            {"allowance_amount": -1},
            {"allowance_amount": TOO_MUCH},
            {"allowance_period": "year"},
            {"allowance_carry_over": -1},
        )
    ),
    ("credit_transactions", "changes_follow_type", LAPSE | {"balance_change": 10}),
    ("credit_transactions", "changes_follow_type", LAPSE | {"held_change": -10}),
    (
        "credit_transactions",
        "changes_follow_type",
        PURCHASE | {"type": "revocation"},
    ),
    ("credit_transactions", "changes_follow_type", ADJUSTMENT | {"amount": 9}),
    ("credit_grants", "one_grant_per_entry", DATED | {"seq": 1}),
    ("credit_grants", "grant_belongs_to_an_account", DATED | {"user_id": STRANGER}),
    ("credit_grants", "amount_in_range", SPENT_GRANT | {"amount": 0}),
    ("credit_grants", "amount_in_range", DATED | {"amount": TOO_MUCH}),
    ("credit_grants", "remaining_within_amount", DATED | {"remaining": 11}),
    ("credit_grants", "pinned_within_remaining", DATED | {"pinned": 11}),
    ("credit_grants", "pinned_within_remaining", DATED | {"pinned": -1}),
    ("credit_grants", "open_with_credits", DATED | {"remaining": 0}),
    ("credit_grants", "closed_keeps_only_what_is_pinned", DATED | {"open": False}),
    ("credit_grants", "counted_within_lapsed", SPENT_GRANT | {"lapsed": 5, "counted": 6}),
    ("credit_grants", "counted_within_lapsed", SPENT_GRANT | {"lapsed": 5, "counted": -1}),
    ("credit_grants", "priority_in_range", DATED | {"priority": -1}),
    ("credit_grants", "priority_in_range", DATED | {"priority": 101}),
    ("credit_grants", "differs_from_the_pool", DATED | {"expire_time": None}),
    ("credit_grants", "valid_for_a_time", DATED | {"valid_for_us": 0}),
    ("credit_grants", "asked_for_one_end", DATED | {"valid_for_us": 1, "asked_time": TIME}),
    ("credit_grants", "reversed_within_amount", DATED | {"reversed": 11}),
    ("credit_grants", "reversed_within_amount", DATED | {"reversed": -1}),
    ("credit_grants", "series_has_a_length", DATED | {"series": ""}),
    ("credit_grants", "series_has_a_length", DATED | {"series": "s" * 65}),
    ("credit_grant_changes", "one_grant_change_per_step", GRANT_CHANGE | {"seq": 1}),
    ("credit_grant_changes", "change_belongs_to_a_grant", GRANT_CHANGE | {"grant_seq": 2}),
    ("credit_grant_changes", "step_counts_from_one", GRANT_CHANGE | {"step": 0}),
    ("credit_grant_changes", "changed_since_it_was_made", GRANT_CHANGE | {"seq": 0}),
    (
        "credit_grant_changes",
        "pinned_within_remaining",
        PIN | {"pinned_change": 7, "pinned_after": 7},
    ),
    ("credit_grant_changes", "pinned_within_remaining", PIN | {"pinned_after": -1}),
    ("credit_grant_changes", "only_a_hold_pins", PIN | {"hold_seq": None}),
    ("credit_allowances", "one_allowance_per_user", ALLOWED_UNTIL | {"user_id": USER}),
    ("credit_relay_lease", "one_lease", LEASE),
    ("credit_relay_lease", "only_one", LEASE | {"id": 2}),
    ("credit_relay_readers", "one_place_per_reader", READER | {"reader": "webhook/known"}),
    ("credit_relay_readers", "reader_has_a_name", READER | {"reader": ""}),
    ("credit_relay_readers", "reader_has_a_name", READER | {"reader": "x" * 101}),
    ("credit_parked_events", "parked_once", PARKED | {"endpoint": "known"}),
    ("credit_parked_events", "tries_count_up", PARKED | {"tries": -1}),
    (
        "credit_parked_events",
        "dead_is_not_tried",
        PARKED | {"next_try": TIME, "dead_at": TIME},
    ),
    ("credit_alerts", "one_alert_per_number", ALERT | {"alert": 1}),
    ("credit_alerts", "alert_belongs_to_an_account", ALERT | {"user_id": STRANGER}),
    ("credit_alerts", "alert_counts_from_one", ALERT | {"alert": 0}),
    ("credit_alert_states", "one_alert_state_per_account", ALERT_STATE),
    (
        "credit_alert_states",
        "alert_state_belongs_to_an_account",
        ALERT_STATE | {"user_id": STRANGER},
    ),
    (
        "credit_alert_states",
        "level_is_known",
        ALERT_STATE | {"user_id": NEIGHBOUR, "level": "fine"},
    ),
    (
        "credit_alert_states",
        "what_waits_is_complete",
        ALERT_STATE | {"user_id": NEIGHBOUR, "waiting_floor": None},
    ),
    (
        "credit_alert_states",
        "what_waits_is_complete",
        NOTHING_WAITS | {"user_id": NEIGHBOUR, "waiting_tx": 1},
    ),
    ("credit_expiring_alerts", "one_expiring_alert_per_grant", EXPIRING),
    ("credit_expiring_alerts", "expiring_alert_is_of_a_grant", EXPIRING | {"seq": 9}),
    ("credit_top_ups", "one_request_per_number", TOP_UP | {"number": 1}),
    ("credit_top_ups", "request_belongs_to_an_account", TOP_UP | {"user_id": STRANGER}),
    ("credit_top_ups", "number_counts_from_one", TOP_UP | {"number": 0}),
    ("credit_top_ups", "one_open_top_up_per_account", TOP_UP | {"state": "open"}),
    ("credit_top_ups", "one_top_up_per_payment", TOP_UP | {"payment_ref": "pi_1"}),
    ("credit_top_ups", "state_is_known", TOP_UP | {"state": "lost"}),
    ("credit_top_ups", "success_is_a_purchase", BOUGHT_TOP_UP | {"seq": None}),
    ("credit_top_ups", "success_is_a_purchase", BOUGHT_TOP_UP | {"payment_ref": None}),
    ("credit_top_ups", "success_is_a_purchase", BOUGHT_TOP_UP | {"seq": 0}),
    ("credit_top_ups", "success_is_a_purchase", TOP_UP | {"seq": 3, "payment_ref": "pi_2"}),
    ("credit_top_ups", "times_rise", TOP_UP | {"changed_at": TIME - timedelta(seconds=1)}),
    *(
        ("credit_top_ups", constraint, TOP_UP | change)
        for constraint, change in (
            ("pack_has_a_length", {"pack": ""}),
            ("pack_has_a_length", {"pack": "p" * 65}),
            ("payment_ref_has_a_length", {"payment_ref": ""}),
            ("payment_ref_has_a_length", {"payment_ref": "p" * 256}),
            ("tries_count_up", {"tries": -1}),
            ("reason_has_a_length", {"reason": "r" * 501}),
            ("link_has_a_length", {"link": "l" * 2049}),
            ("failure_has_a_reason", {"reason": ""}),
            ("failure_has_a_reason", {"reason": "", "tries": 0, "state": "not_needed"}),
        )
    ),
    ("credit_top_up_counts", "one_row_per_account", TOP_UP_COUNTS | {"user_id": USER}),
    ("credit_top_up_counts", "counts_belong_to_an_account", TOP_UP_COUNTS | {"user_id": STRANGER}),
    ("credit_top_up_counts", "requests_count_up", TOP_UP_COUNTS | {"requests": -1}),
    ("credit_top_up_counts", "failures_count_up", TOP_UP_COUNTS | {"failures": -1}),
    ("credit_top_up_counts", "reason_is_known", TOP_UP_COUNTS | {"off": "whim"}),
    ("credit_top_up_counts", "charges_are_of_a_month", TOP_UP_COUNTS | {"charges": 1}),
    ("credit_top_up_counts", "charges_are_of_a_month", TOP_UP_COUNTS | {"month": TIME}),
    (
        "credit_top_up_changes",
        "one_top_up_change_per_place",
        TOP_UP_CHANGE | {"change": 1},
    ),
    (
        "credit_top_up_changes",
        "change_belongs_to_an_account",
        TOP_UP_CHANGE | {"user_id": STRANGER},
    ),
    ("credit_top_up_changes", "change_counts_from_one", TOP_UP_CHANGE | {"change": 0}),
    ("credit_top_up_changes", "kind_is_known", TOP_UP_CHANGE | {"kind": "lost"}),
    ("credit_top_up_changes", "change_is_of_a_request", TOP_UP_CHANGE | {"pack": None}),
    ("credit_top_up_changes", "change_is_of_a_request", TURNED_ON | {"number": 1}),
]


def insertion(table, row):
    places = ", ".join(f"${number}" for number in range(1, len(row) + 1))
    return f"INSERT INTO {table} ({', '.join(row)}) VALUES ({places})", *row.values()


@pytest.fixture
async def connection(database):
    """The owner's, on a book with two accounts, two entries and a row in every other table."""
    connection = await database.connect()
    await connection.execute(
        "INSERT INTO auth.users (id) VALUES ($1), ($2), ($3)", USER, STRANGER, NEIGHBOUR
    )
    hundred = {"seq": 1, "idempotency_key": "first", "amount": 100, "balance_change": 100}
    thirty = {"seq": 2, "idempotency_key": "second", "amount": 30, "balance_change": -30}
    for table, row in (
        ("user_credits", ACCOUNT | {"user_id": USER, "balance": 70, "seq": 2}),
        ("user_credits", ACCOUNT | {"user_id": NEIGHBOUR}),
        ("credit_transactions", PURCHASE | hundred | {"balance_after": 100}),
        ("credit_transactions", SPEND | thirty | {"balance_after": 70}),
        ("credit_refunds", REFUNDED | {"spend_seq": 1}),
        ("credit_purchases", BOUGHT | {"payment_ref": "pi_0"}),
        ("credit_holds", HOLD | {"seq": 1}),
        ("credit_policy_changes", CHANGE | {"change": 1}),
        ("credit_reversals", REVERSED | {"reversal_ref": "re_1", "opens_ref": "re_1"}),
        ("credit_kept_keys", KEPT | {"key": "first"}),
        ("credit_grants", DATED | {"seq": 1}),
        ("credit_grant_changes", GRANT_CHANGE | {"seq": 1}),
        ("credit_allowances", ALLOWED_UNTIL | {"user_id": USER}),
        ("credit_relay_readers", READER | {"reader": "webhook/known"}),
        ("credit_parked_events", PARKED | {"endpoint": "known"}),
        ("credit_alerts", ALERT | {"alert": 1}),
        ("credit_alert_states", ALERT_STATE),
        ("credit_expiring_alerts", EXPIRING),
        ("credit_feed_advances", ADVANCE | {"number": 1, "tx": 1}),
        ("credit_top_ups", OPEN_TOP_UP),
        ("credit_top_up_counts", TOP_UP_COUNTS | {"user_id": USER}),
        ("credit_top_up_changes", TOP_UP_CHANGE | {"change": 1}),
    ):
        await connection.execute(*insertion(table, row))
    yield connection
    await connection.close()


@asynccontextmanager
async def rolled_back(connection):
    transaction = connection.transaction()
    await transaction.start()
    try:
        yield
    finally:
        await transaction.rollback()


async def violated(connection, statement, *values):
    """The table and the constraint that a statement meets; None where it is taken."""
    async with rolled_back(connection):
        try:
            await connection.execute(statement, *values)
        except asyncpg.IntegrityConstraintViolationError as violation:
            return violation.table_name, violation.constraint_name
    return None


async def test_a_row_within_the_rules_is_taken(connection):
    for table, row in ALLOWED:
        assert await violated(connection, *insertion(table, row)) is None, row


async def test_a_row_against_a_rule_meets_that_constraint_and_no_other(connection):
    for table, constraint, row in REFUSED:
        met = await violated(connection, *insertion(table, row))
        assert met == (table, constraint), row
        async with rolled_back(connection):
            await connection.execute(f"ALTER TABLE {table} DROP CONSTRAINT {constraint} CASCADE")
            assert await violated(connection, *insertion(table, row)) is None, row


UPDATES = [
    ("balance_in_range", "UPDATE user_credits SET balance = 1000000000000001"),
    ("held_not_negative", "UPDATE user_credits SET held = -1, open_holds = 1"),
    ("seq_not_negative", "UPDATE user_credits SET seq = -1"),
    ("refunds_within_spend", "UPDATE credit_refunds SET refunded = refunded + 1"),
    ("account_belongs_to_a_user", "UPDATE auth.users SET id = gen_random_uuid()"),
]


async def test_an_update_meets_the_constraints_too(connection):
    for constraint, statement in UPDATES:
        _, met = await violated(connection, statement)
        assert met == constraint


async def test_every_constraint_of_the_book_has_a_row_against_it(connection):
    rows = await connection.fetch(
        "SELECT conrelid::regclass::text, conname::text FROM pg_constraint"
        " INNER JOIN pg_class ON pg_class.oid = conrelid"
        " WHERE relnamespace = 'public'::regnamespace AND relname <> 'credit_migrations'"
        " AND contype <> 'n'"
    )
    assert {tuple(row) for row in rows} == {(table, name) for table, name, _ in REFUSED}


async def test_every_unique_index_is_a_constraint(connection):
    rows = await connection.fetch(
        "SELECT indexrelid::regclass::text FROM pg_index"
        " INNER JOIN pg_class ON pg_class.oid = indrelid"
        " WHERE relnamespace = 'public'::regnamespace AND indisunique"
        " AND NOT EXISTS (SELECT FROM pg_constraint WHERE conindid = indexrelid)"
    )
    assert rows == []


NEEDED = [
    (table, column)
    for table, row in (
        ("user_credits", ACCOUNT),
        ("credit_transactions", {**PURCHASE, "idempotency_key": None}),
        ("credit_refunds", REFUNDED),
        ("credit_purchases", BOUGHT),
        ("credit_holds", HOLD),
        ("credit_policy_changes", CHANGE),
        ("credit_reversals", REVERSED),
        ("credit_kept_keys", KEPT),
        ("credit_grants", DATED | {"expire_time": None}),
        ("credit_grant_changes", GRANT_CHANGE | {"expire_after": None}),
        ("credit_allowances", ALLOWED_UNTIL),
        ("credit_relay_lease", LEASE),
        ("credit_relay_readers", READER),
        ("credit_parked_events", PARKED),
        ("credit_alerts", ALERT),
        ("credit_alert_states", NOTHING_WAITS),
        ("credit_expiring_alerts", EXPIRING),
        ("credit_feed", FEED),
        ("credit_feed_advances", ADVANCE),
        ("credit_top_ups", TOP_UP),
        ("credit_top_up_counts", TOP_UP_COUNTS),
        ("credit_top_up_changes", TURNED_ON),
    )
    for column, value in row.items()
    if value is not None
]


async def test_the_columns_that_every_row_needs_are_these(connection):
    rows = await connection.fetch(
        "SELECT attrelid::regclass::text, attname::text FROM pg_attribute"
        " INNER JOIN pg_class ON pg_class.oid = attrelid"
        " WHERE relnamespace = 'public'::regnamespace AND relkind = 'r' AND attnum > 0"
        " AND relname <> 'credit_migrations' AND attnotnull AND attgenerated = ''"
    )
    assert {tuple(row) for row in rows} == set(NEEDED)
