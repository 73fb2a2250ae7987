-- The first event of a user that is parked and not dead.
SELECT
    tx,
    user_id,
    kind,
    number,
    tries,
    extract(EPOCH FROM clock_timestamp() - parked_at)::float8 AS age_seconds
FROM credit_parked_events
WHERE endpoint = $1 AND user_id = $2 AND dead_at IS NULL
ORDER BY tx, kind, number
LIMIT 1
