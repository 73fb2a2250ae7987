-- Reads accounts as they are recorded, and the time, which is that of the transaction's begin, as
-- in get_account.
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
    counted_at,
    spent_this_minute,
    spent_this_hour,
    spent_this_day,
    policy_changes,
    in_grants,
    pinned,
    open_grants,
    grants_made,
    next_lapse,
    allowance_until,
    now() AS now
FROM user_credits
WHERE user_id = any($1::uuid[])
