-- Adds up what lapsed, of one user or all, per day of UTC. What lapsed at midnight is of the day
-- that ended, so the instant before it counts.
SELECT
    to_char((lapsed_at - interval '1 microsecond') AT TIME ZONE 'UTC', 'YYYY-MM-DD') AS day,
    -sum(remaining_change) AS lapsed
FROM credit_grant_changes
WHERE
    lapsed_at > $1::timestamptz
    AND lapsed_at <= $2::timestamptz
    AND ($3::uuid IS NULL OR user_id = $3::uuid)
GROUP BY 1
