-- Writes each account once, as the batch leaves it. The lock is the optimisation, the guard on seq
-- is the safety: the caller asserts the count of rows.
UPDATE user_credits AS account
SET
    balance = changed.balance,
    held = changed.held,
    seq = changed.seq,
    last_updated = changed.last_updated,
    open_holds = changed.open_holds,
    next_hold_expiry = changed.next_hold_expiry,
    frozen = changed.frozen,
    min_balance = changed.min_balance,
    limit_per_minute = changed.limit_per_minute,
    limit_per_hour = changed.limit_per_hour,
    limit_per_day = changed.limit_per_day,
    allowance_amount = changed.allowance_amount,
    allowance_period = changed.allowance_period,
    allowance_carry_over = changed.allowance_carry_over,
    alert_below = changed.alert_below,
    top_up_below = changed.top_up_below,
    top_up_pack = changed.top_up_pack,
    top_up_per_month = changed.top_up_per_month,
    counted_at = changed.counted_at,
    spent_this_minute = changed.spent_this_minute,
    spent_this_hour = changed.spent_this_hour,
    spent_this_day = changed.spent_this_day,
    policy_changes = changed.policy_changes,
    top_up_changes = changed.top_up_changes,
    in_grants = changed.in_grants,
    pinned = changed.pinned,
    open_grants = changed.open_grants,
    grants_made = changed.grants_made,
    next_lapse = changed.next_lapse,
    allowance_until = changed.allowance_until,
    tx = changed.tx
FROM
    unnest(
        $1::uuid[], $2::bigint[], $3::bigint[], $4::bigint[], $5::timestamptz[], $6::bigint[],
        $7::timestamptz[], $8::boolean[], $9::bigint[], $10::bigint[], $11::bigint[],
        $12::bigint[], $13::bigint[], $14::text[], $15::bigint[], $16::bigint[], $17::bigint[],
        $18::text[], $19::bigint[], $20::timestamptz[], $21::bigint[], $22::bigint[],
        $23::bigint[], $24::bigint[], $25::bigint[], $26::bigint[], $27::bigint[], $28::bigint[],
        $29::bigint[], $30::timestamptz[], $31::timestamptz[], $32::bigint[], $33::bigint[]
    ) AS changed (
        user_id, balance, held, seq, last_updated, open_holds, next_hold_expiry, frozen,
        min_balance, limit_per_minute, limit_per_hour, limit_per_day, allowance_amount,
        allowance_period, allowance_carry_over, alert_below, top_up_below, top_up_pack,
        top_up_per_month, counted_at, spent_this_minute, spent_this_hour, spent_this_day,
        policy_changes, top_up_changes, in_grants, pinned, open_grants, grants_made, next_lapse,
        allowance_until, tx, old_seq
    )
WHERE
    account.user_id = changed.user_id
    AND account.seq = changed.old_seq
    -- distributed: AND account.user_id = any($1::uuid[])
