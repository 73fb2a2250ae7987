-- Loads open grants whose time has passed: user by user in the order asked for, of each the soonest
-- first, and no more than a batch takes. As in load_due_holds, the nested loop ends with the last
-- one that is wanted.
SELECT
    due.user_id,
    due.seq,
    due.amount,
    due.remaining,
    due.pinned,
    due.priority,
    due.expire_time,
    due.asked_time,
    due.valid_for_us,
    due.paid,
    due.series,
    due.revoked,
    due.open,
    due.lapsed,
    due.counted,
    due.reversed
FROM unnest($1::uuid[]) AS asked (user_id) -- distributed: FROM (
-- distributed:     SELECT account.user_id FROM user_credits AS account
-- distributed:     WHERE account.user_id = any($1::uuid[])
-- distributed:     ORDER BY array_position($1::uuid[], account.user_id)
-- distributed: ) AS asked
CROSS JOIN
    LATERAL ( -- noqa: ST05
        SELECT
            granted.user_id,
            granted.seq,
            granted.amount,
            granted.remaining,
            granted.pinned,
            granted.priority,
            granted.expire_time,
            granted.asked_time,
            granted.valid_for_us,
            granted.paid,
            granted.series,
            granted.revoked,
            granted.open,
            granted.lapsed,
            granted.counted,
            granted.reversed
        FROM credit_grants AS granted
        WHERE
            granted.user_id = asked.user_id
            -- distributed: AND granted.user_id = any($1::uuid[])
            AND granted.open
            AND granted.expire_time <= $2::timestamptz
        ORDER BY granted.expire_time, granted.seq
        LIMIT $3::bigint
    ) AS due
LIMIT $3::bigint -- noqa: AM09
