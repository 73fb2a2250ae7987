-- Makes the first event that is not dead due, for each of these users.
WITH
earliest AS (
    SELECT
        wanted.user_id,
        found.tx,
        found.kind,
        found.number
    FROM unnest($2::uuid[]) AS wanted (user_id)
    CROSS JOIN
        LATERAL ( -- noqa: ST05
            SELECT
                live.tx,
                live.kind,
                live.number,
                live.next_try
            FROM credit_parked_events AS live
            WHERE
                live.endpoint = $1 AND live.user_id = wanted.user_id
                AND live.dead_at IS NULL
            ORDER BY live.tx, live.kind, live.number
            LIMIT 1
        ) AS found
    WHERE found.next_try IS NULL
)

UPDATE credit_parked_events AS parked
SET next_try = clock_timestamp()
FROM earliest
WHERE
    parked.endpoint = $1 AND parked.user_id = earliest.user_id
    AND (parked.tx, parked.kind, parked.number)
    = (earliest.tx, earliest.kind, earliest.number)
