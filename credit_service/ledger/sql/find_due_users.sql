-- Finds users with holds or grants whose time has passed and is not recorded yet, the longest due
-- first, and how many of these each has. It looks at a bounded number of each, and at none of the
-- users that are left out, so that neither many of them nor one user's hide the others.
SELECT
    due.user_id,
    count(*) AS due
FROM (
    (
        SELECT
            hold.user_id,
            hold.expires_at AS time
        FROM credit_holds AS hold
        WHERE
            hold.state = 'held'
            -- A subquery, because the planner compares an index with a time only if it is fixed.
            AND hold.expires_at <= (SELECT clock_timestamp())
            AND hold.user_id <> all($2::uuid[])
        ORDER BY hold.expires_at
        LIMIT $1::bigint
    )
    UNION ALL
    (
        SELECT
            granted.user_id,
            granted.expire_time AS time
        FROM credit_grants AS granted
        WHERE
            granted.open
            AND granted.expire_time <= (SELECT clock_timestamp())
            AND granted.user_id <> all($2::uuid[])
        ORDER BY granted.expire_time
        LIMIT $1::bigint
    )
) AS due
GROUP BY due.user_id
ORDER BY min(due.time)
