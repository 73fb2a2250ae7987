-- Reads the time, an account, and what is held by holds whose time has passed; the account's
-- columns are null where there is none.
SELECT
    clock.now,
    account.user_id,
    account.balance,
    account.held,
    account.seq,
    account.last_updated,
    account.open_holds,
    account.next_hold_expiry,
    account.frozen,
    account.min_balance,
    account.limit_per_minute,
    account.limit_per_hour,
    account.limit_per_day,
    account.counted_at,
    account.spent_this_minute,
    account.spent_this_hour,
    account.spent_this_day,
    account.policy_changes,
    CASE
        WHEN account.next_hold_expiry <= clock.now
            THEN (
                SELECT coalesce(sum(due.amount), 0)::bigint
                FROM credit_holds AS due
                WHERE
                    due.user_id = account.user_id
                    AND due.state = 'held'
                    AND due.expires_at <= clock.now
            )
        ELSE 0
    END AS due
FROM (SELECT clock_timestamp() AS now) AS clock
LEFT JOIN user_credits AS account ON account.user_id = $1::uuid
