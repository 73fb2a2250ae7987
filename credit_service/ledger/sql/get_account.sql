-- Reads the time, an account, and how much is held by holds that are due; the account's columns are
-- null if there is none. The time is that of the transaction's start, which is never later than the
-- rows that are read: a hold that is due by a later time may have been captured since.
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
    account.allowance_amount,
    account.allowance_period,
    account.allowance_carry_over,
    account.alert_below,
    account.top_up_below,
    account.top_up_pack,
    account.top_up_per_month,
    account.counted_at,
    account.spent_this_minute,
    account.spent_this_hour,
    account.spent_this_day,
    account.policy_changes,
    account.top_up_changes,
    account.in_grants,
    account.pinned,
    account.open_grants,
    account.grants_made,
    account.next_lapse,
    account.allowance_until,
    account.tx,
    coalesce(due.amount, 0) AS due
FROM (SELECT now() AS now) AS clock
LEFT JOIN user_credits AS account ON account.user_id = $1::uuid
LEFT JOIN LATERAL (
    SELECT
        hold.user_id,
        sum(hold.amount)::bigint AS amount
    FROM credit_holds AS hold
    WHERE
        hold.user_id = account.user_id
        AND hold.state = 'held'
        AND hold.expires_at <= now()
        AND account.next_hold_expiry <= now()
    GROUP BY hold.user_id
) AS due ON account.user_id = due.user_id
