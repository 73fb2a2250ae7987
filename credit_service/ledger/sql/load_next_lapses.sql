-- Loads when the next open grant that is not yet due lapses, for each of these users.
SELECT
    asked.user_id,
    later.expire_time
FROM unnest($1::uuid[]) AS asked (user_id) -- distributed: FROM (
-- distributed:     SELECT account.user_id FROM user_credits AS account
-- distributed:     WHERE account.user_id = any($1::uuid[])
-- distributed:     ORDER BY array_position($1::uuid[], account.user_id)
-- distributed: ) AS asked
CROSS JOIN
    LATERAL ( -- noqa: ST05
        SELECT granted.expire_time
        FROM credit_grants AS granted
        WHERE
            granted.user_id = asked.user_id
            -- distributed: AND granted.user_id = any($1::uuid[])
            AND granted.open
            AND granted.expire_time > $2::timestamptz
        ORDER BY granted.expire_time
        LIMIT 1
    ) AS later
