-- How many events of an endpoint are parked and not dead, and how many are dead, up to a number.
SELECT
    (
        SELECT count(*) FROM (
            SELECT live.user_id FROM credit_parked_events AS live
            WHERE live.endpoint = $1 AND live.dead_at IS NULL
            ORDER BY live.user_id
            LIMIT $2
        ) AS lives
    ) AS parked,
    (
        SELECT count(*) FROM (
            SELECT gone.user_id FROM credit_parked_events AS gone
            WHERE gone.endpoint = $1 AND gone.dead_at IS NOT NULL
            ORDER BY gone.dead_at
            LIMIT $2
        ) AS gones
    ) AS dead
