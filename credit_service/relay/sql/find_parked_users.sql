-- Which of the users have events that are parked for an endpoint and not dead.
SELECT wanted.user_id
FROM unnest($2::uuid[]) AS wanted (user_id)
WHERE
    EXISTS (
        SELECT 1 FROM credit_parked_events AS parked
        WHERE
            parked.endpoint = $1 AND parked.user_id = wanted.user_id
            AND parked.dead_at IS NULL
    )
