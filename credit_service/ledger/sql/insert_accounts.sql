-- Opens accounts with their first entries. Two batches that open the same account at once collide
-- here, and the later one starts over with the row to lock.
INSERT INTO user_credits (
    user_id, balance, held, seq, last_updated, open_holds, next_hold_expiry, frozen, min_balance,
    limit_per_minute, limit_per_hour, limit_per_day, allowance_amount, allowance_period,
    allowance_carry_over, alert_below, top_up_below, top_up_pack, top_up_per_month, counted_at,
    spent_this_minute, spent_this_hour, spent_this_day, policy_changes, top_up_changes, in_grants,
    pinned, open_grants, grants_made, next_lapse, allowance_until, tx
)
SELECT
    opened.user_id,
    opened.balance,
    opened.held,
    opened.seq,
    opened.last_updated,
    opened.open_holds,
    opened.next_hold_expiry,
    opened.frozen,
    opened.min_balance,
    opened.limit_per_minute,
    opened.limit_per_hour,
    opened.limit_per_day,
    opened.allowance_amount,
    opened.allowance_period,
    opened.allowance_carry_over,
    opened.alert_below,
    opened.top_up_below,
    opened.top_up_pack,
    opened.top_up_per_month,
    opened.counted_at,
    opened.spent_this_minute,
    opened.spent_this_hour,
    opened.spent_this_day,
    opened.policy_changes,
    opened.top_up_changes,
    opened.in_grants,
    opened.pinned,
    opened.open_grants,
    opened.grants_made,
    opened.next_lapse,
    opened.allowance_until,
    opened.tx
FROM
    unnest(
        $1::uuid[], $2::bigint[], $3::bigint[], $4::bigint[], $5::timestamptz[], $6::bigint[],
        $7::timestamptz[], $8::boolean[], $9::bigint[], $10::bigint[], $11::bigint[],
        $12::bigint[], $13::bigint[], $14::text[], $15::bigint[], $16::bigint[], $17::bigint[],
        $18::text[], $19::bigint[], $20::timestamptz[], $21::bigint[], $22::bigint[],
        $23::bigint[], $24::bigint[], $25::bigint[], $26::bigint[], $27::bigint[], $28::bigint[],
        $29::bigint[], $30::timestamptz[], $31::timestamptz[], $32::bigint[]
    ) AS opened (
        user_id, balance, held, seq, last_updated, open_holds, next_hold_expiry, frozen,
        min_balance, limit_per_minute, limit_per_hour, limit_per_day, allowance_amount,
        allowance_period, allowance_carry_over, alert_below, top_up_below, top_up_pack,
        top_up_per_month, counted_at, spent_this_minute, spent_this_hour, spent_this_day,
        policy_changes, top_up_changes, in_grants, pinned, open_grants, grants_made, next_lapse,
        allowance_until, tx
    )
ORDER BY opened.user_id
ON CONFLICT DO NOTHING
RETURNING user_id
