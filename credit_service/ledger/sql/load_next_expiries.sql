-- Loads when the next open hold that is not yet due ends, for each of these users.
SELECT
    asked.user_id,
    later.expires_at
FROM unnest($1::uuid[]) AS asked (user_id) -- distributed: FROM (
-- distributed:     SELECT account.user_id FROM user_credits AS account
-- distributed:     WHERE account.user_id = any($1::uuid[])
-- distributed:     ORDER BY array_position($1::uuid[], account.user_id)
-- distributed: ) AS asked
CROSS JOIN
    LATERAL ( -- noqa: ST05
        SELECT hold.expires_at
        FROM credit_holds AS hold
        WHERE
            hold.user_id = asked.user_id
            -- distributed: AND hold.user_id = any($1::uuid[])
            AND hold.state = 'held'
            AND hold.expires_at > $2::timestamptz
        ORDER BY hold.expires_at
        LIMIT 1
    ) AS later
