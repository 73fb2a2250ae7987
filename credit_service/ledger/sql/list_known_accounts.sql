-- Reads the accounts of those users who exist, and how much is held by holds that are due; the
-- columns of an account that was never opened are null. The time is that of the transaction's
-- start, as in get_account.
SELECT
    known.id AS user_id,
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
    account.due
FROM credit_users($1::uuid[]) AS known (id)
LEFT JOIN ( -- noqa: ST05
    SELECT
        opened.*,
        coalesce(due.amount, 0) AS due
    FROM user_credits AS opened
    LEFT JOIN LATERAL ( -- noqa: ST05
        SELECT
            hold.user_id,
            sum(hold.amount)::bigint AS amount
        FROM credit_holds AS hold
        WHERE
            hold.user_id = opened.user_id
            AND hold.state = 'held'
            AND hold.expires_at <= now()
            AND opened.next_hold_expiry <= now()
        GROUP BY hold.user_id
    ) AS due ON opened.user_id = due.user_id
    WHERE opened.user_id = any($1::uuid[])
) AS account ON known.id = account.user_id
