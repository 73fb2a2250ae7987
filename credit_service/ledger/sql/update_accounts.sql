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
    counted_at = changed.counted_at,
    spent_this_minute = changed.spent_this_minute,
    spent_this_hour = changed.spent_this_hour,
    spent_this_day = changed.spent_this_day,
    policy_changes = changed.policy_changes
FROM
    unnest(
        $1::uuid[], $2::bigint[], $3::bigint[], $4::bigint[], $5::timestamptz[], $6::bigint[],
        $7::timestamptz[], $8::boolean[], $9::bigint[], $10::bigint[], $11::bigint[],
        $12::bigint[], $13::timestamptz[], $14::bigint[], $15::bigint[], $16::bigint[],
        $17::bigint[], $18::bigint[]
    ) AS changed (
        user_id, balance, held, seq, last_updated, open_holds, next_hold_expiry, frozen,
        min_balance, limit_per_minute, limit_per_hour, limit_per_day, counted_at,
        spent_this_minute, spent_this_hour, spent_this_day, policy_changes, old_seq
    )
WHERE
    account.user_id = changed.user_id
    AND account.seq = changed.old_seq
