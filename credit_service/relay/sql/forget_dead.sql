-- Forgets some events that have been dead for longer than a number of milliseconds.
DELETE FROM credit_parked_events
WHERE
    (endpoint, user_id, tx, kind, number) IN (
        SELECT
            old.endpoint,
            old.user_id,
            old.tx,
            old.kind,
            old.number
        FROM credit_parked_events AS old
        WHERE
            old.endpoint = $1
            AND old.dead_at < clock_timestamp() - $2::bigint * interval '1 millisecond'
        ORDER BY old.dead_at
        LIMIT 1000
    )
