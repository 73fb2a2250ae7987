-- Loads when the next open grant of each of these users lapses whose time has not passed yet.
SELECT
    asked.user_id,
    later.expire_time
FROM unnest($1::uuid[]) AS asked (user_id)
CROSS JOIN
    LATERAL ( -- noqa: ST05
        SELECT granted.expire_time
        FROM credit_grants AS granted
        WHERE
            granted.user_id = asked.user_id
            AND granted.open
            AND granted.expire_time > $2::timestamptz
        ORDER BY granted.expire_time
        LIMIT 1
    ) AS later
