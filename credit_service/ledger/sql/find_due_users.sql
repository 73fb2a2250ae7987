-- Finds users with holds whose time has passed and is not recorded yet, the longest due first, and
-- how many such holds each has. It looks at a bounded number of holds, and at none of the users
-- that are left out, so that neither many holds nor one user's hide the others.
SELECT
    due.user_id,
    count(*) AS holds
FROM (
    SELECT
        hold.user_id,
        hold.expires_at
    FROM credit_holds AS hold
    WHERE
        hold.state = 'held'
        -- A subquery, because the planner compares an index with a time only if it is fixed.
        AND hold.expires_at <= (SELECT clock_timestamp())
        AND hold.user_id <> all($2::uuid[])
    ORDER BY hold.expires_at
    LIMIT $1::bigint
) AS due
GROUP BY due.user_id
ORDER BY min(due.expires_at)
