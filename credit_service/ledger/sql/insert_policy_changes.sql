-- Records changes of policies.
INSERT INTO credit_policy_changes (
    user_id, change, changed_at, caller, frozen, min_balance, limit_per_minute, limit_per_hour,
    limit_per_day, allowance_amount, allowance_period, allowance_carry_over, alert_below,
    top_up_below, top_up_pack, top_up_per_month, tx
)
SELECT
    made.user_id, -- distributed: account.user_id,
    made.change,
    made.changed_at,
    made.caller,
    made.frozen,
    made.min_balance,
    made.limit_per_minute,
    made.limit_per_hour,
    made.limit_per_day,
    made.allowance_amount,
    made.allowance_period,
    made.allowance_carry_over,
    made.alert_below,
    made.top_up_below,
    made.top_up_pack,
    made.top_up_per_month,
    made.tx
FROM
    unnest(
        $1::uuid[], $2::bigint[], $3::timestamptz[], $4::text[], $5::boolean[], $6::bigint[],
        $7::bigint[], $8::bigint[], $9::bigint[], $10::bigint[], $11::text[], $12::bigint[],
        $13::bigint[], $14::bigint[], $15::text[], $16::bigint[], $17::bigint[]
    ) AS made (
        user_id, change, changed_at, caller, frozen, min_balance, limit_per_minute,
        limit_per_hour, limit_per_day, allowance_amount, allowance_period, allowance_carry_over,
        alert_below, top_up_below, top_up_pack, top_up_per_month, tx
    )
-- distributed: INNER JOIN user_credits AS account ON made.user_id = account.user_id
-- distributed: WHERE account.user_id = any($1::uuid[])
