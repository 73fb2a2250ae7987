-- Locks the accounts of a batch, in the order of their users so that no two batches wait for each
-- other in a circle. NO KEY: entries of the same user may be inserted against it.
SELECT
    user_id,
    balance,
    held,
    seq,
    last_updated,
    open_holds,
    next_hold_expiry,
    frozen,
    min_balance,
    limit_per_minute,
    limit_per_hour,
    limit_per_day,
    allowance_amount,
    allowance_period,
    allowance_carry_over,
    alert_below,
    top_up_below,
    top_up_pack,
    top_up_per_month,
    counted_at,
    spent_this_minute,
    spent_this_hour,
    spent_this_day,
    policy_changes,
    top_up_changes,
    in_grants,
    pinned,
    open_grants,
    grants_made,
    next_lapse,
    allowance_until,
    tx
FROM user_credits
WHERE user_id = ANY($1::uuid[])
ORDER BY user_id
FOR NO KEY UPDATE
