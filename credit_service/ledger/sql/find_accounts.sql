-- Finds accounts that pass the filters, in the order of their users, from one of them on, and how
-- much is held by holds that are due. Accounts of which something of grants is due pass the filters
-- on amounts unseen, because only the rules know what is left of them. It looks at a bounded number
-- of accounts: `last_seen` is the last of them if that bound cut the search short. The columns of
-- the account are null in the one row of a page without accounts. The time is that of the
-- transaction's start, as in get_account.
WITH found AS (
    SELECT looked.*
    FROM (
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
            CASE
                WHEN account.next_hold_expiry <= now()
                    THEN (
                        SELECT coalesce(sum(due.amount), 0)::bigint
                        FROM credit_holds AS due
                        WHERE
                            due.user_id = account.user_id
                            AND due.state = 'held'
                            AND due.expires_at <= now()
                    )
                ELSE 0
            END AS due,
            coalesce(
                account.next_lapse <= now()
                OR (account.pinned > 0 AND account.next_hold_expiry <= now()),
                FALSE
            ) AS grants_due
        FROM user_credits AS account
        WHERE account.user_id >= $1::uuid
        ORDER BY account.user_id
        LIMIT $7::bigint
    ) AS looked
    WHERE
        (NOT $2::boolean OR looked.balance < 0 OR looked.grants_due)
        AND ($3::boolean IS NULL OR looked.frozen = $3::boolean)
        AND (
            $4::bigint IS NULL
            OR looked.grants_due
            OR looked.balance - looked.held + looked.due < $4::bigint
        )
        AND ($5::timestamptz IS NULL OR looked.last_updated >= $5::timestamptz)
    ORDER BY looked.user_id
    LIMIT $6::bigint
)

SELECT
    found.*,
    clock.now,
    CASE
        WHEN (SELECT count(counted.user_id) FROM found AS counted) < $6::bigint
            THEN (
                SELECT account.user_id
                FROM user_credits AS account
                WHERE account.user_id >= $1::uuid
                ORDER BY account.user_id
                LIMIT 1 OFFSET ($7::bigint - 1)
            )
    END AS last_seen
FROM (SELECT now() AS now) AS clock
LEFT JOIN found ON TRUE
ORDER BY found.user_id
