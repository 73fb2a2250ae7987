-- Reads those of the accounts that differ from what was seen of them, and how much is held by holds
-- that are due. The time is that of the transaction's start, as in get_account. The time of the
-- last change is compared too, because the entries of a user who was deleted and created again
-- count from one.
SELECT
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
FROM
    unnest($1::uuid[], $2::bigint[], $3::bigint[], $4::timestamptz[])
        AS seen (user_id, seq, policy_changes, last_updated)
INNER JOIN user_credits AS account ON seen.user_id = account.user_id
LEFT JOIN LATERAL (
    SELECT
        hold.user_id,
        sum(hold.amount)::bigint AS amount
    FROM credit_holds AS hold
    WHERE
        hold.user_id = account.user_id
        -- distributed: AND hold.user_id = any($1::uuid[])
        AND hold.state = 'held'
        AND hold.expires_at <= now()
        AND account.next_hold_expiry <= now()
    GROUP BY hold.user_id
) AS due ON account.user_id = due.user_id
WHERE
    -- distributed: (
    account.seq <> seen.seq
    OR account.policy_changes <> seen.policy_changes
    OR account.last_updated <> seen.last_updated
-- distributed: ) AND account.user_id = any($1::uuid[])
